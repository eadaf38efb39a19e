"""The settings of RocketQAv2."""

from dataclasses import dataclass, field
from typing import Literal

from rocketqa_paddle.settings import (
    Settings,
    TrainingSettings,
    WarmedUpSettings,
    at_least,
    check_thresholds,
    positive,
    without_effect,
)


@dataclass(frozen=True)
class GroupSettings(Settings):
    """How candidates become lists of one positive and negatives."""

    negatives: int = 5
    """Negatives a list (the paper: 127 on MS MARCO, 31 on NQ)."""
    depth: int = 50
    """Candidates retrieved a query, from which negatives are drawn."""
    skip: int = 0
    """Leave out this many of the best candidates when drawing undenoised negatives."""
    file: str | None = None
    """Train on the lists of this file instead of building any: RocketQAv2's TSV (query, title, text, label;
    the positive first), DPR JSON or Tevatron JSONL. Longer lists are cut, shorter ones left out."""
    file_list_size: int | None = None
    """Lines of a list in a TSV file; `negatives` + 1 when empty."""
    scored: int | None = None
    """Denoised and pseudo: let the re-ranker score this many of the candidates of a query, drawn at random;
    all of them when empty."""
    sources: list[Literal["random", "denoised", "pseudo"]] = field(
        default_factory=lambda: ["random", "denoised"]
    )
    """Kinds of lists to build for every query; `pseudo` needs an unlabelled split."""
    negative_below: float = 0.1
    """Denoised: a candidate is a negative if the re-ranker's probability is below this."""
    positive_above: float = 0.9
    """Pseudo labels: a candidate is a positive if the re-ranker's probability is above this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, negatives=self.negatives, depth=self.depth, sources=len(self.sources))
        at_least(0, skip=self.skip)
        for name, value in {"file_list_size": self.file_list_size, "scored": self.scored}.items():
            if value is not None and value <= self.negatives:
                raise ValueError(f"{name}={value}, expected more than negatives={self.negatives}")
        check_thresholds(self.negative_below, self.positive_above)


@dataclass(frozen=True)
class DistillationSettings(Settings):
    """The dynamic listwise distillation. The defaults are the released code's."""

    target: Literal["reranker", "retriever"] = "reranker"
    """Whose softmax is the target of the KL divergence (`retriever`: the paper's equation)."""
    reduction: Literal["mean", "batchmean"] = "mean"
    """Mean over all elements, or over lists."""
    mutual: bool = False
    """Let the divergence move the re-ranker as well."""
    kl_weight: float = 1.0
    """Factor of the divergence."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, kl_weight=self.kl_weight)


@dataclass(frozen=True)
class JointSettings(TrainingSettings):
    """The rounds of joint training."""

    rounds: int = 1
    """Rounds of retrieve, build groups, train, evaluate."""
    queries: int | None = None
    """Training queries a round, other ones each round while there are any; all of them when empty."""
    first_query: int = without_effect(0)
    """Skip this many of the shuffled training queries: an earlier training has used them."""
    retriever_rate: float = 1.0
    """Factor of the learning rate for the retriever's parameters."""
    groups: GroupSettings = field(default_factory=GroupSettings)
    """The candidate lists."""
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    """The loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, queries=self.queries)
        at_least(0, rounds=self.rounds, first_query=self.first_query)
        positive(retriever_rate=self.retriever_rate)


@dataclass(frozen=True)
class RocketQAv2Settings(WarmedUpSettings):
    """Everything that `rocketqa train rocketqav2` reads."""

    joint: JointSettings = field(default_factory=JointSettings)
    """Joint training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "pseudo" in self.joint.groups.sources and self.data.unlabelled is None:
            raise ValueError(
                "joint.groups.sources has 'pseudo', which needs unlabelled queries: set data.unlabelled"
            )
