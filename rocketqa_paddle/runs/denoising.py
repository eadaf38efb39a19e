"""A re-ranker makes training data for retrievers: denoised hard negatives and pseudo labels.

Qu et al., NAACL 2021 (RocketQA), sections 3.2 and 3.3. PAIR's pseudo-labelled data are made in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from rocketqa_paddle.data import formats
from rocketqa_paddle.mining.miner import Calibration, Miner, calibrate, check_scores, describe_scores
from rocketqa_paddle.records import Group, Run, Split, with_positives
from rocketqa_paddle.runs import warmup
from rocketqa_paddle.runs.pipeline import Line, Pipeline
from rocketqa_paddle.runs.stages import Stage
from rocketqa_paddle.runs.staging import QuerySets
from rocketqa_paddle.runs.warmup import mined, training_work
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.settings import (
    ContrastiveSettings,
    DenoisingSettings,
    FirstRerankerSettings,
    FirstRetrieverSettings,
    RunSettings,
)

DENOISED = tuple(f"denoising.{name}" for name in ("depth", "scored", "negatives", "choose", "negative_below"))
"""The settings of denoising that decide groups of labelled positives."""
LABELLED, UNLABELLED = "train.labelled", "train.unlabelled"
"""Names of the query sets that retrievers search for."""


class DenoisingRun(Pipeline):
    """A run whose first retriever and first re-ranker make the data of the retrievers that follow.

    Args:
        settings: of the run; `denoising` holds depth and thresholds.
        system: what it is called in reports.
        retriever: name of the first retriever's stage, and of its settings.
        reranker: the same of the re-ranker. This stage keeps the scores.
    """

    def __init__(self, settings: RunSettings, *, system: str, retriever: str, reranker: str) -> None:
        super().__init__(settings)
        self._system, self._retriever, self._reranker = system, retriever, reranker
        self.denoising: DenoisingSettings = settings.denoising
        self.first_retriever: FirstRetrieverSettings = getattr(settings, retriever)
        self.first_reranker: FirstRerankerSettings = getattr(settings, reranker)
        self.check_negatives(
            self.first_retriever.negatives, self.first_reranker.negatives, self.denoising.negatives
        )
        if self.denoising.depth > len(self.passages):
            self.notes.append(
                f"denoising.depth={self.denoising.depth}, but the corpus has only {len(self.passages)} "
                "passages: all of them are candidates"
            )
        self.labelled_set: QuerySets = {LABELLED: (self.train_split.queries, self.denoising.depth)}
        self.unlabelled_set: QuerySets = {}
        if self.unlabelled.queries:
            self.unlabelled_set = {UNLABELLED: (self.unlabelled.queries, self.denoising.depth)}

    @property
    def starts(self) -> list[str]:
        """Of all retrievers."""
        return [*super().starts, *filter(None, [self.first_retriever.start])]

    # Stages -------------------------------------------------------------------------------------

    def first_stages(self, titles: tuple[str, str], searches: QuerySets) -> list[Stage]:
        """The first retriever, which searches for some query sets, and the re-ranker on its candidates."""
        s, r = self.first_retriever, self.first_reranker
        asked, listed = (self.draw_queries(0, settings.queries) for settings in (s, r))
        if s.start and not asked:
            self.check_as_it_is(s.start, f"{self._retriever}.start")

        def train_retriever() -> None:
            retriever = warmup.train_retriever(
                self,
                self._retriever,
                self.start_retriever(s.start),
                asked,
                s,
                s.negatives,
                s.candidates,
                cross_batch=s.cross_batch,
                single_negatives=s.single_negatives,
            )
            self.search(self._retriever, retriever, searches)

        def train_reranker() -> None:
            candidates = self.hits(self._retriever, LABELLED)
            reranker = warmup.train_reranker(self, self._reranker, listed, candidates, r, r.loss)
            self.rerank_dev(self._reranker, reranker, candidates=self._retriever)

        return [
            *self.start_stage(),
            self.stage(
                self._retriever,
                titles[0],
                train_retriever,
                sections=("retriever", self._retriever),
                work=training_work("retriever", s, len(asked), s.negatives),
                searches=searches,
                also={"start weights of the stage": self.start_digest(s.start)} if s.start else {},
            ),
            self.stage(
                self._reranker,
                titles[1],
                train_reranker,
                sections=("reranker", self._reranker, "denoising.depth"),
                after=(self._retriever,),
                work=training_work("reranker", r, len(listed), r.negatives),
            ),
        ]

    def train_retriever(
        self,
        stage: str,
        start: str,
        groups: Callable[[], list[Group]],
        settings: ContrastiveSettings,
        searches: QuerySets,
        alpha: float = 0.0,
    ) -> None:
        """A retriever with in-batch and cross-batch negatives and those of its groups; then its searches.

        Args:
            stage: gets the checkpoint.
            start: `start` for the start weights, or the stage whose retriever is trained further.
            groups: make the data.
            settings: of the training.
            searches: query sets beside dev and tests.
            alpha: weight of the passage-centric loss.
        """
        retriever = self.start_retriever() if start == "start" else self.trained_model(start, "retriever")

        def some() -> list[Group]:
            if built := groups():
                return built
            raise ValueError(f"{stage}: no training data. {describe_scores(self._scored, self._calibration)}")

        trained = warmup.contrast(
            self,
            stage,
            retriever,
            some,
            settings,
            cross_batch=settings.cross_batch,
            single_negatives=settings.single_negatives,
            alpha=alpha,
        )
        self.search(stage, trained, searches)

    def complete(self) -> None:
        """The best models on dev, and the final tables: every stage against the one before."""
        best = self.complete_best(self._system)
        titles = {name: f"retriever, {self.title(name)}" for name in self.trained_stages("retriever")}
        lines = self.start_line() + [Line(title, stage) for stage, title in titles.items()]
        for over in dict.fromkeys([self._retriever, best["retriever"]]):
            lines.append(Line(f"re-ranker over {self.title(over)}", self._reranker, over))
        first, *later = titles.values()
        pairs = dict.fromkeys(
            [*zip(later, [first, *later], strict=False), *((title, first) for title in later[-1:])]
        )
        note = f"The re-ranker orders the {self.settings.evaluation.rerank_depth} best of a retriever."
        self.report(lines, list(pairs), [note])

    # Data ---------------------------------------------------------------------------------------

    def labelled_groups(self, stage: str) -> list[Group]:
        """Labelled positives, and negatives among the candidates that the re-ranker rejects."""
        split, below = self.train_split, self.denoising.negative_below
        candidates, scored, miner = self.hits(self._retriever, LABELLED), self._scored, self._miner(split)
        asked, hardest = split.queries.values(), self.denoising.choose == "hardest"
        groups = miner.denoised(asked, scored, below=below, deeper=candidates, hardest=hardest)
        return mined(self, stage, miner, groups)

    def undenoised_groups(self, stage: str) -> list[Group]:
        """The same queries with hard negatives as they are, to compare."""
        split, candidates = self.train_split, self.hits(self._retriever, LABELLED)
        best = {query_id: hits[: self.denoising.scored] for query_id, hits in candidates.items()}
        miner = Miner(self.passages, split.qrels, self.denoising.negatives, self.settings.seed)
        return mined(self, stage, miner, miner.undenoised(split.queries.values(), best))

    def pseudo_groups(self, stage: str, name: str, retriever: str) -> list[Group]:
        """Groups whose positive, too, is the re-ranker's choice.

        Args:
            stage: that is to train on them.
            name: of the query set. A labelled query's positives are never its negatives.
            retriever: the stage whose retriever searched for it.
        """
        s, split = self.denoising, self._split(name)
        candidates, scored = self.hits(retriever, name), self._score(retriever, name)
        miner = self._miner(split)
        below, above = s.negative_below, s.positive_above
        asked = split.queries.values()
        groups = mined(
            self,
            stage,
            miner,
            miner.pseudo(
                asked, scored, below=below, above=above, deeper=candidates, hardest=s.choose == "hardest"
            ),
        )
        if not groups:
            raise ValueError(
                f"{stage}: no query of {name} has a candidate with a probability above {above} and enough "
                f"negatives. {describe_scores(scored, self._calibration)}"
            )
        return groups

    def _split(self, name: str) -> Split:
        return self.train_split if name == LABELLED else self.unlabelled

    def _miner(self, split: Split) -> Miner:
        s = self.denoising
        return Miner(self.passages, split.qrels, s.negatives, self.settings.seed, self._calibration)

    @cached_property
    def _scored(self) -> Run:
        return self._score(self._retriever, LABELLED)

    @cached_property
    def _calibration(self) -> Calibration:
        """Of the re-ranker's scores: none is needed where it learned pair by pair.

        Raises:
            ValueError: the re-ranker cannot tell positives from negatives.
        """
        qrels, fitted = self.train_split.qrels, Calibration()
        if self.first_reranker.loss == "list":
            fitted = calibrate(self._scored, qrels, self.settings.seed)
        if fitted.slope <= 0:
            raise ValueError(
                f"the re-ranker of {self._reranker} scores other candidates above labelled positives: "
                "train it longer, at a higher learning rate, or start it from a trained one"
            )
        self.say(check_scores(self._scored, qrels, fitted, self.denoising.negative_below))
        return fitted

    def _score(self, retriever: str, name: str) -> Run:
        """The re-ranker's scores of the best candidates and of labelled positives.

        What was scored before is used again where exactly these pairs are asked for.
        """
        split, depth = self._split(name), self.denoising.scored
        best = {query_id: hits[:depth] for query_id, hits in self.hits(retriever, name).items()}
        wanted = with_positives(best, split, split.queries)
        path = self.folder / self._reranker / f"scored.{retriever}.{name}.tsv"
        if path.is_file() and _pairs(formats.read_run(path)) != _pairs(wanted):
            distributed.barrier()  # every rank has seen it
            path.unlink(missing_ok=True)
        reranker = self.trained_model(self._reranker, "reranker")
        longest = max(map(len, wanted.values()))
        return self.rerank(path, reranker, wanted, split.queries, longest, f"score candidates of {name}")


def _pairs(run: Run) -> set[tuple[str, str]]:
    return {(hit.query_id, hit.passage_id) for hits in run.values() for hit in hits}
