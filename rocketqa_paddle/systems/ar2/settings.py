"""The settings of AR2."""

from dataclasses import dataclass, field
from typing import Literal

from rocketqa_paddle.settings import (
    OptimizerSettings,
    RerankerWarmUpSettings,
    Settings,
    TrainingSettings,
    WarmedUpSettings,
    at_least,
    fraction,
    positive,
    without_effect,
)


@dataclass(frozen=True)
class ICTSettings(TrainingSettings):
    """Pre-training of the retriever on the corpus (inverse cloze task): a sentence finds its passage."""

    passages: int | None = 0
    """Passages to use, drawn at random; all of them when empty. 0 leaves the step out."""
    keep: float = 0.1
    """Share of the passages that keep the sentence that became the query."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, passages=self.passages)
        fraction(keep=self.keep)


@dataclass(frozen=True)
class CandidateSettings(Settings):
    """How what the current retriever finds becomes lists of one positive and negatives."""

    negatives: int = 15
    """Negatives a list, drawn at random from the candidates."""
    depth: int = 100
    """Candidates retrieved a query."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, negatives=self.negatives, depth=self.depth)


@dataclass(frozen=True)
class AdversarialLossSettings(Settings):
    """The retriever's loss."""

    adversarial_weight: float = 0.5
    """Weight of the adversarial term; the distillation has the rest."""
    temperature: float = 1.0
    """The re-ranker's scores are divided by this for the distillation."""
    normalization: Literal["released", "paper"] = "paper"
    """The adversarial term as the paper writes it, the expected reward of a negative, or as the released code
    has it, summed over the lists that a process takes in a step (`batch_size`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(adversarial_weight=self.adversarial_weight)
        positive(temperature=self.temperature)


def _training(steps: int, learning_rate: float) -> TrainingSettings:
    return TrainingSettings(
        steps=steps, optimizer=OptimizerSettings(learning_rate=learning_rate, warmup_ratio=0.1)
    )


@dataclass(frozen=True)
class AdversarialSettings(Settings):
    """The rounds of AR2. The schedule and the optimizer of each model go on through all of them."""

    rounds: int = 10
    """Rounds of train the re-ranker, train the retriever, retrieve."""
    queries: int | None = None
    """Training queries a round, other ones each round while there are any; all of them when empty."""
    first_query: int = without_effect(0)
    """Skip this many of the shuffled training queries: an earlier training has used them."""
    reranker: TrainingSettings = field(default_factory=lambda: _training(500, 1e-6))
    """The re-ranker's steps of a round, which come first."""
    retriever: TrainingSettings = field(default_factory=lambda: _training(1500, 1e-5))
    """The retriever's steps of a round."""
    groups: CandidateSettings = field(default_factory=CandidateSettings)
    """The candidate lists."""
    loss: AdversarialLossSettings = field(default_factory=AdversarialLossSettings)
    """The retriever's loss; the re-ranker's is the cross entropy of its lists."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, queries=self.queries)
        at_least(0, rounds=self.rounds, first_query=self.first_query)


@dataclass(frozen=True)
class AR2Settings(WarmedUpSettings):
    """Everything that `rocketqa train ar2` reads."""

    warmed_up = {**WarmedUpSettings.warmed_up, "ict": {"passages": 0}}

    ict: ICTSettings = field(default_factory=ICTSettings)
    """Optional pre-training of the retriever."""
    warmup_reranker: RerankerWarmUpSettings = field(
        default_factory=lambda: RerankerWarmUpSettings(negatives=15)
    )
    """Listwise training of the re-ranker on the warmed-up retriever's candidates."""
    adversarial: AdversarialSettings = field(default_factory=AdversarialSettings)
    """Adversarial training."""
