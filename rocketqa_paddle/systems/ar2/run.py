"""AR2: a retriever that seeks what the ranker mistakes for the positive, and a ranker that learns from it.

Zhang et al., ICLR 2022. Warm up each model, the retriever optionally on inverse cloze first; then, in
rounds: train the ranker on candidates of the current retriever, train the retriever against the ranker,
encode the corpus again and retrieve the next candidates.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import paddle
from paddle import Tensor

from rocketqa_paddle import losses
from rocketqa_paddle.data.cloze import inverse_cloze
from rocketqa_paddle.mining.miner import Miner
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.forward import reranker_scores, retriever_scores
from rocketqa_paddle.records import Group
from rocketqa_paddle.runs import warmup
from rocketqa_paddle.runs.rounds import WARMUP, RoundsRun
from rocketqa_paddle.runs.stages import ALL, Selection, Stage, Work
from rocketqa_paddle.runs.staging import QuerySets
from rocketqa_paddle.runs.warmup import list_loss, mined, training_work
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.settings import AR2Settings, StageSettings
from rocketqa_paddle.training.trainer import Leg, Loss, total_steps

CLOZE = "cloze"
Model = Literal["reranker", "retriever"]


def train(settings: AR2Settings, selection: Selection = ALL) -> None:
    """Run the whole system in `settings.output`, or go on where it was stopped."""
    run = AR2Run(settings)
    run.run(run.stages(), run.complete, selection)


class AR2Run(RoundsRun):
    """One run of AR2."""

    settings: AR2Settings
    warmed_up = {**RoundsRun.warmed_up, "cloze": {"passages": 0}}

    def __init__(self, settings: AR2Settings) -> None:
        super().__init__(settings, system="AR2", section="adversarial")

    @staticmethod
    def own_training(settings: AR2Settings) -> Sequence[str]:
        """Dotted paths of the settings of what is trained after the warm-up, one an occurrence."""
        return ["adversarial.reranker", "adversarial.retriever"] * settings.adversarial.rounds

    def stages(self) -> list[Stage]:
        """The start weights measured, inverse cloze if it is asked for, the warm-up, the rounds."""
        start = self.start_stage()
        if self.settings.cloze.passages == 0:
            return [*start, self.warmup_stage(), *self.round_stages()]
        return [*start, self._cloze_stage(), self.warmup_stage(before=CLOZE), *self.round_stages()]

    def _cloze_stage(self) -> Stage:
        s = self.settings.cloze
        passages = len(self.passages) if s.passages is None else min(s.passages, len(self.passages))
        return self.stage(
            CLOZE,
            "inverse cloze",
            self.pretrain,
            sections=("retriever", "cloze"),
            work=training_work("retriever", s, passages, 0),
            searches={},
        )

    def pretrain(self) -> None:
        """Inverse cloze, with in-batch and cross-batch negatives."""
        trained = warmup.contrast(
            self, CLOZE, self.start_retriever(), self._cloze_groups, self.settings.cloze
        )
        self.search(CLOZE, trained)

    def _cloze_groups(self) -> list[Group]:
        s, passages = self.settings.cloze, list(self.passages.values())
        if s.passages is not None and s.passages < len(passages):
            passages = random.Random(self.settings.seed).sample(passages, s.passages)
        groups = list(inverse_cloze(passages, keep=s.keep, seed=self.settings.seed))
        left_out = len(passages) - len(groups)
        self.say(f"{CLOZE}: {len(groups)} groups; {left_out} passages left out (a single sentence)")
        if not groups:
            raise ValueError(
                f"{CLOZE}: none of {len(passages)} passages has two sentences: set cloze.passages=0"
            )
        return groups

    def round_stage(self, before: str, stage: str, searches: QuerySets) -> Stage:
        """Ranker, retriever, candidates."""
        s, queries = self.settings.adversarial, len(self.queries[stage])
        ranker = training_work("reranker", s.reranker, queries, s.groups.negatives)
        retriever = training_work("retriever", s.retriever, queries, s.groups.negatives)
        lists = retriever.trained_texts // (s.groups.negatives + 2)
        handed_on = () if stage == self.rounds[-1] else ("reranker", "retriever")
        return self.stage(
            stage,
            stage,
            partial(self.train_round, before, stage, searches),
            sections=("adversarial",),
            after=(before,),
            work=ranker + retriever + Work(scored=lists * (s.groups.negatives + 1), optimizers=handed_on),
            searches=searches,
            also=self.round_facts(stage),
        )

    def train_round(self, before: str, stage: str, searches: QuerySets) -> None:
        """The ranker's steps, the retriever's steps; then the trained retriever searches."""
        reranker = self._train(before, stage, "reranker", list_loss)
        retriever = self._train(before, stage, "retriever", partial(self._retriever_loss, reranker))
        if distributed.is_main():
            for model in ("reranker", "retriever"):  # whose steps are taken: no one goes on from there
                self._optimizer_state(before, model).unlink(missing_ok=True)
        self.search(stage, retriever, searches)
        self.rerank_dev(stage, reranker, candidates=WARMUP)

    def _train(
        self, before: str, stage: str, name: Model, make_loss: Callable[[Checkpoint], Loss]
    ) -> Checkpoint:
        """Train the model that the stage before left on candidates that its retriever found."""
        model = self.trained_model(before, name)
        settings: StageSettings = getattr(self.settings.adversarial, name)
        groups = partial(self._groups, before, stage, name)
        leg = self._leg(before, stage, name, settings)
        return self.trained(stage, {name: model}, groups, make_loss(model), settings, leg=leg)[name]

    def _retriever_loss(self, reranker: Checkpoint, retriever: Checkpoint) -> Loss:
        def loss(batch: Sequence[Group]) -> dict[str, Tensor]:
            with paddle.no_grad():
                judged = reranker_scores(reranker, batch)
            found = retriever_scores(retriever, batch)
            return losses.ar2_retriever(found, judged, **vars(self.settings.adversarial.loss))

        return loss

    def _groups(self, before: str, stage: str, name: Model) -> list[Group]:
        """Labelled positives and random candidates: other ones for each model."""
        place = self.rounds.index(stage)
        if place and not self._optimizer_state(before, name).is_file():
            self.say(f"{stage}: {before} has kept no state of the {name}'s optimizer: it begins anew")
        seed = self.settings.seed + 2 * place + (name == "retriever")
        negatives = self.settings.adversarial.groups.negatives
        miner = Miner(self.passages, self.train_split.qrels, negatives, seed)
        candidates = self.hits(before, f"train.{stage}")
        return mined(self, stage, miner, miner.undenoised(self.queries[stage].values(), candidates))

    def _leg(self, before: str, stage: str, name: Model, settings: StageSettings) -> Leg:
        """A round's share of one schedule and one optimizer through all rounds."""
        steps = [total_steps(settings, len(self.queries[each])) for each in self.rounds]
        place, state = self.rounds.index(stage), self._optimizer_state(before, name)
        return Leg(
            first=sum(steps[:place]),
            total=sum(steps),
            before=state if state.is_file() else None,
            after=self._optimizer_state(stage, name) if stage != self.rounds[-1] else None,
        )

    def _optimizer_state(self, stage: str, name: Model) -> Path:
        return self.folder / stage / f"{name}.optimizer.safetensors"
