"""Two rankings into one: what a retriever finds and what BM25 finds, fused by their ranks or their scores.

Hits are arrays `[queries, depth]` of the type `candidates.HIT`, best first, where the row of the last may be
-1 for none. A side has a passage once at most.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rocketqa_paddle.data.candidates import as_hits

Fusion = Literal["rrf", "weighted"]
"""By reciprocal ranks, or by a weighted sum of scores."""
POOL = 100
"""How many hits of each side are fused, at least."""
_RANK_CONSTANT = 60  # of Cormack et al.


def check_fusion(fusion: str | None, weight: float | None) -> None:
    """Refuse a fusion that there is not, or a weight that does not go with it.

    Raises:
        ValueError: says what is expected.
    """
    if fusion not in (None, "rrf", "weighted"):
        raise ValueError(f"fuse={fusion!r}, expected 'rrf' or 'weighted'")
    if weight is not None and fusion != "weighted":
        raise ValueError(f"weight={weight} goes with fuse='weighted' alone: leave it out, or fuse so")
    if fusion == "weighted" and weight is None:
        raise ValueError(
            "fuse='weighted' needs the weight of BM25, from 0 to 1: `rocketqa tune` finds a good one"
        )
    if weight is not None and not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}, expected a number from 0 (retriever alone) to 1 (BM25 alone)")


def fuse(dense: np.ndarray, lexical: np.ndarray, fusion: Fusion, weight: float | None = None) -> np.ndarray:
    """Fuse hits of a retriever and of BM25 in the way that `fusion` names.

    Return the hits of both, `[queries, depth of the two together]`, best first. A passage that both have
    found is there once; of equal scores, the lower row is first.
    """
    if fusion == "rrf":
        return reciprocal_rank(dense, lexical)
    return weighted(dense, lexical, weight)


def reciprocal_rank(dense: np.ndarray, lexical: np.ndarray) -> np.ndarray:
    """Fuse by reciprocal ranks (Cormack, Clarke and Büttcher, SIGIR 2009): the sum of 1 / (60 + rank).

    A side that has not found a passage adds nothing to its sum. Arguments and result are those of `fuse`.
    """
    return _sum((dense, _reciprocal_ranks(dense)), (lexical, _reciprocal_ranks(lexical)))


def weighted(dense: np.ndarray, lexical: np.ndarray, weight: float) -> np.ndarray:
    """Fuse by a weighted sum of scaled scores: `weight` of those of BM25, 1 - `weight` of the others.

    This is the convex combination of Bruch, Gai and Ingber (An Analysis of Fusion Functions for Hybrid
    Retrieval, TOIS 2023), query by query. 1 is the best score, and 0 the least that there can be, which is 0
    for BM25 (their theoretical min-max). Inner products know no such bound, so 0 is the least that was found
    (min-max). A side that has not found a passage adds 0, its least score, as Pyserini's hybrid search does.
    Where a side's scores are all the same, they count as 1. Arguments and result are those of `fuse`.
    """
    there = dense["row"] >= 0
    least = dense["score"].min(axis=1, keepdims=True, where=there, initial=np.inf)
    return _sum((dense, (1 - weight) * _scaled(dense, least)), (lexical, weight * _scaled(lexical, 0)))


def _reciprocal_ranks(hits: np.ndarray) -> np.ndarray:
    ranks = np.arange(1, hits.shape[1] + 1)
    return np.broadcast_to(1 / (_RANK_CONSTANT + ranks), hits.shape)


def _scaled(hits: np.ndarray, least: np.ndarray | float) -> np.ndarray:
    """Scores from 0 for the least to 1 for the best of a query, float64 `[queries, depth]`."""
    scores = hits["score"].astype(np.float64)
    best = scores.max(axis=1, keepdims=True, where=hits["row"] >= 0, initial=-np.inf)
    return np.divide(scores - least, best - least, out=np.ones_like(scores), where=best > least)


def _sum(*sides: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Put two sides together, hits and what they count, and add up what counts for the same row."""
    rows = np.concatenate([hits["row"] for hits, _ in sides], axis=1)
    values = np.concatenate([counts for _, counts in sides], axis=1)
    order = np.argsort(rows, axis=1, kind="stable")
    rows, values = np.take_along_axis(rows, order, axis=1), np.take_along_axis(values, order, axis=1)
    twice = rows[:, 1:] == rows[:, :-1]
    values[:, :-1] += np.where(twice, values[:, 1:], 0)
    rows[:, 1:][twice] = -1
    fused = as_hits(np.where(rows < 0, -np.inf, values), rows)
    best = np.lexsort((fused["row"], -fused["score"]))
    return np.take_along_axis(fused, best, axis=1)
