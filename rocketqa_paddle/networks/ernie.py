"""ERNIE (and BERT, which it contains): token ids in, one state a token out.

Post-norm Transformer encoder, as the reference's `model/ernie.py` and `transformer_encoder.py`
(ERNIE 2.0, Sun et al., AAAI 2020). BERT is the same network with two sentence types, no task
embedding and another layer-norm epsilon. Sizes in comments: `B` rows, `L` tokens, `H` hidden
units, `A` heads of `D = H / A` units.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.distributed.fleet.utils import recompute

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}  # gelu: the erf form, as in the reference
MASKED = -10000.0  # added to the score of a padding token, as in the reference


@dataclass(frozen=True)
class ErnieConfig:
    """Sizes of the network.

    `sent_types` is the number of sentence types (segments); `task_types` that of ERNIE 2.0's task
    embedding, 0 for none.
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
            if field.type == "int" and (type(value) is not int or value < least):
                raise ValueError(f"{field.name}={value!r}, expected a whole number from {least} on")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}: "
                "every head takes an equal share of the hidden units"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r}, expected one of {sorted(ACTIVATIONS)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ErnieConfig:
        """Read a saved dictionary; a key that is no field is a `ValueError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown encoder settings {unknown}, expected {sorted(known)}")
        return cls(**values)


_BLANK: ContextVar[bool] = ContextVar("blank", default=False)
NAMING = threading.RLock()
"""Held while networks are made and while an optimizer steps: Paddle counts names for all threads."""


@contextmanager
def blank_weights() -> Iterator[None]:
    """Networks made in the block start at zero, not at random: their weights are about to be read.

    That is quicker, and leaves the random numbers of a training in another thread alone.
    """
    token = _BLANK.set(True)
    try:
        with NAMING:
            yield
    finally:
        _BLANK.reset(token)


def weights() -> dict[str, Any]:
    """Keyword arguments of a layer that `blank_weights` may concern."""
    return {"weight_attr": nn.initializer.Constant(0.0)} if _BLANK.get() else {}


def initialise(layer: nn.Layer | None, std: float) -> None:
    """Truncated normal weights and zero biases, except in `blank_weights`."""
    if _BLANK.get() or not isinstance(layer, nn.Linear | nn.Embedding):
        return
    truncated_normal(std)(layer.weight)
    if isinstance(layer, nn.Linear):
        nn.initializer.Constant(0.0)(layer.bias)


def truncated_normal(std: float) -> nn.initializer.Initializer:
    """Normal, cut off at two standard deviations, as in BERT and the reference."""
    return nn.initializer.TruncatedNormal(std=std, a=-2 * std, b=2 * std)


class Attention(nn.Layer):
    """Multi-head self-attention."""

    def __init__(self, config: ErnieConfig, dropout: float) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads, self.head_size, self.dropout = config.num_heads, size // config.num_heads, dropout
        self.query, self.key, self.value, self.output = (nn.Linear(size, size, **weights()) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` is `[B, L, H]`; `mask` `[B, L]`: 0 for a token, `MASKED` for padding; or None."""
        heads = [0, 0, self.num_heads, self.head_size]
        q, k, v = (layer(x).reshape(heads) for layer in (self.query, self.key, self.value))  # [B, L, A, D]
        attend = _fused_attention if x.place.is_gpu_place() else _plain_attention
        return self.output(attend(q, k, v, mask, self.dropout, self.training).flatten(2))  # [B, L, H]


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, training: bool
) -> Tensor:
    """Paddle's kernel: flash attention in half precision. Tensors `[B, L, A, D]`, mask `[B, L]`."""
    if mask is not None:
        length = mask.shape[-1]
        mask = mask.unsqueeze([1, 2]).astype(q.dtype).expand([-1, 1, length, -1])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, training=training)


def _plain_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, training: bool
) -> Tensor:
    """The fastest plain form on a CPU. Tensors `[B, L, A, D]`, mask `[B, L]`.

    Adding a broadcast mask to the scores costs many times the product itself, so the mask rides in
    the product as one more feature: ones in the queries, the mask in the keys.
    """
    q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q * q.shape[-1] ** -0.5, k, v))  # [B, A, L, D]
    if mask is not None:
        q = paddle.concat([q, paddle.ones_like(q[..., :1])], axis=-1)
        k = paddle.concat([k, mask.unsqueeze([1, 3]).astype(k.dtype).expand_as(k[..., :1])], axis=-1)
    weights = F.softmax(paddle.matmul(q, k, transpose_y=True))  # [B, A, L, L]
    if dropout and training:
        weights = F.dropout(weights, dropout)
    return paddle.matmul(weights, v).transpose([0, 2, 1, 3])  # [B, L, A, D]


class Block(nn.Layer):
    """One post-norm layer: attention, then the feed-forward network, each added and normalised."""

    def __init__(self, config: ErnieConfig, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(config, dropout)
        self.attention_norm = nn.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.ffn_in = nn.Linear(config.hidden_size, config.ffn_size, **weights())
        self.ffn_out = nn.Linear(config.ffn_size, config.hidden_size, **weights())
        self.ffn_norm = nn.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """States `[B, L, H]` in, states out; `mask` as for `Attention`."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.ffn_norm(x + self.dropout(self.ffn_out(self.activation(self.ffn_in(x)))))


class Ernie(nn.Layer):
    """The encoder. `dropout` acts on embeddings, attention weights and layer outputs in training.

    With `use_recompute`, a layer's activations are thrown away in the forward pass and computed
    again in the backward pass: about a third more time, memory of one layer instead of all.
    """

    def __init__(self, config: ErnieConfig, dropout: float = 0.0, use_recompute: bool = False) -> None:
        super().__init__()
        self.config, self.use_recompute = config, use_recompute
        size = config.hidden_size
        self.word_embedding = nn.Embedding(config.vocab_size, size, **weights())
        self.position_embedding = nn.Embedding(config.max_positions, size, **weights())
        self.sentence_embedding = nn.Embedding(config.sent_types, size, **weights())
        self.task_embedding = (
            nn.Embedding(config.task_types, size, **weights()) if config.task_types else None
        )
        self.norm = nn.LayerNorm(size, epsilon=config.layer_norm_eps)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.layers = nn.LayerList([Block(config, dropout) for _ in range(config.num_layers)])
        self.apply(lambda layer: initialise(layer, config.initializer_range))

    def forward(self, token_ids: Tensor, type_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode a batch.

        Args:
            token_ids: int64 `[B, L]`.
            type_ids: int64 `[B, L]`, sentence type of every token.
            mask: bool `[B, L]`, true for a token and false for padding; None where no row is padded.

        Returns:
            The states of the last layer, `[B, L, H]`. Those of padding tokens mean nothing.
        """
        length = token_ids.shape[1]
        if length > self.config.max_positions:
            raise ValueError(
                f"a sequence of {length} tokens, but the encoder has {self.config.max_positions} positions: "
                "lower the length setting"
            )
        x = self.word_embedding(token_ids) + self.sentence_embedding(type_ids)  # [B, L, H]
        x = x + self.position_embedding.weight[:length]
        if self.task_embedding is not None:
            x = x + self.task_embedding.weight[0]  # retrieval uses task 0 throughout, as the reference
        x = self.dropout(self.norm(x))
        if mask is not None:
            mask = (1.0 - mask.astype(x.dtype)) * MASKED
        for layer in self.layers:
            x = recompute(layer, x, mask) if self.use_recompute and self.training else layer(x, mask)
        return x
