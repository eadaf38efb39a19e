"""The two networks: a dual encoder that retrieves and a cross encoder that re-ranks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from rocketqa_paddle.networks.batching import Batch
from rocketqa_paddle.networks.ernie import Ernie, ErnieConfig, blank_weights, initialise, weights
from rocketqa_paddle.networks.parameters import to_arrays
from rocketqa_paddle.networks.tokenization import Tokenizer

Pooling = Literal["cls", "mean"]
Head = Literal["logit", "classes", "pooled_logit"]


class DualEncoder(nn.Layer):
    """Queries and passages as vectors; their score is the inner product.

    Args:
        config: sizes of a tower.
        shared: one tower for both sides (PAIR), or one each (RocketQA).
        pooling: `cls`, the raw state of `[CLS]`; or `mean` over all tokens.
        normalize: scale vectors to unit length, so that scores are cosines.
        temperature: scores are divided by it, as are the vectors of the passages when they are
            encoded, so that every inner product is a score. 1 by default.
        dropout: in training.
        use_recompute: see `Ernie`.
    """

    def __init__(
        self,
        config: ErnieConfig,
        *,
        shared: bool = False,
        pooling: Pooling = "cls",
        normalize: bool = False,
        temperature: float = 1.0,
        dropout: float = 0.0,
        use_recompute: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in ("cls", "mean"):
            raise ValueError(f"pooling={pooling!r}, expected 'cls' or 'mean'")
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}, expected a number above 0")
        self.config, self.pooling, self.normalize, self.temperature = config, pooling, normalize, temperature
        self.query = Ernie(config, dropout, use_recompute)
        self.passage = self.query if shared else Ernie(config, dropout, use_recompute)

    @property
    def shared(self) -> bool:
        """Whether both sides have one tower."""
        return self.query is self.passage

    def encode_queries(self, batch: Batch) -> Tensor:
        """Vectors `[rows, hidden]`."""
        return self._pool(self.query(*batch), batch)

    def encode_passages(self, batch: Batch) -> Tensor:
        """Vectors `[rows, hidden]`, divided by the temperature."""
        return self._pool(self.passage(*batch), batch) / self.temperature

    def _pool(self, states: Tensor, batch: Batch) -> Tensor:
        if self.pooling == "cls":
            vectors = states[:, 0]
        elif batch.mask is None:
            vectors = states.mean(axis=1)
        else:
            mask = batch.mask.astype(states.dtype).unsqueeze(1)  # [rows, 1, length]
            vectors = paddle.bmm(mask, states).squeeze(1) / mask.sum(axis=-1)
        vectors = vectors.astype(
            self.passage.word_embedding.weight.dtype
        )  # float32 under mixed precision, too
        return F.normalize(vectors) if self.normalize else vectors


class CrossEncoder(nn.Layer):
    """Query and passage read together; one score a pair.

    Args:
        config: sizes of the encoder.
        head: `logit`, dropout and one linear unit on the raw `[CLS]` (RocketQAv2's joint model);
            `classes`, a tanh pooler and two classes (RocketQA v1), whose score is the log-odds; or
            `pooled_logit`, a tanh pooler and one unit (the usual cross encoder of Hugging Face).
        dropout: in training, also before the head.
        use_recompute: see `Ernie`.
    """

    def __init__(
        self, config: ErnieConfig, *, head: Head = "logit", dropout: float = 0.1, use_recompute: bool = False
    ) -> None:
        super().__init__()
        if head not in ("logit", "classes", "pooled_logit"):
            raise ValueError(f"head={head!r}, expected 'logit', 'classes' or 'pooled_logit'")
        self.config, self.head = config, head
        self.ernie = Ernie(config, dropout, use_recompute)
        size = config.hidden_size
        self.pooler = None if head == "logit" else nn.Linear(size, size, **weights())
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.output = nn.Linear(size, 2 if head == "classes" else 1, **weights())
        for layer in (self.pooler, self.output):
            initialise(layer, config.initializer_range)

    def logits(self, batch: Batch) -> Tensor:
        """`[rows, 2]` for the head `classes` (the second is relevance), `[rows, 1]` for the others."""
        state = self.ernie(*batch)[:, 0]  # [rows, hidden]
        if self.pooler is not None:
            state = F.tanh(self.pooler(state))
        with paddle.amp.auto_cast(enable=False):  # scores in fp16 or bf16 would tie
            return self.output(self.dropout(state.astype(self.output.weight.dtype)))

    def forward(self, batch: Batch) -> Tensor:
        """Scores `[rows]`. A sigmoid makes them probabilities of relevance under any head."""
        logits = self.logits(batch)
        return logits[:, 1] - logits[:, 0] if self.head == "classes" else logits[:, 0]


Kind = Literal["dual_encoder", "cross_encoder"]
DUAL: Kind = "dual_encoder"
CROSS: Kind = "cross_encoder"


@dataclass
class Checkpoint:
    """A network that knows how to read text.

    `lengths` is `{"query": …, "passage": …}` for a dual encoder and `{"pair": …}` for a cross
    encoder, in tokens with the special ones.
    """

    network: DualEncoder | CrossEncoder
    tokenizer: Tokenizer
    lengths: dict[str, int]

    def __post_init__(self) -> None:
        names = {"pair"} if self.kind == CROSS else {"query", "passage"}
        if set(self.lengths) != names:
            raise ValueError(f"lengths {self.lengths}, expected {sorted(names)}")
        tokens, known = len(self.tokenizer), self.network.config.vocab_size
        if tokens > known:
            raise ValueError(f"{self.tokenizer.path}: {tokens} tokens, but the encoder has {known}")
        positions = self.network.config.max_positions
        for name, length in self.lengths.items():
            if length > positions:
                raise ValueError(f"{name} length {length}, but the encoder has only {positions} positions")

    @property
    def kind(self) -> Kind:
        """`dual_encoder` or `cross_encoder`."""
        return CROSS if isinstance(self.network, CrossEncoder) else DUAL

    def digest(self) -> str:
        """16 hexadecimal digits that name the model, whatever format it came in.

        Of the parameters, and of all that decides how a text becomes a vector or a score.
        """
        reads = [describe(self.network), self.lengths, self.tokenizer.settings]
        state = hashlib.sha256(json.dumps(reads, sort_keys=True).encode() + self.tokenizer.fingerprint)
        for name, array in sorted(to_arrays(self.network).items()):
            state.update(f"{name} {list(array.shape)}".encode())
            state.update(np.ascontiguousarray(array).data)
        return state.hexdigest()[:16]


def describe(network: DualEncoder | CrossEncoder) -> dict[str, Any]:
    """What makes the network, beside the sizes of its encoder."""
    if isinstance(network, CrossEncoder):
        return {"model_type": CROSS, "head": network.head}
    names = ("shared", "pooling", "normalize", "temperature")
    return {"model_type": DUAL, **{name: getattr(network, name) for name in names}}


def build(config: Mapping[str, Any], sizes: ErnieConfig, **training: Any) -> DualEncoder | CrossEncoder:
    """A network whose weights are to be read, from what `describe` tells and the sizes of its encoder."""
    with blank_weights():
        return _build(config, sizes, **training)


def _build(config: Mapping[str, Any], sizes: ErnieConfig, **training: Any) -> DualEncoder | CrossEncoder:
    if config["model_type"] == CROSS:
        return CrossEncoder(sizes, head=config["head"], **training)
    if config["model_type"] == DUAL:
        names = ("shared", "pooling", "normalize", "temperature")
        return DualEncoder(sizes, **{name: config[name] for name in names}, **training)
    raise ValueError(f"model_type {config['model_type']!r}, expected {DUAL!r} or {CROSS!r}")
