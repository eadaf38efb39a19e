"""The vectors of a corpus in parts, which are mapped from files, and the folder where ranks make them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.folders import Contents, remove
from rocketqa_paddle.runtime.storage import (
    atomic,
    file_fingerprint,
    locked,
    map_array,
    read_json,
    save_array,
    write_json,
    write_text,
)

DType = Literal["float32", "float16"]
SHARD_ROWS = 16384
"""Vectors of a shard at most: what a stop may lose, and what is tokenised at once."""
RECORD = "shards.json"
CONTENTS = Contents(
    "folder of vectors",
    names=(RECORD, "*.npy", "*.sum"),
    markers=(RECORD,),
    is_ours=lambda values: {"model", "corpus", "passages", "rows"} <= values.keys(),
)


class Vectors:
    """Vectors by row: `[rows, hidden]` in parts, float32 or float16, one after the other."""

    def __init__(self, parts: Sequence[np.ndarray], owner: object = None) -> None:
        self.parts, self._owner = parts, owner  # which frees the memory of the parts when it goes
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self.parts[0].shape[1]

    def blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """All vectors in blocks of at most so many rows: the first row, and float32 `[rows, hidden]`."""
        for start, part in zip(self._starts.tolist(), self.parts, strict=False):
            for first in range(0, len(part), rows):
                block = part[first : first + rows]
                yield start + first, np.ascontiguousarray(block, dtype=np.float32)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some rows, an array of any shape: float32 `[..., hidden]`."""
        out = np.empty((rows.size, self.dimension), np.float32)
        flat = rows.reshape(-1)
        part_of = np.searchsorted(self._starts, flat, side="right") - 1
        for number in np.unique(part_of).tolist():
            here = part_of == number
            out[here] = self.parts[number][flat[here] - self._starts[number]]
        return out.reshape(*rows.shape, self.dimension)

    def slice(self, first: int, count: int) -> Vectors:
        """The vectors of `count` rows from `first` on."""
        parts = []
        for start, part in zip(self._starts.tolist(), self.parts, strict=False):
            piece = part[max(0, first - start) : max(0, first + count - start)]
            parts += [piece] if len(piece) else []
        return Vectors(parts)

    def chosen(self, rows: np.ndarray) -> Vectors:
        """The vectors of some rows in their order, still mapped; neighbours stay in one part."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        return Vectors([part for run in runs for part in self.slice(int(run[0]), len(run)).parts])


class Shards:
    """A folder in which ranks make the vectors of a corpus, shard by shard, so that a stop loses little.

    `made_of` names what decides the vectors, such as the digest of the model. What the folder has of other
    values is removed. Any number of ranks may go on; the rows of a shard stay those that it began with.

    Raises:
        ValueError: the folder holds something that we did not write, or another process is at work in it.
    """

    def __init__(self, folder: Path, passages: int, dtype: DType, **made_of: str) -> None:
        self.folder, self._dtype = folder, dtype
        if distributed.is_main():
            self._begin({"passages": passages, "dtype": dtype, **made_of})
        distributed.barrier()
        self.passages, self.rows = passages, read_json(folder / RECORD)["rows"]

    def _begin(self, made_of: Mapping[str, Any]) -> None:
        record = self.folder / RECORD
        kept = read_json(record) if CONTENTS.holds(self.folder) else {}
        if {name: value for name, value in kept.items() if name != "rows"} != made_of:
            remove(self.folder, CONTENTS)
            with locked(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                rows = -(-made_of["passages"] // distributed.world_size())
                write_json(record, {**made_of, "rows": min(SHARD_ROWS, rows)})

    def __len__(self) -> int:
        return -(-self.passages // self.rows)

    def rows_of(self, number: int) -> slice:
        """The rows of a shard."""
        return slice(number * self.rows, min((number + 1) * self.rows, self.passages))

    def missing(self) -> list[int]:
        """The shards that are not there as they were written."""
        return [number for number in range(len(self)) if not self._is_whole(number)]

    def _is_whole(self, number: int) -> bool:
        path = self._path(number)
        try:
            return path.with_suffix(".sum").read_text() == file_fingerprint(path)
        except (OSError, ValueError):
            return False

    def write(self, number: int, vectors: np.ndarray) -> None:
        """Write a shard: `[rows, hidden]`."""
        with atomic(path := self._path(number)) as new:
            save_array(new, vectors.astype(self._dtype))
        write_text(path.with_suffix(".sum"), file_fingerprint(path))

    def vectors(self) -> Vectors:
        """All vectors, mapped."""
        return Vectors([map_array(self._path(number)) for number in range(len(self))])

    def remove(self) -> None:
        """Delete the folder, when every rank is done with it."""
        distributed.barrier()
        if distributed.is_main():
            remove(self.folder, CONTENTS)
        distributed.barrier()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npy"
