"""What follows from a look: settings that all systems share, each with its reason."""

import importlib.util
import math
from dataclasses import dataclass
from typing import Any, Literal

from rocketqa_paddle.commands.advice.look import POSITIONS, Look
from rocketqa_paddle.commands.advice.written import Because

_LONGEST = {"cpu": 256, "gpu": 384}
"""Lengths of a passage that are not exceeded: more takes long, and few answers come so late."""
_SHORTEST, _TOKENS_A_CORE = 64, 2_000_000
"""On a CPU a large corpus is cut to so many tokens a core, for it is encoded after every training."""
_FEW = 500  # labelled queries
_STEPS = {"cpu": 50, "gpu": 1000}
"""Steps that a training should have, at least."""
_MOST_EPOCHS = {"cpu": 5, "gpu": 40}
_PAPER_GIGABYTES = 32
_LARGE_CORPUS = 200_000


@dataclass(frozen=True)
class Rates:
    """Learning rates of the retriever, of the re-ranker, and of both together, and what they are for."""

    retriever: float
    reranker: float
    joint: float
    reason: str


RATES = {
    "sentence": Rates(2.0e-5, 1.0e-4, 2.0e-5, "for a trained encoder of 6 layers"),
    "base": Rates(3.0e-5, 1.0e-5, 1.0e-5, "for a trained encoder of 12 layers"),
    "published": Rates(1.0e-5, 1.0e-5, 1.0e-5, "for a model that was trained for this task already"),
    "scratch": Rates(1.0e-3, 1.0e-3, 1.0e-4, "for a network from scratch"),
}
"""By the kind of the initial checkpoint (docs/small-data.md)."""


def optimizer(look: Look, model: Literal["retriever", "reranker", "joint"]) -> Because:
    """The section `optimizer` of a training."""
    rates = RATES[look.init.kind]
    return Because({"learning_rate": getattr(rates, model), "warmup_ratio": 0.1}, rates.reason)


def on(look: Look) -> str:
    """`gpu` or `cpu`."""
    return "gpu" if look.machine.gpus else "cpu"


def of_paper(look: Look, value: int) -> int:
    """A batch of the papers, made for cards of 32 GB, for the card that there is: a power of two."""
    fits = max(1, value * look.machine.gigabytes // _PAPER_GIGABYTES)
    return min(value, 1 << (fits.bit_length() - 1))


def batch(look: Look) -> Because:
    """The queries of a step in which passages of other queries are the negatives."""
    most = max(2, look.labelled // 8)
    if look.machine.gpus:
        size, why = of_paper(look, 512), f"a process, for a GPU of {look.machine.gigabytes} GB"
    else:
        few = look.labelled < _FEW
        size, why = (
            (16, f"{look.labelled} queries are few") if few else (32, "the other passages are negatives")
        )
    return Because(size, why) if size <= most else Because(most, f"an eighth of {look.labelled} queries")


def list_batch(look: Look) -> Because:
    """The lists of a step."""
    if look.machine.gpus:
        size, why = of_paper(look, 16), f"lists a process, for a GPU of {look.machine.gigabytes} GB"
    else:
        size, why = 8, f"lists of {negatives(look) + 1} passages"
    most = max(1, look.labelled // 8)
    return Because(size, why) if size <= most else Because(most, f"an eighth of {look.labelled} queries")


def epochs(look: Look, queries: int, size: int) -> dict[str, Because]:
    """The section's `epochs`, if one pass has too few steps."""
    steps = math.ceil(queries / (size * max(1, look.machine.gpus)))
    count = min(_MOST_EPOCHS[on(look)], math.ceil(_STEPS[on(look)] / steps))
    told = f"{steps} step{'s' * (steps > 1)} a pass over {queries:,} queries"
    return {"epochs": Because(count, told)} if count > 1 else {}


def some(look: Look, count: int) -> dict[str, Because]:
    """The section's `queries`, if a CPU should not take all."""
    queries = taken(look, count)
    if queries == look.labelled:
        return {}
    return {"queries": Because(queries, f"of {look.labelled:,}, for {look.machine}; more are better")}


def taken(look: Look, count: int) -> int:
    """The number of queries that a training takes where two cores take `count`."""
    return (
        look.labelled if look.machine.gpus else min(look.labelled, max(1, round(count * look.machine.pace)))
    )


def negatives(look: Look) -> int:
    """The negatives of a list."""
    return max(1, min(15 if look.machine.gpus else 4, look.passages - 2))


def easy_negatives(look: Look) -> dict[str, Because]:
    """The negatives that make the first task of a re-ranker easier, if it is to learn what a pair is."""
    if look.init.kind in ("base", "published"):
        return {}
    why = "a network that never read pairs learns little from hard negatives alone"
    return {"easy_negatives": Because(min(2, negatives(look)), why)}


# Sections ----------------------------------------------------------------------------------------


def data(look: Look, pseudo: bool) -> dict[str, Any]:
    """The section `data`; `pseudo` tells that the system learns from unlabelled queries."""
    splits, made = look.splits, {"folder": str(look.folder)}
    if splits.dev != "dev":
        made["dev"] = Because(splits.dev, f"{look.evaluated[splits.dev]:,} queries choose the best models")
    if splits.tests:
        told = ", ".join(f"{name} {look.evaluated[name]:,}" for name in splits.tests)
        made["tests"] = Because(list(splits.tests), f"queries: {told}")
    if look.left_out:
        made["on_error"] = Because("skip", "; ".join(look.left_out))
    made |= _dev(look)
    return made | (_unlabelled(look) if pseudo else {})


def _dev(look: Look) -> dict[str, Because]:
    count, most = look.evaluated[look.splits.dev], 500
    if look.machine.gpus or count <= most:
        return {}
    return {"max_dev_queries": Because(most, f"of {count:,}: every model is measured on them")}


def _unlabelled(look: Look) -> dict[str, Because]:
    labelled, most = taken(look, 3000), max(1, round(1500 * look.machine.pace))
    made = {}
    if labelled < look.labelled:
        made["max_train_queries"] = Because(
            labelled, f"of {look.labelled:,}, for {look.machine}; more are better"
        )
    if look.splits.unlabelled:
        why = f"{look.unlabelled:,} queries, for which the re-ranker chooses passages"
        made["unlabelled"], there = Because(look.splits.unlabelled, why), look.unlabelled
    elif made:
        why = "the other training queries, without their labels: the re-ranker chooses passages for them"
        made["unlabelled"], there = Because(look.splits.train, why), look.labelled - labelled
    else:
        return made
    if not look.machine.gpus and there > most:
        made["max_unlabelled_queries"] = Because(most, f"of {there:,}, for {look.machine}")
    return made


def length(look: Look, kind: Literal["query", "passage", "pair"]) -> Because:
    """A length that keeps most texts of a kind whole, if that is not too much for the machine."""
    needed, least, most = (
        look.tokens[kind],
        {"query": 16, "passage": 32, "pair": 48}[kind],
        longest(look, kind),
    )
    plural = {"query": "queries", "passage": "passages", "pair": "pairs"}[kind]
    about = "about " * look.estimated
    at_most = f"more than {POSITIONS}" if needed > POSITIONS else f"at most {about}{needed}"
    told = f"95 % of the {plural} have {at_most} tokens"
    told += " (by the words: the vocabulary is not at hand)" * look.estimated
    if needed > most:
        return Because(most, f"{told}, but for {look.passages:,} passages these take long on {look.machine}")
    return Because(max(least, _eights(needed)), told)


def longest(look: Look, kind: str) -> int:
    """The greatest length of a kind of text that suits the machine."""
    most = _LONGEST[on(look)]
    if not look.machine.gpus:
        a_passage = _TOKENS_A_CORE * look.machine.cores // max(1, look.passages)
        most = max(_SHORTEST, min(most, a_passage // 8 * 8))
    return most + _eights(min(look.tokens["query"], most)) if kind == "pair" else most


def _eights(tokens: int) -> int:
    return 8 * math.ceil(tokens / 8)


def retriever(look: Look, one_tower: bool) -> dict[str, Any]:
    """The section `retriever`."""
    kind, made = look.init.kind, {"init": Because(look.init.retriever, look.init.reason)}
    if kind in ("sentence", "scratch"):
        why = {
            "sentence": "it was trained with these, and with one tower",
            "scratch": "a network from scratch learns sooner with these",
        }[kind]
        made |= {"shared": True, "pooling": Because("mean", why), "normalize": True, "temperature": 0.05}
    elif one_tower:
        made["shared"] = Because(True, "passages are compared with queries and with passages")
    made["query_length"] = length(look, "query")
    made["passage_length"] = length(look, "passage")
    return made | _network(look)


def reranker(look: Look) -> dict[str, Any]:
    """The section `reranker`."""
    made = {"init": look.init.reranker, "length": length(look, "pair")}
    if look.init.kind == "published":
        made = {"init": made["init"], "head": "classes", "length": made["length"]}
    return made | _network(look)


def _network(look: Look) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if look.init.retriever == "ernie-1.0":
        made["for_cn"] = Because(
            False, "true removes all spaces, also those between words of other languages"
        )
    if look.machine.gpus:
        return made | {"recompute": Because(True, "less memory, a third more time: room for larger batches")}
    return made | {"dropout": Because(0.0, "slow on a CPU, and a few hundred steps seldom overfit")}


def evaluation(look: Look) -> dict[str, Any]:
    """The section `evaluation`."""
    gpu, made = bool(look.machine.gpus), {}
    if not gpu and look.passages > _LARGE_CORPUS:
        made["init"] = Because(False, f"the initial checkpoint would encode {look.passages:,} passages more")
    if gpu:
        made["depth"] = 100
    made["rerank_depth"] = 50 if gpu else Because(10, "passages a query: the re-ranker is the slow one")
    if importlib.util.find_spec("bm25s"):
        made["bm25"] = Because(True, "the yardstick; the package bm25s is installed")
    return made


def run(look: Look) -> dict[str, Any]:
    """The settings outside of sections."""
    made: dict[str, Any] = {}
    if look.init.kind == "scratch":
        why = "a network from scratch may need more steps than these to beat chance"
        made["stop_on_collapse"] = Because(False, why)
    if look.machine.gpus:
        half, why = ("bf16", "this GPU has it") if look.machine.bf16 else ("fp16", "this GPU has no bf16")
        made |= {
            "precision": Because(half, why),
            "encode_batch": 512,
            "use_cuda": Because(True, str(look.machine)),
        }
    elif look.machine.bf16:
        made["precision"] = Because("bf16", "of this processor, for what is computed without gradient")
    return made
