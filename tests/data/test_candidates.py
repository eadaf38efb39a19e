"""Candidates in arrays are the run that they were made of, and what is drawn of them is too."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketqa_paddle.data.candidates import HIT, Candidates, Filtered, gathered, queries_file, write_hits
from rocketqa_paddle.data.store import Store, write_store
from rocketqa_paddle.records import Hit, Passage

scores = st.floats(-9, 9, width=32)
runs = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "q4"]),
    st.lists(st.tuples(st.sampled_from("abcdefgh"), scores), max_size=6, unique_by=lambda hit: hit[0]),
)


def made(found: dict[str, list[tuple[str, float]]]) -> dict[str, list[Hit]]:
    return {
        query: [Hit(query, id, rank, score) for rank, (id, score) in enumerate(hits, 1)]
        for query, hits in found.items()
    }


@given(runs)
def test_a_run_comes_back(found: dict) -> None:
    run = made(found)
    assert gathered(run) == run
    assert list(gathered(run)) == list(run)
    assert gathered(gathered(run)).hits.dtype == HIT


@given(runs, st.integers(1, 7), st.integers(0, 9))
def test_what_is_drawn_is_what_plain_python_draws(found: dict, count: int, seed: int) -> None:
    run, candidates = made(found), gathered(made(found))
    assert candidates.first(count) == {query: hits[:count] for query, hits in run.items()}
    draw, sampled = random.Random(seed), {}
    for query, hits in run.items():
        places = sorted(draw.sample(range(len(hits)), count)) if count < len(hits) else range(len(hits))
        sampled[query] = [(hits[place].passage_id, hits[place].score) for place in places]
    assert candidates.sample(count, seed) == made(sampled)


@given(runs, st.dictionaries(st.sampled_from(["q1", "q2", "q9"]), st.sets(st.sampled_from("abcxyz"))))
def test_positives_that_a_run_lacks_follow_its_hits(found: dict, relevant: dict) -> None:
    passages = list("abcdefghxyz")
    hits = np.zeros((len(found), 6), HIT)
    hits["row"] = -1
    for place, query_hits in enumerate(found.values()):
        for rank, (id, score) in enumerate(query_hits):
            hits[place, rank] = passages.index(id), score
    qrels = {query: dict.fromkeys(sorted(ids), 1) | {"d": 0} for query, ids in relevant.items()}
    complete = Candidates(list(found), passages, hits).with_positives(qrels, passages.index)
    for query, query_hits in found.items():
        there = {id for id, _ in query_hits}
        more = [(id, -math.inf) for id in sorted(relevant.get(query, ())) if id not in there]
        assert complete[query] == made({query: [*query_hits, *more]})[query]


def test_a_run_by_the_rows_of_a_store_takes_passages_that_it_lacks(tmp_path: Path) -> None:
    write_store(tmp_path, {id: Passage(id, "", id) for id in "abcd"})
    run, store = made({"q1": [("c", 1.0), ("a", 0.5)], "q2": []}), Store(tmp_path)
    candidates = gathered(run, store)
    assert (candidates, candidates.hits["row"].tolist()) == (run, [[2, 0], [-1, -1]])
    complete = candidates.with_positives({"q1": {"d": 1, "b": 0}, "q2": {"b": 2}}, store.row_of)
    assert complete == made({"q1": [("c", 1.0), ("a", 0.5), ("d", -math.inf)], "q2": [("b", -math.inf)]})


def test_a_query_that_was_not_searched_for_has_no_hits() -> None:
    candidates = gathered(made({"q1": [("a", 1.0)], "q2": [("b", 2.0)]}))
    assert "q7" not in candidates
    with pytest.raises(KeyError):
        candidates["q7"]


def test_a_run_is_filtered_when_it_is_read() -> None:
    run = made({"q1": [("a", 1.0), ("b", 0.5)]})
    filtered = Filtered(run, lambda query, hits: [hit for hit in hits if hit.passage_id != query[0]])
    assert (filtered == run, len(filtered), list(filtered)) == (True, 1, ["q1"])


@pytest.fixture
def written(tmp_path: Path) -> Path:
    hits = gathered(made({"q1": [("a", 1.0), ("b", 0.5)], "q2": [("b", 2.0)], "q3": []})).hits
    write_hits(tmp_path / "hits.npy", ["q1", "q2", "q3"], 2, [hits[:2], hits[2:]])
    return tmp_path / "hits.npy"


def test_hits_that_are_written_in_blocks_are_mapped(written: Path) -> None:
    found = Candidates.load(written, ["a", "b"])
    assert found == made({"q1": [("a", 1.0), ("b", 0.5)], "q2": [("b", 2.0)], "q3": []})
    assert isinstance(found.hits.base, np.memmap)
    assert written.stat().st_size == 128 + 8 * 6


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_file_that_is_no_array_of_hits_is_refused(written: Path, content: bytes | None) -> None:
    if content is None:
        np.save(written, np.zeros((3, 2)))
    else:
        written.write_bytes(content)
    with pytest.raises(ValueError, match="hits.npy: (not an array|float64 .*expected hits of 3 queries)"):
        Candidates.load(written, ["a", "b"])


def test_hits_of_other_queries_are_refused(written: Path) -> None:
    queries_file(written).write_text("q1\nq2\n")
    with pytest.raises(ValueError, match="expected hits of 2 queries"):
        Candidates.load(written, ["a", "b"])
    queries_file(written).unlink()
    with pytest.raises(FileNotFoundError):
        Candidates.load(written, ["a", "b"])
