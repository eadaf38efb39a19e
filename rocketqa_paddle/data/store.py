"""A corpus on disk: passages by row and by id, of which a process reads only those that it asks for.

A store is some files of a folder, which an index folder has as well:

- `passages.jsonl`: one passage a line, the JSON list `[id, title, text]`; JSON escapes line ends
- `passages.offsets.npy`: where each line starts and the last one ends, int64 `[passages + 1]`
- `ids.txt` and `ids.offsets.npy`: the same for the ids alone
- `ids.hashes.npy` and `ids.rows.npy`: the hashes of all ids in order, uint64, and the row of each, int64
- `contents.npy`: what each passage says (`records.Content`), uint64 `[passages, 2]`

The arrays and the ids are mapped, so processes share them and the system may drop them. A process that only
reads has no memory of its own that grows with the corpus; one that writes takes 48 bytes a passage.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from rocketqa_paddle.records import Content, Passage, Passages, digest
from rocketqa_paddle.runtime.folders import whole
from rocketqa_paddle.runtime.storage import file_fingerprint, fingerprint, map_array, save_array

TEXTS, OFFSETS = "passages.jsonl", "passages.offsets.npy"
IDS, ID_OFFSETS = "ids.txt", "ids.offsets.npy"
HASHES, ROWS, CONTENTS = "ids.hashes.npy", "ids.rows.npy", "contents.npy"
FILES = (TEXTS, OFFSETS, IDS, ID_OFFSETS, HASHES, ROWS, CONTENTS)

T = TypeVar("T")
_BLOCK = 1 << 20  # bytes that are searched for line ends at once


class Store(Mapping[str, Passage]):
    """The passages of a folder by id, in the order of the corpus. Threads may share one.

    The files stay open, so that whoever works with them is not disturbed when others take their place.

    Raises:
        FileNotFoundError: a file of the store is missing.
        ValueError: the files do not fit each other. A damaged line raises it when it is read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = whole(folder)
        self.ids = Ids(self.folder)
        self.rows = PassageTexts(self.folder, self.ids)
        arrays = ((HASHES, 1), (ROWS, 1), (CONTENTS, 2))
        self._hashes, self._rows, contents = (_mapped(self.folder, n, w * len(self.ids)) for n, w in arrays)
        self._contents = contents.reshape(-1, 2)

    def row_of(self, id: str) -> int:
        """Return the row of a passage; raise KeyError if there is none of this id."""
        if isinstance(id, str):
            wanted = np.uint64(digest(id))
            place = int(self._hashes.searchsorted(wanted))
            while place < len(self._hashes) and self._hashes[place] == wanted:
                if self.ids[row := int(self._rows[place])] == id:
                    return row
                place += 1
        raise KeyError(id)

    def __getitem__(self, id: str) -> Passage:
        return self.rows[self.row_of(id)]

    def content_of(self, id: str) -> Content:
        """What a passage says; nothing of its text is read."""
        return Content(*self._contents[self.row_of(id)].tolist())

    def __contains__(self, id: object) -> bool:
        try:
            self.row_of(id)
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def values(self) -> Sequence[Passage]:
        """The passages by row."""
        return self.rows

    def items(self) -> Iterator[tuple[str, Passage]]:
        """Every id with its passage."""
        return zip(self.ids, self.rows, strict=True)

    def copy_to(self, folder: Path) -> None:
        """Copy the files into another folder."""
        for name in FILES:
            shutil.copyfile(self.folder / name, folder / name)


class Writer:
    """Writes a store into an existing folder, one passage after the other; `close` ends it.

    As a context manager, it lets go of its files, whatever happens.

    An id that was written before is found in the end: `close` returns the rows of the first such pair.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._texts, self._ids = open(folder / TEXTS, "wb"), open(folder / IDS, "wb")  # noqa: SIM115
        self._offsets, self._id_offsets, self._hashes = array("q", [0]), array("q", [0]), array("Q")
        self._contents, self._sorted = array("Q"), np.zeros(0, np.uint64)
        self._state = hashlib.sha256()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._texts.close()
        self._ids.close()

    def add(self, passage: Passage) -> None:
        """Write a passage. Raise ValueError if its id has a line end."""
        if "\n" in passage.id or "\r" in passage.id:
            raise ValueError(f"passage id {passage.id!r} has a line end in it, which an index cannot keep")
        line, id = _line(passage), f"{passage.id}\n".encode()
        self._state.update(line)
        self._offsets.append(self._offsets[-1] + self._texts.write(line))
        self._id_offsets.append(self._id_offsets[-1] + self._ids.write(id))
        self._hashes.append(digest(passage.id))
        self._contents.extend(Content.of(passage))

    def __contains__(self, id: str) -> bool:
        """Whether an id was written, as far as its hash tells."""
        if len(self._sorted) != len(self._hashes):
            self._sorted = np.sort(np.frombuffer(self._hashes, np.uint64))
        place = np.searchsorted(self._sorted, wanted := digest(id))
        return bool(place < len(self._sorted) and self._sorted[place] == wanted)

    def close(self) -> tuple[int, int] | None:
        """Write the arrays. Return the rows of an id that is there twice, the second as early as can be."""
        self.__exit__()
        hashes = np.frombuffer(self._hashes, np.uint64)
        rows = np.argsort(hashes, kind="stable")
        arrays = {
            OFFSETS: np.frombuffer(self._offsets, np.int64),
            ID_OFFSETS: np.frombuffer(self._id_offsets, np.int64),
            HASHES: hashes[rows],
            ROWS: rows.astype(np.int64),
            CONTENTS: np.frombuffer(self._contents, np.uint64),
        }
        for name, values in arrays.items():
            save_array(self._folder / name, values)
        same = np.flatnonzero(arrays[HASHES][1:] == arrays[HASHES][:-1])
        if not len(same):
            return None
        ids = Ids(self._folder)
        pairs = [(int(rows[n]), int(rows[n + 1])) for n in same.tolist()]
        return min((p for p in pairs if ids[p[0]] == ids[p[1]]), key=lambda p: p[1], default=None)

    @property
    def record(self) -> dict[str, Any]:
        """The size and the fingerprint of the texts, by which a change is noticed; see `texts_record`."""
        return {"bytes": self._offsets[-1], "fingerprint": self._state.hexdigest()[:16]}


def write_store(folder: str | Path, passages: Passages) -> dict[str, Any]:
    """Write passages into an existing folder, or copy the files of their store; return `texts_record`."""
    folder = Path(folder)
    if isinstance(passages, Store):
        passages.copy_to(folder)
        return texts_record(folder)
    with Writer(folder) as writer:
        for passage in passages.values():
            writer.add(passage)
        writer.close()
    return writer.record


def texts_record(folder: str | Path) -> dict[str, Any]:
    """Return the size and the fingerprint of the texts in a folder, by which a change is noticed."""
    path = Path(folder) / TEXTS
    return {"bytes": path.stat().st_size, "fingerprint": file_fingerprint(path)}


def texts_fingerprint(passages: Passages) -> str:
    """Return the fingerprint that the texts of these passages have in a store."""
    return fingerprint(map(_line, passages.values()))


def rows_of(passages: Passages) -> Sequence[Passage]:
    """Return the passages by row."""
    return passages.rows if isinstance(passages, Store) else list(passages.values())


def ids_of(passages: Passages) -> Sequence[str]:
    """Return the ids of passages by row."""
    return passages.ids if isinstance(passages, Store) else list(passages)


def content_of(passages: Passages, id: str) -> Content:
    """Return what the passage of an id says."""
    return passages.content_of(id) if isinstance(passages, Store) else Content.of(passages[id])


def some(passages: Passages, ids: Sequence[str]) -> Sequence[Passage]:
    """Return the passages of some ids. Those of a store are read when they are asked for."""
    if isinstance(passages, Store):
        return _Some(passages.rows, array("q", map(passages.row_of, ids)))
    return tuple(passages[id] for id in ids)


class _Some(Sequence[Passage]):
    """Some passages of a store, of which only the rows are in memory."""

    __slots__ = ("_numbers", "_rows")

    def __init__(self, rows: PassageTexts, numbers: array) -> None:
        self._rows, self._numbers = rows, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Passage: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Passage]: ...
    def __getitem__(self, place: int | slice) -> Passage | Sequence[Passage]:
        if isinstance(place, slice):
            return _Some(self._rows, self._numbers[place])
        return self._rows[self._numbers[place]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None


def _line(passage: Passage) -> bytes:
    return (json.dumps([passage.id, passage.title, passage.text], ensure_ascii=False) + "\n").encode()


# The files ----------------------------------------------------------------------------------------


class _Rows(Sequence[T]):
    """What lies in a file row by row, of which `_read` reads one."""

    def _read(self, row: int) -> T:
        raise NotImplementedError

    @overload
    def __getitem__(self, row: int) -> T: ...
    @overload
    def __getitem__(self, row: slice) -> list[T]: ...
    def __getitem__(self, row: int | slice) -> T | list[T]:
        if isinstance(row, slice):
            return [self[n] for n in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(f"row {row}, expected 0 to {len(self) - 1}")
        return self._read(row)


class Ids(_Rows[str]):
    """The ids of a folder by row, mapped from `ids.txt`.

    Raises:
        FileNotFoundError: the folder has no ids.
        ValueError: the file is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = whole(folder)
        path = self._folder / IDS
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not there; make an index with `rocketqa index`")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self._offsets = _offsets(self._folder, ID_OFFSETS, IDS)
        if self._offsets[-1] != size or (size and self.bytes[size - 1] != ord("\n")):
            raise _damage(
                self._folder, f"{IDS} has {size} bytes, but its last id ends at {self._offsets[-1]}"
            )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def _read(self, row: int) -> str:
        try:
            return self.bytes[self._offsets[row] : self._offsets[row + 1] - 1].decode()
        except UnicodeDecodeError as error:
            raise _damage(self._folder, f"{IDS} is damaged ({error})") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None


class PassageTexts(_Rows[Passage]):
    """The passages of a folder by row: `texts[row]` reads one line of the file and nothing else.

    Where an older version of this package wrote no offsets, one pass over the bytes finds them. `ids` has the
    passage id of every row.

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
        self._offsets = _offsets(self._folder, OFFSETS, TEXTS)
        self._size = os.fstat(self._file.fileno()).st_size
        if len(self._offsets) != len(ids) + 1 or self._offsets[-1] != self._size:
            raise _damage(
                self._folder,
                f"{len(ids)} ids, but offsets of {len(self._offsets) - 1} passages that end at byte "
                f"{self._offsets[-1]} of {self._size}",
            )

    def __len__(self) -> int:
        return len(self._ids)

    def _read(self, row: int) -> Passage:
        start, end = self._offsets[row : row + 2].tolist()
        if not 0 <= start < end <= self._size:
            raise _damage(self._folder, f"row {row} of {TEXTS} is at bytes {start} to {end} of {self._size}")
        try:
            passage = Passage(*json.loads(os.pread(self._file.fileno(), end - start, start)))
        except (TypeError, ValueError) as error:
            raise _damage(self._folder, f"row {row} of {TEXTS} is not a passage ({error})") from error
        if passage.id != self._ids[row]:
            given = f"row {row} of {TEXTS} has the id {passage.id!r}, expected {self._ids[row]!r}"
            raise _damage(self._folder, given)
        return passage


def _offsets(folder: Path, name: str, of: str) -> np.ndarray:
    """Map where lines of a file start and the last one ends, `[lines + 1]`, or find it."""
    if (folder / name).is_file():
        return _mapped(folder, name)
    offsets, position = [np.zeros(1, dtype=np.int64)], 0
    with (folder / of).open("rb") as file:
        while block := file.read(_BLOCK):
            offsets.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")) + position + 1)
            position += len(block)
    return np.concatenate(offsets)


def _mapped(folder: Path, name: str, count: int | None = None) -> np.ndarray:
    """Map an array of a store, which has `count` numbers, or one at least.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no such array.
    """
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder / name}: not there: the folder is damaged, build it again")
    dtype = np.uint64 if name in (HASHES, CONTENTS) else np.int64
    try:
        values = map_array(folder / name)
    except (ValueError, OSError) as error:
        raise _damage(folder, f"{name} is not an array ({error})") from error
    if values.dtype != dtype or values.ndim != 1 or not (values.size or count == 0):
        raise _damage(folder, f"{name} has {values.dtype} {list(values.shape)}")
    if count is not None and len(values) != count:
        raise _damage(folder, f"{name} has {len(values)} numbers for {count} passages")
    return values


def _damage(folder: Path, problem: str) -> ValueError:
    return ValueError(f"{folder}: {problem}: the folder is damaged, build the index again")
