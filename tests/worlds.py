"""Queries, judgements and scored candidates, made by hand or drawn by hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from rocketqa_paddle.mining.calibration import Calibration
from rocketqa_paddle.records import Hit, Passage, Query

SIZE = 14
PASSAGES = {f"p{i}": Passage(f"p{i}", "", f"text {i}") for i in range(SIZE)}
REPEATED = {
    f"p{i}": Passage(f"p{i}", "" if i % 3 else "-", f"TEXT  {i // 2}" if i % 2 else f"text {i // 2}")
    for i in range(SIZE)
} | {"p12": Passage("p12", "a title", "question 0"), "p13": Passage("p13", "", "Question 1")}
"""The passages 0 to 11 say the same in pairs, and two are the first queries."""
IDS = st.sampled_from(list(PASSAGES))


def make_hits(query_id: str, ids, scores=None) -> list[Hit]:
    scores = scores or [-float(rank) for rank in range(len(ids))]
    return [Hit(query_id, i, rank, s) for rank, (i, s) in enumerate(zip(ids, scores, strict=True), 1)]


def make_queries(count: int) -> list[Query]:
    return [Query(f"q{i}", f"question {i}") for i in range(count)]


@st.composite
def worlds(draw):
    """Queries, their judgements (one positive at least, maybe passages judged 0) and scored candidates."""
    queries = make_queries(draw(st.integers(1, 4)))
    qrels, run = {}, {}
    for query in queries:
        qrels[query.id] = dict.fromkeys(draw(st.sets(IDS, max_size=3)), 0)
        qrels[query.id] |= {i: draw(st.integers(1, 3)) for i in draw(st.sets(IDS, min_size=1, max_size=3))}
        ids = draw(st.lists(IDS, unique=True, max_size=SIZE))
        scores = draw(st.lists(st.floats(-9, 9), min_size=len(ids), max_size=len(ids)))
        run[query.id] = make_hits(query.id, ids, sorted(scores, reverse=True))
    return queries, qrels, run


def positives(qrels, query_id: str) -> set[str]:
    return {i for i, relevance in qrels.get(query_id, {}).items() if relevance > 0}


calibrations = st.builds(Calibration, st.floats(0.1, 3), st.floats(-3, 3))
