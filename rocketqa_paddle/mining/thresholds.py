"""Which thresholds suit a re-ranker: its scores of labelled positives and of other candidates, side by side.

RocketQA takes 0.1 and 0.9 (Qu et al., NAACL 2021, section 4.1.3). They fit its re-ranker; another one's
probabilities may all lie on one side of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rocketqa_paddle.evaluation.tables import align
from rocketqa_paddle.mining.miner import Calibration
from rocketqa_paddle.records import Hit, Qrels, Run

LOST_POSITIVES = 0.02
"""Share of labelled positives that a suggested lower threshold may take for negatives."""
WRONG_POSITIVES = 0.1
"""Share of pseudo positives over a suggested upper threshold that may be unlabelled."""
_GRID = np.arange(1, 100) / 100
_SHOWN = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
_BINS, _BAR = 10, 30


@dataclass(frozen=True)
class Thresholds:
    """Probabilities under which a candidate is a negative, and over which a query's best is a positive."""

    negative_below: float
    positive_above: float


class ScoreReport:
    """A re-ranker's probabilities on labelled queries.

    Args:
        scored: candidates, with the re-ranker's scores.
        qrels: labelled positives.
        calibration: makes the scores probabilities.
        found: what the retriever found, where `scored` holds labelled positives beside that. Only these can
            be a query's best candidate, as it will be for unlabelled queries.

    Raises:
        ValueError: no labelled positive, or no other candidate, is among the scored.
    """

    def __init__(self, scored: Run, qrels: Qrels, calibration: Calibration, found: Run | None = None) -> None:
        self._raw = calibration == Calibration()
        positives: list[float] = []
        others: list[float] = []
        best: list[tuple[float, bool]] = []
        for query_id, hits in scored.items():
            retrieved = {hit.passage_id for hit in (found or scored).get(query_id, [])}
            judged = [(calibration.probability(hit.score), _is_positive(hit, qrels), hit) for hit in hits]
            positives += [probability for probability, positive, _ in judged if positive]
            others += [probability for probability, positive, _ in judged if not positive]
            ranked = [(p, not positive) for p, positive, hit in judged if hit.passage_id in retrieved]
            if ranked and any(relevance > 0 for relevance in qrels.get(query_id, {}).values()):
                best.append(max(ranked))  # of equal ones, the unlabelled counts
        if not positives or not others:
            raise ValueError(
                f"{len(positives)} labelled positives and {len(others)} other candidates are scored, a "
                "report needs both: give --qrels, and a --run of the labelled queries"
            )
        self.positives, self.others = np.array(positives), np.array(others)
        self._best = np.array([probability for probability, _ in best])
        self._best_is_labelled = np.array([not unlabelled for _, unlabelled in best])

    def suggest(self) -> Thresholds | None:
        """A pair for these queries; None where no pair parts the two sides.

        The lower one loses at most `LOST_POSITIVES` of the labelled positives, and is the highest up to one
        half that does. Over the upper one at most `WRONG_POSITIVES` of the queries' best candidates are
        unlabelled, and it is the lowest with that; where labels are incomplete no threshold may reach it, and
        the one with the fewest is taken.
        """
        kept = [t for t in _GRID if (self.positives < t).mean() <= LOST_POSITIVES and (self.others < t).any()]
        shares = {t: self._labelled_above(t) for t in _GRID if (self._best > t).any()}
        pairs = [(below, above) for below in kept for above in shares if below < above]

        def worth(pair: tuple[float, float]) -> tuple[float, float, float]:
            below, above = pair
            return min(shares[above], 1 - WRONG_POSITIVES), below if below <= 0.5 else -below, -above

        return Thresholds(*map(float, max(pairs, key=worth))) if pairs else None

    def _labelled_above(self, threshold: float) -> float:
        """Of the queries whose best candidate is over the threshold, the share where it is labelled."""
        above = self._best > threshold
        return float(self._best_is_labelled[above].mean()) if above.any() else float("nan")

    def __str__(self) -> str:
        return "\n\n".join([self._histogram(), self._table(), self._advice()])

    def _histogram(self) -> str:
        edges = np.linspace(0, 1, _BINS + 1)
        shares = [np.histogram(side, edges)[0] / len(side) for side in (self.positives, self.others)]
        heads = (f"{len(self.positives)} labelled positives", f"{len(self.others)} other candidates")
        rows = [("probability", *heads)]
        for number in range(_BINS):
            bars = (f"{_bar(share[number])} {100 * share[number]:.1f} %".strip() for share in shares)
            rows.append((f"{edges[number]:.1f} to {edges[number + 1]:.1f}", *bars))
        return align(rows)

    def _table(self) -> str:
        rows = [
            (
                "threshold",
                "labelled positives below",
                "other candidates below",
                "queries whose best is above",
                "of these, best is labelled",
            )
        ]
        for t in _SHOWN:
            shares = (
                (self.positives < t).mean(),
                (self.others < t).mean(),
                (self._best > t).mean(),
                self._labelled_above(t),
            )
            rows.append((f"{t}", *("-" if np.isnan(x) else f"{100 * x:.1f} %" for x in shares)))
        return align(rows)

    def _advice(self) -> str:
        found = self.suggest()
        if found is None:
            advice = "No pair of thresholds parts the two sides: train the re-ranker longer"
            return advice + (", or --calibrate it if it was trained on lists." if self._raw else ".")
        below, above = found.negative_below, found.positive_above
        return (
            f"suggested: --negative_below {below:.2f} --positive_above {above:.2f}\n"
            f"Below {below:.2f} lie {100 * (self.positives < below).mean():.1f} % of the labelled positives "
            f"and {100 * (self.others < below).mean():.1f} % of the other candidates. "
            f"{100 * (self._best > above).mean():.1f} % of the queries have a candidate above {above:.2f}, "
            f"and for {100 * self._labelled_above(above):.1f} % of these the best is a labelled positive."
        )


def _is_positive(hit: Hit, qrels: Mapping[str, Mapping[str, int]]) -> bool:
    return qrels.get(hit.query_id, {}).get(hit.passage_id, 0) > 0


def _bar(share: float) -> str:
    return "#" * round(_BAR * share)
