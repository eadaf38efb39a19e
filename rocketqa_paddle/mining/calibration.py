"""A re-ranker's scores as probabilities of relevance, fitted on labelled queries and checked before use."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from rocketqa_paddle.data.candidates import Filtered
from rocketqa_paddle.data.store import content_of
from rocketqa_paddle.records import FalseNegatives, Hit, Passages, Qrels, Queries, Run, positives

T = TypeVar("T", float, np.ndarray)
_CALIBRATION_SCORES = 100_000  # more scores would not change the fit


@dataclass(frozen=True)
class Calibration:
    """Turns a re-ranker's scores into probabilities of relevance: `sigmoid(slope * score + offset)`.

    A model that is trained on lists learns only differences of scores, so its scores have no zero and
    thresholds such as the papers' 0.1 and 0.9 do not fit them. Platt's scaling (1999), fitted on labelled
    positives and on other candidates, makes probabilities of them.
    """

    slope: float = 1.0
    offset: float = 0.0

    def probability(self, score: T) -> T:
        """Return the probability of relevance that a score, or each of an array, stands for."""
        return expit(self.slope * score + self.offset)

    @classmethod
    def fit(cls, positives: Sequence[float], negatives: Sequence[float]) -> Calibration:
        """Fit a logistic regression on the scores of labelled positives and of other candidates.

        Both sides have the same total weight, so that the probabilities do not depend on the number of
        candidates. Targets are smoothed as by Platt (1999), so that separable scores have a finite answer.
        ValueError is raised if one side is empty.
        """
        if not len(positives) or not len(negatives):
            raise ValueError(
                f"calibration needs both sides: {len(positives)} positives, {len(negatives)} negatives"
            )
        raw = np.concatenate([positives, negatives])
        middle, spread = raw.mean(), raw.std() or 1.0
        scores = (raw - middle) / spread
        high, low = (len(positives) + 1) / (len(positives) + 2), 1 / (len(negatives) + 2)
        weights = np.repeat([1 / len(positives), 1 / len(negatives)], [len(positives), len(negatives)])
        targets = np.repeat([high, low], [len(positives), len(negatives)])

        def loss(parameters: np.ndarray) -> float:
            logits = parameters[0] * scores + parameters[1]
            return float((weights * (np.logaddexp(0, logits) - targets * logits)).sum())

        slope, offset = minimize(loss, np.array([1.0, 0.0]), method="BFGS").x
        return cls(float(slope / spread), float(offset - slope * middle / spread))


def without_false_negatives(scored: Run, queries: Queries, qrels: Qrels, passages: Passages) -> Run:
    """Leave out the candidates that are known to be no negatives of their query, except labelled positives.

    A passage that says what a labelled positive says, or the query itself, would count as a candidate of the
    other side, with a high score.
    """

    def kept(query_id: str, hits: list[Hit]) -> list[Hit]:
        labelled = dict.fromkeys(positives(qrels, query_id))
        false = FalseNegatives(queries[query_id], (content_of(passages, id) for id in labelled))
        return [
            h for h in hits if h.passage_id in labelled or content_of(passages, h.passage_id) not in false
        ]

    return Filtered(scored, kept)


def calibrate(scored: Run, qrels: Qrels, seed: int) -> Calibration:
    """Fit a re-ranker's probabilities on the labelled positives and the other candidates of a scored run.

    A slope that is not above 0 means that the re-ranker is of no use: it prefers other candidates. The `seed`
    decides which scores are drawn where there are very many. ValueError is raised if either side is empty.
    """
    scores = np.fromiter(_labelled(scored, qrels), np.dtype([("score", "f8"), ("positive", "?")]))
    if len(scores) > _CALIBRATION_SCORES:
        scores = scores[random.Random(seed).sample(range(len(scores)), _CALIBRATION_SCORES)]
    return Calibration.fit(scores["score"][scores["positive"]], scores["score"][~scores["positive"]])


def _labelled(scored: Run, qrels: Qrels) -> Iterator[tuple[float, bool]]:
    """Yield the score of every candidate, and whether it is a labelled positive."""
    for query_id, hits in scored.items():
        labelled = set(positives(qrels, query_id))
        yield from ((hit.score, hit.passage_id in labelled) for hit in hits)


def check_scores(scored: Run, qrels: Qrels, calibration: Calibration, below: float) -> str:
    """Say how many labelled positives a re-ranker rejects.

    ValueError is raised if no candidate has a probability below `below`, or every labelled positive has.
    """
    labelled, rejects = [], False
    for score, positive in _labelled(scored, qrels):
        rejected = calibration.probability(score) < below
        rejects |= rejected
        labelled += [rejected] if positive else []
    if not rejects:
        raise ValueError(
            f"no candidate has a probability below {below}, so none is a negative. "
            + describe_scores(scored, calibration)
        )
    if labelled and all(labelled):
        raise ValueError(
            f"all {len(labelled)} labelled positives have a probability below {below} and would count as "
            f"negatives. {describe_scores(scored, calibration)}"
        )
    return f"the re-ranker rejects {sum(labelled)} of {len(labelled)} labelled positives"


def describe_scores(scored: Run, calibration: Calibration) -> str:
    """Describe the range of the re-ranker's probabilities, and advise what to do about it."""
    scores = np.fromiter((hit.score for hits in scored.values() for hit in hits), float)
    probabilities = np.sort(calibration.probability(scores))
    if not len(probabilities):
        return "There are no candidates: retrieve more."
    low, middle, high = (probabilities[int(q * (len(probabilities) - 1))] for q in (0.0, 0.5, 1.0))
    return (
        f"The re-ranker's probabilities of {len(probabilities)} candidates are {low:.3f} to {high:.3f}, "
        f"half of them below {middle:.3f}: set thresholds that part them (see `rocketqa mine --report`), "
        "retrieve deeper, or train the re-ranker longer"
    )
