"""The settings of RocketQA, and of the denoising that PAIR shares with it."""

from dataclasses import dataclass, field
from typing import Literal

from rocketqa_paddle.settings import (
    ContrastiveSettings,
    RerankerWarmUpSettings,
    RunSettings,
    Settings,
    at_least,
    check_thresholds,
    need_bm25s,
    without_effect,
)


@dataclass(frozen=True)
class FirstRetrieverSettings(ContrastiveSettings):
    """Training of the first retriever, on labelled positives."""

    queries: int | None = None
    """Training queries to use; all of them when empty. 0 takes the model as it is."""
    negatives: int = 1
    """Negatives a query, beside those in the batch; 0 for none."""
    candidates: Literal["random", "bm25"] = "random"
    """Where they come from: the whole corpus, or what BM25 finds (needs the package bm25s)."""
    init: str | None = without_effect(None)
    """Initial checkpoint of this step alone, where it is another than `retriever.init`: with `queries` 0, a
    finished retriever serves as the first one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, negatives=self.negatives, queries=self.queries)
        if self.one_negative_per_example:
            at_least(1, negatives=self.negatives)
        if self.candidates == "bm25":
            need_bm25s("candidates=bm25")


@dataclass(frozen=True)
class FirstRerankerSettings(RerankerWarmUpSettings):
    """Training of the re-ranker on positives and what the first retriever finds."""

    loss: Literal["binary", "list"] = "binary"
    """Cross entropy of every pair, or of every list. A model that is trained on lists has no probabilities:
    its scores are calibrated on labelled queries before they meet the thresholds."""


@dataclass(frozen=True)
class DenoisingSettings(Settings):
    """How the re-ranker makes training data from what a retriever finds."""

    depth: int = 50
    """Candidates retrieved a query."""
    scored: int = 50
    """The re-ranker scores this many of the best candidates."""
    negatives: int = 1
    """Negatives a query (the paper: 4 on MS MARCO, 1 on NQ)."""
    choose: Literal["hardest", "random"] = "hardest"
    """Of the candidates that the re-ranker rejects, take those that the retriever found first, as in the
    released code, or some at random."""
    negative_below: float = 0.1
    """A scored candidate is a negative if the re-ranker's probability is below this. Where those are too few,
    candidates deeper than `scored` make up the number."""
    positive_above: float = 0.9
    """An unlabelled query's best candidate is its positive if the re-ranker's probability is above this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, depth=self.depth, scored=self.scored, negatives=self.negatives)
        if not self.negatives < self.scored <= self.depth:
            raise ValueError(
                f"negatives={self.negatives}, scored={self.scored}, depth={self.depth}: "
                "expected negatives < scored <= depth"
            )
        check_thresholds(self.negative_below, self.positive_above)


@dataclass(frozen=True)
class DenoisedSettings(ContrastiveSettings):
    """Training of a retriever on denoised hard negatives."""

    denoise: bool = True
    """Leave out candidates that the re-ranker accepts; false takes hard negatives as they are, to compare."""
    init: Literal["init", "step1"] = "init"
    """Begin from the retriever's initial checkpoint, or from the retriever of step 1."""


@dataclass(frozen=True)
class AugmentedSettings(ContrastiveSettings):
    """Training of a retriever on labelled and pseudo-labelled queries."""

    init: Literal["init", "step1", "step3"] = "init"
    """Begin from the retriever's initial checkpoint, or from the retriever of an earlier step."""


@dataclass(frozen=True)
class RocketQASettings(RunSettings):
    """Everything that `rocketqa train rocketqa` reads."""

    warmed_up = {"step1": {"queries": 0}, "step2": {"queries": 0, "loss": "list"}}

    step1: FirstRetrieverSettings = field(default_factory=FirstRetrieverSettings)
    """The retriever M_D0, with cross-batch negatives."""
    step2: FirstRerankerSettings = field(default_factory=FirstRerankerSettings)
    """The re-ranker M_C, on the candidates of M_D0."""
    denoising: DenoisingSettings = field(default_factory=DenoisingSettings)
    """The data of steps 3 and 4."""
    step3: DenoisedSettings = field(default_factory=DenoisedSettings)
    """The retriever M_D1, on denoised hard negatives."""
    step4: AugmentedSettings = field(default_factory=AugmentedSettings)
    """The retriever M_D2, on the data of step 3 and on pseudo-labelled queries; left out without
    `data.unlabelled`."""
