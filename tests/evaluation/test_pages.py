"""Parts of web pages: curves of a log, charts, Markdown as HTML, and queries won and lost."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from rocketqa_paddle.evaluation import charts, curves, examples, html
from rocketqa_paddle.records import Hit

LOG = [
    {"stage": "initial", "dev/retriever/RR@10": 0.25},
    {"stage": "warm-up retriever", "step": 1, "loss": 2.0, "learning_rate": 0.1},
    {"stage": "warm-up retriever", "step": 2, "loss": None, "learning_rate": 0.0},
    {"stage": "warm-up", "dev/retriever/RR@10": 0.5},
    {"stage": "warm-up", "dev/reranker/RR@10": 0.75},
]


def drawn(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure.replace("'", '"'))


def test_curves_leave_out_what_was_not_finite():
    assert curves.of_trainings(LOG, "loss") == {"warm-up retriever": [(1, 2.0)]}
    assert curves.of_trainings(LOG, "learning_rate") == {"warm-up retriever": [(1, 0.1), (2, 0.0)]}
    steps, dev = curves.of_dev(LOG)
    assert steps == ["initial", "warm-up"]
    assert dev == {"reranker/RR@10": [(1, 0.75)], "retriever/RR@10": [(0, 0.25), (1, 0.5)]}


@pytest.mark.parametrize(
    "curve",
    [[(1, 2.0)], [(1, 0.0), (9, 0.0)], [(5, -1e-9), (6, 1e12)], [(n, 1.0 / (n + 1)) for n in range(500)]],
    ids=["a point", "level", "far apart", "many"],
)
def test_a_chart_keeps_every_point_inside_of_its_frame(curve):
    figure = drawn(charts.line_chart("<loss>", {"a & b": curve}, "step"))
    svg = figure.find("svg")
    width, height = map(float, svg.get("viewBox").split()[2:])
    points = [tuple(map(float, pair.split(","))) for pair in svg.find("polyline").get("points").split()]
    assert len(points) == len(curve)
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    ticks = [text for text in svg.findall("text") if text.get("text-anchor") == "end"]
    assert 1 <= len(ticks) <= 9
    assert figure.find("figcaption").text == "<loss>"


def test_a_chart_puts_names_where_their_points_are():
    figure = drawn(charts.line_chart("dev", {"RR@10": [(1, 0.5)]}, "step", ["<a>", "b", "c"]))
    [dot] = figure.iter("circle")
    places = {
        t.text: float(re.search(r"[\d.]+", t.get("transform"))[0])
        for t in figure.iter("text")
        if t.get("transform")
    }
    assert float(dot.get("cx")) == places["b"] == (places["<a>"] + places["c"]) / 2
    assert dot.find("title").text == "b: 0.5"


def test_a_histogram_shows_shares_of_each_group():
    groups = {"positives": np.array([1.0, 1.0]), "others": np.linspace(-1, 1, 50), "none": np.zeros(0)}
    figure = drawn(charts.histogram("scores", groups, "score"))
    assert [item.text for item in figure.iter("li")] == ["positives (2)", "others (50)"]
    tops = [
        min(float(p.split(",")[1]) for p in area.get("points").split()) for area in figure.iter("polygon")
    ]
    assert tops[0] < tops[1]  # all of the positives are in one bar
    for empty in (charts.histogram("s", {}, "score"), charts.line_chart("s", {"loss": []}, "step")):
        assert drawn(empty).find("svg") is None
    assert drawn(charts.histogram("one", {"a": np.ones(3)}, "score")).find("svg") is not None


def test_markdown_becomes_tables_and_paragraphs():
    text = "**dev**: 2 <queries>\n\n| system | RR |\n|---|---|\n| <b> | **0.5** |\n| c | 0.25 |\n\nBetter.\n"
    page = html.from_markdown(text)
    assert "<p><strong>dev</strong>: 2 &lt;queries&gt;</p>" in page
    assert "<tr><th>system</th><th>RR</th></tr>" in page
    assert "<tr><td>&lt;b&gt;</td><td><strong>0.5</strong></td></tr><tr><td>c</td><td>0.25</td></tr>" in page
    assert page.endswith("<p>Better.</p>")


def ranked(query: str, *passages: str) -> list[Hit]:
    return [Hit(query, passage, rank, 1.0 / rank) for rank, passage in enumerate(passages, 1)]


def test_queries_are_won_and_lost_by_the_measure_and_then_by_rank():
    filler = [f"x{n}" for n in range(12)]
    run = {
        "a": ranked("a", "p"),
        "b": ranked("b", "x", "p"),
        "c": ranked("c", "p"),
        "d": ranked("d", *filler, "p"),
        "e": [],
    }
    other = {
        "a": ranked("a", "x", "y", "z", "p"),
        "b": ranked("b", "p"),
        "c": ranked("c", "p"),
        "d": [],
        "e": [],
    }
    qrels = {id: {"p": 1, "q": 0} for id in "abcde"}
    found = examples.differences(qrels, run, other, "RR@10")
    won, lost = examples.won(found, 10), examples.lost(found, 10)
    assert [(e.query_id, e.difference, e.rank, e.baseline_rank) for e in won] == [
        ("a", 0.75, 1, 4),
        ("d", 0.0, 13, None),  # both are behind the tenth
    ]
    assert [(e.query_id, e.difference, e.rank, e.baseline_rank) for e in lost] == [("b", -0.5, 2, 1)]
    assert examples.won(found, 1) == won[:1]
