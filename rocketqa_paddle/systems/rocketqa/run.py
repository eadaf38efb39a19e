"""RocketQA: cross-batch negatives, denoised hard negatives, data augmentation.

Qu et al., NAACL 2021. Four steps: a first retriever M_D0; a re-ranker M_C on its candidates; a retriever
M_D1 on hard negatives of M_D0 that M_C has denoised; a retriever M_D2 on those and on unlabelled queries
for which M_D1 has searched and M_C has judged.
"""

from __future__ import annotations

from collections.abc import Sequence

from rocketqa_paddle.records import Group
from rocketqa_paddle.runs.denoising import DENOISED, UNLABELLED, DenoisingRun
from rocketqa_paddle.runs.stages import ALL, Selection, Stage
from rocketqa_paddle.runs.warmup import training_work
from rocketqa_paddle.settings import RocketQASettings


def train(settings: RocketQASettings, selection: Selection = ALL) -> None:
    """Run the whole system in `settings.output`, or go on where it was stopped."""
    run = RocketQARun(settings)
    run.run(run.stages(), run.complete, selection)


class RocketQARun(DenoisingRun):
    """One run of RocketQA. Without unlabelled queries it ends with step 3."""

    settings: RocketQASettings
    warmed_up = {"step1": {"queries": 0}, "step2": {"queries": 0, "loss": "list"}}

    def __init__(self, settings: RocketQASettings) -> None:
        super().__init__(settings, system="RocketQA", retriever="step1", reranker="step2")

    @staticmethod
    def own_training(settings: RocketQASettings) -> Sequence[str]:
        """Dotted paths of the settings of what is trained after the warm-up, one an occurrence."""
        return ["step3", "step4"] if settings.data.unlabelled else ["step3"]

    def stages(self) -> list[Stage]:
        """The steps of the paper."""
        s, labelled, unlabelled = self.settings, len(self.train_split.queries), len(self.unlabelled.queries)
        negatives, scored = s.denoising.negatives, s.denoising.scored
        steps = self.first_stages(("step 1 (M_D0)", "step 2 (M_C)"), self.labelled_set)
        steps.append(
            self.stage(
                "step3",
                "step 3 (M_D1)",
                self.step3,
                sections=("retriever", "step3", *DENOISED),
                after=("step1", "step2"),
                work=training_work("retriever", s.step3, labelled, negatives, scored * labelled),
                searches=self.unlabelled_set,
            )
        )
        if unlabelled:
            queries = labelled + unlabelled
            steps.append(
                self.stage(
                    "step4",
                    "step 4 (M_D2)",
                    self.step4,
                    sections=("retriever", "denoising", "step4"),
                    after=("step1", "step2", "step3"),
                    work=training_work("retriever", s.step4, queries, negatives, scored * unlabelled),
                    searches={},
                    also=self.unlabelled_facts,
                )
            )
        return steps

    def step3(self) -> None:
        """M_D1, on denoised hard negatives."""
        s = self.settings.step3
        groups = self.labelled_groups if s.denoise else self.undenoised_groups
        self.train_retriever("step3", s.start, lambda: groups("step3"), s, self.unlabelled_set)

    def step4(self) -> None:
        """M_D2, on the data of step 3 and pseudo-labelled queries."""

        def groups() -> list[Group]:
            return self.labelled_groups("step4") + self.pseudo_groups("step4", UNLABELLED, "step3")

        self.train_retriever("step4", self.settings.step4.start, groups, self.settings.step4, {})
