"""The settings that systems share: plain dataclasses that a YAML file or a flag fills.

Networks and losses never see them. The docstring under a field is its help text on the command line. What one
system alone reads is in that system's folder.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Literal, get_args, get_type_hints

LARGEST = 2**31 - 1
SMALLEST = 1e-6
"""Bounds of what is a size, a factor or a divisor for the networks' arithmetic, which has 32 bits."""
COLLECTION = "rocketqa"
"""The name of an index in Milvus, unless another is given."""


@dataclass(frozen=True)
class Settings:
    """A section of settings: no value is missing, numbers are finite, and a path may begin with `~`."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name, value in vars(self).items():
            if value is None and NoneType not in get_args(hints[name]):
                raise ValueError(f"{name} is empty, expected a value; leave it out for the default")
            if isinstance(value, str):
                object.__setattr__(self, name, with_home(value))
            elif isinstance(value, int | float) and not abs(value) <= LARGEST:
                raise ValueError(f"{name}={value}, expected a number up to {LARGEST}")


def with_home(path: str) -> str:
    """Replace the `~` at the beginning of a path by the home folder, as a shell does.

    Raises:
        ValueError: it is the home folder of somebody who is not known here.
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise ValueError(f"{path}: there is no such home folder; write ./{path} for a name with ~") from None


# Checks ------------------------------------------------------------------------------------------


def at_least(minimum: float, **values: float | None) -> None:
    """Refuse a setting below `minimum`; None stands for a setting left empty."""
    for name, value in values.items():
        if value is not None and not value >= minimum:
            raise ValueError(f"{name}={value}, expected at least {minimum}")


def below_one(**values: float) -> None:
    """Refuse a setting outside [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value}, expected 0 or more and less than 1")


def fraction(**values: float) -> None:
    """Refuse a setting outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}, expected 0 to 1")


def positive(**values: float) -> None:
    """Refuse a setting that is not above 0, or so little above it that it counts as 0 in 32 bits."""
    for name, value in values.items():
        if not value >= SMALLEST:
            raise ValueError(f"{name}={value}, expected a number above 0 (at least {SMALLEST:f})")


def check_thresholds(negative_below: float, positive_above: float) -> None:
    """Refuse probabilities that cross, or leave nothing on one side."""
    if not 0 < negative_below < positive_above < 1:
        raise ValueError(
            f"negative_below={negative_below}, positive_above={positive_above}: "
            "expected 0 < negative_below < positive_above < 1"
        )


def need_package(package: str, setting: str) -> None:
    """Refuse a setting that needs a package where that is not installed."""
    if importlib.util.find_spec(package) is None:
        remedy = f"pip install {package}, or choose another value"
        raise ValueError(f"{setting} needs the package {package}: {remedy}")


need_bm25s = partial(need_package, "bm25s")


def without_effect(default: Any) -> Any:
    """A field that changes how a result is computed, or names what is told by its content, not the result."""
    return field(default=default, metadata={"effect": False})


# Data and networks -------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataSettings(Settings):
    """Which text to train on and to search."""

    folder: str
    """A RocketQA/MS MARCO folder (para.txt, SPLIT.query.txt, qrels.SPLIT.tsv) or a BEIR folder."""
    store: str | None = without_effect(None)
    """Where the corpus is kept as this project reads it: `corpus` in the run folder when empty. Runs on the
    same files may share one."""
    train: str = "train"
    """Split with the training queries."""
    dev: str = "dev"
    """Split that chooses the best models."""
    tests: list[str] = field(default_factory=list)
    """Splits that the final table reports."""
    unlabelled: str | None = None
    """Split of queries for pseudo labels. Its judgements are never read, and queries that are also labelled
    training queries are left out: `train` gives those that `max_train_queries` leaves over."""
    on_error: Literal["stop", "skip"] = without_effect("stop")
    """What to do about a judged query or passage that is missing, a query without a relevant passage, and a
    query or passage without a text: stop and count them, or leave them out and go on."""
    max_dev_queries: int | None = None
    """Choose by this many dev queries, drawn at random; all of them when empty."""
    max_train_queries: int | None = None
    """Train on the labels of this many training queries, drawn at random; all of them when empty."""
    max_unlabelled_queries: int | None = None
    """Make pseudo labels for this many unlabelled queries, drawn at random; all of them when empty."""
    max_test_queries: int | None = None
    """Report on this many queries a test split, drawn at random; all of them when empty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, **{name: value for name, value in vars(self).items() if name.startswith("max_")})


@dataclass(frozen=True)
class IndexSettings(Settings):
    """How vectors are searched."""

    factory: str = "Flat"
    """`Flat` compares a query with every vector. Any other is an index of faiss by its factory string, such
    as `HNSW32`, `IVF4096,PQ48` or `SQfp16`: it finds candidates, whose scores the vectors then give."""
    parameters: str = ""
    """Parameters of the search in such an index, such as `nprobe=32` (IVF) or `efSearch=64` (HNSW)."""
    candidates: int | None = None
    """Candidates that such an index finds for a query, at least; a few more than are asked for when empty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, candidates=self.candidates)
        if self.is_exact and (self.parameters or self.candidates):
            raise ValueError("parameters and candidates are for an approximate index: choose a factory")

    @property
    def is_exact(self) -> bool:
        """Whether every vector is compared."""
        return self.factory == "Flat"

    def described(self) -> dict[str, Any]:
        """The settings as an index folder notes them."""
        return asdict(self)

    @classmethod
    def from_described(cls, values: Any, folder: Path) -> "IndexSettings":
        """Read what `described` gave; None stands for an exact search.

        Raises:
            ValueError: the values are no such settings.
        """
        if values is None:
            return cls()
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder}: meta.json has no settings of an index ({error})") from None


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """What both networks have."""

    init: str = without_effect("mini")
    """Initial checkpoint: a checkpoint of this project, a published name (`rocketqa models`), a toolkit's
    JSON, a Hugging Face BERT or ERNIE folder, `package:NAME/FOLDER` for a folder inside an installed package,
    a PaddleNLP name such as `ernie-2.0-base-en` (extra `paddlenlp`), or a size from scratch: `tiny`,
    `mini`."""
    dropout: float = 0.1
    """Dropout in training."""
    for_cn: bool = False
    """Remove spaces from all text first, as the reference does for Chinese. A checkpoint of this project
    says so itself."""
    recompute: bool = without_effect(False)
    """Compute activations again in the backward pass: less memory, a third more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        below_one(dropout=self.dropout)


@dataclass(frozen=True)
class RetrieverSettings(NetworkSettings):
    """The dual encoder."""

    shared: bool = False
    """One tower for queries and passages instead of one each."""
    pooling: Literal["cls", "mean"] = "cls"
    """How the last layer becomes the vector."""
    normalize: bool = False
    """Scale vectors to unit length."""
    temperature: float = 1.0
    """Divide scores by this."""
    query_length: int = 32
    """Tokens of a query, with [CLS] and [SEP]."""
    passage_length: int = 128
    """Tokens of title and text, with the special ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(3, query_length=self.query_length)
        at_least(4, passage_length=self.passage_length)
        positive(temperature=self.temperature)


@dataclass(frozen=True)
class RerankerSettings(NetworkSettings):
    """The cross encoder."""

    head: Literal["logit", "classes", "pooled_logit"] = "logit"
    """One logit on the raw [CLS] (RocketQAv2), tanh pooler and two classes (RocketQA v1), or tanh pooler and
    one logit (Hugging Face)."""
    length: int = 160
    """Tokens of query, title and text, with the special ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(5, length=self.length)


# Training ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """AdamW or LAMB; weight decay leaves out biases and layer norms."""

    algorithm: Literal["adamw", "lamb"] = "adamw"
    """LAMB (You et al., ICLR 2020) scales each step to the size of its tensor, for batches of thousands."""
    learning_rate: float = 1e-5
    """Peak learning rate."""
    warmup_ratio: float = 0.0
    """Share of the steps in which the rate grows from 0."""
    decay: Literal["linear", "constant"] = "linear"
    """How the rate goes on after the warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Clip the gradients to this norm, taken over all parameters together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, learning_rate=self.learning_rate)
        positive(max_grad_norm=self.max_grad_norm)
        below_one(weight_decay=self.weight_decay)
        fraction(warmup_ratio=self.warmup_ratio)


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """One stretch of training."""

    batch_size: int = 8
    """Queries a step and process."""
    steps: int | None = None
    """Optimizer steps; when empty, `epochs` over the data."""
    epochs: int = 1
    """Passes over the data, where `steps` is empty."""
    chunks: int = 1
    """Split the texts of every forward pass into this many parts, one after another, to save memory. All of
    them are computed twice then (GradCache)."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """The optimizer of this stretch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, batch_size=self.batch_size, chunks=self.chunks, epochs=self.epochs, steps=self.steps)


@dataclass(frozen=True)
class ContrastiveSettings(TrainingSettings):
    """Training of a retriever in which the passages of a batch are negatives of its other queries."""

    cross_batch: bool = True
    """Contrast with the passages of all processes; false: with those of its own process alone."""
    one_negative_per_example: bool = False
    """Make an example of every negative, with the query and its positive, as in the released files: four
    negatives of a query then make four examples, and an epoch is four times as long."""


@dataclass(frozen=True)
class WarmUpSettings(TrainingSettings):
    """Training of one model alone."""

    queries: int | None = None
    """Training queries to use; all of them when empty. 0 takes the model as it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, queries=self.queries)


@dataclass(frozen=True)
class RerankerWarmUpSettings(WarmUpSettings):
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


# Runs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """What the reports measure."""

    measures: list[str] = field(default_factory=lambda: ["RR@10", "Success@5", "Success@50"])
    """Measures by their ir_measures names; the first chooses the best models."""
    depth: int = 50
    """Passages retrieved a query."""
    rerank_depth: int = 20
    """Passages re-ranked a query."""
    init: bool = True
    """Measure the initial checkpoint as well, which takes one more pass over the corpus."""
    bm25: bool = False
    """Add BM25 as a yardstick, alone and fused with the best retriever, and to the index in `best/`, for
    searches that fuse the two (needs the package bm25s)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, depth=self.depth, rerank_depth=self.rerank_depth, measures=len(self.measures))
        if self.bm25:
            need_bm25s("evaluation.bm25")


@dataclass(frozen=True)
class RunSettings(Settings):
    """What every system reads: where, on what, with which networks."""

    warmed_up: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings, by section, that make a system take its initial checkpoints for warmed-up models."""

    output: str
    """Run folder; a run that was stopped goes on there."""
    data: DataSettings
    """Collection and splits."""
    retriever: RetrieverSettings = field(default_factory=RetrieverSettings)
    """The dual encoder."""
    reranker: RerankerSettings = field(default_factory=RerankerSettings)
    """The cross encoder."""
    index: IndexSettings = field(default_factory=IndexSettings)
    """How the run searches with its retrievers, and the index in `best/`. Of several processes, each searches
    its own part of the corpus."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """Measures on dev and test."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the networks; the parameters stay fp32. fp16 scales the loss and needs a GPU. On a CPU,
    bf16 is for encoding and scoring without gradient; training computes in fp32."""
    drop_false_negatives: bool = True
    """Leave out of a query's negatives what is known to be none: passages with the title and text of one of
    its positives, and the query itself where it is a passage. false does as the released code, which compares
    the ids of candidates alone."""
    encode_batch: int = 64
    """Largest number of rows when encoding or scoring without gradient."""
    seed: int = 1
    """Seed of initial weights, data order, sampling and dropout."""
    save_minutes: float = 10.0
    """Save the state of an unfinished step this often."""
    log: Literal["none", "tensorboard", "visualdl"] = without_effect("none")
    """Write losses, learning rates and dev measures into event files as well, for TensorBoard or VisualDL
    (needs the package tensorboardX or visualdl). `metrics.jsonl` has them in any case."""
    stop_on_collapse: bool = without_effect(True)
    """End the run after a training whose model is of no use: one score for all passages, far below where it
    began, or no better than chance on dev. `false` tells it and goes on."""
    use_cuda: bool = False
    """Train on the GPU of this rank."""
    timeout_minutes: float = without_effect(30.0)
    """End the run, with a message, when one of several processes lets the others wait this long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, encode_batch=self.encode_batch)
        at_least(0, seed=self.seed, save_minutes=self.save_minutes)
        at_least(0.01, timeout_minutes=self.timeout_minutes)
        if self.precision == "fp16" and not self.use_cuda:
            raise ValueError("precision=fp16 needs use_cuda=true: a CPU has fp32 and perhaps bf16")
        if self.log != "none":
            need_package("tensorboardX" if self.log == "tensorboard" else self.log, f"log={self.log}")


@dataclass(frozen=True)
class WarmedUpSettings(RunSettings):
    """A system that begins with a warm-up of each model."""

    warmed_up = {"warmup_retriever": {"queries": 0}, "warmup_reranker": {"queries": 0}}

    warmup_retriever: WarmUpSettings = field(default_factory=WarmUpSettings)
    """In-batch training of the retriever."""
    warmup_reranker: RerankerWarmUpSettings = field(default_factory=RerankerWarmUpSettings)
    """Listwise training of the re-ranker on the warmed-up retriever's candidates."""
