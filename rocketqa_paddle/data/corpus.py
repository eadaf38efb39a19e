"""A corpus that is read once from its files into a store, and used again while the files are the same."""

import warnings
from array import array
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

from rocketqa_paddle.data.places import FilePath, Place, is_empty, shown
from rocketqa_paddle.data.store import FILES, TEXTS, Store, Writer
from rocketqa_paddle.data.texts import count_empty, placed_passages
from rocketqa_paddle.records import Passage
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.folders import Contents, replacing, whole
from rocketqa_paddle.runtime.storage import file_fingerprint, write_json
from rocketqa_paddle.runtime.typed import read_typed

RECORD = "corpus.json"
FORMAT_VERSION = 1
CONTENTS = Contents(
    "corpus",
    names=(RECORD, *FILES),
    markers=(RECORD,),
    is_ours=lambda values: {"format_version", "sources", "files"} <= values.keys(),
)

Read = Callable[[Container[str]], Iterator[tuple[Place, Passage]]]
"""Reads passages with their places, told which ids there were before."""


class _Source(TypedDict):
    """A file that the corpus was read from."""

    name: str
    bytes: int
    time: int
    fingerprint: str


class _Record(TypedDict):
    """What the folder of a stored corpus was made of."""

    format_version: int
    sources: list[_Source]
    files: dict[str, str]
    """The fingerprint of every file of the store."""
    empty: int
    whole: bool


class StoredCorpus:
    """A corpus in a folder, made by rank 0 if the folder does not have it, and opened by every rank.

    `read` yields the passages of the files `sources`, the corpus first. They are read again only if a file
    has changed: one of the same size and time is the same, and one of another time is if its content is. A
    corpus of which `read` leaves something out, so that `is_whole` is false after it, is read every time,
    because there is something to tell.

    Raises:
        FormatError: the corpus is empty, or an id is there twice.
        ValueError: the folder holds something that we did not write.
    """

    def __init__(
        self, folder: Path, sources: Sequence[Path], read: Read, is_whole: Callable[[], bool] = lambda: True
    ) -> None:
        self.path = sources[0]
        if distributed.is_main() and not _is_kept(folder, sources):
            with replacing(folder, CONTENTS) as new:
                record = _write(new, sources, read)
                write_json(new / RECORD, {**record, "whole": is_whole()})
        distributed.barrier()
        self._record = _read_record(folder)
        self.by_id = Store(folder)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the texts."""
        return self._record["files"][TEXTS]

    @property
    def empty(self) -> int:
        """The number of passages with neither title nor text."""
        return self._record["empty"]


def temporary(path: FilePath, titles: FilePath | None, left_out: set[str] | None = None) -> StoredCorpus:
    """Read passages into a store of this process, whose files are gone when nobody has it any more.

    A warning counts passages with neither title nor text. If `left_out` is given, they are left out instead,
    and their ids are added to it.
    """

    def read(before: Container[str]) -> Iterator[tuple[Place, Passage]]:
        for place, passage in placed_passages(path, titles, loaded=before):
            if left_out is not None and is_empty(passage):
                left_out.add(passage.id)
            else:
                yield place, passage

    with TemporaryDirectory(prefix="rocketqa-") as work:
        made = StoredCorpus(Path(work) / "corpus", [Path(file) for file in (path, titles) if file], read)
    if told := count_empty(path, len(made.by_id), made.empty):
        warnings.warn(told, stacklevel=2)
    return made


def _write(folder: Path, sources: Sequence[Path], read: Read) -> dict[str, object]:
    """Write the store of what is read, and return what is recorded of it."""
    lines, empty = array("q"), 0
    with Writer(folder) as writer:
        for place, passage in read(writer):
            writer.add(passage)
            lines.append(place.number)
            empty += is_empty(passage)
        if not lines:
            raise Place(sources[0], 1).wrong("empty file, expected one passage a line")
        twice = writer.close()
    if twice:
        before, again = (lines[row] for row in twice)
        given = f"passage id {shown(Store(folder).ids[twice[1]])} is already on line {before}"
        raise Place(sources[0], again).wrong(
            f"{given}; remove one, or add ids if the first column holds none"
        )
    made_of = [_source(path) for path in sources]
    files = {name: file_fingerprint(folder / name) for name in FILES}
    return {"format_version": FORMAT_VERSION, "sources": made_of, "files": files, "empty": empty}


def _source(path: Path) -> _Source:
    status = path.stat()
    if not path.is_file():  # a pipe, which can be read once
        return {"name": path.name, "bytes": 0, "time": 0, "fingerprint": ""}
    return {
        "name": path.name,
        "bytes": status.st_size,
        "time": status.st_mtime_ns,
        "fingerprint": file_fingerprint(path),
    }


def _read_record(folder: Path) -> _Record:
    return read_typed(whole(folder) / RECORD, _Record, f"remove {folder}, and it is made again")


def _is_kept(folder: Path, sources: Sequence[Path]) -> bool:
    """Whether the folder has what would be read from these files."""
    try:
        record = _read_record(folder)
        files = {name: file_fingerprint(whole(folder) / name) for name in FILES}
    except (OSError, ValueError):
        return False
    same = len(record["sources"]) == len(sources) and all(map(_is_same, record["sources"], sources))
    known = record["format_version"] == FORMAT_VERSION and record["files"] == files
    return same and known and record["whole"]


def _is_same(source: _Source, path: Path) -> bool:
    status = path.stat()
    if not path.is_file() or (source["name"], source["bytes"]) != (path.name, status.st_size):
        return False
    return source["time"] == status.st_mtime_ns or source["fingerprint"] == file_fingerprint(path)
