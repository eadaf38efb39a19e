"""Operations of an encoder on a CPU, each with its gradient, that do in one pass what Paddle does in many.

They stand between matrix products, which are Paddle's, and run the loops of `kernels`; for the letters see
there. Padding is left out: the tokens of a batch stand one after another, `[T, H]`, and only attention puts
sequences of similar length side by side.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Sequence
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from rocketqa_paddle.networks.batching import length_buckets

_SIDE_BY_SIDE = 16  # sequences of similar length in one product of attention
_BLOCKS = 16  # of rows, in sums over all of them
_AT_A_TIME = threading.Lock()  # a loop takes all threads anyway, and Numba's plain pool bears only one caller
_COMPILER = find_spec("numba") is not None


def computes(weight: Tensor) -> bool:
    """Whether these operations take such weights: in float32, on a CPU, with Numba installed.

    Paddle has no automatic mixed precision on a CPU. A graph that is exported has Paddle's operations alone.
    """
    if not (_COMPILER and paddle.in_dynamic_mode()):
        return False
    on_cpu = weight.place.is_cpu_place() and paddle.get_device() == "cpu"
    return on_cpu and weight.dtype == paddle.float32


@cache
def _scratch() -> TemporaryDirectory:
    """A folder of this process, removed at its end."""
    return TemporaryDirectory(prefix="rocketqa-")


@cache
def _kernels() -> ModuleType:
    """The compiled loops; tell of it if they have to be compiled first."""
    try:
        from rocketqa_paddle.networks import kernels
    except RuntimeError:  # Numba found no folder in which it may keep what it compiles
        import numba

        numba.config.CACHE_DIR = _scratch().name
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
    shape = x.shape  # math.prod, since Paddle takes longer for `x.size` than for all the rest
    memory = (ctypes.c_float * math.prod(shape)).from_address(x.data_ptr())
    return np.frombuffer(memory, np.float32).reshape(shape)


def _empty(shape: list[int]) -> Tensor:
    return paddle.empty(shape, dtype="float32")


def _zeros(shape: list[int]) -> Tensor:
    out = _empty(shape)
    _array(out).fill(0)  # Paddle takes five times as long
    return out


class Tokens:
    """Where the tokens of a batch are, padding left out.

    `places` are their places in `[B, L]`, taken row by row; `starts` and `lengths` tell which of them, from
    the first on, belong to a sequence.
    """

    def __init__(self, mask: Tensor | None, shape: list[int]) -> None:
        self.shape = shape
        present = np.ones(shape, dtype=bool) if mask is None else np.array(mask)
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
    @staticmethod
    def forward(ctx: Any, begin: Tensor, uses: list[tuple[Tensor, np.ndarray]]) -> Tensor:
        table, places = uses[0]
        out = _zeros([len(places), table.shape[1]])
        for table, places in uses:
            _run("add_rows", table, places, out)
        ctx.uses = uses
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        for table, places in ctx.uses:
            if not table.stop_gradient:
                if table.grad is None:
                    table.grad = _zeros(table.shape)
                _run("add_rows_back", gradient, places, table.grad)
        return paddle.zeros([1])


def embed(rows: list[np.ndarray], tables: list[Tensor]) -> Tensor:
    """Add up the rows `[T]` that every token has in some embeddings `[rows, H]`: `[T, H]`.

    A batch uses few rows of a large embedding. So the backward pass adds to the rows of `table.grad`, in
    place, where Paddle would make a gradient of all rows for every pass and add it up.
    """
    begin = paddle.zeros([1])  # takes the gradient in the place of the tables
    begin.stop_gradient = all(table.stop_gradient for table in tables)
    return _Embed.apply(begin, list(zip(tables, rows, strict=True)))


class _AddNorm(PyLayer):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, bias: Tensor, weight: Tensor, shift: Tensor, eps: float, rate: float
    ) -> Tensor:
        _note(ctx, x, y, bias, weight, shift)
        out, deviations = paddle.empty_like(x), _empty([x.shape[0]])
        ctx.dropout = Dropout(rate)
        _run("add_norm", x, y, bias, weight, shift, np.float32(eps), *ctx.dropout.random, deviations, out)
        ctx.save_for_backward(y, deviations, weight)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.contiguous()
        normal, deviations, weight = ctx.saved_tensor()
        dx = paddle.empty_like(gradient)
        dy = paddle.empty_like(gradient) if ctx.dropout.least else dx
        sums = _zeros([_BLOCKS, 3, gradient.shape[1]])
        _run("add_norm_back", gradient, normal, deviations, weight, *ctx.dropout.random, dx, dy, sums)
        d_weight, d_shift, d_bias = sums.sum(axis=0).unbind()
        return _wanted(ctx, dx, dy, d_bias, d_weight, d_shift)


def add_norm(x: Tensor, y: Tensor, bias: Tensor, norm: nn.LayerNorm, rate: float) -> Tensor:
    """The layer norm of `x + dropout(y + bias)`, all `[T, H]`. The memory of y is written over."""
    return _AddNorm.apply(x, y, bias, norm.weight, norm.bias, norm._epsilon, rate)


class _Gelu(PyLayer):
    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor) -> Tensor:
        _note(ctx, y, bias)
        out = paddle.empty_like(y)
        _run("gelu", y, bias, out)
        ctx.save_for_backward(y)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.contiguous()
        (y,) = ctx.saved_tensor()
        dy, sums = paddle.empty_like(y), _zeros([_BLOCKS, y.shape[1]])
        _run("gelu_back", gradient, y, dy, sums)
        return _wanted(ctx, dy, sums.sum(axis=0))


def gelu(y: Tensor, bias: Tensor) -> Tensor:
    """GELU of `y + bias`, `[T, H]`. The memory of y is written over."""
    return _Gelu.apply(y, bias)


def _row_sum(x: Tensor) -> Tensor:
    sums = _zeros([_BLOCKS, x.shape[1]])
    _run("sum_rows", x, sums)
    return sums.sum(axis=0)


def _dropped(weights: Tensor, starts: np.ndarray, dropout: Dropout) -> Tensor:
    if not dropout.least:
        return weights
    out = paddle.empty_like(weights)
    _run("drop_weights", weights, starts, *dropout.random, out)
    return out


class _Attend(PyLayer):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, tokens: Tokens, heads: int, rate: float) -> Tensor:
        _note(ctx, qkv, bias)
        size = qkv.shape[1] // 3 // heads
        ctx.tokens, ctx.dropout, ctx.factor = tokens, Dropout(rate), np.float32(size**-0.5)
        out, kept = _empty([qkv.shape[0], heads * size]), []
        for starts, lengths in tokens.groups:
            split = _empty([3, len(starts), heads, int(lengths[0]), size])
            _run("split_heads", qkv, bias, starts, lengths, split)
            q, k, v = split.unbind()
            weights = paddle.matmul(q, k, transpose_y=True)  # [b, A, L, L]
            _run("softmax", weights, ctx.factor, lengths)
            attended = paddle.matmul(_dropped(weights, starts, ctx.dropout), v)  # [b, A, L, D]
            _run("join_heads", attended, 0, starts, lengths, out)
            kept += [split, weights]
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.contiguous()
        saved, random = iter(ctx.saved_tensor()), ctx.dropout.random
        count, size = gradient.shape
        out, zeros = _empty([count, 3 * size]), _zeros([size])
        for starts, lengths in ctx.tokens.groups:
            split, weights = next(saved), next(saved)
            q, k, v = split.unbind()
            g = _empty([1, *q.shape])
            _run("split_heads", gradient, zeros, starts, lengths, g)
            dropped = _dropped(weights, starts, ctx.dropout)
            dv = paddle.matmul(dropped, g[0], transpose_x=True)
            ds = paddle.matmul(g[0], v, transpose_y=True)  # first of the dropped weights
            _run("softmax_back", ds, weights, ctx.factor, starts, lengths, *random)
            parts = paddle.matmul(ds, k), paddle.matmul(ds, q, transpose_x=True), dv
            for part, heads in enumerate(parts):
                _run("join_heads", heads, part, starts, lengths, out)
        return _wanted(ctx, out, _row_sum(out))


def attend(qkv: Tensor, bias: Tensor, tokens: Tokens, heads: int, rate: float) -> Tensor:
    """Attention of queries, keys and values, `[T, 3 * H]` plus a bias: `[T, H]`."""
    return _Attend.apply(qkv, bias, tokens, heads, rate)


class _AttendFirst(PyLayer):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, kv: Tensor, bias: Tensor, tokens: Tokens, heads: int, rate: float
    ) -> Tensor:
        _note(ctx, query, kv, bias)
        scale = np.float32((query.shape[1] // heads) ** -0.5)
        ctx.places = (scale, tokens.starts, tokens.lengths, *Dropout(rate).random)
        weights, out = _empty([heads, kv.shape[0]]), paddle.empty_like(query)
        _run("attend_first", query, kv, bias, *ctx.places, weights, out)
        ctx.save_for_backward(query, kv, bias, weights)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.contiguous()
        query, kv, bias, weights = ctx.saved_tensor()
        dq, dkv = paddle.empty_like(query), paddle.empty_like(kv)
        _run("attend_first_back", gradient, query, kv, bias, *ctx.places, weights, dq, dkv)
        return _wanted(ctx, dq, dkv, _row_sum(dkv))


def attend_first(query: Tensor, kv: Tensor, bias: Tensor, tokens: Tokens, heads: int, rate: float) -> Tensor:
    """Attention of every first token, `[B, H]`, among keys and values, `[T, 2 * H]` plus a bias: `[B, H]`."""
    return _AttendFirst.apply(query, kv, bias, tokens, heads, rate)


class _Unpack(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tokens) -> Tensor:
        ctx.tokens = tokens
        out = _zeros([*tokens.shape, x.shape[1]])
        _run("put_rows", x, tokens.places, out.reshape([-1, x.shape[1]]))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        out = _empty([len(ctx.tokens.places), gradient.shape[-1]])
        _run("take_rows", gradient.reshape([-1, gradient.shape[-1]]), ctx.tokens.places, out)
        return out


def unpack(x: Tensor, tokens: Tokens) -> Tensor:
    """Put tokens `[T, H]` into their places in `[B, L, H]`, with zeros elsewhere."""
    return _Unpack.apply(x, tokens)


# Gradients of all parameters -------------------------------------------------------------------------


def norm(gradients: Sequence[Tensor]) -> float:
    """The Euclidean norm of all numbers of some tensors together."""
    sums = np.zeros(_BLOCKS)
    for gradient in gradients:
        _run("add_squares", _flat(gradient), sums)
    return math.sqrt(sums.sum())


def adamw(
    parameter: Tensor,
    first: np.ndarray,
    second: np.ndarray,
    factor: float,
    betas: tuple[float, float],
    decay: float,
    step: float,
    epsilon: float,
) -> None:
    """Multiply a parameter by `decay` and take AdamW's step, in place, with `factor` times its gradient.

    `first` and `second` are the moments; `step` and `epsilon` have the correction of their bias.
    """
    arrays = _flat(parameter), _flat(parameter.grad), first.reshape(-1), second.reshape(-1)
    _run("adamw", *arrays, *map(np.float32, (factor, *betas, decay, step, epsilon)))


def zero(gradient: Tensor) -> None:
    """Fill a gradient with zeros, in place."""
    _array(gradient).fill(0)


def _flat(x: Tensor) -> np.ndarray:
    return _array(x).reshape(-1)
