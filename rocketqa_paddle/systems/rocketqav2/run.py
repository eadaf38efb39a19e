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

from rocketqa_paddle import losses
from rocketqa_paddle.data import formats
from rocketqa_paddle.data.dataset import digest_file
from rocketqa_paddle.mining.miner import Miner, calibrate
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.forward import reranker_scores, retriever_scores
from rocketqa_paddle.records import Group, Query, Run, Split, with_positives
from rocketqa_paddle.runs.rounds import WARMUP, RoundsRun
from rocketqa_paddle.runs.stages import ALL, Selection, Stage
from rocketqa_paddle.runs.staging import QuerySets
from rocketqa_paddle.runs.warmup import training_work
from rocketqa_paddle.settings import JointSettings, RocketQAv2Settings

# A round does not hang on how many follow it.
_DECISIVE = tuple(f"joint.{field.name}" for field in fields(JointSettings) if field.name != "rounds")


def train(settings: RocketQAv2Settings, selection: Selection = ALL) -> None:
    """Run the whole system in `settings.output`, or go on where it was stopped."""
    run = JointRun(settings)
    run.run(run.stages(), run.complete, selection)


class JointRun(RoundsRun):
    """One run of RocketQAv2."""

    settings: RocketQAv2Settings

    def __init__(self, settings: RocketQAv2Settings) -> None:
        super().__init__(settings, system="RocketQAv2", section="joint")
        if lists := settings.joint.groups.file:
            formats.read_training_groups(lists)  # raises now, not after hours, if it cannot be read

    @staticmethod
    def own_training(settings: RocketQAv2Settings) -> Sequence[str]:
        """Dotted paths of the settings of what is trained after the warm-up, one an occurrence."""
        return ["joint"] * settings.joint.rounds

    def stages(self) -> list[Stage]:
        """The start weights measured, the warm-up, the rounds."""
        return [*self.start_stage(), self.warmup_stage(), *self.round_stages()]

    def round_searches(self, stage: str) -> QuerySets:
        """The query sets of a round, unless its lists are given."""
        groups = self.settings.joint.groups
        if groups.file:
            return {}
        sets = dict(super().round_searches(stage))
        if "pseudo" in groups.sources:
            sets["unlabelled"] = (self.unlabelled.queries, groups.depth)
        return sets

    def round_stage(self, before: str, stage: str, searches: QuerySets) -> Stage:
        """Build groups from the candidates that the stage before left, and train both models on them."""
        s = self.settings.joint
        queries, also = self.queries[stage], self.round_facts(stage)
        if s.groups.file:
            also["lists"] = digest_file(s.groups.file)
        if "pseudo" in s.groups.sources:
            also |= self.unlabelled_facts
        negatives, scored = s.groups.negatives, len(queries) * (s.groups.scored or s.groups.depth)
        work = training_work("retriever", s, len(queries), negatives, scored)
        reranker = replace(
            training_work("reranker", s, len(queries), negatives), steps=0
        )  # they are the same
        return self.stage(
            stage,
            stage,
            partial(self.train_round, before, stage, searches),
            sections=_DECISIVE,
            after=(before,),
            work=work + reranker,
            searches=searches,
            also=also,
        )

    def train_round(self, before: str, stage: str, searches: QuerySets) -> None:
        """Joint steps on hybrid groups; then the trained retriever searches."""
        settings = self.settings.joint
        retriever, reranker = (self.trained_model(before, name) for name in ("retriever", "reranker"))

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


def _thin_out(run: Run, limit: int, seed: int) -> Run:
    """At most `limit` hits of every query, drawn at random, in their order."""
    draw = random.Random(seed)
    return {
        query_id: hits
        if len(hits) <= limit
        else [hits[i] for i in sorted(draw.sample(range(len(hits)), limit))]
        for query_id, hits in run.items()
    }
