"""The passages of an index folder on disk, of which a search reads only those that it found."""

import json
import os
import weakref
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rocketqa_paddle.records import Passage
from rocketqa_paddle.runtime.folders import whole
from rocketqa_paddle.runtime.storage import file_fingerprint, save_array

TEXTS = "passages.jsonl"
"""The file of an index folder with one passage a line, in the order of the vectors."""
OFFSETS = "passages.offsets.npy"
"""The file with the place of each line: int64 `[passages + 1]`, byte offsets of the starts and of the end."""

_BLOCK = 1 << 20  # bytes that are searched for line ends at once


def write_texts(folder: str | Path, passages: Iterable[Passage]) -> dict[str, Any]:
    """Write passages and the byte offsets of their lines into an index folder; return their `texts_record`.

    A line is the JSON list `[id, title, text]`. JSON escapes line ends, so any text comes back as it was.
    """
    offsets = array("q", [0])
    with open(Path(folder) / TEXTS, "wb") as file:
        for passage in passages:
            line = json.dumps([passage.id, passage.title, passage.text], ensure_ascii=False) + "\n"
            offsets.append(offsets[-1] + file.write(line.encode()))
    save_array(Path(folder) / OFFSETS, np.frombuffer(offsets, dtype=np.int64))
    return texts_record(folder)


def texts_record(folder: str | Path) -> dict[str, Any]:
    """Return the size and the fingerprint of the texts in an index folder, by which a change is noticed."""
    path = Path(folder) / TEXTS
    return {"bytes": path.stat().st_size, "fingerprint": file_fingerprint(path)}


class PassageTexts:
    """The passages of an index folder by row: `texts[row]` reads one line of the file and nothing else.

    The file stays open, so that a search engine at work keeps its texts when a new index takes the folder's
    place. Threads may share one object. Where an older version of this package wrote no offsets, one pass
    over the bytes finds them. `ids` has the passage id of every row.

    Raises:
        FileNotFoundError: the folder has no texts.
        ValueError: the files do not fit each other or the ids. A damaged line raises it when it is read.
    """

    def __init__(self, folder: str | Path, ids: Sequence[str]) -> None:
        self._folder, self._ids = whole(folder), ids
        path = self._folder / TEXTS
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: not there; make the index with `rocketqa index`: it keeps texts"
            )
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        try:
            self._offsets = self._read_offsets()
        except ValueError as error:
            raise self._damage(f"{OFFSETS} is not an array ({error})") from error
        self._size = os.fstat(self._file.fileno()).st_size
        if self._offsets.dtype != np.int64 or self._offsets.shape[1:] or not self._offsets.size:
            raise self._damage(f"{OFFSETS} has {self._offsets.dtype} {list(self._offsets.shape)}")
        if len(self._offsets) != len(ids) + 1 or self._offsets[-1] != self._size:
            raise self._damage(
                f"{len(ids)} ids, but offsets of {len(self._offsets) - 1} passages that end at byte "
                f"{self._offsets[-1]} of {self._size}"
            )

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> Passage:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row}, expected 0 to {len(self) - 1}")
        start, end = self._offsets[row : row + 2].tolist()
        if not 0 <= start < end <= self._size:
            raise self._damage(f"row {row} of {TEXTS} is at bytes {start} to {end} of {self._size}")
        try:
            passage = Passage(*json.loads(os.pread(self._file.fileno(), end - start, start)))
        except (TypeError, ValueError) as error:
            raise self._damage(f"row {row} of {TEXTS} is not a passage ({error})") from error
        if passage.id != self._ids[row]:
            raise self._damage(f"row {row} of {TEXTS} has the id {passage.id!r}, expected {self._ids[row]!r}")
        return passage

    def _read_offsets(self) -> np.ndarray:
        """Map where lines start and the last one ends, `[lines + 1]`, or find it without parsing them."""
        path = self._folder / OFFSETS
        if path.is_file():
            return np.lib.format.open_memmap(path, mode="r")
        offsets, position = [np.zeros(1, dtype=np.int64)], 0
        while block := self._file.read(_BLOCK):
            offsets.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")) + position + 1)
            position += len(block)
        return np.concatenate(offsets)

    def _damage(self, problem: str) -> ValueError:
        return ValueError(f"{self._folder}: {problem}: the folder is damaged, build the index again")
