"""Runs in rounds: both models are warmed up, then trained again and again on what the retriever finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from rocketqa_paddle.data.dataset import digest_records
from rocketqa_paddle.records import Query
from rocketqa_paddle.runs import warmup
from rocketqa_paddle.runs.pipeline import Line, Pipeline
from rocketqa_paddle.runs.stages import Stage
from rocketqa_paddle.runs.staging import QuerySets
from rocketqa_paddle.runs.warmup import training_work
from rocketqa_paddle.settings import RerankerWarmupSettings, RunSettings, WarmupSettings

WARMUP = "warm-up"


class _Candidates(Protocol):
    depth: int
    negatives: int


class _Rounds(Protocol):
    """What the settings of a system's rounds have in common."""

    rounds: int
    queries: int | None
    first_query: int
    groups: _Candidates


class RoundsRun(Pipeline):
    """A run with a warm-up and rounds. A system says what a round is: `round_stage`.

    Args:
        settings: of the run.
        system: what it is called in reports.
        section: name of the settings of its rounds.
    """

    warmed_up: Mapping[str, Mapping[str, Any]] = {
        "warmup_retriever": {"queries": 0},
        "warmup_reranker": {"queries": 0},
    }

    def __init__(self, settings: RunSettings, *, system: str, section: str) -> None:
        super().__init__(settings)
        self._system, self._section = system, section
        self._per_round: _Rounds = getattr(settings, section)
        self._first_retriever: WarmupSettings = settings.warmup_retriever
        self._first_reranker: RerankerWarmupSettings = settings.warmup_reranker
        self.rounds = [f"round-{number:03d}" for number in range(1, self._per_round.rounds + 1)]
        self._plan_queries()
        self.check_negatives(self._first_reranker.negatives, self._per_round.groups.negatives)

    def _plan_queries(self) -> None:
        """Deal out the training queries: each use takes the next ones, from the start again at the end."""
        uses = {"retriever": self._first_retriever.queries, "reranker": self._first_reranker.queries}
        self.queries: dict[str, Mapping[str, Query]] = {}
        dealt = self._per_round.first_query
        for use, count in {**uses, **dict.fromkeys(self.rounds, self._per_round.queries)}.items():
            self.queries[use] = self.draw_queries(dealt, count)
            dealt += len(self.queries[use])

    # Stages -------------------------------------------------------------------------------------

    def warmup_stage(self, before: str | None = None) -> Stage:
        """In-batch training of the retriever, then listwise training of the re-ranker on what it finds.

        Args:
            before: the stage whose retriever is trained further; by default the start weights are.
        """
        first, second = self._first_retriever, self._first_reranker
        searches: QuerySets = {
            "train.reranker": (self.queries["reranker"], self._per_round.groups.depth),
            **(self.round_searches(self.rounds[0]) if self.rounds else {}),
        }

        def warm_up() -> None:
            start = self.start_retriever() if before is None else self.trained_model(before, "retriever")
            retriever = warmup.train_retriever(self, WARMUP, start, self.queries["retriever"], first)
            self.search(WARMUP, retriever, searches)
            candidates = self.hits(WARMUP, "train.reranker")
            reranker = warmup.train_reranker(
                self, WARMUP, self.queries["reranker"], candidates, second, "list"
            )
            self.rerank_dev(WARMUP, reranker, candidates=WARMUP)

        return self.stage(
            WARMUP,
            "warmed up",
            warm_up,
            sections=(
                *("retriever", "reranker", "warmup_retriever", "warmup_reranker"),
                f"{self._section}.groups.depth",
            ),
            after=() if before is None else (before,),
            work=training_work("retriever", first, len(self.queries["retriever"]), 0)
            + training_work("reranker", second, len(self.queries["reranker"]), second.negatives),
            searches=searches,
        )

    def round_stages(self) -> list[Stage]:
        """The rounds; each searches for the queries of the next."""
        befores, following = [WARMUP, *self.rounds], [*map(self.round_searches, self.rounds[1:]), {}]
        return [self.round_stage(*each) for each in zip(befores, self.rounds, following, strict=False)]

    def round_stage(self, before: str, stage: str, searches: QuerySets) -> Stage:
        """One round, on the candidates and the models that the stage before left."""
        raise NotImplementedError

    def round_facts(self, stage: str) -> dict[str, str]:
        """For `also` of a round's stage: the queries that it trains on."""
        return {"queries of the round": digest_records(self.queries[stage].values())}

    def round_searches(self, stage: str) -> QuerySets:
        """The query sets for which the stage before a round searches."""
        return {f"train.{stage}": (self.queries[stage], self._per_round.groups.depth)}

    # Results ------------------------------------------------------------------------------------

    def complete(self) -> None:
        """The best models on dev, and the final tables: every model against its warm-up."""
        best = self.complete_best(self._system)
        retrievers = {stage: f"retriever, {self.title(stage)}" for stage in self.trained_stages("retriever")}
        ordered = dict.fromkeys([WARMUP, best["reranker"], *self.rounds[-1:]])
        rerankers = {stage: f"re-ranker, {self.title(stage)}" for stage in ordered}
        lines = self.start_line() + [Line(title, stage) for stage, title in retrievers.items()]
        lines += [Line(title, stage, over=best["retriever"]) for stage, title in rerankers.items()]
        depth = self.settings.evaluation.rerank_depth
        notes = [f"The re-rankers order the {depth} best of the retriever of {best['retriever']}."]
        pairs = []
        for model, titles in {"retriever": retrievers, "reranker": rerankers}.items():
            chosen = best[model]
            if self.rounds and chosen not in self.rounds:
                name = model.replace("rer", "re-r")
                notes.append(f"No round gave a better {name} on dev than the stage {chosen}.")
            compared = [chosen] if chosen in self.rounds else self.rounds[-1:]
            pairs += [(titles[stage], titles[WARMUP]) for stage in compared]
        self.report(lines, pairs, notes)
