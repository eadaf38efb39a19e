"""Runs: what both forms read and refuse, and that a written run reads the same."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from datafiles import fails, ids, words, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rocketqa_paddle.data.places import Place
from rocketqa_paddle.data.runs import RunFormat, read_run, write_run
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.records import Hit, Run

RUN = {
    "q1": [Hit("q1", "p1", 1, 79.25), Hit("q1", "p2", 2, 0.1)],
    "q2": [Hit("q2", "p1", 1, -1e-9)],
}


@pytest.mark.parametrize(
    "content, line, parts",
    [
        ("1\t2\t1\n", 1, ["3 columns, expected 4 (query id", "or 6 (query id, Q0"]),
        ("1\t2\t1\t0.5\n1\t3\tx\t0.5\n", 2, ["rank 'x', expected an integer"]),
        ("1 Q0 2 1 nan t\n", 1, ["score 'nan', expected a finite number"]),
        ("1 Q0 2 1 high t\n", 1, ["score 'high'"]),
        ("1\t2\t1\t0.5\n1\t2\t2\t0.4\n", 2, ["query '1'", "passage '2' already"]),
        ("1\t2\t1\t1\n2\t2\t1\t1\n1\t2\t2\t0\n", 3, ["query '1'", "passage '2' already"]),
        (
            "1\t2\t1\t0.5\n1\t" + "3" * 99 + "\t2\t" + "9" * 999 + "x\n",
            2,
            ["score '999", "(1000 characters)"],
        ),
        ("1\t2\t" + "9" * 5000 + "\t0.5\n", 1, ["rank '999", "(5000 characters), expected an integer"]),
        ("1\t2\t1\t0.5\n\ufeff1\t3\t2\t0.5\n", 2, ["a byte-order mark begins the line", "joined"]),
        ("1\t2\ufeff\t1\t0.5\n", 1, ["passage id '2\\ufeff' has a byte-order mark in it"]),
        ("1\t2\r3\t1\t0.5\n", 1, ["passage id '2\\r3' has a line end in it"]),
    ],
)
def test_refused(tmp_path: Path, content: str, line: int, parts: list[str]) -> None:
    path = write(tmp_path / "run", content)
    with fails(path, line, *parts):
        read_run(path)


def test_written_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "run.trec", RUN, "trec", tag="dual")
    assert (tmp_path / "run.trec").read_text().splitlines() == [
        "q1 Q0 p1 1 79.25 dual",
        "q1 Q0 p2 2 0.1 dual",
        "q2 Q0 p1 1 -1e-09 dual",
    ]
    write_run(tmp_path / "new" / "run.tsv", RUN)
    assert (tmp_path / "new" / "run.tsv").read_text().splitlines()[0] == "q1\tp1\t1\t79.25"
    assert read_run(tmp_path / "run.trec") == read_run(tmp_path / "new" / "run.tsv") == RUN


@pytest.mark.parametrize(
    "content, expected",
    [
        ("b\t1\t2\t0.5\na\t1\t1\t3\nb\t2\t1\t0.9\n", {"b": ["2", "1"], "a": ["1"]}),
        ("qid\tpid\trank\tscore\nrank\tx\t1\t3\n", {"rank": ["x"]}),
        ("q\tx\t0\t3\nq\ty\t1\t2\nq\tz\t2\t2\n", {"q": ["x", "y", "z"]}),
        ("q\tx\t7\t1\nq\ty\t5\t1\nq\tz\t6\t1\n", {"q": ["y", "z", "x"]}),
        ("q\tx\t1\t1\nq\ty\t1\t1\nq\ta\t1\t2\nq\tb\t1.0\t1\n", {"q": ["a", "x", "y", "b"]}),
    ],
    ids=[
        "out of order",
        "header",
        "ranks from 0",
        "equal scores by rank",
        "equal ranks by score, then as in the file",
    ],
)
@pytest.mark.filterwarnings("error")
def test_hits_are_numbered_in_the_order_of_scores_then_ranks(
    tmp_path: Path, content: str, expected: dict[str, list[str]]
) -> None:
    run = read_run(write(tmp_path / "run.tsv", content))
    assert {query: [hit.passage_id for hit in hits] for query, hits in run.items()} == expected
    assert all([hit.rank for hit in hits] == [*range(1, len(hits) + 1)] for hits in run.values())


def test_the_score_decides_and_one_warning_counts_other_ranks(tmp_path: Path) -> None:
    """As trec_eval and ir_measures read the file: the second line is the first hit."""
    lines = "1 Q0 b 1 0.2 x\n1 Q0 a 2 0.9 x\n2 Q0 a 1 0.9 x\n3 Q0 a 1 1 x\n3 Q0 b 2 1 x\n3 Q0 c 3 2 x\n"
    path = write(tmp_path / "run.trec", lines)
    with pytest.warns(UserWarning) as told:
        run = read_run(path)
    assert [str(warning.message) for warning in told] == [
        f"{path}: the scores of 2 of 3 queries give another order than the ranks; the scores count"
    ]
    assert run["1"] == [Hit("1", "a", 1, 0.9), Hit("1", "b", 2, 0.2)]
    assert [hit.passage_id for hit in run["3"]] == ["c", "a", "b"]
    assert metrics.evaluate({"1": {"a": 1}}, run, ["RR@10"]) == {"RR@10": 1.0}


def test_a_run_that_is_not_grouped_by_query_is_read_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row is checked once, in whatever order the rows are."""
    checked = []
    real = Place.real
    monkeypatch.setattr(Place, "real", lambda *given: checked.append(given) or real(*given))
    rows = [(f"q{q}", f"p{p}") for p in range(30) for q in range(20)]
    content = "".join(f"{query}\t{passage}\t1\t{-n}\n" for n, (query, passage) in enumerate(rows))
    run = read_run(write(tmp_path / "run.tsv", content))
    assert len(checked) == len(rows)
    assert [hit.passage_id for hit in run["q7"]] == [f"p{p}" for p in range(30)]


@pytest.mark.parametrize(
    "format, hit, message",
    [
        ("trec", Hit("a query", "p", 1, 1.0), "'a query'.*not one word"),
        ("trec", Hit("q", "a\u2003p", 1, 1.0), "passage id .* is not one word"),
        ("tsv", Hit("q", "a\tp", 1, 1.0), r"passage id 'a\\tp' has a tab in it"),
        ("tsv", Hit("q", "a\np", 1, 1.0), r"passage id 'a\\np' has a line end in it"),
        ("tsv", Hit("q\rq", "p", 1, 1.0), r"query id 'q\\rq' has a line end in it"),
        ("tsv", Hit("q", "", 1, 1.0), "passage id '' is empty"),
        ("tsv", Hit("", "p", 1, 1.0), "query id '' is empty"),
        ("tsv", Hit(" q", "p", 1, 1.0), "query id ' q' has spaces"),
        ("tsv", Hit("\ufeffq", "p", 1, 1.0), "byte-order mark"),
        ("tsv", Hit("q", "p", 0, 1.0), "rank from 1"),
        ("tsv", Hit("q", "p", 1, math.inf), "finite score"),
        ("tsv", Hit("q", "\ud800", 1, 1.0), r"passage id '\\ud800' has .* UTF-8 cannot hold"),
    ],
)
def test_runs_that_cannot_be_written(tmp_path: Path, format: RunFormat, hit: Hit, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_run(tmp_path / "run", {hit.query_id: [hit]}, format)
    assert not list(tmp_path.iterdir())


def test_tag_is_one_word(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'my run'.*not one word"):
        write_run(tmp_path / "run", RUN, "trec", tag="my run")


@st.composite
def runs(draw: st.DrawFn, names: st.SearchStrategy[str]) -> Run:
    scores = st.floats(width=32, allow_nan=False, allow_infinity=False)
    run = {}
    for query in draw(st.lists(names, max_size=3, unique=True)):
        passages = draw(st.lists(names, min_size=1, max_size=3, unique=True))
        falling = sorted((draw(scores) for _ in passages), reverse=True)
        scored = zip(passages, falling, strict=True)
        run[query] = [Hit(query, passage, rank, score) for rank, (passage, score) in enumerate(scored, 1)]
    return run


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tsv=runs(ids), trec=runs(words), tag=words)
def test_round_trip(tmp_path: Path, tsv: Run, trec: Run, tag: str) -> None:
    write_run(tmp_path / "run", tsv)
    assert read_run(tmp_path / "run") == tsv
    write_run(tmp_path / "run", trec, "trec", tag)
    assert read_run(tmp_path / "run") == trec


def test_scores_keep_all_float32_digits(tmp_path: Path) -> None:
    bits = np.array([0x80000000, 0x00000001, 0x7F7FFFFF, 0x3DCCCCCD, 0x3F7FFFFF], np.uint32)
    scores = np.sort(bits.view(np.float32))[::-1]  # the largest, the last before 1, 0.1, the smallest, -0
    write_run(tmp_path / "run", {"q": [Hit("q", f"p{i}", i, score) for i, score in enumerate(scores, 1)]})
    found = np.array([hit.score for hit in read_run(tmp_path / "run")["q"]], np.float32)
    assert found.tobytes() == scores.tobytes()
