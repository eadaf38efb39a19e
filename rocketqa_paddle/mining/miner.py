"""From candidates to training groups of one positive and n negatives a query.

RocketQAv2's hybrid data (Ren et al., EMNLP 2021, section 3.3) is the union of undenoised groups, whose
negatives are drawn at random from what the retriever finds, and of denoised groups, whose negatives the
re-ranker rejects. A labelled positive is never among the negatives.

`Miner.undenoised`, `Miner.denoised` and `Miner.pseudo` are the policies of the papers; another `Policy` is a
function outside this file that is built of the same parts: `Miner.positive`, `Miner.without_positives`,
`Miner.fill_up`, `Miner.group` and `Miner.random`.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rocketqa_paddle.data.dataset import Corpus, QuerySet
from rocketqa_paddle.mining.calibration import Calibration
from rocketqa_paddle.records import Group, Passage, Qrels, Query, Run, Source, Split, positives


@dataclass
class MiningReport:
    """Counts of what mining built and of what it could not build. Every query without a group is counted."""

    groups: Counter[str] = field(default_factory=Counter)
    filled: int = 0
    too_few_negatives: int = 0
    no_positive: int = 0
    deeper: int = 0

    def __str__(self) -> str:
        built = ", ".join(f"{count} {source}" for source, count in sorted(self.groups.items())) or "no"
        notes = {
            "negatives drawn from the whole corpus (too few candidates)": self.filled,
            "negatives from deeper ranks (the re-ranker rejects too few candidates)": self.deeper,
            "queries left out (the re-ranker rejects too few candidates)": self.too_few_negatives,
            "queries left out (the re-ranker accepts no candidate)": self.no_positive,
        }
        return "; ".join([f"{built} groups", *(f"{count} {note}" for note, count in notes.items() if count)])


Policy = Callable[..., Iterable[Group]]
"""A policy for negatives: a `Miner`, queries, and values by name such as candidates → groups."""


@dataclass(eq=False, repr=False)
class Miner:
    """Builds groups of one positive and `negatives` negatives.

    A policy draws from `random` alone, so that the same `seed` and inputs give the same groups, and adds to
    `report` what it could not do. `calibration` turns the re-ranker's scores into probabilities. It is a
    ValueError if the corpus has too few passages for that many negatives.
    """

    passages: Mapping[str, Passage]
    qrels: Qrels
    negatives: int
    seed: int
    calibration: Calibration = Calibration()
    report: MiningReport = field(default_factory=MiningReport, init=False)

    def __post_init__(self) -> None:
        if self.negatives >= len(self.passages):
            raise ValueError(
                f"{self.negatives} negatives a group, but the corpus has only {len(self.passages)} passages"
            )
        self.random = random.Random(self.seed)
        self._ids: Sequence[str] = list(self.passages)

    def for_queries_of(self, split: Split) -> Miner:
        """Return a miner with the labels of another split. It shares this one's report and random numbers."""
        other = copy.copy(self)
        other.qrels = split.qrels
        return other

    def undenoised(
        self,
        queries: Iterable[Query],
        candidates: Run,
        *,
        skip: int = 0,
        first: int | None = None,
        easy: int = 0,
    ) -> Iterator[Group]:
        """Draw negatives of labelled queries at random from what the retriever found, however relevant.

        Where there are too few candidates, negatives from the whole corpus are added and counted. It is a
        ValueError if there are more easy negatives than negatives, or if the corpus is too small.

        Args:
            skip: how many of the best candidates to leave out.
            first: how many of the best candidates to draw from, those left out included; None for all.
            easy: how many of the negatives to draw from the whole corpus on purpose.
        """
        hard = self.negatives - easy
        if hard < 0:
            raise ValueError(f"{easy} easy negatives, but only {self.negatives} negatives in all")
        for query in queries:
            hits = candidates.get(query.id, [])[skip:first]
            pool = self.without_positives(query, (hit.passage_id for hit in hits))
            drawn = self.random.sample(pool, min(hard, len(pool)))
            self.report.filled += hard - len(drawn)
            yield self.group(query, self.positive(query), self.fill_up(query, drawn), "random")

    def denoised(
        self,
        queries: Iterable[Query],
        scored: Run,
        *,
        below: float,
        deeper: Run | None = None,
        hardest: bool = False,
    ) -> Iterator[Group]:
        """Take negatives of labelled queries from the candidates that the re-ranker rejects.

        A query that has too few of them, even with deeper ones, is left out and counted.

        Args:
            scored: candidates with the re-ranker's scores.
            below: a candidate is rejected if its probability is below this bound (0.1 in the papers).
            deeper: all candidates in the retriever's order. Those without a score make up for missing ones.
            hardest: take the first candidates in the order of `deeper` instead of drawing them at random.
        """
        for query in queries:
            if drawn := self._rejected(query, scored, below, deeper or {}, hardest):
                yield self.group(query, self.positive(query), drawn, "denoised")

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
        """Label unlabelled queries: the re-ranker's best candidate is the positive.

        A query whose best candidate has no probability above `above` (0.9 in the papers), or that has too few
        negatives, is left out and counted. The negatives and the other arguments are those of `denoised`.
        """
        for query in queries:
            best = max(scored.get(query.id, []), key=lambda hit: hit.score, default=None)
            if best is None or self.calibration.probability(best.score) <= above:
                self.report.no_positive += 1
            elif drawn := self._rejected(query, scored, below, deeper or {}, hardest):
                yield self.group(query, best.passage_id, drawn, "pseudo")

    def _rejected(self, query: Query, scored: Run, below: float, deeper: Run, hardest: bool) -> list[str]:
        hits = scored.get(query.id, [])
        ids = (hit.passage_id for hit in hits if self.calibration.probability(hit.score) < below)
        pool = self.without_positives(query, ids)
        if len(pool) >= self.negatives:
            if not hardest:
                return self.random.sample(pool, self.negatives)
            places = {hit.passage_id: place for place, hit in enumerate(deeper.get(query.id, []))}
            return sorted(pool, key=lambda i: places.get(i, len(places)))[: self.negatives]
        seen = {hit.passage_id for hit in hits}
        more = (hit.passage_id for hit in deeper.get(query.id, []) if hit.passage_id not in seen)
        rest = self.without_positives(query, more)
        missing = self.negatives - len(pool)
        if len(rest) < missing:
            self.report.too_few_negatives += 1
            return []
        self.report.deeper += missing
        return pool + self.random.sample(rest, missing)

    # Parts of a policy ---------------------------------------------------------------------------

    def positive(self, query: Query) -> str:
        """Draw the id of one of a query's labelled positives; raise ValueError if there is none."""
        if not (labelled := positives(self.qrels, query.id)):
            raise ValueError(f"query {query.id} has no labelled positive, so it can have no group")
        return self.random.choice(sorted(labelled))

    def without_positives(self, query: Query, ids: Iterable[str]) -> list[str]:
        """Return the passage ids without those of labelled positives of a query, in their order."""
        labelled = set(positives(self.qrels, query.id))
        return [passage_id for passage_id in ids if passage_id not in labelled]

    def fill_up(self, query: Query, negatives: Sequence[str]) -> list[str]:
        """Add random passages that are no positives until there are `self.negatives`; return all ids.

        ValueError is raised if the corpus has too few.
        """
        labelled, drawn = positives(self.qrels, query.id), list(negatives)
        taken = {*drawn, *labelled}
        if len(self._ids) - len(taken) < self.negatives - len(drawn):
            raise ValueError(
                f"query {query.id}: {self.negatives} negatives wanted, but of {len(self._ids)} passages "
                f"{len(labelled)} are positives: lower the number of negatives"
            )
        while len(drawn) < self.negatives:
            if (passage_id := self.random.choice(self._ids)) not in taken:
                drawn.append(passage_id)
                taken.add(passage_id)
        return drawn

    def group(
        self,
        query: Query,
        positive: str,
        negatives: Sequence[str],
        source: Source,
        scores: Mapping[str, float] | None = None,
    ) -> Group:
        """Build a group of passage ids, and count it.

        Teacher scores by passage id become `Group.scores`; ValueError is raised if a passage has none.
        """
        ids = (positive, *negatives)
        if scores is not None and (missing := [i for i in ids if i not in scores]):
            raise ValueError(f"query {query.id}: the teacher has not scored passage {missing[0]}")
        self.report.groups[source] += 1
        passages = tuple(self.passages[i] for i in ids)
        teacher = None if scores is None else tuple(scores[i] for i in ids)
        return Group(query, passages, (1, *[0] * len(negatives)), source, teacher)


def mine(
    policy: Policy,
    queries: QuerySet,
    corpus: Corpus,
    negatives: int,
    seed: int,
    calibration: Calibration | None,
    values: Mapping[str, Any],
) -> tuple[list[Group], list[str]]:
    """Apply a policy to some queries; give the groups, and a sentence on how they were built."""
    miner = Miner(corpus.passages, queries.qrels, negatives, seed, calibration or Calibration())
    groups = list(policy(miner, queries.queries.values(), **values))
    return groups, [str(miner.report)]
