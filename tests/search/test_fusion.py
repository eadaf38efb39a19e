"""Fusion of two rankings: it equals a plain version, whatever the two sides have found."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketqa_paddle.data.candidates import HIT, no_hits
from rocketqa_paddle.search import fusion

Ranking = list[tuple[int, float]]
"""Rows and scores, best first."""


def rankings(scores: st.SearchStrategy[float]) -> st.SearchStrategy[Ranking]:
    """Hits among nine rows, so that the sides share some, with scores that are often equal."""
    found = st.dictionaries(st.integers(0, 8), scores, max_size=6)
    return found.map(lambda hits: sorted(hits.items(), key=lambda hit: (-hit[1], hit[0])))


DENSE = rankings(st.sampled_from([-2.5, -1.0, 0.0, 0.1, 0.3, 7.0]))
LEXICAL = rankings(st.sampled_from([0.1, 0.2, 3.0, 11.5]))
QUERIES = st.lists(st.tuples(DENSE, LEXICAL), max_size=4)


def as_array(side: list[Ranking], spare: int = 0) -> np.ndarray:
    hits = no_hits(len(side), max(map(len, side), default=0) + spare)
    for found, ranking in zip(hits, side, strict=True):
        found[: len(ranking)] = ranking
    return hits


def as_rankings(hits: np.ndarray) -> list[Ranking]:
    """Also demands that what is no hit comes last."""
    there = hits["row"] >= 0
    assert (there[:, :-1] >= there[:, 1:]).all()
    return [found[found["row"] >= 0].tolist() for found in hits]


def plain_ranks(dense: Ranking, lexical: Ranking) -> dict[int, float]:
    counts: dict[int, float] = {}
    for side in (dense, lexical):
        for rank, (row, _) in enumerate(side, 1):
            counts[row] = counts.get(row, 0) + 1 / (60 + rank)
    return counts


def plain_scores(dense: Ranking, lexical: Ranking, weight: float) -> dict[int, float]:
    counts: dict[int, float] = {}
    for side, share, bound in ((dense, 1 - weight, None), (lexical, weight, 0.0)):
        scores = np.array([score for _, score in side], np.float32).astype(float).tolist()
        least = min(scores, default=0) if bound is None else bound
        span = max(scores, default=0) - least
        for (row, _), score in zip(side, scores, strict=True):
            counts[row] = counts.get(row, 0) + share * ((score - least) / span if span else 1)
    return counts


def ordered(counts: dict[int, float]) -> Ranking:
    scores = {row: float(np.float32(count)) for row, count in counts.items()}
    return sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))


@given(QUERIES, st.integers(0, 2))
def test_reciprocal_ranks_equal_the_plain_sum(queries: list[tuple[Ranking, Ranking]], spare: int) -> None:
    dense, lexical = [side for side, _ in queries], [side for _, side in queries]
    fused = fusion.reciprocal_rank(as_array(dense, spare), as_array(lexical))
    assert as_rankings(fused) == [ordered(plain_ranks(*sides)) for sides in queries]


@given(QUERIES, st.integers(0, 2), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_weighted_scores_equal_the_plain_sum(
    queries: list[tuple[Ranking, Ranking]], spare: int, weight: float
) -> None:
    dense, lexical = [side for side, _ in queries], [side for _, side in queries]
    fused = fusion.weighted(as_array(dense), as_array(lexical, spare), weight)
    assert as_rankings(fused) == [ordered(plain_scores(*sides, weight)) for sides in queries]


def test_figures_by_hand() -> None:
    dense, lexical = as_array([[(4, 0.9), (2, 0.5), (7, 0.1)]]), as_array([[(7, 8.0), (1, 2.0)]])
    ranks = {7: 1 / 63 + 1 / 61, 4: 1 / 61, 1: 1 / 62, 2: 1 / 62}
    assert as_rankings(fusion.fuse(dense, lexical, "rrf")) == [ordered(ranks)]
    scores = {4: 0.75, 2: 0.375, 7: 0.25, 1: 0.0625}
    [found] = as_rankings(fusion.fuse(dense, lexical, "weighted", 0.25))
    assert [row for row, _ in found] == list(scores)
    np.testing.assert_allclose([score for _, score in found], list(scores.values()), rtol=1e-6)


def test_what_an_approximate_index_has_not_found_is_no_hit() -> None:
    dense = np.array([[(3, 1.0), (5, 0.5), (-1, -math.inf)]], HIT)
    for method, weight in (("rrf", None), ("weighted", 0.5)):
        [found] = as_rankings(fusion.fuse(dense, no_hits(1, 2), method, weight))
        assert [row for row, _ in found] == [3, 5]


@pytest.mark.parametrize(
    ("method", "weight", "message"),
    [
        ("sum", None, "fuse='sum', expected 'rrf' or 'weighted'"),
        (None, 0.5, "weight=0.5 goes with fuse='weighted' alone"),
        ("rrf", 0.5, "weight=0.5 goes with fuse='weighted' alone"),
        ("weighted", None, "fuse='weighted' needs the weight of BM25, from 0 to 1: `rocketqa tune`"),
        ("weighted", 1.01, "weight=1.01, expected a number from 0"),
        ("weighted", -0.1, "weight=-0.1, expected a number from 0"),
        ("weighted", math.nan, "weight=nan, expected a number from 0"),
    ],
)
def test_a_fusion_that_makes_no_sense_is_refused(method: str, weight: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fusion.check_fusion(method, weight)
