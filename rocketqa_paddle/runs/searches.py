"""What retrievers find and re-rankers make of it: runs that are kept in the run folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from rocketqa_paddle.data.dataset import QuerySet
from rocketqa_paddle.data.runs import first_hits, read_run, sample_hits, with_positives, write_run
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.evaluation.tables import Values
from rocketqa_paddle.records import Run as Hits
from rocketqa_paddle.runs.artefacts import ModelHandle, StoredRun, TrainedModel
from rocketqa_paddle.runs.best import INDEX, Best
from rocketqa_paddle.runs.walk import Walk
from rocketqa_paddle.runtime import device, distributed
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.search.retrieval import CorpusIndex


class Searches:
    """The searches of one walk. What was found stays in memory until somebody has read it."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self._made: dict[str, Hits] = {}
        self._evaluated: dict[str, StoredRun] = {}  # runs on dev and tests
        self._measured: dict[str, Values] = {}

    def search(self, retriever: ModelHandle, queries: QuerySet, depth: int) -> StoredRun:
        """What a retriever finds: the `depth` best passages of every query.

        The first walk notes all that a retriever is searched for, so the corpus is encoded once.
        """
        shared = queries.name in self.walk.evaluated or not self.walk.row
        name = f"{retriever.step}/hits.{queries.name if shared else f'{self.walk.row}.{queries.name}'}"
        made_of = {"retriever": retriever, "queries": queries.texts, "depth": depth}
        hits = self._run(name, made_of, partial(self.make, retriever), queries, depth)
        if self.walk.dry:
            self.walk.plan.add_search(retriever, hits, len(self.walk.corpus))
        return self._evaluated.setdefault(name, hits) if queries.name in self.walk.evaluated else hits

    def make(self, retriever: ModelHandle) -> CorpusIndex | None:
        """Make all hits of a retriever that the folder does not have; give the index, if one was needed."""
        wanted = self.walk.plan.searches[retriever.name].values()
        missing = [hits for hits in wanted if not self.walk.ledger.keeps(hits)]
        if not missing:
            return None
        index = self.encode_corpus(retriever, f"{retriever.step}: encode the corpus")
        for hits in missing:
            self._store(hits, index.search(hits.queries.queries, hits.depth))
        return index

    def encode_corpus(self, model: ModelHandle, progress: str) -> CorpusIndex:
        """Encode the corpus, unless `best/` or the folder of an initial checkpoint has this model's index."""
        batch_size, passages = self.walk.settings.encode_batch, self.walk.corpus.passages
        retriever, indexes, best = model.value(), self.walk.initials.indexes(), self.walk.folder / "best"
        if Best(self.walk.folder, best).has(model):
            indexes.append(best / INDEX)
        for beside in indexes:
            try:
                found = CorpusIndex.load(beside, retriever, passages, batch_size=batch_size)
            except (OSError, ValueError):
                found = None
            if not distributed.any_rank(found is None):
                say(f"{progress}: as it is in {beside}")
                return found
        with device.arithmetic(self.walk.settings.precision):
            return CorpusIndex(retriever, passages, batch_size=batch_size, progress=progress)

    def rerank(self, reranker: TrainedModel, hits: StoredRun) -> StoredRun:
        """The best hits of every query in a re-ranker's order, and behind them the others as they were."""
        depth = self.walk.settings.evaluation.rerank_depth
        run = self._judged("reranked", reranker, hits, partial(_as_they_are, depth=depth), depth)
        return self._evaluated.setdefault(run.name, run)

    def score(
        self, reranker: TrainedModel, hits: StoredRun, *, first: int | None = None, sample: int | None = None
    ) -> StoredRun:
        """A re-ranker's scores of labelled positives and candidates: the `first`, or a random `sample`."""
        choose = partial(_first, count=first)
        if sample is not None:
            choose = partial(_sample, count=sample, seed=self.walk.settings.seed)
        return self._judged("scored", reranker, hits, choose, first or sample or hits.depth)

    def _judged(
        self, piece: str, reranker: TrainedModel, hits: StoredRun, choose: Callable[..., Any], depth: int
    ) -> StoredRun:
        """Scores of a re-ranker. `choose` tells which hits count, and how many of a query are scored."""
        queries, name = hits.queries, hits.name.replace("/hits.", ".").replace("/", ".")
        made_of = {"re-ranker": reranker, "hits": hits, "choose": choose, "queries": queries}

        def make() -> None:
            chosen, scored = choose(hits.value(), queries)
            with device.arithmetic(self.walk.settings.precision):
                scores = retrieval.rerank(
                    reranker.value(),
                    chosen,
                    self.walk.corpus.passages,
                    queries.queries,
                    scored,
                    batch_size=self.walk.settings.encode_batch,
                    progress=f"{reranker.step}: score {queries.name}",
                )
            self._store(run, scores)

        run = self._run(f"{reranker.step}/{piece}.{name}", made_of, make, queries, depth)
        return run

    def _run(
        self, name: str, made_of: dict[str, Any], make: Callable[[], object], queries: QuerySet, depth: int
    ) -> StoredRun:
        made_of |= {"corpus": self.walk.corpus, "precision": self.walk.settings.precision}
        return StoredRun(name, made_of, partial(self._read_or_make, make=make), queries, depth)

    def _read_or_make(self, run: StoredRun, make: Callable[[], object]) -> Hits:
        if run.name not in self._made:
            if self.walk.ledger.keeps(run):
                return read_run(self.walk.folder / run.place)
            make()
        return self._made.pop(run.name)

    def _store(self, run: StoredRun, hits: Hits) -> None:
        self.walk.ledger.forget(run)
        if distributed.is_main():
            write_run(self.walk.folder / run.place, hits)
        self.walk.ledger.keep(run)
        self._made[run.name] = hits

    def measured(self, run: StoredRun) -> Values:
        """Every measure of every query of a run, computed once."""
        if run.name not in self._measured:
            names = self.walk.settings.evaluation.measures
            self._measured[run.name] = metrics.evaluate_queries(run.queries.qrels, run.value(), names)
        return self._measured[run.name]

    def within(self, walk: Walk) -> Searches:
        """The searches of another walk, which share what these have found."""
        other = copy.copy(self)
        other.walk = walk
        return other


def _as_they_are(hits: Hits, queries: QuerySet, depth: int) -> tuple[Hits, int]:
    return hits, depth


def _first(hits: Hits, queries: QuerySet, count: int | None) -> tuple[Hits, int]:
    return _all_of(with_positives(first_hits(hits, count), queries.qrels, queries.queries))


def _sample(hits: Hits, queries: QuerySet, count: int, seed: int) -> tuple[Hits, int]:
    return _all_of(with_positives(sample_hits(hits, count, seed), queries.qrels, queries.queries))


def _all_of(hits: Hits) -> tuple[Hits, int]:
    return hits, max(map(len, hits.values()))
