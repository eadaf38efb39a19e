"""Queries that one run answers better or worse than another."""

from collections.abc import Sequence
from dataclasses import dataclass

from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.records import Qrels, Run, positives


@dataclass(frozen=True)
class Example:
    """A query and the ranks of its first positive in two runs; None where it was not found."""

    query_id: str
    difference: float
    """Of the measure: the run's less the baseline's."""
    rank: int | None
    baseline_rank: int | None

    @property
    def gain(self) -> tuple[float, float]:
        """How much better the run is: by the measure, and where that is the same, by reciprocal rank."""
        return self.difference, _reciprocal(self.rank) - _reciprocal(self.baseline_rank)


def differences(qrels: Qrels, run: Run, baseline: Run, measure: str) -> list[Example]:
    """Compare two runs query by query, the greatest gain first."""
    values, others = (metrics.evaluate_queries(qrels, found, [measure])[measure] for found in (run, baseline))
    examples = [
        Example(id, float(difference), _first(run, qrels, id), _first(baseline, qrels, id))
        for id, difference in zip(qrels, values - others, strict=True)
    ]
    return sorted(examples, key=lambda example: example.gain, reverse=True)


def won(examples: Sequence[Example], count: int) -> list[Example]:
    """The queries that a run answers better, the greatest gain first."""
    return [example for example in examples if example.gain > (0.0, 0.0)][:count]


def lost(examples: Sequence[Example], count: int) -> list[Example]:
    """The queries that a run answers worse, the greatest loss first."""
    return [example for example in reversed(examples) if example.gain < (0.0, 0.0)][:count]


def _first(run: Run, qrels: Qrels, query_id: str) -> int | None:
    """The rank of the first positive."""
    wanted = {*positives(qrels, query_id)}
    return next((hit.rank for hit in run.get(query_id, []) if hit.passage_id in wanted), None)


def _reciprocal(rank: int | None) -> float:
    return 1 / rank if rank else 0.0
