"""Settings: plain dataclasses that a YAML file or a flag fills. Networks and losses never see them.

The docstring under a field is its help text on the command line.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_type_hints


def at_least(minimum: float, **values: float | None) -> None:
    """Refuse a setting below `minimum`; None stands for a setting left empty."""
    for name, value in values.items():
        if value is not None and not value >= minimum:
            raise ValueError(f"{name}={value}, expected at least {minimum}")


def _share(**values: float) -> None:
    """Refuse a setting outside [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value}, expected 0 or more and less than 1")


def _unit(**values: float) -> None:
    """Refuse a setting outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}, expected 0 to 1")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value}, expected a number above 0")


def _need_bm25s(setting: str) -> None:
    if importlib.util.find_spec("bm25s") is None:
        raise ValueError(f"{setting} needs the package bm25s: pip install bm25s, or choose another value")


def check_thresholds(negative_below: float, positive_above: float) -> None:
    """Refuse probabilities that cross, or leave nothing on one side."""
    if not 0 < negative_below < positive_above < 1:
        raise ValueError(
            f"negative_below={negative_below}, positive_above={positive_above}: "
            "expected 0 < negative_below < positive_above < 1"
        )


@dataclass(frozen=True)
class DataSettings:
    """Which text to train on and to search."""

    folder: str
    """A RocketQA/MS MARCO folder (para.txt, SPLIT.query.txt, qrels.SPLIT.tsv) or a BEIR folder."""
    train: str = "train"
    """Split with the training queries."""
    dev: str = "dev"
    """Split that chooses the best round."""
    tests: list[str] = field(default_factory=list)
    """Splits that the final table reports."""
    unlabelled: str | None = None
    """Split of queries for pseudo labels. Its judgements are never read, and queries that are also labelled
    training queries are left out: `train` gives those that `max_train_queries` leaves over."""
    max_dev_queries: int | None = None
    """Choose by this many dev queries, drawn at random; all of them when empty."""
    max_train_queries: int | None = None
    """Train on the labels of this many training queries, drawn at random; all of them when empty."""
    max_unlabelled_queries: int | None = None
    """Make pseudo labels for this many unlabelled queries, drawn at random; all of them when empty."""
    max_test_queries: int | None = None
    """Report on this many queries a test split, drawn at random; all of them when empty."""

    def __post_init__(self) -> None:
        at_least(
            1,
            max_train_queries=self.max_train_queries,
            max_unlabelled_queries=self.max_unlabelled_queries,
            max_dev_queries=self.max_dev_queries,
            max_test_queries=self.max_test_queries,
        )


@dataclass(frozen=True)
class RetrieverSettings:
    """The dual encoder."""

    start: str = "mini"
    """Start weights: a checkpoint of this project, a Hugging Face BERT or ERNIE folder,
    `package:NAME/FOLDER` for a folder inside an installed package, a PaddleNLP name such as
    `ernie-2.0-base-en` (extra `paddlenlp`), or a size from scratch: `tiny`, `mini`."""
    shared: bool = False
    """One tower for queries and passages instead of one each."""
    pooling: Literal["cls", "mean"] = "cls"
    """What of the last layer is the vector."""
    normalize: bool = False
    """Scale vectors to unit length."""
    temperature: float = 1.0
    """Divide scores by this."""
    query_length: int = 32
    """Tokens of a query, with [CLS] and [SEP]."""
    passage_length: int = 128
    """Tokens of title and text, with the special ones."""
    dropout: float = 0.1
    """Dropout in training."""
    for_cn: bool = False
    """Remove spaces from all text first, as the reference does for Chinese. A checkpoint of this project
    says so itself."""
    recompute: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""

    def __post_init__(self) -> None:
        at_least(3, query_length=self.query_length)
        at_least(4, passage_length=self.passage_length)
        _share(dropout=self.dropout)
        _positive(temperature=self.temperature)


@dataclass(frozen=True)
class RerankerSettings:
    """The cross encoder."""

    start: str = "mini"
    """Start weights; see the retriever's."""
    head: Literal["logit", "classes", "pooled_logit"] = "logit"
    """One logit on the raw [CLS] (RocketQAv2), tanh pooler and two classes (RocketQA v1), or tanh pooler and
    one logit (Hugging Face)."""
    length: int = 160
    """Tokens of query, title and text, with the special ones."""
    dropout: float = 0.1
    """Dropout in training."""
    for_cn: bool = False
    """Remove spaces from all text first, as the reference does for Chinese. A checkpoint of this project
    says so itself."""
    recompute: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""

    def __post_init__(self) -> None:
        at_least(5, length=self.length)
        _share(dropout=self.dropout)


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW or LAMB; weight decay leaves out biases and layer norms."""

    algorithm: Literal["adamw", "lamb"] = "adamw"
    """LAMB (You et al., ICLR 2020) scales each step to the size of its tensor, for batches of thousands."""
    learning_rate: float = 1e-5
    """Peak learning rate."""
    warmup_share: float = 0.0
    """Share of the steps in which the rate grows from 0."""
    decay: Literal["linear", "constant"] = "linear"
    """How the rate goes on after the warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest norm of all gradients together."""

    def __post_init__(self) -> None:
        at_least(0, learning_rate=self.learning_rate)
        _positive(clip_norm=self.clip_norm)
        _share(weight_decay=self.weight_decay)
        _unit(warmup_share=self.warmup_share)


@dataclass(frozen=True)
class StageSettings:
    """One stretch of training."""

    batch_size: int = 8
    """Queries a step and process."""
    steps: int | None = None
    """Optimizer steps; when empty, `epochs` over the data."""
    epochs: int = 1
    """Passes over the data, where `steps` is empty."""
    accumulate: int = 1
    """Split every batch into this many parts, one after another, to save memory."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """The optimizer of this stretch."""

    def __post_init__(self) -> None:
        at_least(
            1, batch_size=self.batch_size, accumulate=self.accumulate, epochs=self.epochs, steps=self.steps
        )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be split into accumulate={self.accumulate} equal parts"
            )


@dataclass(frozen=True)
class WarmupSettings(StageSettings):
    """Training of one model alone."""

    queries: int | None = None
    """Training queries to use; all of them when empty. 0 takes the model as it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, queries=self.queries)


@dataclass(frozen=True)
class RerankerWarmupSettings(WarmupSettings):
    """Training of the re-ranker on a retriever's candidates."""

    negatives: int = 4
    """Negatives a query, drawn at random from the retriever's candidates."""
    easy_negatives: int = 0
    """Draw this many of the negatives from the whole corpus instead. An encoder that never read pairs learns
    little from hard negatives alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, easy_negatives=self.easy_negatives)
        at_least(1, negatives=self.negatives)
        if self.easy_negatives > self.negatives:
            raise ValueError(
                f"easy_negatives={self.easy_negatives}, but there are only negatives={self.negatives} in all"
            )


@dataclass(frozen=True)
class GroupSettings:
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
        at_least(1, negatives=self.negatives, depth=self.depth, sources=len(self.sources))
        at_least(0, skip=self.skip)
        for name, value in {"file_list_size": self.file_list_size, "scored": self.scored}.items():
            if value is not None and value <= self.negatives:
                raise ValueError(f"{name}={value}, expected more than negatives={self.negatives}")
        check_thresholds(self.negative_below, self.positive_above)


@dataclass(frozen=True)
class DistillationSettings:
    """The dynamic listwise distillation. The defaults are the released code's."""

    target: Literal["reranker", "retriever"] = "reranker"
    """Whose softmax is the target of the KL divergence (`retriever`: the paper's equation)."""
    reduction: Literal["mean", "batchmean"] = "mean"
    """Mean over all elements, or over lists."""
    mutual: bool = False
    """Let the divergence move the re-ranker, too."""
    kl_weight: float = 1.0
    """Factor of the divergence."""


@dataclass(frozen=True)
class JointSettings(StageSettings):
    """The rounds of joint training."""

    rounds: int = 1
    """Rounds of retrieve, build groups, train, evaluate."""
    queries: int | None = None
    """Training queries a round, other ones each round while there are any; all of them when empty."""
    first_query: int = 0
    """Deal out queries from this place of their shuffled order: those before it are others'."""
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
        _positive(retriever_rate=self.retriever_rate)


@dataclass(frozen=True)
class EvaluationSettings:
    """What the reports measure."""

    measures: list[str] = field(default_factory=lambda: ["RR@10", "Success@5", "Success@50"])
    """Measures by their ir_measures names; the first chooses the best round."""
    depth: int = 50
    """Passages retrieved a query."""
    rerank_depth: int = 20
    """Passages re-ranked a query."""
    start: bool = True
    """Measure the start weights too, which takes one more pass over the corpus."""
    bm25: bool = False
    """Add BM25 as a yardstick (needs the package bm25s)."""

    def __post_init__(self) -> None:
        at_least(1, depth=self.depth, rerank_depth=self.rerank_depth, measures=len(self.measures))
        if self.bm25:
            _need_bm25s("evaluation.bm25")


@dataclass(frozen=True)
class RunSettings:
    """What every system reads: where, on what, with which networks."""

    output: str
    """Run folder; a run that was stopped goes on there."""
    data: DataSettings
    """Collection and splits."""
    retriever: RetrieverSettings = field(default_factory=RetrieverSettings)
    """The dual encoder."""
    reranker: RerankerSettings = field(default_factory=RerankerSettings)
    """The cross encoder."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """Measures on dev and test."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the networks; the parameters stay fp32. fp16 scales the loss."""
    encode_batch: int = 64
    """Largest number of rows when encoding or scoring without gradient."""
    seed: int = 1
    """Seed of initial weights, data order, sampling and dropout."""
    save_minutes: float = 10.0
    """Save the state of an unfinished stage this often."""
    use_cuda: bool = False
    """Train on the GPU of this rank."""

    def __post_init__(self) -> None:
        at_least(1, encode_batch=self.encode_batch)
        if self.precision != "fp32" and not self.use_cuda:
            raise ValueError(f"precision={self.precision} needs use_cuda=true: a CPU computes in fp32 anyway")


@dataclass(frozen=True)
class RocketQAv2Settings(RunSettings):
    """Everything that `rocketqa train rocketqav2` reads."""

    warmup_retriever: WarmupSettings = field(default_factory=WarmupSettings)
    """In-batch training of the retriever."""
    warmup_reranker: RerankerWarmupSettings = field(default_factory=RerankerWarmupSettings)
    """Listwise training of the re-ranker on the warmed-up retriever's candidates."""
    joint: JointSettings = field(default_factory=JointSettings)
    """Joint training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "pseudo" in self.joint.groups.sources and self.data.unlabelled is None:
            raise ValueError(
                "joint.groups.sources has 'pseudo', which needs unlabelled queries: set data.unlabelled"
            )


@dataclass(frozen=True)
class ContrastiveSettings(StageSettings):
    """Training of a retriever in which the passages of a batch are negatives of its other queries."""

    cross_batch: bool = True
    """Contrast with the passages of all processes; false: with those of its own process alone."""
    single_negatives: bool = False
    """Make an example of every negative, with the query and its positive, as in the released files: four
    negatives of a query then make four examples, and an epoch is four times as long."""


@dataclass(frozen=True)
class FirstRetrieverSettings(ContrastiveSettings):
    """Training of the first retriever, on labelled positives."""

    queries: int | None = None
    """Training queries to use; all of them when empty. 0 takes the model as it is."""
    negatives: int = 1
    """Negatives a query, beside those in the batch; 0 for none."""
    candidates: Literal["random", "bm25"] = "random"
    """Where they come from: the whole corpus, or what BM25 finds (needs the package bm25s)."""
    start: str | None = None
    """Start weights of this stage alone, where they are others than `retriever.start`: with `queries` 0, a
    finished retriever serves as the first one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, negatives=self.negatives, queries=self.queries)
        if self.single_negatives:
            at_least(1, negatives=self.negatives)
        if self.candidates == "bm25":
            _need_bm25s("candidates=bm25")


@dataclass(frozen=True)
class FirstRerankerSettings(RerankerWarmupSettings):
    """Training of the re-ranker on positives and what the first retriever finds."""

    loss: Literal["binary", "list"] = "binary"
    """Cross entropy of every pair, or of every list. A model that is trained on lists has no probabilities:
    its scores are calibrated on labelled queries before they meet the thresholds."""


@dataclass(frozen=True)
class DenoisingSettings:
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
        at_least(1, depth=self.depth, scored=self.scored, negatives=self.negatives)
        if not self.negatives < self.scored <= self.depth:
            raise ValueError(
                f"negatives={self.negatives}, scored={self.scored}, depth={self.depth}: "
                "expected negatives < scored <= depth"
            )
        check_thresholds(self.negative_below, self.positive_above)


@dataclass(frozen=True)
class DenoisedStepSettings(ContrastiveSettings):
    """Training of a retriever on denoised hard negatives."""

    denoise: bool = True
    """Leave out candidates that the re-ranker accepts; false takes hard negatives as they are, to compare."""
    start: Literal["start", "step1"] = "start"
    """Begin from the retriever's start weights, or from the retriever of step 1."""


@dataclass(frozen=True)
class AugmentedStepSettings(ContrastiveSettings):
    """Training of a retriever on labelled and pseudo-labelled queries."""

    start: Literal["start", "step1", "step3"] = "start"
    """Begin from the retriever's start weights, or from the retriever of an earlier step."""


@dataclass(frozen=True)
class RocketQASettings(RunSettings):
    """Everything that `rocketqa train rocketqa` reads."""

    step1: FirstRetrieverSettings = field(default_factory=FirstRetrieverSettings)
    """The retriever M_D0, with cross-batch negatives."""
    step2: FirstRerankerSettings = field(default_factory=FirstRerankerSettings)
    """The re-ranker M_C, on the candidates of M_D0."""
    denoising: DenoisingSettings = field(default_factory=DenoisingSettings)
    """The data of steps 3 and 4."""
    step3: DenoisedStepSettings = field(default_factory=DenoisedStepSettings)
    """The retriever M_D1, on denoised hard negatives."""
    step4: AugmentedStepSettings = field(default_factory=AugmentedStepSettings)
    """The retriever M_D2, on the data of step 3 and on pseudo-labelled queries; left out without
    `data.unlabelled`."""


@dataclass(frozen=True)
class PretrainingSettings(ContrastiveSettings):
    """PAIR's first stage."""

    alpha: float = 0.1
    """Weight of the passage-centric loss; the query-centric one has the rest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _unit(alpha=self.alpha)


@dataclass(frozen=True)
class PairSettings(RunSettings):
    """Everything that `rocketqa train pair` reads."""

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


@dataclass(frozen=True)
class ClozeSettings(StageSettings):
    """Pre-training of the retriever on the corpus alone (inverse cloze): a sentence finds its passage."""

    passages: int | None = 0
    """Passages to use, drawn at random; all of them when empty. 0 leaves the stage out."""
    keep: float = 0.1
    """Share of the passages that keep the sentence that became the query."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, passages=self.passages)
        _unit(keep=self.keep)


@dataclass(frozen=True)
class CandidateSettings:
    """How what the current retriever finds becomes lists of one positive and negatives."""

    negatives: int = 15
    """Negatives a list, drawn at random from the candidates."""
    depth: int = 100
    """Candidates retrieved a query."""

    def __post_init__(self) -> None:
        at_least(1, negatives=self.negatives, depth=self.depth)


@dataclass(frozen=True)
class AdversarialLossSettings:
    """The retriever's loss."""

    adversarial_weight: float = 0.5
    """Weight of the adversarial term; the distillation has the rest."""
    temperature: float = 1.0
    """The re-ranker's scores are divided by this for the distillation."""
    normalization: Literal["released", "paper"] = "paper"
    """The adversarial term as the paper writes it, the expected reward of a negative, or as the released code
    has it, summed over what a process takes at once (`batch_size` / `accumulate`). The first gave the better
    retriever on dev: RR@10 0.540 and 0.530 on pydocs (p = 0.08), 0.828 and 0.819 on MedQuAD (p = 0.09)."""

    def __post_init__(self) -> None:
        _unit(adversarial_weight=self.adversarial_weight)
        _positive(temperature=self.temperature)


@dataclass(frozen=True)
class AdversarialSettings:
    """The rounds of AR2. The schedule and the optimizer of each model go on through all of them."""

    rounds: int = 10
    """Rounds of train the re-ranker, train the retriever, retrieve."""
    queries: int | None = None
    """Training queries a round, other ones each round while there are any; all of them when empty."""
    first_query: int = 0
    """Deal out queries from this place of their shuffled order: those before it are others'."""
    reranker: StageSettings = field(
        default_factory=lambda: StageSettings(
            steps=500, optimizer=OptimizerSettings(learning_rate=1e-6, warmup_share=0.1)
        )
    )
    """The re-ranker's steps of a round, which come first."""
    retriever: StageSettings = field(
        default_factory=lambda: StageSettings(
            steps=1500, optimizer=OptimizerSettings(learning_rate=1e-5, warmup_share=0.1)
        )
    )
    """The retriever's steps of a round."""
    groups: CandidateSettings = field(default_factory=CandidateSettings)
    """The candidate lists."""
    loss: AdversarialLossSettings = field(default_factory=AdversarialLossSettings)
    """The retriever's loss; the re-ranker's is the cross entropy of its lists."""

    def __post_init__(self) -> None:
        at_least(1, queries=self.queries)
        at_least(0, rounds=self.rounds, first_query=self.first_query)


@dataclass(frozen=True)
class AR2Settings(RunSettings):
    """Everything that `rocketqa train ar2` reads."""

    cloze: ClozeSettings = field(default_factory=ClozeSettings)
    """Optional pre-training of the retriever."""
    warmup_retriever: WarmupSettings = field(default_factory=WarmupSettings)
    """In-batch training of the retriever."""
    warmup_reranker: RerankerWarmupSettings = field(
        default_factory=lambda: RerankerWarmupSettings(negatives=15)
    )
    """Listwise training of the re-ranker on the warmed-up retriever's candidates."""
    adversarial: AdversarialSettings = field(default_factory=AdversarialSettings)
    """Adversarial training."""


SYSTEMS: dict[str, type[RunSettings]] = {
    "rocketqa": RocketQASettings,
    "pair": PairSettings,
    "rocketqav2": RocketQAv2Settings,
    "ar2": AR2Settings,
}
"""The settings of every system, by its name on the command line."""

WARMUP_ROW = "warm-up"
"""What a comparison calls the models that all systems begin with."""


@dataclass(frozen=True)
class CompareSettings(RunSettings):
    """Everything that `rocketqa compare` reads."""

    retriever: RetrieverSettings = field(default_factory=lambda: RetrieverSettings(shared=True))
    """The dual encoder, by default of one tower, for PAIR needs that."""
    depth: int = 50
    """Candidates retrieved a query, from which the warm-up's re-ranker gets its negatives."""
    warmup_retriever: WarmupSettings = field(default_factory=WarmupSettings)
    """In-batch training of the retriever that all systems begin with."""
    warmup_reranker: RerankerWarmupSettings = field(default_factory=RerankerWarmupSettings)
    """Listwise training of the re-ranker that all systems begin with."""
    steps: int = 1000
    """Optimizer steps of every system after the warm-up, shared out among its stages: in the proportion of
    their own `steps`, or equally where these are empty."""
    systems: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {name: {"system": name} for name in SYSTEMS}
    )
    """A row each, by its name: `system` (rocketqa, pair, rocketqav2 or ar2), and settings of that system."""
    baseline: str = WARMUP_ROW
    """The row that stands first, against which the others are tested: `warm-up`, or one of `systems`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, steps=self.steps, depth=self.depth)
        if not self.systems:
            raise ValueError("systems is empty: name at least one, such as {AR2: {system: ar2}}")
        for row, settings in self.systems.items():
            self._check_system(row, settings)
        folders = [self.folder_name(row) for row in [WARMUP_ROW, *self.systems]]
        for row, folder in zip(self.systems, folders[1:], strict=True):
            if not folder:
                raise ValueError(f"systems.{row}: a name without a letter or digit: rename it")
            if folders.count(folder) > 1:
                raise ValueError(f"systems.{row}: another row needs the folder {folder!r}: rename it")
        if self.baseline not in (WARMUP_ROW, *self.systems):
            raise ValueError(f"baseline={self.baseline!r}, expected {WARMUP_ROW} or one of {[*self.systems]}")

    @staticmethod
    def _check_system(row: str, settings: dict[str, Any]) -> None:
        if not isinstance(row, str):
            raise ValueError(f"systems.{row}: the name is a number: put it in quotes")
        name = settings.get("system")
        if name not in [*SYSTEMS]:
            raise ValueError(f"systems.{row}: system={name!r}, expected one of {[*SYSTEMS]}")
        common = {field.name for field in fields(CompareSettings)}
        own = {field.name for field in fields(SYSTEMS[name])} - common
        for key in settings.keys() - {"system"} - own:
            where = "set it once for all systems" if key in common else f"{name} has {sorted(own)}"
            raise ValueError(f"systems.{row}: {key} is no setting of this system alone: {where}")
        _check_sections(f"systems.{row}", SYSTEMS[name], settings)

    @staticmethod
    def folder_name(row: str) -> str:
        """Of a row's run, in the folder of the comparison."""
        return re.sub(r"[\W_]+", "-", row.casefold()).strip("-")


def _check_sections(where: str, kind: type, values: dict[str, Any]) -> None:
    """Refuse anything but names with values where a section of settings is expected, at any depth."""
    for name, expected in get_type_hints(kind).items():
        if name in values and is_dataclass(expected):
            if not isinstance(values[name], dict):
                raise ValueError(f"{where}: {name} is {values[name]!r}, expected settings by name")
            _check_sections(f"{where}.{name}", expected, values[name])
