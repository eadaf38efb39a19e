"""What every reader and writer of data files shares: lines and columns, JSON, checked values, rows.

Readers are generators that hold one line or one JSON object at a time, so a mistake on line 17 is raised when
line 17 is reached. They all follow these rules:

- Text is UTF-8. A byte-order mark, CRLF line ends, gzip compression and empty lines at the very end are
  accepted. An empty line anywhere else is an error.
- TSV has no quoting: a tab always ends a column. White space is never trimmed, and an id with spaces around
  it is an error.
- Titles are kept as they are. The RocketQA files write `-` for a missing title, and the reference feeds that
  dash to its networks, so its models expect it
  (research/RocketQA_NAACL2021/data_process/construct_marco_train_de.py).
- A query needs a text, and a passage needs a title or a text.

A file that breaks its format raises `FormatError`; a missing file raises `FileNotFoundError`. A writer raises
`ValueError` for a text that the format could not give back exactly. It replaces an existing file only when
the new one is complete.
"""

import codecs
import gzip
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import ijson

from rocketqa_paddle.data.places import FilePath, FormatError, Place, shown
from rocketqa_paddle.runtime import storage

Columns = tuple[str, ...]
Row = tuple[Place, str]
"""A line without its end, and its place."""

_new_place = partial(tuple.__new__, Place)
_DESCRIPTOR = re.compile(r"/dev/(stdout|stderr)|(?:/dev|/proc/self)/fd/(\d{1,9})")
_LONGEST = 64 << 20  # bytes of a line in a compressed file
_MOST_EMPTY = 1000  # empty lines at the end of a file
_BLOCK = 1 << 16  # bytes of a JSON list that are read at once


def missing(path: Path) -> FileNotFoundError:
    """Return the error to raise for a file that does not exist; it lists files with similar names."""
    if path.is_dir():
        return FileNotFoundError(f"{path}: this is a folder, expected a file")
    if not path.parent.is_dir():
        return FileNotFoundError(f"{path}: no such file, and no folder {path.parent}")
    return FileNotFoundError(f"{path}: no such file; the folder has {names_near(path)}")


def names_near(path: Path) -> str:
    """List names in a file's folder that are like the file's own, or else the first few."""
    names = sorted(entry.name for entry in path.parent.iterdir())
    near = get_close_matches(path.name, names, n=5, cutoff=0.4) or names[:5]
    return ", ".join(near) or "no files"


# Lines and columns --------------------------------------------------------------------------------


@contextmanager
def open_bytes(path: FilePath) -> Iterator[BinaryIO]:
    """Open a file for reading and decompress it if it is gzipped, whatever its name."""
    path = Path(path)
    if path.is_dir() or not path.exists():
        raise missing(path)
    with path.open("rb") as raw:
        compressed = raw.peek(2)[:2] == b"\x1f\x8b"  # no UTF-8 text begins with these
        try:
            yield gzip.GzipFile(fileobj=raw) if compressed else raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FormatError(f"{path}: broken gzip file ({error}); fetch or compress it again") from error


def lines(path: FilePath) -> Iterator[Row]:
    """Yield the lines of a text file, without line ends, and the place of each."""
    empty = None
    with open_bytes(path) as stream:
        packed = isinstance(stream, gzip.GzipFile)  # a small one may hold lines without end
        for number, raw in enumerate(iter(partial(stream.readline, _LONGEST), b"") if packed else stream, 1):
            place = _new_place((path, number, None))  # in half the time of Place(path, number)
            if packed and len(raw) == _LONGEST:
                raise place.wrong(f"a line of more than {_LONGEST >> 20} MB; is this a file of texts?")
            try:
                line = raw.decode() if number > 1 else raw.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise place.not_utf8(error) from error
            if line.isspace() or not line:
                empty = empty or place
                if number - empty.number >= _MOST_EMPTY:
                    raise empty.wrong(f"more than {_MOST_EMPTY} empty lines; remove them")
            elif empty:
                raise empty.wrong("empty line before the end of the file; remove it")
            elif line[0] == "\ufeff":
                raise place.wrong("a byte-order mark begins the line, as where files are joined; remove it")
            else:
                yield place, line.removesuffix("\n").removesuffix("\r")


def peek(rows: Iterator[Row]) -> tuple[str, Iterator[Row]]:
    """Return the first of some lines, empty if there is none, and all of them again."""
    first = list(itertools.islice(rows, 1))
    return (first[0][1] if first else ""), itertools.chain(first, rows)


def table(path: FilePath, *layouts: Columns, **options: Any) -> Iterator[tuple[Place, list[str]]]:
    """Yield the columns of each line of a file and the line's place; see `columns`."""
    return columns(lines(path), *layouts, **options)


def columns(
    rows: Iterable[Row],
    *layouts: Columns,
    by_space: bool = False,
    remedy: str = "put one tab between columns, and none inside a text",
) -> Iterator[tuple[Place, list[str]]]:
    """Yield the columns of each of some lines and the line's place.

    The lines have the columns of one of the `layouts`; the first line decides which. With `by_space`, white
    space separates the columns of a line without a tab. `remedy` is the advice on a wrong number of columns.
    """
    allowed = {len(columns): columns for columns in layouts}
    for place, line in rows:
        fields = line.split() if by_space and "\t" not in line else line.split("\t")
        count = len(fields)
        if count not in allowed:
            expected = " or ".join(f"{number} ({', '.join(names)})" for number, names in allowed.items())
            advice = "a lone carriage return is no line end: use tr '\\r' '\\n'" if "\r" in line else remedy
            raise place.wrong(f"{count} column{'s' * (count != 1)}, expected {expected}; {advice}")
        if len(allowed) > 1:
            allowed = {count: allowed[count]}
        yield place, fields


def plain(name: str) -> str:
    """Return the name of a column in a header as it is compared with others: `Query-ID` as `queryid`."""
    return re.sub("[-_ ]", "", name.lower())


# JSON ---------------------------------------------------------------------------------------------


def json_lines(path: FilePath) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the JSON object on each line of a file and its place."""
    return json_objects(lines(path))


def json_objects(rows: Iterable[Row]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the JSON object on each of some lines and its place."""
    for place, line in rows:
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise place.wrong(f"not JSON ({error}); expected one object a line") from error
        if not isinstance(item, dict):
            raise place.wrong(f"a JSON {type(item).__name__}, expected one object a line")
        yield place, item


def json_list(path: FilePath) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the objects of a JSON list and their places; only one object is in memory at a time."""
    with open_bytes(path) as stream:
        chunks = filter(None, _utf8_chunks(stream))  # an empty chunk would stand for the end of the file
        events = ijson.basic_parse(ijson.from_iter(chunks), use_float=True)
        with _json_errors(Place(path, 1, "object")):
            first, _ = next(events)
        if first != "start_array":
            raise FormatError(f"{path}: not a JSON list, expected a list of objects; .jsonl has one a line")
        for number in itertools.count(1):
            place = Place(path, number, "object")
            with _json_errors(place):
                item = _next_value(events)
            if item is _END:
                break
            if not isinstance(item, dict):
                raise place.wrong(f"a JSON {type(item).__name__}, expected a list of objects")
            yield place, item
        with _json_errors(Place(path, number - 1, "text after object")):
            next(events, None)


def _utf8_chunks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the bytes of a file without the byte-order mark; raise after the last one that is UTF-8."""
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    for data in itertools.chain(iter(lambda: stream.read(_BLOCK), b""), [b""]):
        try:
            yield decode(data, final=not data).encode()
        except UnicodeDecodeError as error:
            yield error.object[: error.start]
            raise


@contextmanager
def _json_errors(place: Place) -> Iterator[None]:
    """Turn the errors of the JSON parser into a `FormatError` at a place."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise place.not_utf8(error) from error
    except ijson.JSONError as error:
        text = error.args[0]  # bytes where the parser's excerpt begins or ends inside a character
        text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        problem, *excerpt = (line.strip() for line in text.splitlines()[:2])
        near = f", near {shown(excerpt[0])}" if any(excerpt) else ""
        raise place.wrong(f"not JSON ({problem.removesuffix('.')}{near})") from error
    except (ValueError, RecursionError) as error:
        raise place.wrong(f"not JSON ({error})") from error


_END = object()


def _next_value(events: Iterator[tuple[str, Any]]) -> Any:
    """Build the next value of a list from the parser's events; return `_END` where the list ends."""
    builder, depth = ijson.ObjectBuilder(), 0
    for event, value in events:
        depth += event.startswith("start_") - event.startswith("end_")
        if depth < 0:
            return _END
        builder.event(event, value)
        if not depth:
            return builder.value
    raise AssertionError("the parser accepted a list without an end")


# Writing ------------------------------------------------------------------------------------------


def write_lines(path: FilePath, lines: Iterable[tuple[str, str]]) -> None:
    """Write lines, each given after its name for errors; an older file is replaced when all are written.

    The file is gzipped if its name ends in `.gz`. Missing folders are made. What is no file, such as
    `/dev/stdout` or a named pipe, gets the lines as they come.
    """
    with _written(path) as stream:
        for name, line in lines:
            try:
                stream.write(f"{line}\n")
            except UnicodeEncodeError as error:
                raise ValueError(f"{path}: {name} has text that UTF-8 cannot hold ({error})") from error


@contextmanager
def _written(path: FilePath) -> Iterator[TextIO]:
    text = {"encoding": "utf-8", "newline": "\n"}
    if is_stream(path):
        # An output of this process may be redirected to a file, which to open anew would be to overwrite.
        number = _DESCRIPTOR.fullmatch(os.fspath(path))
        with open(os.dup(_number(number)) if number else path, "w", **text) as stream:
            yield stream
        return
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise ValueError(f"{path}: a folder, expected the name of a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with storage.atomic(path) as new, opener(new, "wt", **text) as stream:
        yield stream


def is_stream(path: FilePath) -> bool:
    """Whether a name stands for an output of this process, a device or a named pipe."""
    found = Path(path)
    opened = bool(_DESCRIPTOR.fullmatch(os.fspath(path)))
    return opened or (found.exists() and not (found.is_file() or found.is_dir()))


def is_standard_output(path: FilePath) -> bool:
    """Whether a name stands for the standard output of this process."""
    name = _DESCRIPTOR.fullmatch(os.fspath(path))
    return bool(name) and _number(name) == 1


def refuse_stream(path: FilePath, expected: str) -> None:
    """Raise ValueError for a device or a pipe where several files are to be written."""
    if is_stream(path):
        raise ValueError(f"{path}: a device or a pipe, expected the name of {expected} to write")


def _number(name: re.Match[str]) -> int:
    return {"stdout": 1, "stderr": 2}.get(name[1]) or int(name[2])
