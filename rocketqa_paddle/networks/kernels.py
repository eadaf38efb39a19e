"""Loops over arrays for a processor, compiled by Numba, that do in one pass what Paddle does in many.

Paddle computes everything but matrix products on one thread and one operation at a time. Each function here
reads its inputs once, computes on all threads, and writes into arrays that the caller has made. Arrays are
float32 and contiguous. Rows are shared out among threads, and sums over rows are made in blocks whose number
does not depend on the threads, so that any number of threads gives the same result.

In comments, `T` is the number of tokens of a batch without padding, `H` of hidden units, `b` of sequences of
similar length `L`, and `A` of heads of `D` units.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

_MATH = {"reassoc", "contract", "nsz", "arcp", "afn"}  # no "nnan": NaN must come through
_LOOPS = {"parallel": True, "fastmath": _MATH, "cache": True, "nogil": True}
_INLINE = {"fastmath": _MATH, "inline": "always"}
_BLOCKS = 16  # of rows, for sums over all of them
_F, _U = np.float32, np.uint32
Array = np.ndarray
_ONE, _HALF = _F(1), _F(0.5)


# Functions that the compiler turns into vector instructions ----------------------------------------


@intrinsic
def _float_of(context: Any, bits: Any) -> Any:
    """The float32 that has these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(**_INLINE)
def _exp(x: float) -> float:
    """e^x for x <= 0, by Cephes' expf: x = n ln 2 + r, and a polynomial in r."""
    x = max(x, _F(-87))
    n = math.floor(x * _F(1.44269504) + _HALF)
    r = x - n * _F(0.693359375) + n * _F(2.12194440e-4)
    p = _F(1.9875691500e-4) * r + _F(1.3981999507e-3)
    p = p * r + _F(8.3334519073e-3)
    p = p * r + _F(4.1665795894e-2)
    p = p * r + _F(1.6666665459e-1)
    p = p * r + _F(5.0000001201e-1)
    bits = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))
    return (p * r * r + r + _ONE) * _float_of(bits)


@njit(**_INLINE)
def _erf(x: float) -> float:
    """The error function to float32's accuracy, by Eigen's quotient of two polynomials."""
    x = min(max(x, _F(-4)), _F(4))
    z = x * x
    p = _F(-2.72614225801306e-10) * z + _F(2.77068142495902e-08)
    p = p * z + _F(-2.10102402082508e-06)
    p = p * z + _F(-5.69250639462346e-05)
    p = p * z + _F(-7.34990630326855e-04)
    p = p * z + _F(-2.95459980854025e-03)
    p = p * z + _F(-1.60960333262415e-02)
    q = _F(-1.45660718464996e-05) * z + _F(-2.13374055278905e-04)
    q = q * z + _F(-1.68282697438203e-03)
    q = q * z + _F(-7.37332916720468e-03)
    q = q * z + _F(-1.42647390514189e-02)
    return x * p / q


@njit(**_INLINE)
def _mixed(x: int) -> int:
    """A hash of 32 bits (the constants are Wellons' lowbias32)."""
    x = _U(x ^ (x >> _U(16)))
    x = _U(x * _U(0x7FEB352D))
    x = _U(x ^ (x >> _U(15)))
    x = _U(x * _U(0x846CA68B))
    return _U(x ^ (x >> _U(16)))


@njit(**_INLINE)
def _key(seed: int, row: int) -> int:
    """The start of a row's random numbers."""
    return _mixed(_U(_mixed(_U(row)) + _U(seed)))


@njit(**_INLINE)
def _kept(key: int, column: int, least: int) -> float:
    """1 if dropout keeps an element, else 0: a hash of its place, so that the gradient finds the same."""
    return _F(_mixed(_U(key + _U(column) * _U(0x9E3779B9))) >= least)


# The sum of embeddings --------------------------------------------------------------------------------


@njit(**_LOOPS)
def add_rows(table: Array, rows: Array, out: Array) -> None:
    """Add the rows of an embedding `[rows, H]` that tokens `[T]` have to `out`, `[T, H]`."""
    for t in prange(len(rows)):
        for j in range(out.shape[1]):
            out[t, j] += table[rows[t], j]


@njit(**_LOOPS)
def add_rows_back(gradient: Array, rows: Array, table: Array) -> None:
    """Add the gradient of tokens, `[T, H]`, to that of an embedding `[rows, H]`.

    Threads share the columns, so that no two add to one element.
    """
    size = gradient.shape[1]
    for block in prange(_BLOCKS):
        for t in range(len(rows)):
            for j in range(size * block // _BLOCKS, size * (block + 1) // _BLOCKS):
                table[rows[t], j] += gradient[t, j]


@njit(**_LOOPS)
def put_rows(x: Array, places: Array, out: Array) -> None:
    """Put rows `[T, H]` into their places in `[B * L, H]`."""
    for t in prange(len(places)):
        out[places[t]] = x[t]


@njit(**_LOOPS)
def take_rows(x: Array, places: Array, out: Array) -> None:
    """Take rows `[T, H]` from their places in `[B * L, H]`."""
    for t in prange(len(places)):
        out[t] = x[places[t]]


# Bias, dropout, residual and layer norm ---------------------------------------------------------------


@njit(**_LOOPS)
def add_norm(
    x: Array,
    y: Array,
    bias: Array,
    weight: Array,
    shift: Array,
    epsilon: float,
    seed: int,
    least: int,
    scale: float,
    deviations: Array,
    out: Array,
) -> None:
    """out = norm(x + dropout(y + bias)) * weight + shift, of `[T, H]`; y becomes the normalised values.

    `deviations`, `[T]`, becomes one over the standard deviation of every row. Dropout keeps an element whose
    random number is at least `least` and multiplies it by `scale`.
    """
    size = x.shape[1]
    part = _ONE / _F(size)
    for t in prange(x.shape[0]):
        key, mean, variance = _key(seed, t), _F(0), _F(0)
        if least:
            for j in range(size):
                y[t, j] = x[t, j] + _kept(key, j, least) * scale * (y[t, j] + bias[j])
        else:
            for j in range(size):
                y[t, j] += x[t, j] + bias[j]
        for j in range(size):
            mean += y[t, j]
        mean *= part
        for j in range(size):
            variance += (y[t, j] - mean) * (y[t, j] - mean)
        deviation = _ONE / math.sqrt(variance * part + epsilon)
        deviations[t] = deviation
        for j in range(size):
            normal = (y[t, j] - mean) * deviation
            y[t, j] = normal
            out[t, j] = normal * weight[j] + shift[j]


@njit(**_LOOPS)
def add_norm_back(
    gradient: Array,
    normal: Array,
    deviations: Array,
    weight: Array,
    seed: int,
    least: int,
    scale: float,
    dx: Array,
    dy: Array,
    sums: Array,
) -> None:
    """The gradients of `add_norm` for x and y, `[T, H]`; without dropout, dy may be dx.

    `sums`, zeros `[blocks, 3, H]`, becomes the parts of the gradients of weight, shift and bias.
    """
    count, size = gradient.shape
    part = _ONE / _F(size)
    for block in prange(sums.shape[0]):
        for t in range(count * block // sums.shape[0], count * (block + 1) // sums.shape[0]):
            key, mean, along = _key(seed, t), _F(0), _F(0)
            for j in range(size):
                g = gradient[t, j] * weight[j]
                mean += g
                along += g * normal[t, j]
                sums[block, 0, j] += gradient[t, j] * normal[t, j]
                sums[block, 1, j] += gradient[t, j]
            mean *= part
            along *= part
            for j in range(size):
                d = deviations[t] * (gradient[t, j] * weight[j] - mean - normal[t, j] * along)
                dx[t, j] = d
                if least:
                    d *= _kept(key, j, least) * scale
                    dy[t, j] = d
                sums[block, 2, j] += d


# Bias and GELU ----------------------------------------------------------------------------------------


@njit(**_LOOPS)
def gelu(y: Array, bias: Array, out: Array) -> None:
    """out = GELU(y + bias), of `[T, H]`; y becomes y + bias."""
    for t in prange(y.shape[0]):
        for j in range(y.shape[1]):
            v = y[t, j] + bias[j]
            y[t, j] = v
            out[t, j] = _HALF * v * (_ONE + _erf(v * _F(math.sqrt(0.5))))


@njit(**_LOOPS)
def gelu_back(gradient: Array, y: Array, dy: Array, sums: Array) -> None:
    """The gradient of `gelu` for y; `sums`, zeros `[blocks, H]`, becomes the parts of that of the bias."""
    count, size = gradient.shape
    for block in prange(sums.shape[0]):
        for t in range(count * block // sums.shape[0], count * (block + 1) // sums.shape[0]):
            for j in range(size):
                v = y[t, j]
                density = _F(1 / math.sqrt(2 * math.pi)) * _exp(-_HALF * v * v)
                d = gradient[t, j] * (_HALF * (_ONE + _erf(v * _F(math.sqrt(0.5)))) + v * density)
                dy[t, j] = d
                sums[block, j] += d


# Attention --------------------------------------------------------------------------------------------


@njit(**_LOOPS)
def split_heads(x: Array, bias: Array, starts: Array, lengths: Array, out: Array) -> None:
    """Put tokens `[T, C * H]` plus a bias into `[C, b, A, L, D]`, with zeros where a sequence ends.

    `starts` and `lengths`, `[b]`, tell which tokens are those of a sequence.
    """
    count, sequences, heads, longest, size = out.shape
    for i in prange(sequences):
        for m in range(lengths[i]):
            for c in range(count):
                for a in range(heads):
                    first = (c * heads + a) * size
                    for d in range(size):
                        out[c, i, a, m, d] = x[starts[i] + m, first + d] + bias[first + d]
        for c in range(count):
            for a in range(heads):
                out[c, i, a, lengths[i] :] = 0


@njit(**_LOOPS)
def join_heads(x: Array, part: int, starts: Array, lengths: Array, out: Array) -> None:
    """Put heads `[b, A, L, D]` into the columns of tokens `[T, C * H]` that belong to one of C parts."""
    sequences, heads, longest, size = x.shape
    for i in prange(sequences):
        for m in range(lengths[i]):
            for a in range(heads):
                first = (part * heads + a) * size
                for d in range(size):
                    out[starts[i] + m, first + d] = x[i, a, m, d]


@njit(**_LOOPS)
def softmax(scores: Array, scale: float, lengths: Array) -> None:
    """Softmax of `scale` times scores `[b, A, L, L]`, in place, over the tokens that there are; else 0."""
    sequences, heads, longest, _ = scores.shape
    for n in prange(sequences * heads):
        i, a = n // heads, n % heads
        length = lengths[i]
        for m in range(length):
            row = scores[i, a, m]
            largest, total = row[0], _F(0)
            for j in range(length):
                largest = max(largest, row[j])
            for j in range(length):
                e = _exp((row[j] - largest) * scale)
                row[j] = e
                total += e
            total = _ONE / total
            for j in range(length):
                row[j] *= total
            row[length:] = 0
        scores[i, a, length:] = 0


@njit(**_LOOPS)
def drop_weights(weights: Array, starts: Array, seed: int, least: int, scale: float, out: Array) -> None:
    """Dropout of attention weights `[b, A, L, L]`; the random numbers belong to the token and the head."""
    sequences, heads, longest, _ = weights.shape
    for n in prange(sequences * heads):
        i, a = n // heads, n % heads
        for m in range(longest):
            key = _key(seed, (starts[i] + m) * heads + a)
            for j in range(longest):
                out[i, a, m, j] = weights[i, a, m, j] * _kept(key, j, least) * scale


@njit(**_LOOPS)
def softmax_back(
    gradient: Array,
    weights: Array,
    scale: float,
    starts: Array,
    lengths: Array,
    seed: int,
    least: int,
    kept_scale: float,
) -> None:
    """Turn the gradient of dropped weights into that of the scores, in place; see `softmax`."""
    sequences, heads, longest, _ = weights.shape
    for n in prange(sequences * heads):
        i, a = n // heads, n % heads
        for m in range(lengths[i]):
            p, g, along = weights[i, a, m], gradient[i, a, m], _F(0)
            if least:
                key = _key(seed, (starts[i] + m) * heads + a)
                for j in range(longest):
                    g[j] *= _kept(key, j, least) * kept_scale
            for j in range(longest):
                along += g[j] * p[j]
            for j in range(longest):
                g[j] = scale * p[j] * (g[j] - along)
        gradient[i, a, lengths[i] :] = 0


@njit(**_LOOPS)
def attend_first(
    q: Array,
    kv: Array,
    bias: Array,
    scale: float,
    starts: Array,
    lengths: Array,
    seed: int,
    least: int,
    kept_scale: float,
    weights: Array,
    out: Array,
) -> None:
    """Attention of one query a sequence, `[B, H]`, among the keys and values `[T, 2 * H]` plus a bias.

    `weights`, `[A, T]`, becomes the attention weights before dropout.
    """
    heads, hidden = len(weights), q.shape[1]
    size = hidden // heads
    for n in prange(len(q) * heads):
        i, a = n // heads, n % heads
        first, key = a * size, _key(seed, n)
        row = weights[a, starts[i] : starts[i] + lengths[i]]
        largest, total = _F(-np.inf), _F(0)
        for j in range(len(row)):
            score = _F(0)
            for d in range(first, first + size):
                score += q[i, d] * (kv[starts[i] + j, d] + bias[d])
            row[j] = score * scale
            largest = max(largest, row[j])
        for j in range(len(row)):
            row[j] = _exp(row[j] - largest)
            total += row[j]
        out[i, first : first + size] = 0
        for j in range(len(row)):
            row[j] /= total
            weight = row[j] * _kept(key, j, least) * kept_scale
            for d in range(first, first + size):
                out[i, d] += weight * (kv[starts[i] + j, hidden + d] + bias[hidden + d])


@njit(**_LOOPS)
def attend_first_back(
    gradient: Array,
    q: Array,
    kv: Array,
    bias: Array,
    scale: float,
    starts: Array,
    lengths: Array,
    seed: int,
    least: int,
    kept_scale: float,
    weights: Array,
    dq: Array,
    dkv: Array,
) -> None:
    """The gradients of `attend_first` for the queries and for the keys and values."""
    heads, hidden = len(weights), q.shape[1]
    size = hidden // heads
    for n in prange(len(q) * heads):
        i, a = n // heads, n % heads
        first, key, along = a * size, _key(seed, n), _F(0)
        dq[i, first : first + size] = 0
        for j in range(lengths[i]):
            t, kept, g = starts[i] + j, _kept(key, j, least) * kept_scale, _F(0)
            weight = weights[a, t] * kept
            for d in range(first, first + size):
                g += gradient[i, d] * (kv[t, hidden + d] + bias[hidden + d])
                dkv[t, hidden + d] = weight * gradient[i, d]
            along += g * weight
            dkv[t, first] = g * kept  # for the second loop
        for j in range(lengths[i]):
            t = starts[i] + j
            g = scale * weights[a, t] * (dkv[t, first] - along)
            for d in range(first, first + size):
                dq[i, d] += g * (kv[t, d] + bias[d])
                dkv[t, d] = g * q[i, d]


@njit(**_LOOPS)
def sum_rows(x: Array, sums: Array) -> None:
    """Add up rows `[T, H]` in blocks: `sums`, zeros `[blocks, H]`, becomes their sums."""
    for block in prange(sums.shape[0]):
        for t in range(len(x) * block // sums.shape[0], len(x) * (block + 1) // sums.shape[0]):
            for j in range(x.shape[1]):
                sums[block, j] += x[t, j]


# Gradients of all parameters --------------------------------------------------------------------------


@njit(**_LOOPS)
def add_squares(x: Array, sums: Array) -> None:
    """Add the squares of numbers `[N]` to `sums`, float64 `[blocks]`."""
    for block in prange(len(sums)):
        total = 0.0
        for n in range(len(x) * block // len(sums), len(x) * (block + 1) // len(sums)):
            total += np.float64(x[n] * x[n])
        sums[block] += total


@njit(**_LOOPS)
def adamw(
    x: Array,
    gradient: Array,
    first: Array,
    second: Array,
    factor: float,
    beta1: float,
    beta2: float,
    decay: float,
    step: float,
    epsilon: float,
) -> None:
    """Move numbers `[N]` and their moments by AdamW, in place; `factor` multiplies the gradient."""
    for n in prange(len(x)):
        g = gradient[n] * factor
        first[n] = beta1 * first[n] + (_ONE - beta1) * g
        second[n] = beta2 * second[n] + (_ONE - beta2) * g * g
        x[n] = x[n] * decay - step * first[n] / (math.sqrt(second[n]) + epsilon)
