"""ERNIE, of which BERT is a special case: an encoder that gives every token a state.

It is the post-norm Transformer encoder of the reference's `model/ernie.py` and `transformer_encoder.py`
(ERNIE 2.0, Sun et al., AAAI 2020). BERT is the same network with two sentence types, no task embedding and
another layer-norm epsilon. In comments, `B` is the number of rows, `L` of tokens, `H` of hidden units and `A`
of heads, each of which has `D = H / A` units.

The layers compute in two ways, with the same results. `forward` takes padded rows, `[B, L, H]`, and is made
of Paddle's operations. `packed` takes the tokens of all rows without padding, `[T, H]`, and is made of those
of `fused`, which are faster on a CPU.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.distributed.fleet.utils import recompute

from rocketqa_paddle.networks import fused
from rocketqa_paddle.networks.fused import Tokens

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}  # gelu: the erf form, as in the reference
MASKED = -10000.0  # added to the score of a padding token, as in the reference
LARGEST = 2**31 - 1  # of every size
_FINITE = sys.float_info.max  # a whole number of JSON may be larger


def check_number(name: str, value: Any, *, above: float, below: float) -> None:
    """Refuse a setting that is not a number between two bounds, which are not allowed themselves."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _FINITE
    if not number or not above < value < below:
        bounds = {f"above {above:g}": above != -math.inf, f"below {below:g}": below != math.inf}
        told = " and ".join(bound for bound, given in bounds.items() if given)
        raise ValueError(f"{name}={reprlib.repr(value)}, expected a finite number {told}".rstrip())


@dataclass(frozen=True)
class ErnieConfig:
    """The sizes of the network.

    `sent_types` is the number of sentence types (segments). `task_types` is the number of rows in ERNIE 2.0's
    task embedding; 0 means that there is none.

    Raises:
        ValueError: a size is not a whole number, a rate is not a positive number, the heads cannot share the
            hidden units equally, or the activation is unknown.
    """

    vocab_size: int
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_size: int = 3072
    max_positions: int = 513
    sent_types: int = 4
    task_types: int = 0
    activation: str = "gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "task_types" else 1
            if field.type == "int" and not (type(value) is int and least <= value <= LARGEST):
                given = f"{field.name}={reprlib.repr(value)}"
                raise ValueError(f"{given}, expected a whole number from {least} to {LARGEST}")
            if field.type == "float":
                check_number(field.name, value, above=0, below=math.inf)
        if self.hidden_size % self.num_heads:
            problem = f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}"
            raise ValueError(f"{problem}: every head takes an equal share of the hidden units")
        if self.activation not in list(ACTIVATIONS):
            given = reprlib.repr(self.activation)
            raise ValueError(f"activation={given}, expected one of {sorted(ACTIVATIONS)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ErnieConfig:
        """Make a config of a saved dictionary; a key that is not a field raises a `ValueError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown encoder settings {reprlib.repr(unknown)}, expected {sorted(known)}")
        if "vocab_size" not in values:
            raise ValueError("no vocab_size among the encoder settings")
        return cls(**values)


def parameter_shapes(sizes: ErnieConfig) -> dict[str, list[int]]:
    """Return the shapes of all parameters of an `Ernie` of these sizes, by name, without making one."""
    hidden, ffn, shapes = sizes.hidden_size, sizes.ffn_size, {}
    rows = {"word": sizes.vocab_size, "position": sizes.max_positions, "sentence": sizes.sent_types}
    if sizes.task_types:
        rows["task"] = sizes.task_types
    for name, count in rows.items():
        shapes[f"{name}_embedding.weight"] = [count, hidden]

    def add(module: str, *weight: int) -> None:
        shapes[f"{module}.weight"], shapes[f"{module}.bias"] = [*weight], [weight[-1]]

    add("norm", hidden)
    for i in range(sizes.num_layers):
        for name in ("query", "key", "value", "output"):
            add(f"layers.{i}.attention.{name}", hidden, hidden)
        add(f"layers.{i}.attention_norm", hidden)
        add(f"layers.{i}.ffn_in", hidden, ffn)
        add(f"layers.{i}.ffn_out", ffn, hidden)
        add(f"layers.{i}.ffn_norm", hidden)
    return shapes


_BLANK: ContextVar[bool] = ContextVar("blank", default=False)
NAMING = threading.RLock()
"""Held while a network is made or an optimizer steps, because all threads share Paddle's name counter."""


@contextmanager
def blank_weights() -> Iterator[None]:
    """Make networks in this block with weights of zero instead of random ones, because they are filled next.

    This is faster, and does not draw from the random numbers of a training in another thread.
    """
    token = _BLANK.set(True)
    try:
        with NAMING:
            yield
    finally:
        _BLANK.reset(token)


def weights() -> dict[str, Any]:
    """Return the keyword arguments with which a layer obeys `blank_weights`."""
    return {"weight_attr": nn.initializer.Constant(0.0)} if _BLANK.get() else {}


def initialise(layer: nn.Layer | None, std: float) -> None:
    """Draw truncated normal weights and set biases to zero; do nothing inside `blank_weights`."""
    if _BLANK.get() or not isinstance(layer, nn.Linear | nn.Embedding):
        return
    nn.initializer.TruncatedNormal(std=std, a=-2 * std, b=2 * std)(layer.weight)  # as BERT and the reference
    if isinstance(layer, nn.Linear):
        nn.initializer.Constant(0.0)(layer.bias)


class Attention(nn.Layer):
    """Multi-head self-attention."""

    def __init__(self, config: ErnieConfig, dropout: float) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads, self.head_size, self.dropout = config.num_heads, size // config.num_heads, dropout
        self.query, self.key, self.value, self.output = (nn.Linear(size, size, **weights()) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None, wanted: Tensor) -> Tensor:
        """Return what the states `wanted`, `[B, W, H]`, attend to among the states `x`, `[B, L, H]`.

        The mask is `[B, L]`, 0 for a token and `MASKED` for padding; it is None if no row is padded.
        """
        heads = [0, 0, self.num_heads, self.head_size]
        q = self.query(wanted).reshape(heads)  # [B, W, A, D]
        k, v = (layer(x).reshape(heads) for layer in (self.key, self.value))  # [B, L, A, D]
        on_gpu = paddle.in_dynamic_mode() and x.place.is_gpu_place()
        attend = _fused_attention if on_gpu else _plain_attention
        dropout = self.dropout if self.training else 0.0
        return self.output(attend(q, k, v, mask, dropout).flatten(2))  # [B, W, H]

    def packed(self, x: Tensor, tokens: Tokens, first: Tensor | None) -> Tensor:
        """What the tokens `[T, H]` attend to, before the output's product; or the first tokens, `[B, H]`."""
        rate = self.dropout if self.training else 0.0
        if first is not None:
            weight, bias = _joined(self.key, self.value)
            given = self.query(first), paddle.matmul(x, weight), bias
            return fused.attend_first(*given, tokens, self.num_heads, rate)
        weight, bias = _joined(self.query, self.key, self.value)
        return fused.attend(paddle.matmul(x, weight), bias, tokens, self.num_heads, rate)


Joined = dict[tuple[int, ...], tuple[Tensor, Tensor]]
"""Weights and biases of layers with the same input, as those of one layer, by the layers' identities."""
_JOINED: ContextVar[Joined | None] = ContextVar("joined", default=None)


@contextmanager
def unchanging(kept: Joined) -> Iterator[None]:
    """Join the weights of layers with the same input once, and keep them in `kept` for the next such block.

    Single sequences take less time then. The layers and their weights must stay what they are as long as
    `kept` is used.
    """
    token = _JOINED.set(kept)
    try:
        yield
    finally:
        _JOINED.reset(token)


def _joined(*linears: nn.Linear) -> tuple[Tensor, Tensor]:
    """The weights and biases of layers with the same input, as those of one layer."""
    kept, name = _JOINED.get(), tuple(map(id, linears))
    if kept is not None and name in kept:
        return kept[name]
    weights, biases = ([getattr(linear, name) for linear in linears] for name in ("weight", "bias"))
    joined = paddle.concat(weights, axis=1), paddle.concat(biases)
    if kept is not None:
        kept[name] = joined
    return joined


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attend with Paddle's kernel (flash attention in half precision): `[B, W, A, D]`, mask `[B, L]`."""
    if mask is not None:
        mask = mask.unsqueeze([1, 2]).astype(q.dtype).expand([-1, 1, q.shape[1], -1])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attend in plain operations: `[B, W, A, D]`, mask `[B, L]`."""
    q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q * q.shape[-1] ** -0.5, k, v))  # [B, A, L, D]
    scores = paddle.matmul(q, k, transpose_y=True)  # [B, A, W, L]
    if mask is not None:
        scores = scores + mask.unsqueeze([1, 2]).astype(scores.dtype)
    weights = F.softmax(scores)
    if dropout:
        weights = F.dropout(weights, dropout)
    return paddle.matmul(weights, v).transpose([0, 2, 1, 3])  # [B, W, A, D]


class Block(nn.Layer):
    """One post-norm layer: attention and a feed-forward network, each added to its input and normalised."""

    def __init__(self, config: ErnieConfig, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(config, dropout)
        self.attention_norm = nn.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.ffn_in = nn.Linear(config.hidden_size, config.ffn_size, **weights())
        self.ffn_out = nn.Linear(config.ffn_size, config.hidden_size, **weights())
        self.ffn_norm = nn.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None, first_only: bool = False) -> Tensor:
        """Return the next states `[B, L, H]` of states `[B, L, H]`, or those of first tokens, `[B, 1, H]`.

        For the mask see `Attention.forward`.
        """
        wanted = x[:, :1] if first_only else x
        x = self.attention_norm(wanted + self.dropout(self.attention(x, mask, wanted)))
        return self.ffn_norm(x + self.dropout(self.ffn_out(self.activation(self.ffn_in(x)))))

    def packed(self, x: Tensor, tokens: Tokens, first_only: bool) -> Tensor:
        """Return the next states `[T, H]` of tokens `[T, H]`, or those of first tokens, `[B, H]`."""
        output, rate = self.attention.output, self.attention.dropout if self.training else 0.0
        first = paddle.gather(x, paddle.to_tensor(tokens.starts)) if first_only else None
        attended = paddle.matmul(self.attention.packed(x, tokens, first), output.weight)
        x = fused.add_norm(x if first is None else first, attended, output.bias, self.attention_norm, rate)
        if self.activation is F.gelu:
            inner = fused.gelu(paddle.matmul(x, self.ffn_in.weight), self.ffn_in.bias)
        else:
            inner = self.activation(self.ffn_in(x))
        y = paddle.matmul(inner, self.ffn_out.weight)
        return fused.add_norm(x, y, self.ffn_out.bias, self.ffn_norm, rate)


class Ernie(nn.Layer):
    """The encoder.

    Args:
        config: its sizes.
        dropout: the rate in training, for embeddings, attention weights and the outputs of layers.
        use_recompute: discard each layer's activations in the forward pass and compute them again in the
            backward pass. This takes more time, and the memory of one layer instead of all.
    """

    def __init__(self, config: ErnieConfig, dropout: float = 0.0, use_recompute: bool = False) -> None:
        super().__init__()
        if dropout != 0:
            check_number("dropout", dropout, above=0, below=1)
        self.config, self.use_recompute = config, use_recompute
        size = config.hidden_size
        self.word_embedding = nn.Embedding(config.vocab_size, size, **weights())
        self.position_embedding = nn.Embedding(config.max_positions, size, **weights())
        self.sentence_embedding = nn.Embedding(config.sent_types, size, **weights())
        tasks = config.task_types
        self.task_embedding = nn.Embedding(tasks, size, **weights()) if tasks else None
        self.norm = nn.LayerNorm(size, epsilon=config.layer_norm_eps)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.layers = nn.LayerList([Block(config, dropout) for _ in range(config.num_layers)])
        self.apply(lambda layer: initialise(layer, config.initializer_range))

    def forward(
        self, token_ids: Tensor, type_ids: Tensor, mask: Tensor | None = None, *, first_only: bool = False
    ) -> Tensor:
        """Return the states of the last layer, `[B, L, H]`; those of padding tokens have no meaning.

        Args:
            token_ids: int64 `[B, L]`.
            type_ids: int64 `[B, L]`, the sentence type of every token.
            mask: bool `[B, L]`, true for a token and false for padding; None if no row is padded.
            first_only: return the state of the first token of every row alone, `[B, 1, H]`. The last layer
                then computes no other.

        Raises:
            ValueError: the sequences are longer than the encoder has positions.
        """
        length, most = token_ids.shape[1], self.config.max_positions
        if not paddle.in_dynamic_mode():  # a graph that is exported does not know the length
            length = paddle.shape(token_ids)[1]
        elif length > most:
            problem = f"a sequence of {length} tokens, but the encoder has {most} positions"
            raise ValueError(f"{problem}: lower the length setting")
        if fused.computes(self.word_embedding.weight):
            return self._packed(token_ids, type_ids, Tokens(mask, token_ids.shape), first_only)
        x = self.word_embedding(token_ids) + self.sentence_embedding(type_ids)  # [B, L, H]
        x = x + self.position_embedding.weight[:length]
        if self.task_embedding is not None:
            x = x + self.task_embedding.weight[0]  # retrieval uses task 0 throughout, as the reference
        x = self.dropout(self.norm(x))
        if mask is not None:
            mask = (1.0 - mask.astype(x.dtype)) * MASKED
        for layer in self.layers:
            given = (x, mask, first_only and layer is self.layers[-1])
            x = recompute(layer, *given) if self.use_recompute and self.training else layer(*given)
        return x

    def _packed(self, token_ids: Tensor, type_ids: Tensor, tokens: Tokens, first_only: bool) -> Tensor:
        """What `forward` returns, by way of tokens without padding; the states of padding are zero."""
        ids, types = (x.numpy().reshape(-1)[tokens.places] for x in (token_ids, type_ids))
        rows = {self.word_embedding: ids, self.sentence_embedding: types}
        rows[self.position_embedding] = tokens.columns
        if self.task_embedding is not None:
            rows[self.task_embedding] = np.zeros_like(ids)
        x = fused.embed(list(rows.values()), [embedding.weight for embedding in rows])
        nothing = paddle.zeros_like(x)
        x = self.dropout(fused.add_norm(nothing, x, nothing[0], self.norm, 0.0))
        for layer in self.layers:
            given = (x, tokens, first_only and layer is self.layers[-1])
            again = self.use_recompute and self.training
            x = recompute(layer.packed, *given) if again else layer.packed(*given)
        return x.unsqueeze(1) if first_only else fused.unpack(x, tokens)
