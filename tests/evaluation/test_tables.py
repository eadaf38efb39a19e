"""The table, the sentence on significance, and the picture."""

from __future__ import annotations

import struct

import pytest

from rocketqa_paddle.evaluation import metrics, tables
from rocketqa_paddle.evaluation.tables import Row
from rocketqa_paddle.records import Hit

QRELS = {"a": {"1": 1}, "b": {"1": 1}, "c": {"1": 1}, "d": {"1": 1}}


def make_row(name: str, **rank_of_answer: int) -> Row:
    run = {
        query: [Hit(query, "1" if r == rank else f"x{r}", r, -r) for r in range(1, 11)]
        for query, rank in rank_of_answer.items()
    }
    return Row(name, run)


def test_table_text():
    rows = [make_row("BM25", a=2, b=2, c=10, d=1), make_row("ours", a=1, b=1, c=2)]
    text = tables.table("**test**: 4 queries", rows, QRELS, ["RR@10", "Success@5", "nDCG@3"])
    assert text == (
        "**test**: 4 queries\n"
        "\n"
        "| system | RR@10 (MRR@10) | Success@5 (R@5) | nDCG@3    |\n"
        "|--------|----------------|-----------------|-----------|\n"
        "| BM25   | 0.525          | **0.750**       | 0.565     |\n"
        "| ours   | **0.625**      | **0.750**       | **0.658** |"
    )


def test_lines_of_a_table_are_equally_long():
    rows = [make_row("a name that is longer than its column's head", a=1), make_row("b", a=3)]
    _, _, *lines = tables.table("title", rows, QRELS, ["RR@10", "Success@50"]).split("\n")
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1


def test_significance_says_what_the_comparison_found():
    ours, theirs = make_row("ours", a=1, b=1, c=1, d=1), make_row("theirs", a=2, b=2, c=3, d=2)
    result = metrics.compare(QRELS, ours.run, theirs.run, "RR@10")
    assert result.p_value < 0.05
    assert tables.significance(ours, theirs, QRELS, "RR@10") == (
        f"ours against theirs: RR@10 +0.542, paired t-test over 4 queries p = {result.p_value:.2g}, "
        "significant at 0.05."
    )


def test_significance_of_chance():
    ours, theirs = make_row("ours", a=1, b=2, c=1, d=2), make_row("theirs", a=2, b=1, c=1, d=2)
    text = tables.significance(ours, theirs, QRELS, "RR@10")
    assert text == (
        "ours against theirs: RR@10 +0.000, paired t-test over 4 queries p = 1, not significant at 0.05."
    )


LOG = [
    {"stage": "start", "dev/retriever/RR@10": 0.1},
    {"stage": "warm-up retriever", "step": 1, "loss": 2.0, "learning_rate": 0.1},
    {"stage": "warm-up retriever", "step": 9, "loss": 1.0},
    {"stage": "warm-up", "dev/retriever/RR@10": 0.4},
    {"stage": "warm-up", "dev/reranker/RR@10": 0.5},
    {"stage": "round-001 both", "step": 1, "loss": 0.7},
    {"stage": "round-001 both", "step": 4, "loss": 0.6},
    {"stage": "round-001", "dev/retriever/RR@10": 0.6},
]


def test_plot_writes_a_png(tmp_path):
    path = tmp_path / "curves.png"
    tables.plot_curves(LOG, path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (1320, 480)


def test_plot_shows_every_curve(tmp_path, monkeypatch):
    from matplotlib import pyplot

    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    tables.plot_curves(LOG, tmp_path / "curves.png")
    monkeypatch.undo()
    losses, dev = kept[0].axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    # a stage begins where the one before ended
    assert curves == {"warm-up retriever": [[1, 2], [9, 1]], "round-001 both": [[10, 0.7], [13, 0.6]]}
    points = {line.get_label(): list(line.get_ydata()) for line in dev.lines}
    assert points == {"retriever/RR@10": [0.1, 0.4, 0.6], "reranker/RR@10": [0.5]}
    pyplot.close("all")


@pytest.mark.parametrize("rows", [[], [{"stage": "start", "dev/retriever/RR@10": 0.1}]])
def test_plot_of_a_run_that_trained_nothing(rows, tmp_path):
    tables.plot_curves(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
