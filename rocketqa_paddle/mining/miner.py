"""From candidates to training groups of one positive and n negatives a query.

RocketQAv2's hybrid data (Ren et al., EMNLP 2021, section 3.3) is the union of undenoised groups, whose
negatives are drawn at random from what the retriever finds, and of denoised groups, whose negatives the
re-ranker rejects. No labelled positive is among the negatives, nor a passage of the same title and text under
another id, nor the query itself where it is a passage (`records.FalseNegatives`); and no negative is there
twice.

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
from rocketqa_paddle.data.store import content_of, ids_of, some
from rocketqa_paddle.mining.calibration import Calibration
from rocketqa_paddle.records import (
    FalseNegatives,
    Group,
    Hit,
    Passage,
    Qrels,
    Query,
    Run,
    Source,
    Split,
    positives,
)


@dataclass
class MiningReport:
    """Counts of what mining built and of what it could not build. Every query without a group is counted."""

    groups: Counter[str] = field(default_factory=Counter)
    filled: int = 0
    too_few_negatives: int = 0
    no_positive: int = 0
    deeper: int = 0
    false_negatives: int = 0
    repeated: int = 0

    def __str__(self) -> str:
        names = {"random": "undenoised"}
        counts = sorted(self.groups.items())
        built = ", ".join(f"{count} {names.get(source, source)}" for source, count in counts) or "no"
        notes = {
            "negatives drawn from the whole corpus (too few candidates)": self.filled,
            "negatives from deeper ranks (the re-ranker rejects too few candidates)": self.deeper,
            "queries without a denoised group (too few rejected candidates)": self.too_few_negatives,
            "queries without a pseudo label (no accepted candidate)": self.no_positive,
            "candidates left out (their title and text are those of a positive or of the query)": (
                self.false_negatives
            ),
            "candidates left out (their title and text are those of another candidate)": self.repeated,
        }
        return "; ".join([f"{built} groups", *(f"{count} {note}" for note, count in notes.items() if count)])


Policy = Callable[..., Iterable[Group]]
"""A policy for negatives: a `Miner`, queries, and values by name such as candidates → groups."""


@dataclass(eq=False, repr=False)
class Miner:
    """Builds groups of one positive and `negatives` negatives.

    A policy draws from `random` alone, so that the same `seed` and inputs give the same groups, and adds to
    `report` what it could not do. `calibration` turns the re-ranker's scores into probabilities. Without
    `drop_false_negatives`, only the ids of labelled positives are kept from the negatives, as in the released
    code. It is a ValueError if the corpus has too few passages for that many negatives.
    """

    passages: Mapping[str, Passage]
    qrels: Qrels
    negatives: int
    seed: int
    calibration: Calibration = Calibration()
    drop_false_negatives: bool = True
    report: MiningReport = field(default_factory=MiningReport, init=False)

    def __post_init__(self) -> None:
        if self.negatives >= len(self.passages):
            raise ValueError(
                f"{self.negatives} negatives a group, but the corpus has only {len(self.passages)} passages"
            )
        self.random = random.Random(self.seed)
        self._ids = ids_of(self.passages)

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
        """Label unlabelled queries: the re-ranker's best candidate, other than the query, is the positive.

        A query whose best candidate has no probability above `above` (0.9 in the papers), or that has too few
        negatives, is left out and counted. The negatives and the other arguments are those of `denoised`.
        """
        for query in queries:
            best = self._best(query, scored.get(query.id, []))
            if best is None or self.calibration.probability(best.score) <= above:
                self.report.no_positive += 1
            elif drawn := self._rejected(query, scored, below, deeper or {}, hardest, best.passage_id):
                yield self.group(query, best.passage_id, drawn, "pseudo")

    def _best(self, query: Query, hits: Sequence[Hit]) -> Hit | None:
        """Find the hit with the best score that is not the query itself."""
        itself = FalseNegatives(query, ())
        for hit in sorted(hits, key=lambda hit: hit.score, reverse=True):
            if not self.drop_false_negatives or content_of(self.passages, hit.passage_id) not in itself:
                return hit
        return None

    def _rejected(
        self, query: Query, scored: Run, below: float, deeper: Run, hardest: bool, *positive: str
    ) -> list[str]:
        hits, choice = scored.get(query.id, []), _Choice(self, query, *positive)
        ids = (hit.passage_id for hit in hits if self.calibration.probability(hit.score) < below)
        pool = choice.among(ids)
        if len(pool) >= self.negatives:
            if not hardest:
                return self.random.sample(pool, self.negatives)
            places = {hit.passage_id: place for place, hit in enumerate(deeper.get(query.id, []))}
            return sorted(pool, key=lambda i: places.get(i, len(places)))[: self.negatives]
        seen = {hit.passage_id for hit in hits}
        more = (hit.passage_id for hit in deeper.get(query.id, []) if hit.passage_id not in seen)
        rest = choice.among(more)
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
        """Return the passage ids that may be negatives of a query, in their order.

        Labelled positives are left out, and by content what repeats one, the query or an earlier passage.
        """
        return _Choice(self, query).among(ids)

    def fill_up(self, query: Query, negatives: Sequence[str]) -> list[str]:
        """Add random passages that may be negatives until there are `self.negatives`; return all ids.

        ValueError is raised if the corpus has too few.
        """
        choice = _Choice(self, query)
        choice.take(negatives)
        drawn = list(negatives)
        while len(drawn) < self.negatives:
            if len(self._ids) - len(choice.seen) < self.negatives - len(drawn):
                raise ValueError(
                    f"query {query.id}: {self.negatives} negatives wanted, but of {len(self._ids)} passages "
                    f"{len(positives(self.qrels, query.id))} are positives, and of others with the same text "
                    "only one is taken: lower the number of negatives"
                )
            drawn += choice.among([self.random.choice(self._ids)])
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
        teacher = None if scores is None else tuple(scores[i] for i in ids)
        others = [i for i in positives(self.qrels, query.id) if i != positive]
        passages, others = some(self.passages, ids), some(self.passages, others) if others else ()
        return Group(query, passages, (1, *[0] * len(negatives)), source, teacher, others)


class _Choice:
    """Chooses the negatives of a query, whose positives are the labelled ones and those given."""

    def __init__(self, miner: Miner, query: Query, *positive: str) -> None:
        self.miner, self.seen = miner, {*positives(miner.qrels, query.id), *positive}
        self._false = FalseNegatives(query, [content_of(miner.passages, i) for i in self.seen])
        self._keys: set[int] = set()

    def take(self, ids: Iterable[str]) -> None:
        """Take passages as they are."""
        self.seen.update(ids)
        self._keys.update(content_of(self.miner.passages, i).whole for i in ids)

    def among(self, ids: Iterable[str]) -> list[str]:
        """Return the ids of passages that may be negatives beside those taken before, and take them."""
        return [i for i in ids if i not in self.seen and self._may_be_negative(i)]

    def _may_be_negative(self, id: str) -> bool:
        self.seen.add(id)
        if not self.miner.drop_false_negatives:
            return True
        content, report = content_of(self.miner.passages, id), self.miner.report
        if content in self._false:
            report.false_negatives += 1
            return False
        if content.whole in self._keys:
            report.repeated += 1
            return False
        self._keys.add(content.whole)
        return True


def mine(
    policy: Policy,
    queries: QuerySet,
    corpus: Corpus,
    negatives: int,
    seed: int,
    calibration: Calibration | None,
    drop_false_negatives: bool,
    values: Mapping[str, Any],
) -> tuple[list[Group], list[str]]:
    """Apply a policy to some queries; give the groups, and a sentence on how they were built."""
    calibration = calibration or Calibration()
    miner = Miner(corpus.passages, queries.qrels, negatives, seed, calibration, drop_false_negatives)
    groups = list(policy(miner, queries.queries.values(), **values))
    return groups, [str(miner.report)]
