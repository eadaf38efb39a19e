"""Candidates → training groups: one positive and n negatives a query.

RocketQAv2's hybrid data (Ren et al., EMNLP 2021, section 3.3) is the union of undenoised groups
(negatives drawn at random from what the retriever finds) and denoised ones (negatives that the
re-ranker rejects). A labelled positive is never among the negatives.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from rocketqa_paddle.records import Group, Passage, Qrels, Query, Run, Source, Split

_CALIBRATION_SCORES = 100_000  # more would not change the fit


@dataclass
class MiningReport:
    """What mining built, and what it could not. Every query that yields no group is counted."""

    groups: dict[str, int] = field(default_factory=dict)
    filled: int = 0
    """Negatives drawn from the whole corpus because the candidates were too few."""
    too_few_negatives: int = 0
    """Queries left out: the re-ranker rejects too few of their candidates."""
    no_positive: int = 0
    """Unlabelled queries left out: the re-ranker accepts none of their candidates."""
    deeper: int = 0
    """Negatives from deeper ranks than the re-ranker scored, because it rejects too few."""

    def count(self, source: Source) -> None:
        """Note one more group."""
        self.groups[source] = self.groups.get(source, 0) + 1

    def __str__(self) -> str:
        built = ", ".join(f"{count} {source}" for source, count in sorted(self.groups.items())) or "no"
        notes = {
            "negatives drawn from the whole corpus (too few candidates)": self.filled,
            "negatives from deeper ranks (the re-ranker rejects too few candidates)": self.deeper,
            "queries left out (the re-ranker rejects too few candidates)": self.too_few_negatives,
            "queries left out (the re-ranker accepts no candidate)": self.no_positive,
        }
        return "; ".join([f"{built} groups", *(f"{count} {note}" for note, count in notes.items() if count)])


@dataclass(frozen=True)
class Calibration:
    """Turns a re-ranker's scores into probabilities of relevance.

    A model that is trained on lists knows only differences: its scores have no zero, so thresholds
    such as the papers' 0.1 and 0.9 mean nothing to them as they are. Platt's scaling, fitted to labelled
    positives and to candidates, gives `sigmoid(slope * score + offset)`.
    """

    slope: float = 1.0
    offset: float = 0.0

    def probability(self, score: float) -> float:
        """Of relevance, for a score of the re-ranker."""
        return float(expit(self.slope * score + self.offset))

    @classmethod
    def fit(cls, positives: Sequence[float], negatives: Sequence[float]) -> Calibration:
        """Logistic regression on the scores of labelled positives and of other candidates.

        Both sides weigh the same, or a probability would fall with the number of candidates a query.

        Targets are smoothed as by Platt (1999), so that separable scores have a finite answer.

        Raises:
            ValueError: one side is empty.
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


def calibrate(scored: Run, qrels: Qrels, seed: int) -> Calibration:
    """Fit a re-ranker's probabilities to the labelled positives of a scored run and its other candidates.

    A slope that is not above 0 says that the re-ranker is of no use: it likes other candidates better.
    """
    scores = [
        (hit.score, qrels.get(hit.query_id, {}).get(hit.passage_id, 0) > 0)
        for hits in scored.values()
        for hit in hits
    ]
    if len(scores) > _CALIBRATION_SCORES:
        scores = random.Random(seed).sample(scores, _CALIBRATION_SCORES)
    return Calibration.fit(
        [score for score, positive in scores if positive],
        [score for score, positive in scores if not positive],
    )


class Miner:
    """Builds groups of one positive and `negatives` negatives.

    Args:
        passages: the corpus.
        qrels: labelled positives.
        negatives: negatives a group.
        seed: of every random choice; the same seed and inputs give the same groups.
        calibration: of the re-ranker's scores.
    """

    def __init__(
        self,
        passages: Mapping[str, Passage],
        qrels: Qrels,
        negatives: int,
        seed: int,
        calibration: Calibration | None = None,
    ) -> None:
        if negatives >= len(passages):
            raise ValueError(
                f"{negatives} negatives a group, but the corpus has only {len(passages)} passages"
            )
        self.passages, self.qrels, self.negatives = passages, qrels, negatives
        self.calibration = calibration or Calibration()
        self.report = MiningReport()
        self._random = random.Random(seed)
        self._ids: Sequence[str] = list(passages)

    def for_queries_of(self, split: Split) -> Miner:
        """A miner like this one, with its report, for a split with labels (or none) of its own."""
        other = copy.copy(self)
        other.qrels = split.qrels
        return other

    def undenoised(
        self, queries: Iterable[Query], candidates: Run, *, skip: int = 0, easy: int = 0
    ) -> Iterator[Group]:
        """Negatives at random from the candidates, however good they may be.

        Args:
            queries: labelled queries.
            candidates: what the retriever found for them. Too few are filled up from the whole
                corpus, and counted.
            skip: leave out so many of the best candidates.
            easy: so many of the negatives come from the whole corpus on purpose.
        """
        hard = self.negatives - easy
        if hard < 0:
            raise ValueError(f"{easy} easy negatives, but only {self.negatives} negatives in all")
        for query in queries:
            hits = candidates.get(query.id, [])[skip:]
            pool = self._without_positives(query, (hit.passage_id for hit in hits))
            drawn = self._random.sample(pool, min(hard, len(pool)))
            self.report.filled += hard - len(drawn)
            yield self._group(query, self._positive(query), self._fill_up(query, drawn), "random")

    def denoised(
        self,
        queries: Iterable[Query],
        scored: Run,
        *,
        below: float,
        deeper: Run | None = None,
        hardest: bool = False,
    ) -> Iterator[Group]:
        """Negatives from the candidates whose probability is under `below`, at random or the hardest.

        A query with too few of them, even with deeper ones, is left out, and counted.

        Args:
            queries: labelled queries.
            scored: candidates with the re-ranker's scores.
            below: upper bound of a negative's probability (the papers: 0.1).
            deeper: all candidates in the retriever's order; those that are not scored make up the number
                where it falls short.
            hardest: take the first in that order.
        """
        for query in queries:
            if drawn := self._rejected(query, scored, below, deeper or {}, hardest):
                yield self._group(query, self._positive(query), drawn, "denoised")

    def pseudo(
        self,
        queries: Iterable[Query],
        scored: Run,
        *,
        below: float,
        above: float,
        deeper: Run | None = None,
        hardest: bool = False,
    ) -> Iterator[Group]:
        """Unlabelled queries: the best candidate over `above` is the positive; negatives as above.

        A query that lacks either is left out, and counted.
        """
        for query in queries:
            best = max(scored.get(query.id, []), key=lambda hit: hit.score, default=None)
            if best is None or self.calibration.probability(best.score) <= above:
                self.report.no_positive += 1
            elif drawn := self._rejected(query, scored, below, deeper or {}, hardest):
                yield self._group(query, best.passage_id, drawn, "pseudo")

    def _rejected(self, query: Query, scored: Run, below: float, deeper: Run, hardest: bool) -> list[str]:
        hits = scored.get(query.id, [])
        ids = (hit.passage_id for hit in hits if self.calibration.probability(hit.score) < below)
        pool = self._without_positives(query, ids)
        if len(pool) >= self.negatives:
            if not hardest:
                return self._random.sample(pool, self.negatives)
            places = {hit.passage_id: place for place, hit in enumerate(deeper.get(query.id, []))}
            return sorted(pool, key=lambda i: places.get(i, len(places)))[: self.negatives]
        seen = {hit.passage_id for hit in hits}
        more = (hit.passage_id for hit in deeper.get(query.id, []) if hit.passage_id not in seen)
        rest = self._without_positives(query, more)
        missing = self.negatives - len(pool)
        if len(rest) < missing:
            self.report.too_few_negatives += 1
            return []
        self.report.deeper += missing
        return pool + self._random.sample(rest, missing)

    def _positive(self, query: Query) -> str:
        return self._random.choice(
            sorted(i for i, relevance in self.qrels[query.id].items() if relevance > 0)
        )

    def _without_positives(self, query: Query, ids: Iterable[str]) -> list[str]:
        judged = self.qrels.get(query.id, {})
        return [i for i in ids if judged.get(i, 0) <= 0]

    def _fill_up(self, query: Query, drawn: list[str]) -> list[str]:
        taken = {*drawn, *(i for i, relevance in self.qrels[query.id].items() if relevance > 0)}
        if len(self._ids) - len(taken) < self.negatives - len(drawn):
            raise ValueError(
                f"query {query.id}: {self.negatives} negatives wanted, but of {len(self._ids)} passages "
                f"{len(taken) - len(drawn)} are positives: lower the number of negatives"
            )
        while len(drawn) < self.negatives:
            if (passage_id := self._random.choice(self._ids)) not in taken:
                drawn.append(passage_id)
                taken.add(passage_id)
        return drawn

    def _group(self, query: Query, positive: str, negatives: Sequence[str], source: Source) -> Group:
        self.report.count(source)
        passages = tuple(self.passages[i] for i in (positive, *negatives))
        return Group(query, passages, (1, *[0] * len(negatives)), source)


def check_scores(scored: Run, qrels: Qrels, calibration: Calibration, below: float) -> str:
    """Refuse a re-ranker that cannot tell negatives; returns what it makes of labelled positives.

    Raises:
        ValueError: no candidate is below the threshold, or every labelled positive is.
    """
    judged = [
        (calibration.probability(hit.score) < below, qrels.get(hit.query_id, {}).get(hit.passage_id, 0) > 0)
        for hits in scored.values()
        for hit in hits
    ]
    positives = [rejected for rejected, positive in judged if positive]
    if not any(rejected for rejected, _ in judged):
        raise ValueError(
            f"no candidate has a probability below {below}, so none is a negative. "
            + describe_scores(scored, calibration)
        )
    if positives and all(positives):
        raise ValueError(
            f"all {len(positives)} labelled positives have a probability below {below} and would count as "
            f"negatives. {describe_scores(scored, calibration)}"
        )
    return f"the re-ranker rejects {sum(positives)} of {len(positives)} labelled positives"


def describe_scores(scored: Run, calibration: Calibration) -> str:
    """What the re-ranker's probabilities of the best and worst candidate are, and what to do about them."""
    probabilities = sorted(calibration.probability(h.score) for hits in scored.values() for h in hits)
    if not probabilities:
        return "There are no candidates: retrieve more."
    low, middle, high = (probabilities[int(q * (len(probabilities) - 1))] for q in (0.0, 0.5, 1.0))
    return (
        f"The re-ranker's probabilities of {len(probabilities)} candidates are {low:.3f} to {high:.3f}, "
        f"half of them below {middle:.3f}: set thresholds that part them (see `rocketqa mine --report`), "
        "retrieve deeper, or train the re-ranker longer"
    )
