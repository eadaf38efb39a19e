"""The encoder on a CPU, in fused operations: the same numbers as `ernie.Ernie`, in less time.

Matrix products are Paddle's. Everything between them is one pass of a function in `kernels`, as an operation
with a gradient. Padding is left out: the tokens of a batch stand one after another, `[T, H]`, and only
attention puts sequences of similar length side by side. For the letters see `kernels`.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from functools import cache, cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer
from paddle.distributed.fleet.utils import recompute

from rocketqa_paddle.networks.batching import length_buckets

if TYPE_CHECKING:
    from rocketqa_paddle.networks.ernie import Block, Ernie

_SIDE_BY_SIDE = 16  # sequences of similar length in one product of attention
_BLOCKS = 16  # of rows, in sums over all of them
_AT_A_TIME = threading.Lock()  # a loop takes all threads anyway, and Numba's plain pool bears only one caller


_COMPILER = find_spec("numba") is not None


def computes(weight: Tensor) -> bool:
    """Whether a network with such weights is computed here: in float32, on a CPU, with Numba installed.

    Paddle has no automatic mixed precision on a CPU, and a graph that is to be exported needs its operations.
    """
    fits = weight.dtype == paddle.float32 and weight.place.is_cpu_place()
    return _COMPILER and fits and paddle.in_dynamic_mode()


@cache
def _kernels() -> ModuleType:
    """The compiled loops; tell of it if they have to be compiled first."""
    from rocketqa_paddle.networks import kernels

    if not any(Path(kernels.add_norm.stats.cache_path).glob("kernels.add_norm-*.nbi")):
        told = "compiling loops for this processor, which takes less than a minute and is done once"
        print(told, file=sys.stderr)
    return kernels


def _run(loop: str, *values: Any) -> None:
    """Run a loop of `kernels` on tensors, arrays and numbers."""
    with _AT_A_TIME:
        getattr(_kernels(), loop)(*(_array(v) if isinstance(v, Tensor) else v for v in values))


def _array(x: Tensor) -> np.ndarray:
    """The memory of a contiguous float32 tensor on the CPU as an array, while the tensor lives."""
    if not x.is_contiguous():
        raise ValueError(f"a tensor of the shape {x.shape} is not contiguous")
    memory = (ctypes.c_float * x.size).from_address(x.data_ptr())
    return np.ctypeslib.as_array(memory).reshape(x.shape)


class Tokens:
    """Where the tokens of a batch are, padding left out.

    `places` are their places in `[B, L]`, taken row by row; `starts` and `lengths` tell which of them, from
    the first on, belong to a sequence.
    """

    def __init__(self, mask: Tensor | None, shape: list[int]) -> None:
        self.shape = shape
        present = np.ones(shape, dtype=bool) if mask is None else mask.numpy()
        present[~present.any(axis=1), 0] = True  # every row has a token, if only one of padding
        self.places = np.flatnonzero(present)
        self.lengths = present.sum(axis=1)
        self.starts = np.cumsum(self.lengths) - self.lengths

    @property
    def columns(self) -> np.ndarray:
        """The position of every token in its sequence: `[T]`."""
        return self.places % self.shape[1]

    @cached_property
    def groups(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The starts and lengths of sequences of similar length."""
        rows = length_buckets(self.lengths, _SIDE_BY_SIDE)
        return [(self.starts[group], self.lengths[group]) for group in rows]


class Dropout:
    """One use of dropout: its rate, and the seed of its random numbers, drawn from Paddle's.

    The numbers depend on the seed and the place of an element alone.
    """

    def __init__(self, rate: float) -> None:
        self.least = np.uint32(min(round(rate * 2**32), 2**32 - 1))
        self.scale = np.float32(1 / (1 - rate))
        self.seed = np.uint32(paddle.randint(0, 2**31 - 1, [1]).item() if rate else 0)
        self.random = (self.seed, self.least, self.scale)


def _wanted(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of inputs, or None for one that takes no gradient, as Paddle demands it."""
    return tuple(g if taken else None for g, taken in zip(gradients, ctx.taken, strict=True))


def _note(ctx: Any, *inputs: Tensor) -> None:
    """Note which inputs of an operation take a gradient."""
    ctx.taken = [not x.stop_gradient for x in inputs]


class _Embed(PyLayer):
    """The sum of the rows that every token has in some embeddings: `[T, H]`."""

    @staticmethod
    def forward(ctx: Any, rows: list[np.ndarray], *tables: Tensor) -> Tensor:
        _note(ctx, *tables)
        out = paddle.zeros([len(rows[0]), tables[0].shape[1]])
        for table, places in zip(tables, rows, strict=True):
            _run("add_rows", table, places, out)
        ctx.rows, ctx.shapes = rows, [table.shape for table in tables]
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        tables = [paddle.zeros(shape) for shape in ctx.shapes]
        for table, places in zip(tables, ctx.rows, strict=True):
            _run("add_rows_back", gradient, places, table)
        return _wanted(ctx, *tables)


class _AddNorm(PyLayer):
    """The layer norm of `x + dropout(y + bias)`; y is written over."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, bias: Tensor, weight: Tensor, shift: Tensor, eps: float, rate: float
    ) -> Tensor:
        _note(ctx, x, y, bias, weight, shift)
        out, deviations = paddle.empty_like(x), paddle.empty([x.shape[0]])
        ctx.dropout = Dropout(rate)
        _run("add_norm", x, y, bias, weight, shift, np.float32(eps), *ctx.dropout.random, deviations, out)
        ctx.save_for_backward(y, deviations, weight)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        normal, deviations, weight = ctx.saved_tensor()
        dx = paddle.empty_like(gradient)
        dy = paddle.empty_like(gradient) if ctx.dropout.least else dx
        sums = paddle.zeros([_BLOCKS, 3, gradient.shape[1]])
        _run("add_norm_back", gradient, normal, deviations, weight, *ctx.dropout.random, dx, dy, sums)
        d_weight, d_shift, d_bias = sums.sum(axis=0).unbind()
        return _wanted(ctx, dx, dy, d_bias, d_weight, d_shift)


class _Gelu(PyLayer):
    """GELU of `y + bias`; y is written over."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor) -> Tensor:
        _note(ctx, y, bias)
        out = paddle.empty_like(y)
        _run("gelu", y, bias, out)
        ctx.save_for_backward(y)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (y,) = ctx.saved_tensor()
        dy, sums = paddle.empty_like(y), paddle.zeros([_BLOCKS, y.shape[1]])
        _run("gelu_back", gradient, y, dy, sums)
        return _wanted(ctx, dy, sums.sum(axis=0))


def _row_sum(x: Tensor) -> Tensor:
    sums = paddle.zeros([_BLOCKS, x.shape[1]])
    _run("sum_rows", x, sums)
    return sums.sum(axis=0)


def _dropped(weights: Tensor, starts: np.ndarray, dropout: Dropout) -> Tensor:
    if not dropout.least:
        return weights
    out = paddle.empty_like(weights)
    _run("drop_weights", weights, starts, *dropout.random, out)
    return out


class _Attend(PyLayer):
    """Attention of the queries, keys and values `[T, 3 * H]` plus a bias: `[T, H]`."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, tokens: Tokens, heads: int, rate: float) -> Tensor:
        _note(ctx, qkv, bias)
        size = qkv.shape[1] // 3 // heads
        ctx.tokens, ctx.dropout, ctx.factor = tokens, Dropout(rate), np.float32(size**-0.5)
        out, kept = paddle.empty([qkv.shape[0], heads * size]), []
        for starts, lengths in tokens.groups:
            split = paddle.empty([3, len(starts), heads, int(lengths[0]), size])
            _run("split_heads", qkv, bias, starts, lengths, split)
            q, k, v = split.unbind()
            weights = paddle.matmul(q, k, transpose_y=True)  # [b, A, L, L]
            _run("softmax", weights, ctx.factor, lengths)
            _run(
                "join_heads",
                paddle.matmul(_dropped(weights, starts, ctx.dropout), v),
                0,
                starts,
                lengths,
                out,
            )
            kept += [split, weights]
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        saved, random = iter(ctx.saved_tensor()), ctx.dropout.random
        count, size = gradient.shape
        out, zeros = paddle.empty([count, 3 * size]), paddle.zeros([size])
        for starts, lengths in ctx.tokens.groups:
            split, weights = next(saved), next(saved)
            q, k, v = split.unbind()
            g = paddle.empty([1, *q.shape])
            _run("split_heads", gradient, zeros, starts, lengths, g)
            dropped = _dropped(weights, starts, ctx.dropout)
            dv = paddle.matmul(dropped, g[0], transpose_x=True)
            ds = paddle.matmul(g[0], v, transpose_y=True)  # first of the dropped weights
            _run("softmax_back", ds, weights, ctx.factor, starts, lengths, *random)
            parts = paddle.matmul(ds, k), paddle.matmul(ds, q, transpose_x=True), dv
            for part, heads in enumerate(parts):
                _run("join_heads", heads, part, starts, lengths, out)
        return _wanted(ctx, out, _row_sum(out))


class _AttendFirst(PyLayer):
    """Attention of every first token, `[B, H]`, among keys and values `[T, 2 * H]` plus a bias."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, kv: Tensor, bias: Tensor, tokens: Tokens, heads: int, rate: float
    ) -> Tensor:
        _note(ctx, query, kv, bias)
        scale = np.float32((query.shape[1] // heads) ** -0.5)
        ctx.places = (scale, tokens.starts, tokens.lengths, *Dropout(rate).random)
        weights, out = paddle.empty([heads, kv.shape[0]]), paddle.empty_like(query)
        _run("attend_first", query, kv, bias, *ctx.places, weights, out)
        ctx.save_for_backward(query, kv, bias, weights)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, kv, bias, weights = ctx.saved_tensor()
        dq, dkv = paddle.empty_like(query), paddle.empty_like(kv)
        _run("attend_first_back", gradient, query, kv, bias, *ctx.places, weights, dq, dkv)
        return _wanted(ctx, dq, dkv, _row_sum(dkv))


class _Unpack(PyLayer):
    """Put tokens `[T, H]` into their places in `[B, L, H]`, with zeros elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tokens) -> Tensor:
        ctx.tokens = tokens
        out = paddle.zeros([*tokens.shape, x.shape[1]])
        _run("put_rows", x, tokens.places, out.reshape([-1, x.shape[1]]))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        out = paddle.empty([len(ctx.tokens.places), gradient.shape[-1]])
        _run("take_rows", gradient.reshape([-1, gradient.shape[-1]]), ctx.tokens.places, out)
        return out


def encode(
    encoder: Ernie, token_ids: Tensor, type_ids: Tensor, mask: Tensor | None, first_only: bool
) -> Tensor:
    """Compute what `Ernie.forward` does; the states of padding are zero."""
    tokens = Tokens(mask, token_ids.shape)
    rate = encoder.dropout.p if encoder.training and isinstance(encoder.dropout, nn.Dropout) else 0.0
    ids, types = (x.numpy().reshape(-1)[tokens.places] for x in (token_ids, type_ids))
    embeddings = {encoder.word_embedding: ids, encoder.sentence_embedding: types}
    embeddings[encoder.position_embedding] = tokens.columns
    if encoder.task_embedding is not None:
        embeddings[encoder.task_embedding] = np.zeros_like(ids)
    x = _Embed.apply(list(embeddings.values()), *(embedding.weight for embedding in embeddings))
    norm, bias = encoder.norm, paddle.zeros([x.shape[1]])
    x = _AddNorm.apply(paddle.zeros_like(x), x, bias, norm.weight, norm.bias, norm._epsilon, 0.0)
    x = F.dropout(x, rate, training=bool(rate))
    for layer in encoder.layers:
        last = first_only and layer is encoder.layers[-1]
        block = partial(_block, layer, tokens, rate, last)
        x = recompute(block, x) if encoder.use_recompute and encoder.training else block(x)
    return x.unsqueeze(1) if first_only else _Unpack.apply(x, tokens)


def _block(layer: Block, tokens: Tokens, rate: float, first_only: bool, x: Tensor) -> Tensor:
    """One post-norm layer over tokens: `[T, H]`, or `[B, H]` for the first tokens alone."""
    attention = layer.attention
    if first_only:
        states, x = x, paddle.gather(x, paddle.to_tensor(tokens.starts))
        weight, bias = _joined(attention.key, attention.value)
        given = attention.query(x), paddle.matmul(states, weight), bias
        attended = _AttendFirst.apply(*given, tokens, attention.num_heads, rate)
    else:
        weight, bias = _joined(attention.query, attention.key, attention.value)
        attended = _Attend.apply(paddle.matmul(x, weight), bias, tokens, attention.num_heads, rate)
    x = _add_norm(layer.attention_norm, x, attended, attention.output, rate)
    inner = paddle.matmul(x, layer.ffn_in.weight)
    if layer.activation is F.gelu:
        inner = _Gelu.apply(inner, layer.ffn_in.bias)
    else:
        inner = layer.activation(inner + layer.ffn_in.bias)
    return _add_norm(layer.ffn_norm, x, inner, layer.ffn_out, rate)


def _joined(*linears: nn.Linear) -> tuple[Tensor, Tensor]:
    """The weights and biases of layers with the same input as those of one layer."""
    weights, biases = ([getattr(linear, name) for linear in linears] for name in ("weight", "bias"))
    return paddle.concat(weights, axis=1), paddle.concat(biases)


def _add_norm(norm: nn.LayerNorm, x: Tensor, inner: Tensor, linear: nn.Linear, rate: float) -> Tensor:
    """The layer norm of `x + dropout(linear(inner))`."""
    y = paddle.matmul(inner, linear.weight)
    return _AddNorm.apply(x, y, linear.bias, norm.weight, norm.bias, norm._epsilon, rate)
