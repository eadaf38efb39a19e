"""Measures of a run, and whether two runs differ by more than chance. Both by kept libraries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
from scipy import stats

from rocketqa_paddle.records import Qrels, Run

PAPER_NAMES = {"RR@10": "MRR@10", "Success@5": "R@5", "Success@20": "R@20", "Success@50": "R@50"}
"""What the papers call the measures, by their ir_measures names."""


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same queries: mean difference and the two-sided p of a paired t-test."""

    difference: float
    p_value: float
    queries: int


def parse_measures(names: Sequence[str]) -> list[ir_measures.Measure]:
    """Measures by name; a name that ir_measures does not know is a `ValueError`."""
    if not names:
        raise ValueError("no measures: give names such as RR@10, Success@50, nDCG@10")
    measures = []
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
            list(ir_measures.iter_calc([measure], {"q": {"p": 1}}, {"q": {"p": 1.0}}))
            measures.append(measure)
        except Exception:  # whatever it is: each provider of ir_measures has errors of its own
            raise ValueError(
                f"unknown measure {name!r}, expected names such as RR@10, Success@50, nDCG@10"
            ) from None
    return measures


def evaluate(qrels: Qrels, run: Run, names: Sequence[str]) -> dict[str, float]:
    """The mean of every measure over all queries of `qrels`. A query without hits counts as 0."""
    return {name: float(values.mean()) for name, values in evaluate_queries(qrels, run, names).items()}


def evaluate_queries(qrels: Qrels, run: Run, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Every measure of every query, in the order of `qrels`."""
    measures = parse_measures(names)
    scored = {
        query_id: {hit.passage_id: -float(hit.rank) for hit in run.get(query_id, [])} for query_id in qrels
    }
    values = {
        (str(value.measure), value.query_id): value.value for value in _iter_calc(measures, qrels, scored)
    }
    return {
        name: np.array([values.get((str(measure), query_id), 0.0) for query_id in qrels])
        for name, measure in zip(names, measures, strict=True)
    }


def _iter_calc(measures: list, qrels: Qrels, scored: dict) -> list:
    return list(ir_measures.iter_calc(measures, {key: dict(value) for key, value in qrels.items()}, scored))


def compare(qrels: Qrels, run: Run, baseline: Run, name: str) -> Comparison:
    """Paired t-test of `run` against `baseline` on one measure, query by query. One query has no p (nan)."""
    ours, theirs = (evaluate_queries(qrels, r, [name])[name] for r in (run, baseline))
    difference = ours - theirs
    if len(difference) < 2:
        p_value = float("nan")
    else:
        p_value = float(stats.ttest_rel(ours, theirs).pvalue) if difference.any() else 1.0
    return Comparison(float(difference.mean()), p_value, len(difference))
