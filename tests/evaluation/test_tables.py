"""The table of measures, and the sentence on significance."""

from __future__ import annotations

import numpy as np
import pytest

from rocketqa_paddle.evaluation import metrics, tables
from rocketqa_paddle.records import Hit

QRELS = {"a": {"1": 1}, "b": {"1": 1}, "c": {"1": 1}, "d": {"1": 1}}
MEASURES = ["RR@10", "Success@5", "nDCG@3", "Success@50"]


def values(**rank_of_answer: int) -> dict[str, np.ndarray]:
    """Measure a run that finds the answers of some queries at some ranks."""
    run = {
        query: [Hit(query, "1" if r == rank else f"x{r}", r, -r) for r in range(1, 11)]
        for query, rank in rank_of_answer.items()
    }
    return metrics.evaluate_queries(QRELS, run, MEASURES)


def test_table_text():
    rows = {"BM25": values(a=2, b=2, c=10, d=1), "dense": values(a=1, b=1, c=2)}
    text = tables.table("**test**: 4 queries", rows, ["RR@10", "Success@5", "nDCG@3"])
    assert text == (
        "**test**: 4 queries\n"
        "\n"
        "| system | RR@10 (MRR@10) | Success@5 (R@5) | nDCG@3    |\n"
        "|--------|----------------|-----------------|-----------|\n"
        "| BM25   | 0.525          | **0.750**       | 0.565     |\n"
        "| dense  | **0.625**      | **0.750**       | **0.658** |"
    )


def test_a_table_compares_with_its_first_row():
    rows = {"BM25": values(a=2, b=2, c=10, d=1), "dense": values(a=1, b=1, c=2)}
    result = metrics.compare(rows["dense"]["RR@10"], rows["BM25"]["RR@10"])
    lines = tables.table("title", rows, ["RR@10"], against_first=True).split("\n")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert cells[0][-1] == "RR@10 against BM25"
    assert cells[2] == ["BM25", "0.525", ""]
    assert cells[3] == ["dense", "**0.625**", f"+0.100 (p = {result.p_value:.2g})"]


def test_a_table_of_means_has_no_p():
    rows = {name: {"RR@10": metrics.single(mean)} for name, mean in (("a", 0.5), ("b", 0.25))}
    text = tables.table("title", rows, ["RR@10"], against_first=True)
    assert [cell.strip() for cell in text.split("\n")[-1].split("|")[1:-1]] == ["b", "0.250", "-0.250"]


def test_lines_of_a_table_are_equally_long():
    rows = {"a name that is longer than its column's head": values(a=1), "b": values(a=3)}
    _, _, *lines = tables.table("title", rows, ["RR@10", "Success@50"]).split("\n")
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1


def test_significance_says_what_the_comparison_found():
    better, worse = values(a=1, b=1, c=1, d=1), values(a=2, b=2, c=3, d=2)
    result = metrics.compare(better["RR@10"], worse["RR@10"])
    assert result.p_value < 0.05
    assert tables.significance("dense", better, "BM25", worse, "RR@10") == (
        f"dense against BM25: RR@10 +0.542, paired t-test over 4 queries p = {result.p_value:.2g}, "
        "significant at 0.05."
    )


def test_significance_of_chance():
    one, other = values(a=1, b=2, c=1, d=2), values(a=2, b=1, c=1, d=2)
    assert tables.significance("dense", one, "BM25", other, "RR@10") == (
        "dense against BM25: RR@10 +0.000, paired t-test over 4 queries p = 1, not significant at 0.05."
    )


def test_significance_of_a_single_query():
    rows = [{"RR@10": metrics.single(mean)} for mean in (0.5, 0.25)]
    text = tables.significance("dense", rows[0], "BM25", rows[1], "RR@10")
    assert text == "dense against BM25: RR@10 +0.250 on a single query."


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (7200, "2.0 h")]
)
def test_durations(seconds, text):
    assert tables.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(100_000, "0 MB"), (25_000_000, "25 MB"), (10**12, "1,000.0 GB")]
)
def test_sizes(count, text):
    assert tables.size(count) == text
