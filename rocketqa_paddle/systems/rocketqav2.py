"""RocketQAv2: retriever and re-ranker trained jointly by dynamic listwise distillation.

Ren et al., EMNLP 2021. Warm up each model; then, in rounds: retrieve with the current retriever,
build hybrid groups, take joint steps, evaluate on dev, save; the best models on dev are the result.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial

from paddle import Tensor

from rocketqa_paddle import formats, losses, warmup
from rocketqa_paddle.checkpoints import Checkpoint
from rocketqa_paddle.config import JointSettings, RocketQAv2Settings
from rocketqa_paddle.dataset import digest_file, digest_records
from rocketqa_paddle.mining import Miner, calibrate
from rocketqa_paddle.pipeline import Line, Pipeline
from rocketqa_paddle.records import Group, Query, Run, Split, with_positives
from rocketqa_paddle.scoring import reranker_scores, retriever_scores
from rocketqa_paddle.stages import ALL, Selection, Stage
from rocketqa_paddle.staging import QuerySets
from rocketqa_paddle.warmup import training_work

WARMUP = "warm-up"
# A round does not hang on how many follow it.
_DECISIVE = tuple(f"joint.{field.name}" for field in fields(JointSettings) if field.name != "rounds")


def train(settings: RocketQAv2Settings, selection: Selection = ALL) -> None:
    """Run the whole system in `settings.output`, or go on where it was stopped."""
    run = JointRun(settings)
    run.run(run.stages(), run.complete, selection)


class JointRun(Pipeline):
    """One run of RocketQAv2."""

    settings: RocketQAv2Settings

    def __init__(self, settings: RocketQAv2Settings) -> None:
        super().__init__(settings)
        self.rounds = [f"round-{number:03d}" for number in range(1, settings.joint.rounds + 1)]
        self._plan_queries()
        self.check_negatives(settings.warmup_reranker.negatives, settings.joint.groups.negatives)
        if lists := settings.joint.groups.file:
            formats.read_training_groups(lists)  # raises now, not after hours, if it cannot be read

    def _plan_queries(self) -> None:
        """Deal out the training queries: each use takes the next ones, from the start again at the end."""
        s, dealt = self.settings, 0
        self.queries: dict[str, Mapping[str, Query]] = {}
        uses = {"retriever": s.warmup_retriever.queries, "reranker": s.warmup_reranker.queries}
        for use, count in {**uses, **dict.fromkeys(self.rounds, s.joint.queries)}.items():
            self.queries[use] = self.draw_queries(dealt, count)
            dealt += len(self.queries[use])

    def stages(self) -> list[Stage]:
        """The start weights measured, the warm-up, the rounds."""
        s = self.settings
        stages = self.start_stage()
        first = training_work("retriever", s.warmup_retriever, len(self.queries["retriever"]), 0)
        second = training_work(
            "reranker", s.warmup_reranker, len(self.queries["reranker"]), s.warmup_reranker.negatives
        )
        stages.append(
            self.stage(
                WARMUP,
                "warmed up",
                self.warm_up,
                sections=(
                    "retriever",
                    "reranker",
                    "warmup_retriever",
                    "warmup_reranker",
                    "joint.groups.depth",
                ),
                work=first + second,
                searches=self._searches(["reranker", *self.rounds[:1]]),
            )
        )
        for before, stage, following in zip(
            [WARMUP, *self.rounds], self.rounds, [*self.rounds[1:], None], strict=False
        ):
            stages.append(self._round(before, stage, self._searches([following] if following else [])))
        return stages

    def _round(self, before: str, stage: str, searches: QuerySets) -> Stage:
        s = self.settings.joint
        queries = self.queries[stage]
        also = {"queries of the round": digest_records(queries.values())}
        if s.groups.file:
            also["lists"] = digest_file(s.groups.file)
        if "pseudo" in s.groups.sources:
            also |= self.unlabelled_facts
        negatives, scored = s.groups.negatives, len(queries) * (s.groups.scored or s.groups.depth)
        work = training_work("retriever", s, len(queries), negatives, scored)
        return self.stage(
            stage,
            stage,
            partial(self.train_round, before, stage, searches),
            sections=_DECISIVE,
            after=(before,),
            work=work + training_work("reranker", s, len(queries), negatives),
            searches=searches,
            also=also,
        )

    def _searches(self, following: Sequence[str]) -> QuerySets:
        """The query sets on which the training that follows a stage is mined."""
        groups = self.settings.joint.groups
        mined = [use for use in following if use not in self.rounds or not groups.file]
        sets = {f"train.{use}": (self.queries[use], groups.depth) for use in mined}
        if "pseudo" in groups.sources and set(mined) & set(self.rounds):
            sets["unlabelled"] = (self.unlabelled.queries, groups.depth)
        return sets

    # Stages -------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """In-batch training of the retriever, then listwise training of the re-ranker on what it finds."""
        s = self.settings
        retriever = warmup.train_retriever(self, WARMUP, self.queries["retriever"], s.warmup_retriever)
        self.search(WARMUP, retriever, self._searches(["reranker", *self.rounds[:1]]))
        candidates = self.hits(WARMUP, "train.reranker")
        reranker = warmup.train_reranker(
            self, WARMUP, self.queries["reranker"], candidates, s.warmup_reranker, "list"
        )
        self.rerank_dev(WARMUP, reranker, candidates=WARMUP)

    def train_round(self, before: str, stage: str, searches: QuerySets) -> None:
        """Build groups from the candidates that the stage before left, and train both models on them."""
        settings = self.settings.joint
        retriever, reranker = (
            self.load(self.folder / before / name, name) for name in ("retriever", "reranker")
        )

        def loss(batch: Sequence[Group]) -> dict[str, Tensor]:
            return losses.joint_distillation(
                retriever_scores(retriever, batch),
                reranker_scores(reranker, batch),
                **vars(settings.distillation),
            )

        models = self.trained(
            stage,
            {"retriever": retriever, "reranker": reranker},
            lambda: self.hybrid_groups(before, stage, reranker),
            loss,
            settings,
            rates={"retriever": settings.retriever_rate},
        )
        self.search(stage, models["retriever"], searches)
        self.rerank_dev(stage, models["reranker"], candidates=WARMUP)

    def hybrid_groups(self, before: str, stage: str, reranker: Checkpoint) -> list[Group]:
        """Undenoised, denoised and pseudo-labelled groups, as the settings ask (section 3.3)."""
        s, queries = self.settings.joint.groups, self.queries[stage]
        if s.file:
            return self._read_groups(s.file, s.file_list_size or s.negatives + 1, s.negatives + 1)
        candidates = self.hits(before, f"train.{stage}")
        miner = Miner(
            self.passages, self.train_split.qrels, s.negatives, self.settings.seed + self.rounds.index(stage)
        )
        groups: list[Group] = []
        if {"denoised", "pseudo"} & set(s.sources):
            scored = self._score_candidates(stage, "train", reranker, candidates, queries, self.train_split)
            miner.calibration = calibrate(scored, self.train_split.qrels, self.settings.seed)
        trusted = miner.calibration.slope > 0
        if not trusted:
            self.say(
                f"{stage}: the re-ranker scores other candidates above labelled positives: nothing denoised"
            )
        if "random" in s.sources or not trusted:
            groups += miner.undenoised(queries.values(), candidates, skip=s.skip)
        if "denoised" in s.sources and trusted:
            groups += miner.denoised(queries.values(), scored, below=s.negative_below)
        if "pseudo" in s.sources and trusted:
            groups += self._pseudo_groups(before, stage, miner, reranker)
        self.say(f"{stage}: {miner.report}")
        return groups

    def _read_groups(self, path: str, list_size: int, size: int) -> list[Group]:
        """The lists of a file, cut to `size` passages."""
        groups, short = [], 0
        for group in formats.read_training_groups(path, list_size=list_size):
            if len(group.passages) < size:
                short += 1
            else:
                groups.append(replace(group, passages=group.passages[:size], labels=group.labels[:size]))
        self.say(f"{path}: {len(groups)} lists of {size} passages; {short} shorter ones left out")
        return groups

    def _pseudo_groups(self, before: str, stage: str, miner: Miner, reranker: Checkpoint) -> list[Group]:
        s, split = self.settings.joint.groups, self.unlabelled
        candidates = self.hits(before, "unlabelled")
        scored = self._score_candidates(stage, "unlabelled", reranker, candidates, split.queries, split)
        unlabelled = miner.for_queries_of(split)
        return list(
            unlabelled.pseudo(split.queries.values(), scored, below=s.negative_below, above=s.positive_above)
        )

    def _score_candidates(
        self,
        stage: str,
        name: str,
        reranker: Checkpoint,
        candidates: Run,
        queries: Mapping[str, Query],
        split: Split,
    ) -> Run:
        """The current re-ranker's scores of all candidates and labelled positives."""
        path = self.folder / stage / f"scored.{name}.tsv"
        if limit := self.settings.joint.groups.scored:
            candidates = _thin_out(candidates, limit, self.settings.seed)
        run = with_positives(candidates, split, queries)
        depth = max(map(len, run.values()))
        return self.rerank(path, reranker, run, queries, depth, f"{stage}: score candidates")

    # Results ------------------------------------------------------------------------------------

    def complete(self) -> None:
        """The best models on dev, and the final tables."""
        best = self.complete_best("RocketQAv2")
        titles = {stage: f"retriever, {self.title(stage)}" for stage in [WARMUP, *self.rounds]}
        lines = self.start_line() + [Line(title, stage) for stage, title in titles.items()]
        ordered = dict.fromkeys([WARMUP, best["reranker"], *self.rounds[-1:]])
        names = {stage: f"re-ranker, {self.title(stage)}" for stage in ordered}
        lines += [Line(name, stage, over=best["retriever"]) for stage, name in names.items()]
        depth = self.settings.evaluation.rerank_depth
        notes = [f"The re-rankers order the {depth} best of the retriever of {best['retriever']}."]
        pairs = []
        for model, stages in {"retriever": titles, "reranker": names}.items():
            chosen = best[model]
            if chosen == WARMUP:
                name = model.replace("rer", "re-r")
                notes.append(f"No round gave a better {name} on dev than the warm-up.")
            for stage in self.rounds[-1:] if chosen == WARMUP else [chosen]:
                pairs.append((stages[stage], stages[WARMUP]))
        self.report(lines, pairs, notes)


def _thin_out(run: Run, limit: int, seed: int) -> Run:
    """At most `limit` hits of every query, drawn at random, in their order."""
    draw = random.Random(seed)
    return {
        query_id: hits
        if len(hits) <= limit
        else [hits[i] for i in sorted(draw.sample(range(len(hits)), limit))]
        for query_id, hits in run.items()
    }
