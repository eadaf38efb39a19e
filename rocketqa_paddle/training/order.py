"""The order of examples: which of them meet in the batch of a step."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Sampler = Callable[[int], Sequence[int]]
"""The number of a step, from 0 → the places of the examples that make up the batch of all ranks."""

BatchSampler = Callable[[Sequence[Any], int, Sequence[Any]], Sampler]
"""The examples, the size of the batch of all ranks, and the values of a seed → a `Sampler`.

A sampler must depend on these and on the step alone, so that a training that goes on after a stop sees the
batches that it would have seen, and all ranks agree. For example, TAS-B (Hofstätter et al., SIGIR 2021) fills
a batch with queries of one topic.
"""


def seed_of(*parts: Any) -> int:
    """Make a 31-bit seed of printable values. It is the same in every process."""
    return zlib.crc32(repr(parts).encode()) & 0x7FFFFFFF


def shuffled(examples: Sequence[Any], batch_size: int, seed: Sequence[Any]) -> Sampler:
    """Go over the examples again and again, each time in another order. No batch has an example twice."""
    return _Shuffled(len(examples), batch_size, seed)


class _Shuffled:
    def __init__(self, count: int, batch_size: int, seed: Sequence[Any]) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._epoch, self._permutation = -1, None

    def __call__(self, step: int) -> list[int]:
        rows = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [int(self._order(row // self.count)[row % self.count]) for row in rows]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch < self._epoch:
            self._epoch, self._permutation = -1, None
        while self._epoch < epoch:
            self._epoch += 1
            self._permutation = self._shuffle(self._epoch, before=self._permutation)
        return self._permutation

    def _shuffle(self, epoch: int, before: np.ndarray | None) -> np.ndarray:
        """Return the order of a pass. Its first rows complete the last batch of the pass before."""
        count, batch = self.count, self.batch_size
        order = np.random.default_rng(seed_of(*self.seed, epoch)).permutation(count)
        begun = epoch * count % batch
        if before is not None and begun and batch <= count:
            rest, taken = batch - begun, before[-begun:]
            twice = np.flatnonzero(np.isin(order[:rest], taken))
            later = rest + np.flatnonzero(~np.isin(order[rest:], taken))[: len(twice)]
            order[twice], order[later] = order[later], order[twice]
        return order
