"""This package's side of `duel.py`: makes ready, then runs a round for every line that it reads."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rocketqa_paddle.runtime.device import import_paddle, tune_cpu

tune_cpu()
import_paddle()

import numpy as np  # noqa: E402
import paddle  # noqa: E402
import rounds  # noqa: E402

import rocketqa_paddle  # noqa: E402
from rocketqa_paddle import contrastive, losses  # noqa: E402
from rocketqa_paddle.checkpoints import convert, initial  # noqa: E402
from rocketqa_paddle.networks import forward  # noqa: E402
from rocketqa_paddle.networks.encoders import Checkpoint  # noqa: E402
from rocketqa_paddle.records import Group, Passage, Query  # noqa: E402
from rocketqa_paddle.settings import OptimizerSettings, TrainingSettings  # noqa: E402
from rocketqa_paddle.training import reranking  # noqa: E402
from rocketqa_paddle.training.log import MetricsLog  # noqa: E402
from rocketqa_paddle.training.trainer import Trainer  # noqa: E402

Answer = dict[str, Any]


def write_models(source: str, folder: Path) -> None:
    """Write the models that both sides read: a retriever, and a re-ranker whose head is random."""
    weights = initial.read(source, [], folder)
    paddle.seed(1)
    models = {
        "dual": initial.retriever(weights, 64, 64, shared=True, pooling="mean", normalize=True),
        "cross": initial.reranker(weights, 80, head="pooled_logit"),
    }
    for name, model in models.items():
        if not (folder / name).exists():
            convert.write(model, folder / name, "huggingface")


def read_model(job: dict[str, Any], name: str, **network: Any) -> Checkpoint:
    """Read one of the models, to be trained with the benchmark's lengths."""
    weights, lengths = initial.read(f"{job['models']}/{name}", [], Path(job["models"])), job["lengths"]
    if name == "dual":
        settings = {"shared": True, "pooling": "mean", "normalize": True, "temperature": 0.05}
        return initial.retriever(weights, lengths["query"], lengths["passage"], **settings, dropout=0.0)
    return initial.reranker(weights, lengths["pair"], head="pooled_logit", dropout=0.0)


def encode(job: dict[str, Any]) -> Callable[[], Answer]:
    """Texts to vectors. They are taken for queries, which have no title, because the peer knows no titles."""
    model = read_model(job, "dual")
    model.lengths["query"] = job["lengths"]["passage"]
    texts = [" ".join(passage) for passage in job["passages"]]
    return lambda: {"result": forward.encode_queries(model, texts, batch_size=job["batch_size"])[0].tolist()}


def rerank(job: dict[str, Any]) -> Callable[[], Answer]:
    """Pairs to scores."""
    model = read_model(job, "cross")
    queries, titles, texts = zip(*job["pairs"], strict=True)
    texts = [f"{title} {text}" for title, text in zip(titles, texts, strict=True)]
    empty = [""] * len(texts)

    def run() -> Answer:
        scores = forward.score_pairs(model, queries, empty, texts, batch_size=job["batch_size"])
        return {"result": scores.tolist()}

    return run


def latency(job: dict[str, Any]) -> Callable[[], Answer]:
    """One query after the other to a vector."""
    model = read_model(job, "dual")

    def run() -> Answer:
        times, vector = [], None
        for query in job["queries"]:
            begun = time.perf_counter()
            vector = forward.encode_queries(model, [query])
            times.append(time.perf_counter() - begun)
        return {"times": times, "result": vector[0].tolist()}

    return run


def training(job: dict[str, Any]) -> Callable[[], Answer]:
    """Steps of the package's own training loop, which pauses after every round."""
    models = {
        "train": lambda: {"retriever": read_model(job, "dual")},
        "lists": lambda: {"reranker": read_model(job, "cross")},
        "joint": lambda: {"retriever": read_model(job, "dual"), "reranker": read_model(job, "cross")},
    }[job["task"]]()
    loss = {
        "train": lambda: contrastive.in_batch(*models.values(), drop_false_negatives=False),
        "lists": lambda: reranking.list_loss(*models.values()),
        "joint": lambda: joint_loss(*models.values()),
    }[job["task"]]()
    return Steps(job, models, loss)


def joint_loss(retriever: Checkpoint, reranker: Checkpoint) -> Callable[[Any], Any]:
    """RocketQAv2's dynamic listwise distillation."""

    def loss(groups: Any) -> Any:
        scores = forward.retriever_scores(retriever, groups), forward.reranker_scores(reranker, groups)
        return losses.joint_distillation(*scores)

    return loss


class Steps:
    """A training that takes some steps whenever it is called."""

    def __init__(self, job: dict[str, Any], models: dict[str, Checkpoint], loss: Any) -> None:
        self.losses: list[float] = []
        self._trainer = Trainer(
            "benchmark",
            {name: model.network for name, model in models.items()},
            [_group(number, values) for number, values in enumerate(job["groups"])],
            loss,
            TrainingSettings(
                batch_size=job["batch_size"],
                steps=100_000,
                optimizer=OptimizerSettings(learning_rate=job["learning_rate"], decay="constant"),
            ),
            folder=Path(tempfile.mkdtemp()) / "last",
            log=MetricsLog(Path(tempfile.mkdtemp()) / "metrics.jsonl"),
            batches=lambda groups, size, seed: lambda step: in_order(len(groups), size, step),
        )
        for network in self._trainer.networks.values():
            network.train()
        self._count = job["steps_a_round"]

    def __call__(self) -> Answer:
        """Take the steps of a round."""
        values = [self._trainer._take_step() for _ in range(self._count)]
        return {"result": [value["loss"] for value in values]}


def in_order(count: int, size: int, step: int) -> np.ndarray:
    """The examples of a step, in their order."""
    return (np.arange(size) + step * size) % count


def _group(number: int, values: dict[str, Any]) -> Group:
    passages = tuple(
        Passage(f"{number}-{place}", "", " ".join(passage))
        for place, passage in enumerate(values["passages"])
    )
    labels = (1, *[0] * (len(passages) - 1))
    return Group(Query(str(number), values["query"]), passages, labels)


def main() -> None:
    """Write the models, or read a job, make ready and answer."""
    if sys.argv[1] == "--models":
        write_models(sys.argv[2], Path(sys.argv[3]))
        return
    job = json.loads(Path(sys.argv[1]).read_text())
    tasks = {"encode": encode, "rerank": rerank, "latency": latency}
    run = tasks.get(job["task"], training)(job)
    versions = f"rocketqa_paddle {rocketqa_paddle.__version__}, paddle {paddle.__version__}"
    rounds.answer(versions, run)


if __name__ == "__main__":
    main()
