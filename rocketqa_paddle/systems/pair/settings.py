"""The settings of PAIR."""

from dataclasses import dataclass, field

from rocketqa_paddle.settings import ContrastiveSettings, RetrieverSettings, RunSettings, fraction
from rocketqa_paddle.systems.rocketqa.settings import (
    DenoisingSettings,
    FirstRerankerSettings,
    FirstRetrieverSettings,
)


@dataclass(frozen=True)
class PretrainingSettings(ContrastiveSettings):
    """PAIR's first stage."""

    alpha: float = 0.1
    """Weight of the passage-centric loss; the query-centric one has the rest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(alpha=self.alpha)


@dataclass(frozen=True)
class PairSettings(RunSettings):
    """Everything that `rocketqa train pair` reads."""

    warmed_up = {
        "teacher_retriever": {"queries": 0},
        "teacher_reranker": {"queries": 0, "loss": "list"},
    }

    retriever: RetrieverSettings = field(default_factory=lambda: RetrieverSettings(shared=True))
    """The dual encoder, of one tower."""
    teacher_retriever: FirstRetrieverSettings = field(default_factory=FirstRetrieverSettings)
    """The retriever that finds the candidates."""
    teacher_reranker: FirstRerankerSettings = field(default_factory=FirstRerankerSettings)
    """The re-ranker that labels them."""
    denoising: DenoisingSettings = field(default_factory=DenoisingSettings)
    """The pseudo-labelled data, and the negatives of the labelled ones."""
    pretraining: PretrainingSettings = field(default_factory=PretrainingSettings)
    """Stage 1: query-centric and passage-centric loss on pseudo-labelled data."""
    finetuning: ContrastiveSettings = field(default_factory=ContrastiveSettings)
    """Stage 2: query-centric loss on labelled and pseudo-labelled data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.retriever.shared:
            raise ValueError(
                "PAIR compares passages with queries and with passages: it needs one encoder for both, "
                "retriever.shared=true"
            )
