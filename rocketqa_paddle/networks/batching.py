"""Batches: packed sequences padded to tensors, and sequences of similar length put together."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor

from rocketqa_paddle.networks.tokenization import Packed


class Batch(NamedTuple):
    """Padded inputs."""

    token_ids: Tensor  # int64 `[rows, length]`
    type_ids: Tensor  # the sentence types (0 or 1), int64 `[rows, length]`
    mask: Tensor | None  # bool `[rows, length]`, true for a token; None if no row is padded

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three as int64 arrays `[rows, length]`, for other engines; the mask is 1 for a token."""
        mask = np.ones(self.token_ids.shape) if self.mask is None else self.mask.numpy()
        return self.token_ids.numpy(), self.type_ids.numpy(), mask.astype(np.int64)


def collate(sequences: Sequence[Packed], pad_id: int) -> Batch:
    """Pad all sequences to the length of the longest one."""
    lengths = np.array([len(sequence.token_ids) for sequence in sequences])
    mask = np.arange(lengths.max()) < lengths[:, None]  # [rows, length]
    token_ids = np.full(mask.shape, pad_id, dtype=np.int64)
    type_ids = np.zeros(mask.shape, dtype=np.int64)
    token_ids[mask] = [i for sequence in sequences for i in sequence.token_ids]
    type_ids[mask] = [i for sequence in sequences for i in sequence.type_ids]
    padding = None if mask.all() else paddle.to_tensor(mask)
    return Batch(paddle.to_tensor(token_ids), paddle.to_tensor(type_ids), padding)


def length_buckets(lengths: Sequence[int], max_rows: int) -> Iterator[np.ndarray]:
    """Yield row numbers in batches of similar length, at most `max_rows` each.

    The longest come first, so that memory peaks at the start and the estimated time left is never too short.

    Raises:
        ValueError: `max_rows` is below 1.
    """
    if max_rows < 1:
        raise ValueError(f"batches of {max_rows} rows, expected at least 1")
    order = _longest_first(lengths)
    for start in range(0, len(order), max_rows):
        yield order[start : start + max_rows]


def token_buckets(lengths: Sequence[int], max_tokens: int) -> Iterator[np.ndarray]:
    """Yield row numbers in batches of similar length, at most `max_tokens` each with their padding.

    A row that has more alone is a batch of its own. See `length_buckets` for the order.
    """
    order, start = _longest_first(lengths), 0
    while start < len(order):
        rows = max(1, max_tokens // max(1, lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def _longest_first(lengths: Sequence[int]) -> np.ndarray:
    return np.argsort(np.asarray(lengths), kind="stable")[::-1]
