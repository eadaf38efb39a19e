"""The peer's side of `duel.py`, in sentence-transformers and torch alone: the same rounds on the same job."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rounds
import sentence_transformers
import torch
import torch.nn.functional as F
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.losses import MultipleNegativesRankingLoss
from transformers import AutoModelForSequenceClassification, AutoTokenizer

Answer = dict[str, Any]


def encode(job: dict[str, Any]) -> Callable[[], Answer]:
    """Texts to vectors, by sentence-transformers' default backend or by ONNX Runtime."""
    model = SentenceTransformer(f"{job['models']}/dual", backend=job["backend"], device="cpu")
    texts = [" ".join(passage) for passage in job["passages"]]
    return lambda: {"result": model.encode(texts, batch_size=job["batch_size"])[0].tolist()}


def rerank(job: dict[str, Any]) -> Callable[[], Answer]:
    """Pairs to scores."""
    model = CrossEncoder(f"{job['models']}/cross", max_length=job["lengths"]["pair"], device="cpu")
    pairs = [[query, f"{title} {text}"] for query, title, text in job["pairs"]]
    size, score = job["batch_size"], torch.nn.Identity()
    return lambda: {"result": model.predict(pairs, batch_size=size, activation_fn=score).tolist()}


def latency(job: dict[str, Any]) -> Callable[[], Answer]:
    """One query after the other to a vector."""
    model = SentenceTransformer(f"{job['models']}/dual", backend=job["backend"], device="cpu")

    def run() -> Answer:
        times, vector = [], None
        for query in job["queries"]:
            begun = time.perf_counter()
            vector = model.encode([query])
            times.append(time.perf_counter() - begun)
        return {"times": times, "result": vector[0].tolist()}

    return run


def training(job: dict[str, Any]) -> Callable[[], Answer]:
    """Steps of a plain torch loop: AdamW, gradients clipped to a norm of 1, as ours."""
    models, loss = {"train": in_batch, "lists": lists, "joint": joint}[job["task"]](job)
    for model in models:
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout_prob"):  # of attention
                module.dropout_prob = 0.0
    parameters = [parameter for model in models for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=job["learning_rate"], weight_decay=0.01)
    place = 0

    def step() -> float:
        nonlocal place
        groups = job["groups"]
        batch = [groups[(place + i) % len(groups)] for i in range(job["batch_size"])]
        place += job["batch_size"]
        value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    return lambda: {"result": [step() for _ in range(job["steps_a_round"])]}


def in_batch(job: dict[str, Any]) -> tuple[list[torch.nn.Module], Callable]:
    """sentence-transformers' MultipleNegativesRankingLoss."""
    model = SentenceTransformer(f"{job['models']}/dual", device="cpu")
    contrast, lengths = MultipleNegativesRankingLoss(model, scale=20.0), job["lengths"]

    def loss(batch: list[dict[str, Any]]) -> torch.Tensor:
        queries = tokens(model.tokenizer, [group["query"] for group in batch], lengths["query"])
        passages = [group["passages"][0] for group in batch]
        return contrast([queries, titled(model.tokenizer, passages, lengths["passage"])], None)

    return [model], loss


def tokens(tokenizer: Any, texts: list[str], length: int) -> dict[str, torch.Tensor]:
    """Texts as a batch."""
    return dict(tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt"))


def titled(tokenizer: Any, passages: list[list[str]], length: int) -> dict[str, torch.Tensor]:
    """Passages as a batch, behind an empty title, as ours reads them."""
    texts, size = [" ".join(passage) for passage in passages], {"max_length": length, "padding": True}
    return dict(tokenizer([""] * len(texts), texts, truncation="only_second", return_tensors="pt", **size))


def lists(job: dict[str, Any]) -> tuple[list[torch.nn.Module], Callable]:
    """The cross entropy of lists under a cross encoder of transformers."""
    model, score = scorer(job)

    def loss(batch: list[dict[str, Any]]) -> torch.Tensor:
        return F.cross_entropy(score(batch), torch.zeros(len(batch), dtype=torch.long))

    return [model], loss


def scorer(job: dict[str, Any]) -> tuple[torch.nn.Module, Callable]:
    """A cross encoder, and a function that scores every list: `[lists, passages]`."""
    model = AutoModelForSequenceClassification.from_pretrained(f"{job['models']}/cross")
    tokenizer, length = AutoTokenizer.from_pretrained(f"{job['models']}/cross"), job["lengths"]["pair"]

    def score(batch: list[dict[str, Any]]) -> torch.Tensor:
        pairs = [(group["query"], " ".join(passage)) for group in batch for passage in group["passages"]]
        given = tokenizer(
            *map(list, zip(*pairs, strict=True)),
            padding=True,
            truncation="longest_first",
            max_length=length,
            return_tensors="pt",
        )
        return model(**given).logits.reshape(len(batch), -1)

    return model, score


def joint(job: dict[str, Any]) -> tuple[list[torch.nn.Module], Callable]:
    """RocketQAv2's loss: supervise the re-ranker, and distil it into the retriever."""
    retriever, lengths = SentenceTransformer(f"{job['models']}/dual", device="cpu"), job["lengths"]
    reranker, score = scorer(job)

    def loss(batch: list[dict[str, Any]]) -> torch.Tensor:
        given = tokens(retriever.tokenizer, [group["query"] for group in batch], lengths["query"])
        queries = retriever(given)["sentence_embedding"]
        passages = [passage for group in batch for passage in group["passages"]]
        given = titled(retriever.tokenizer, passages, lengths["passage"])
        passages = retriever(given)["sentence_embedding"].reshape(len(batch), -1, queries.shape[-1])
        found = 20.0 * (queries[:, None] * passages).sum(-1)
        judged = score(batch)
        teacher = F.log_softmax(judged.detach(), -1)
        apart = F.kl_div(F.log_softmax(found, -1), teacher, log_target=True, reduction="mean")
        return F.cross_entropy(judged, torch.zeros(len(batch), dtype=torch.long)) + apart

    return [retriever, reranker], loss


def main() -> None:
    """Read a job, make ready and answer."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    run = {"encode": encode, "rerank": rerank, "latency": latency}.get(job["task"], training)(job)
    names = f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"
    rounds.answer(names, run)


if __name__ == "__main__":
    main()
