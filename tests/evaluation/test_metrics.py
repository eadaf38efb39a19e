"""Measures by hand, and the t-test against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.records import Hit

QRELS = {"a": {"1": 1}, "b": {"2": 1, "3": 1}, "c": {"9": 1}}


def make_run(**ids: str) -> dict[str, list[Hit]]:
    return {
        query: [Hit(query, passage, rank, 1.0 / rank) for rank, passage in enumerate(passages.split(), 1)]
        for query, passages in ids.items()
    }


def test_measures_by_hand():
    run = make_run(a="5 1 6", b="3 5 2 6")  # nothing for c
    values = metrics.evaluate(QRELS, run, ["RR@10", "Success@1", "Success@5", "nDCG@10"])
    ndcg_b = (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert values == pytest.approx(
        {
            "RR@10": (1 / 2 + 1 + 0) / 3,
            "Success@1": 1 / 3,
            "Success@5": 2 / 3,
            "nDCG@10": (1 / math.log2(3) + ndcg_b + 0) / 3,
        }
    )


def test_every_query_in_the_order_of_the_judgements():
    run = make_run(b="2", a="7 8 1", other="1")
    values = metrics.evaluate_queries(QRELS, run, ["RR@10", "Success@5"])
    assert values["RR@10"].tolist() == pytest.approx([1 / 3, 1, 0])
    assert values["Success@5"].tolist() == [1, 1, 0]


def test_the_cutoff_counts():
    run = make_run(a=" ".join(map(str, range(20, 30))) + " 1")  # the answer is at rank 11
    assert metrics.evaluate({"a": {"1": 1}}, run, ["RR@10", "RR@20"]) == pytest.approx(
        {"RR@10": 0, "RR@20": 1 / 11}
    )


def test_ranks_decide_where_scores_are_equal():
    hits = [Hit("a", passage, rank, 0.5) for rank, passage in enumerate("zyx1", 1)]
    assert metrics.evaluate({"a": {"1": 1}}, {"a": hits}, ["RR@10"]) == {"RR@10": 0.25}
    hits = [Hit("a", passage, rank, 0.5) for rank, passage in enumerate("1xyz", 1)]
    assert metrics.evaluate({"a": {"1": 1}}, {"a": hits}, ["RR@10"]) == {"RR@10": 1.0}


def test_a_passage_judged_0_is_not_relevant():
    assert metrics.evaluate({"a": {"1": 0, "2": 1}}, make_run(a="1 2"), ["RR@10"]) == {"RR@10": 0.5}


def test_a_run_without_any_hit_is_0():
    assert metrics.evaluate(QRELS, {}, ["RR@10", "nDCG@10"]) == {"RR@10": 0, "nDCG@10": 0}


def test_the_papers_names_are_the_same_measures():
    run = make_run(a="5 1", b="7 8 9 4 6 2")
    for name, paper in metrics.PAPER_NAMES.items():
        if paper.startswith("MRR"):
            assert metrics.evaluate(QRELS, run, [name])[name] == metrics.evaluate(QRELS, run, [paper])[paper]


@given(st.permutations([str(i) for i in range(12)]), st.sets(st.integers(0, 11), min_size=1))
def test_reciprocal_rank_and_success_of_any_ranking(ranking, relevant):
    qrels = {"q": {str(i): 1 for i in relevant}}
    first = min(rank for rank, passage in enumerate(ranking, 1) if int(passage) in relevant)
    values = metrics.evaluate(qrels, make_run(q=" ".join(ranking)), ["RR@10", "Success@5"])
    assert values["RR@10"] == pytest.approx(1 / first if first <= 10 else 0)
    assert values["Success@5"] == (first <= 5)


@pytest.mark.parametrize(
    "name", ["XY@10", "RR@", "RR@ten", "", "RR@10 Success@5", "nDCG@10(", "1+1", "RR@-5"]
)
def test_an_unknown_measure_is_named(name):
    with pytest.raises(ValueError, match="expected names such as RR@10") as error:
        metrics.parse_measures([name])
    assert repr(name) in str(error.value)


def test_compare_is_scipys_paired_t_test():
    qrels = {str(i): {"1": 1} for i in range(6)}
    runs = (
        make_run(**{str(i): "1" if i < 4 else "2 1" for i in range(6)}),
        make_run(**{str(i): "3 1" if i % 2 else "2 4 1" for i in range(5)}),
    )
    better, worse = (metrics.evaluate_queries(qrels, run, ["RR@10"])["RR@10"] for run in runs)
    a, b = [1, 1, 1, 1, 0.5, 0.5], [1 / 3, 1 / 2, 1 / 3, 1 / 2, 1 / 3, 0]
    assert (better.tolist(), worse.tolist()) == (a, pytest.approx(b))
    result = metrics.compare(better, worse)
    assert result.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert result.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert result.queries == 6
    assert metrics.compare(worse, better).difference == pytest.approx(-result.difference)


def test_identical_runs_do_not_differ():
    values = metrics.evaluate_queries(QRELS, make_run(a="5 1", b="2"), ["RR@10"])["RR@10"]
    assert metrics.compare(values, values) == metrics.Comparison(0.0, 1.0, 3)


def test_a_single_query_has_no_p():
    result = metrics.compare(metrics.single(0.75), metrics.single(0.5))
    assert (result.difference, result.queries) == (0.25, 1)
    assert math.isnan(result.p_value)
