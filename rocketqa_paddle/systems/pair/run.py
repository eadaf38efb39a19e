"""PAIR: passage-centric similarity beside the query-centric one, in two stages of training on pseudo labels.

Ren et al., Findings of ACL 2021. A retriever and a re-ranker, trained as RocketQA's first ones, are the
teachers: they choose positives and negatives for labelled and unlabelled queries. Stage 1 pre-trains one
encoder on them with both similarities; stage 2 fine-tunes it on labelled and pseudo-labelled data with the
query-centric one alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from rocketqa_paddle.records import Group
from rocketqa_paddle.runs.denoising import LABELLED, UNLABELLED, DenoisingRun
from rocketqa_paddle.runs.stages import ALL, Selection, Stage
from rocketqa_paddle.runs.warmup import training_work
from rocketqa_paddle.settings import PairSettings

_TEACHERS = ("teacher_retriever", "teacher_reranker")


def train(settings: PairSettings, selection: Selection = ALL) -> None:
    """Run the whole system in `settings.output`, or go on where it was stopped."""
    run = PairRun(settings)
    run.run(run.stages(), run.complete, selection)


class PairRun(DenoisingRun):
    """One run of PAIR."""

    settings: PairSettings
    warmed_up = {
        "teacher_retriever": {"queries": 0},
        "teacher_reranker": {"queries": 0, "loss": "list"},
    }

    def __init__(self, settings: PairSettings) -> None:
        retriever, reranker = _TEACHERS
        super().__init__(settings, system="PAIR", retriever=retriever, reranker=reranker)

    @staticmethod
    def own_training(settings: PairSettings) -> Sequence[str]:
        """Dotted paths of the settings of what is trained after the warm-up, one an occurrence."""
        return ["pretraining", "finetuning"]

    def stages(self) -> list[Stage]:
        """The teachers, then the two stages of the paper."""
        s, queries = self.settings, len(self.train_split.queries) + len(self.unlabelled.queries)
        negatives, scored = s.denoising.negatives, s.denoising.scored * queries
        return [
            *self.first_stages(("teacher", "teacher"), {**self.labelled_set, **self.unlabelled_set}),
            self.stage(
                "pretraining",
                "stage 1 (pre-training)",
                self.pretrain,
                sections=("retriever", "denoising", "pretraining"),
                after=_TEACHERS,
                work=training_work("retriever", s.pretraining, queries, negatives, scored),
                searches={},
                also=self.unlabelled_facts,
            ),
            self.stage(
                "finetuning",
                "stage 2 (fine-tuning)",
                self.finetune,
                sections=("denoising", "finetuning"),
                after=(*_TEACHERS, "pretraining"),
                work=training_work("retriever", s.finetuning, queries, negatives),
                searches={},
                also=self.unlabelled_facts,
            ),
        ]

    def pretrain(self) -> None:
        """Stage 1: both similarities, on what the teachers chose for every query."""

        def groups() -> list[Group]:
            return self.pseudo_groups("pretraining", LABELLED, _TEACHERS[0]) + self._pseudo("pretraining")

        s = self.settings.pretraining
        self.train_retriever("pretraining", "start", groups, s, {}, alpha=s.alpha)

    def finetune(self) -> None:
        """Stage 2: the query-centric similarity, on labelled and pseudo-labelled positives."""

        def groups() -> list[Group]:
            return self.labelled_groups("finetuning") + self._pseudo("finetuning")

        self.train_retriever("finetuning", "pretraining", groups, self.settings.finetuning, {})

    def _pseudo(self, stage: str) -> list[Group]:
        if not self.unlabelled_set:
            return []
        return self.pseudo_groups(stage, UNLABELLED, _TEACHERS[0])
