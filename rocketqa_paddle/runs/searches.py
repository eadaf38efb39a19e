"""What retrievers find and re-rankers make of it: runs that are kept in the run folder."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from rocketqa_paddle.data.candidates import Candidates, write_hits
from rocketqa_paddle.data.dataset import QuerySet
from rocketqa_paddle.data.runs import write_run
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.evaluation.tables import Values
from rocketqa_paddle.runs.artefacts import ModelHandle, StoredRun, TrainedModel, fingerprint_of
from rocketqa_paddle.runs.best import INDEX, Best
from rocketqa_paddle.runs.folder import VECTORS
from rocketqa_paddle.runs.selection import Selection
from rocketqa_paddle.runs.walk import Walk
from rocketqa_paddle.runtime import device, distributed
from rocketqa_paddle.runtime.distributed import say
from rocketqa_paddle.runtime.storage import file_fingerprint
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.search.bm25 import bm25
from rocketqa_paddle.search.retrieval import CorpusIndex


class Searches(Walk):
    """A walk that searches and scores. What was found is mapped from the run folder."""

    def begin(self, selection: Selection, *, dry: bool) -> None:
        """Begin a walk; it knows of nothing that was found."""
        super().begin(selection, dry=dry)
        self._evaluated: dict[str, StoredRun] = {}  # runs on dev and tests
        self._measured: dict[str, Values] = {}
        self._bm25: dict[str, Candidates] = {}

    def search(self, retriever: ModelHandle, queries: QuerySet, depth: int) -> StoredRun:
        """What a retriever finds: the `depth` best passages of every query.

        The first walk notes all that a retriever is searched for, so the corpus is encoded once.
        """
        made_of = {"retriever": retriever, "queries": queries.texts, "depth": depth}
        if not (kind := self.settings.index).is_exact:
            made_of["index"] = kind
        make = partial(self.make, retriever)
        hits = self._run(f"{retriever.step}/hits.{queries.name}", retriever, made_of, make, queries, depth)
        if self.dry:
            self.plan.add_search(retriever, hits, len(self.corpus))
        return hits

    def search_bm25(self, queries: QuerySet) -> Candidates:
        """What BM25 finds for dev or a test, computed once."""
        if queries.name not in self._bm25:
            depth = self.settings.evaluation.depth
            self._bm25[queries.name] = bm25(self.corpus.passages, queries.queries, depth)
        return self._bm25[queries.name]

    def make(self, retriever: ModelHandle) -> CorpusIndex | None:
        """Make all hits of a retriever that the folder does not have; give the index, if one was needed."""
        wanted = self.plan.searches[retriever.name].values()
        missing = [hits for hits in wanted if not self.ledger.keeps(hits)]
        if not missing:
            return None
        index = self.encode_corpus(retriever, f"{retriever.step}: encode the corpus")
        for hits in missing:
            depth = min(hits.depth, len(self.corpus))
            self._store(hits, depth, index.blocks(hits.queries.queries, hits.depth))
        return index

    def encode_corpus(self, model: ModelHandle, progress: str) -> CorpusIndex:
        """Encode the corpus, unless `best/` or the folder of an initial checkpoint has this model's index.

        The vectors lie in the folder `vectors/` of the run until the index of another model is made, or the
        run ends. A run that was stopped goes on with those that are there.
        """
        options = {"settings": self.settings.index, "batch_size": self.settings.encode_batch}
        best = self.folder / "best"
        retriever, indexes = model.value(), self.initials.indexes()
        if Best(self.folder, best, self.settings).names(model):  # to load the index is to check it
            indexes.append(best / INDEX)
        for beside in indexes:
            try:
                found = CorpusIndex.load(beside, retriever, self.corpus, **options)
            except (OSError, ValueError):
                found = None
            if not distributed.any_rank(found is None):
                say(f"{progress}: as it is in {beside}")
                return found
        return CorpusIndex(
            retriever,
            self.corpus,
            folder=self.folder / VECTORS,
            digest=self.ledger.record(model)["digest"] if isinstance(model, TrainedModel) else "",
            precision=self.settings.precision,
            progress=progress,
            **options,
        )

    def rerank(self, reranker: TrainedModel, hits: StoredRun) -> StoredRun:
        """The best hits of every query in a re-ranker's order, and behind them the others as they were."""
        depth = self.settings.evaluation.rerank_depth
        return self._judged(
            "reranked", reranker, hits, {"depth": depth}, depth, lambda: (hits.value(), depth)
        )

    def score(
        self, reranker: TrainedModel, hits: StoredRun, *, first: int | None = None, sample: int | None = None
    ) -> StoredRun:
        """A re-ranker's scores of labelled positives and candidates: the `first`, or a random `sample`."""
        seed = None if sample is None else self.settings.seed

        def choose() -> tuple[Candidates, int]:
            found = hits.value()
            chosen = found.first(first) if sample is None else found.sample(sample, seed)
            chosen = chosen.with_positives(hits.queries.qrels, self.corpus.row_of)
            return chosen, chosen.depth

        choice = {"first": first, "sample": sample, "seed": seed}
        return self._judged("scored", reranker, hits, choice, first or sample or hits.depth, choose)

    def _judged(
        self,
        piece: str,
        reranker: TrainedModel,
        hits: StoredRun,
        choice: Mapping[str, Any],
        depth: int,
        choose: Callable[[], tuple[Candidates, int]],
    ) -> StoredRun:
        """Scores of a re-ranker. `choose` gives hits, and how many of a query to score."""
        name = f"{reranker.step}/{piece}.{hits.step.replace('/', '.')}.{hits.queries.name}"
        made_of = {"re-ranker": reranker, "hits": hits, "queries": hits.queries, **choice}

        def make() -> None:
            chosen, scored = choose()
            with device.arithmetic(self.settings.precision):
                options = {
                    "batch_size": self.settings.encode_batch,
                    "progress": f"{reranker.step}: score {hits.queries.name}",
                }
                texts = self.corpus.passages, hits.queries.queries
                judged = retrieval.rerank(reranker.value(), chosen, *texts, scored, **options)
            self._store(run, judged.depth, [judged.hits])

        run = self._run(name, reranker, made_of, make, hits.queries, depth)
        return run

    def _run(
        self,
        name: str,
        model: ModelHandle,
        made_of: dict[str, Any],
        make: Callable[[], object],
        queries: QuerySet,
        depth: int,
    ) -> StoredRun:
        """A run in the folder of a model's step.

        Where several systems search with a model, what is not dev or a test is named by its content: those
        that ask for the same share it.
        """
        made_of |= {"corpus": self.corpus, "precision": self.settings.precision}
        evaluated = queries.name in self.evaluated
        if not evaluated and not self.owns(model.step):
            name += f".{fingerprint_of(made_of)}"
        run = StoredRun(name, made_of, partial(self._read_or_make, make=make), queries, depth, evaluated)
        self.ledger.want(run)
        return self._evaluated.setdefault(name, run) if evaluated else run

    def _read_or_make(self, run: StoredRun, make: Callable[[], object]) -> Candidates:
        if not self.ledger.keeps(run):
            make()
        return self._read(run)

    def _read(self, run: StoredRun) -> Candidates:
        """Map a run that the folder keeps.

        Raises:
            ValueError: the file is not what was written.
        """
        path = self.folder / run.place
        if self.ledger.record(run).get("content") != file_fingerprint(path):
            raise ValueError(f"{path}: cut off or changed since it was written: remove it, to make it again")
        return self._map(run)

    def _map(self, run: StoredRun) -> Candidates:
        found = Candidates.load(self.folder / run.place, self.corpus.ids)
        if found.queries != list(run.queries.queries):
            given = "the ids of its queries are not those that were written"
            raise ValueError(f"{self.folder / run.place}: {given}: remove it, to make it again")
        return found

    def _store(self, run: StoredRun, depth: int, blocks: Iterable[np.ndarray]) -> None:
        path = self.folder / run.place
        self.ledger.forget(run)
        write_hits(path, run.queries.queries, depth, blocks)
        if run.export and distributed.is_main():
            write_run(self.folder / run.export, self._map(run))
        self.ledger.keep(run, content=file_fingerprint(path))

    def measure(self, run: StoredRun) -> Values:
        """Every measure of every query of a run, computed once."""
        if run.name not in self._measured:
            names = self.settings.evaluation.measures
            self._measured[run.name] = metrics.evaluate_queries(run.queries.qrels, run.value(), names)
        return self._measured[run.name]
