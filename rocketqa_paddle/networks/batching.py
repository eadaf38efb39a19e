"""Packed sequences to padded tensors, and the buckets of like length that waste little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor

from rocketqa_paddle.networks.tokenization import Packed


class Batch(NamedTuple):
    """Padded inputs `[rows, length]`. `mask` is true for a token; None where no row is padded."""

    token_ids: Tensor
    type_ids: Tensor
    mask: Tensor | None


def collate(sequences: Sequence[Packed], pad_id: int) -> Batch:
    """Pad every sequence to the longest of them."""
    lengths = np.array([len(sequence.token_ids) for sequence in sequences])
    mask = np.arange(lengths.max()) < lengths[:, None]  # [rows, length]
    token_ids = np.full(mask.shape, pad_id, dtype=np.int64)
    type_ids = np.zeros(mask.shape, dtype=np.int64)
    token_ids[mask] = [i for sequence in sequences for i in sequence.token_ids]
    type_ids[mask] = [i for sequence in sequences for i in sequence.type_ids]
    return Batch(
        paddle.to_tensor(token_ids),
        paddle.to_tensor(type_ids),
        None if mask.all() else paddle.to_tensor(mask),
    )


def length_buckets(lengths: Sequence[int], max_rows: int) -> Iterator[np.ndarray]:
    """Row numbers in batches of like length, at most `max_rows` each.

    The longest first: memory peaks at once, and time left is a safe guess.
    """
    if max_rows < 1:
        raise ValueError(f"batches of {max_rows} rows, expected at least 1")
    order = np.argsort(np.asarray(lengths), kind="stable")[::-1]
    for start in range(0, len(order), max_rows):
        yield order[start : start + max_rows]
