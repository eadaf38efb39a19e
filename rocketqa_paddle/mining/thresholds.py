"""Which thresholds suit a re-ranker: its scores of labelled positives and of other candidates, side by side.

RocketQA takes 0.1 and 0.9 (Qu et al., NAACL 2021, section 4.1.3). These fit its own re-ranker; all
probabilities of another re-ranker may lie on one side of them.
"""

from typing import NamedTuple

import numpy as np

from rocketqa_paddle.evaluation.tables import align
from rocketqa_paddle.mining.calibration import Calibration
from rocketqa_paddle.records import Qrels, Run, positives

LOST_POSITIVES = 0.02
"""The largest share of labelled positives that may lie below a suggested lower threshold."""
WRONG_POSITIVES = 0.1
"""The largest share of pseudo positives above a suggested upper threshold that may be unlabelled."""
_GRID = np.arange(1, 100) / 100
_SHOWN = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
_BINS, _BAR = 10, 30


class Thresholds(NamedTuple):
    """A candidate below the one probability is a negative; a best candidate above the other is a positive."""

    negative_below: float
    positive_above: float


class ScoreReport:
    """A re-ranker's probabilities on labelled queries. `str` of it is the report to print.

    `found` is what the retriever found, if `scored` holds other labelled positives as well. Only a passage
    that was found can be a query's best candidate, as with unlabelled queries. ValueError is raised if no
    labelled positive or no other candidate has a score.
    """

    def __init__(self, scored: Run, qrels: Qrels, calibration: Calibration, found: Run | None = None) -> None:
        self._raw = calibration == Calibration()
        sides: dict[bool, list[float]] = {True: [], False: []}
        best: list[tuple[float, bool]] = []
        for query_id, hits in scored.items():
            labelled = set(positives(qrels, query_id))
            retrieved = {hit.passage_id for hit in (found or scored).get(query_id, [])}
            ranked = []
            for hit in hits:
                probability, positive = calibration.probability(hit.score), hit.passage_id in labelled
                sides[positive].append(probability)
                if hit.passage_id in retrieved:
                    ranked.append((probability, not positive))
            if ranked and labelled:
                best.append(max(ranked))  # of equal ones, the unlabelled one counts
        self.positives, self.others = np.array(sides[True]), np.array(sides[False])
        if not len(self.positives) or not len(self.others):
            raise ValueError(
                f"{len(self.positives)} labelled positives and {len(self.others)} other candidates are "
                "scored, a report needs both: give --qrels, and a --run of the labelled queries"
            )
        self._best = np.array([probability for probability, _ in best])
        self._best_is_labelled = np.array([not unlabelled for _, unlabelled in best])

    def suggest(self) -> Thresholds | None:
        """Suggest a pair of thresholds for these queries; None if no pair separates the two sides.

        The lower one is the highest, up to one half, below which at most `LOST_POSITIVES` of the labelled
        positives lie. The upper one is the lowest above which at most `WRONG_POSITIVES` of the queries' best
        candidates are unlabelled, or, where labels are incomplete, the fewest are.
        """
        kept = [t for t in _GRID if (self.positives < t).mean() <= LOST_POSITIVES and (self.others < t).any()]
        shares = {t: self._labelled_above(t) for t in _GRID if (self._best > t).any()}
        pairs = [(below, above) for below in kept for above in shares if below < above]

        def worth(pair: tuple[float, float]) -> tuple[float, float, float]:
            below, above = pair
            return min(shares[above], 1 - WRONG_POSITIVES), below if below <= 0.5 else -below, -above

        return Thresholds(*map(float, max(pairs, key=worth))) if pairs else None

    def _labelled_above(self, threshold: float) -> float:
        """Return the share of labelled passages among the best candidates that are above a threshold."""
        above = self._best > threshold
        return float(self._best_is_labelled[above].mean()) if above.any() else float("nan")

    def __str__(self) -> str:
        return "\n\n".join([self._histogram(), self._table(), self._advice()])

    def _histogram(self) -> str:
        edges = np.linspace(0, 1, _BINS + 1)
        shares = [np.histogram(side, edges)[0] / len(side) for side in (self.positives, self.others)]
        heads = (
            "probability",
            f"{len(self.positives)} labelled positives",
            f"{len(self.others)} other candidates",
        )
        rows = [
            (f"{low:.1f} to {high:.1f}", *(f"{'#' * round(_BAR * x)} {_percent(x)}".strip() for x in pair))
            for low, high, *pair in zip(edges[:-1], edges[1:], *shares, strict=True)
        ]
        return align([heads, *rows])

    def _table(self) -> str:
        heads = (
            "threshold",
            "labelled positives below",
            "other candidates below",
            "queries whose best is above",
            "of these, best is labelled",
        )
        return align(
            [heads, *((f"{threshold}", *self._shares(threshold, threshold)) for threshold in _SHOWN)]
        )

    def _shares(self, below: float, above: float) -> list[str]:
        """Return the shares of positives and of others below one threshold, and those above the other."""
        shares = (self.positives < below).mean(), (self.others < below).mean(), (self._best > above).mean()
        return [_percent(share) for share in (*shares, self._labelled_above(above))]

    def _advice(self) -> str:
        found = self.suggest()
        if found is None:
            advice = "No pair of thresholds parts the two sides: train the re-ranker longer"
            return advice + (", or --calibrate it if it was trained on lists." if self._raw else ".")
        below, above = found
        lost, rejected, accepted, right = self._shares(below, above)
        return (
            f"suggested: --negative_below {below:.2f} --positive_above {above:.2f}\n"
            f"Below {below:.2f} lie {lost} of the labelled positives and {rejected} of the other candidates. "
            f"{accepted} of the queries have a candidate above {above:.2f}, "
            f"and for {right} of these the best is a labelled positive."
        )


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.1f} %"
