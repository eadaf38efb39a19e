"""What follows from a look: the trainings of each system."""

from collections.abc import Callable
from typing import Any

from rocketqa_paddle.commands.advice import choices
from rocketqa_paddle.commands.advice.choices import optimizer
from rocketqa_paddle.commands.advice.look import Look
from rocketqa_paddle.commands.advice.written import Because

Sections = dict[str, Any]
_UNSURE = Because(0.5, "a small re-ranker is seldom surer than that")


def _retriever(look: Look, count: int | None) -> Sections:
    """In-batch training, on `count` queries where there are two cores, or on all of the section `data`."""
    size, queries = choices.batch(look), choices.taken(look, count or 3000)
    limit = choices.some(look, count) if count else {}
    return {
        **limit,
        "batch_size": size,
        **choices.epochs(look, queries, size.value),
        "optimizer": optimizer(look, "retriever"),
    }


def _reranker(look: Look, count: int) -> Sections:
    """Training on lists."""
    size, queries = choices.list_batch(look), choices.taken(look, count)
    return {
        **choices.some(look, count),
        "negatives": choices.negatives(look),
        **choices.easy_negatives(look),
        "batch_size": size,
        **choices.epochs(look, queries, size.value),
        "optimizer": optimizer(look, "reranker"),
    }


def _rounds(look: Look) -> int:
    return 1 if choices.on(look) == "cpu" else 2


def _depth(look: Look) -> int:
    return min(look.passages, 15 if choices.on(look) == "cpu" else 100)


def _warm_up(look: Look) -> Sections:
    return {"warmup_retriever": _retriever(look, 3200), "warmup_reranker": _reranker(look, 640)}


def rocketqav2(look: Look) -> Sections:
    """Of RocketQAv2."""
    groups: Sections = {"negatives": choices.negatives(look), "depth": _depth(look)}
    if choices.on(look) == "cpu":
        groups["negative_below"] = _UNSURE
    if look.splits.unlabelled:
        why = f"with lists of the {look.unlabelled:,} unlabelled queries"
        groups["sources"] = Because(["random", "denoised", "pseudo"], why)
    joint = {
        "rounds": _rounds(look),
        **choices.some(look, 800),
        "batch_size": choices.list_batch(look),
        "optimizer": optimizer(look, "joint"),
        "groups": groups,
    }
    return {**_warm_up(look), "joint": joint}


def ar2(look: Look) -> Sections:
    """Of AR2."""
    gpu = choices.on(look) == "gpu"
    training = {"batch_size": choices.list_batch(look), "optimizer": optimizer(look, "joint")}
    adversarial = {
        "rounds": 4 if gpu else 2,
        **choices.some(look, 480),
        "reranker": {"steps": 500 if gpu else 15, **training},
        "retriever": {
            "steps": Because(1500 if gpu else 45, "three times those of the re-ranker"),
            **training,
        },
        "groups": {"negatives": choices.negatives(look), "depth": _depth(look)},
    }
    return {**_warm_up(look), "adversarial": adversarial}


def _denoising(look: Look) -> Sections:
    if choices.on(look) == "gpu":
        return {"depth": 100, "scored": 50, "negatives": 4}
    why = "candidates of a query that the re-ranker scores"
    return {"depth": 30, "scored": Because(8, why), "negatives": 1, "choose": "random"}


def rocketqa(look: Look) -> Sections:
    """Of RocketQA."""
    made = {
        "step1": _retriever(look, None),
        "step2": _reranker(look, 1000),
        "denoising": _denoising(look),
        "step3": _retriever(look, None),
    }
    return made | ({"step4": _retriever(look, None)} if choices.data(look, True).get("unlabelled") else {})


def pair(look: Look) -> Sections:
    """Of PAIR."""
    return {
        "teacher_retriever": _retriever(look, None),
        "teacher_reranker": _reranker(look, 1000),
        "denoising": _denoising(look),
        "pretraining": _retriever(look, None),
        "finetuning": _retriever(look, None),
    }


TRAININGS: dict[str, Callable[[Look], Sections]] = {
    "rocketqa": rocketqa,
    "pair": pair,
    "rocketqav2": rocketqav2,
    "ar2": ar2,
}
"""The sections of the systems beside those that all have."""
