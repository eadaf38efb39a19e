"""The pictures of a run's curves and of a comparison."""

from __future__ import annotations

import struct

import pytest

from rocketqa_paddle.evaluation import plots

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


def size_of(path) -> tuple[int, int]:
    """The width and height of a PNG."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_plot_shows_every_curve(tmp_path, monkeypatch):
    from matplotlib import pyplot

    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    plots.plot_curves(LOG, tmp_path / "curves.png")
    monkeypatch.undo()
    assert size_of(tmp_path / "curves.png") == (1320, 480)
    losses, dev = kept[0].axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    # a training begins where the one before ended
    assert curves == {"warm-up retriever": [[1, 2], [9, 1]], "round-001 both": [[10, 0.7], [13, 0.6]]}
    points = {line.get_label(): list(line.get_ydata()) for line in dev.lines}
    assert points == {"retriever/RR@10": [0.1, 0.4, 0.6], "reranker/RR@10": [0.5]}
    pyplot.close("all")


@pytest.mark.parametrize("rows", [[], [{"stage": "start", "dev/retriever/RR@10": 0.1}]])
def test_plot_of_a_run_that_trained_nothing(rows, tmp_path):
    plots.plot_curves(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_plot_of_a_comparison_shows_every_system(tmp_path, monkeypatch):
    from matplotlib import pyplot

    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    for models in (["retriever"], ["retriever", "re-ranker"]):
        curves = {model: {"AR2": [(10, 0.5), (20, 0.75)], "PAIR": [(5, 0.25)]} for model in models}
        plots.plot_comparison(curves, "RR@10", tmp_path / "comparison.png")
        assert size_of(tmp_path / "comparison.png") == (1320, 480)
        assert [axes.get_title() for axes in kept[-1].axes] == [f"Dev queries: {model}" for model in models]
        for axes in kept[-1].axes:
            points = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
            assert points == {"AR2": [[10, 0.5], [20, 0.75]], "PAIR": [[5, 0.25]]}
            assert axes.get_ylabel() == "RR@10"
    monkeypatch.undo()
    pyplot.close("all")
