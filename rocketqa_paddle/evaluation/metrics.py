"""Measures of a run (by ir_measures), and whether two runs differ by more than chance (by SciPy)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
from scipy import stats

from rocketqa_paddle.records import Qrels, Run

_EXAMPLES = "names such as RR@10, Success@50, nDCG@10"
PAPER_NAMES = {"RR@10": "MRR@10", "Success@5": "R@5", "Success@20": "R@20", "Success@50": "R@50"}
"""The papers' names of measures, by their ir_measures names."""


@dataclass(frozen=True)
class Comparison:
    """How two runs on the same queries differ: the mean difference and the p of a two-sided paired t-test."""

    difference: float
    p_value: float
    queries: int

    @property
    def significant(self) -> bool:
        """Whether so large a difference is rarer than one in twenty by chance; never for a single query."""
        return self.p_value < 0.05


def parse_measures(names: Sequence[str]) -> list[ir_measures.Measure]:
    """Parse names of measures; raise ValueError if there are none, or ir_measures does not know one."""
    if not names:
        raise ValueError(f"no measures: give {_EXAMPLES}")
    measures = []
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
            list(ir_measures.iter_calc([measure], {"q": {"p": 1}}, {"q": {"p": 1.0}}))
            measures.append(measure)
        except Exception:  # each provider of ir_measures raises errors of its own
            raise ValueError(f"unknown measure {name!r}, expected {_EXAMPLES}") from None
    return measures


def evaluate(qrels: Qrels, run: Run, names: Sequence[str]) -> dict[str, float]:
    """Return the mean of every measure over all queries of `qrels`. A query without hits counts as 0."""
    return {name: float(values.mean()) for name, values in evaluate_queries(qrels, run, names).items()}


def evaluate_queries(qrels: Qrels, run: Run, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the values of every measure, one for each query in the order of `qrels`: float64 `[queries]`."""
    measures = parse_measures(names)
    scored = {query: {hit.passage_id: -float(hit.rank) for hit in run.get(query, [])} for query in qrels}
    judged = {query: dict(judgements) for query, judgements in qrels.items()}
    calculated = ir_measures.iter_calc(measures, judged, scored)
    values = {(str(value.measure), value.query_id): value.value for value in calculated}
    return {
        name: np.array([values.get((str(measure), query), 0.0) for query in qrels])
        for name, measure in zip(names, measures, strict=True)
    }


def compare(values: np.ndarray, baseline: np.ndarray) -> Comparison:
    """Compare a measure of two systems on the same queries, both `[queries]`; p is NaN for a single query."""
    difference = values - baseline
    p_value = 1.0 if len(difference) > 1 else float("nan")
    if len(difference) > 1 and difference.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the differences may all be the same
            p_value = float(stats.ttest_rel(values, baseline).pvalue)
    return Comparison(float(difference.mean()), p_value, len(difference))


def single(mean: float) -> np.ndarray:
    """Return a mean in place of the values of all queries, for tables: `[1]`."""
    return np.array([mean])
