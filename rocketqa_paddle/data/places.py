"""Places in data files, and the rules for what may stand there.

Readers check by a `Place`. Writers check by the same `id_problem` and `text_problem`, so that what a reader
accepts can be written, and what is written can be read.
"""

import codecs
import math
import os
import re
from typing import NamedTuple

from rocketqa_paddle.records import Passage, Query

FilePath = str | os.PathLike[str]

NO_TITLE = "-"

_SHOWN = 60  # characters of a given value that an error shows
_INTEGER = re.compile(r"([+-]?[0-9]{1,9})(?:\.0*)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKS = {
    "\t": "a tab",
    "\n": "a line end",
    "\r": "a line end",
    "\ufeff": "a byte-order mark",
    "\0": "a NUL (is the file UTF-16?)",
}
_MARK = re.compile(f"[{''.join(_MARKS)}]")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class FormatError(ValueError):
    """A data file breaks its format: `path:line: what was given, what is allowed, the remedy`."""


def shown(text: str) -> str:
    """Quote a given text for an error, cut if it is long."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}… ({len(text)} characters)"


def id_problem(id: str) -> str | None:
    """Say why a text cannot be an id, if so: no file could give it back."""
    if not id:
        return "is empty; write one"
    if mark := _MARK.search(id):
        return f"has {_MARKS[mark[0]]} in it; remove that"
    if id != id.strip():
        return "has spaces around it; remove them"
    return text_problem(id)


def text_problem(text: str) -> str | None:
    """Say why no file can hold a text, if so."""
    if not text.isascii() and (half := _SURROGATE.search(text)):
        return f"has {half[0]!r} in it, half of a surrogate pair, which UTF-8 cannot hold; remove it"
    return None


def is_empty(record: Query | Passage) -> bool:
    """Whether a query has no text, or a passage neither title nor text."""
    return not record.text.strip() and getattr(record, "title", "").strip() in ("", NO_TITLE)


class Place(NamedTuple):
    """A line of a file, or an object of a JSON list. Its methods check what was read there."""

    path: FilePath
    number: int
    unit: str | None = None
    """What `number` counts (from 1), if not lines. The error then reads `path: object 17: ...`."""

    def __str__(self) -> str:
        number = f" {self.unit} {self.number}" if self.unit else f"{self.number}"
        return f"{os.fspath(self.path)}:{number}"

    def wrong(self, problem: str) -> FormatError:
        """Return the error to raise for a problem at this place."""
        return FormatError(f"{self}: {problem}")

    def not_utf8(self, error: UnicodeDecodeError) -> FormatError:
        """Return the error to raise for text at this place that is not UTF-8."""
        encoding = "UTF-16" if error.object.startswith(_UTF16) else "GB18030"
        byte = error.object[error.start]
        advice = f"convert the file, e.g. iconv -f {encoding} -t UTF-8"
        return self.wrong(f"byte 0x{byte:02x} is not UTF-8; {advice}")

    def id(self, noun: str, id: str) -> str:
        """Check an id."""
        if id.isalnum():  # as most are
            return id
        if problem := id_problem(id):
            raise self.wrong(f"{noun} id {shown(id)} {problem}")
        return id

    def query(self, id: str, text: str, may_be_empty: bool = False) -> Query:
        """Make a query, which must have a text."""
        query = Query(self.id("query", id), text)
        self._check(f"query {shown(id)}", text)
        if not may_be_empty and is_empty(query):
            raise self.wrong(f"query {shown(id)} has no text; write one or remove the query")
        return query

    def passage(self, id: str, title: str, text: str, may_be_empty: bool = False) -> Passage:
        """Make a passage, which must have a title or a text."""
        passage = Passage(self.id("passage", id), title, text)
        self._check(f"passage {shown(id)}", title, text)
        if not may_be_empty and is_empty(passage):
            problem = "has neither title nor text; write one or remove the passage"
            raise self.wrong(f"passage {shown(id)} {problem}")
        return passage

    def _check(self, name: str, *texts: str) -> None:
        if problem := next(filter(None, map(text_problem, texts)), None):
            raise self.wrong(f"{name} {problem}")

    def integer(self, noun: str, text: str) -> int:
        """Read an integer. It may be written as `1.0`, but it must not have a fraction."""
        if text.isdecimal() and text.isascii() and len(text) < 10:
            return int(text)
        if match := _INTEGER.fullmatch(text.strip()):
            return int(match[1])
        raise self.wrong(f"{noun} {shown(text)}, expected an integer")

    def real(self, noun: str, text: str) -> float:
        """Read a finite number."""
        try:
            value = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if math.isfinite(value):
            return value
        raise self.wrong(f"{noun} {shown(text)}, expected a finite number")

    def label(self, text: str) -> int:
        """Read a label, which is 0 or 1."""
        if text not in ("0", "1"):
            raise self.wrong(f"label {shown(text)}, expected 0 or 1 in the last column")
        return int(text)

    def string(self, item: dict, *names: str, default: str | None = None) -> str:
        """Return the first of the named values that a JSON object has; an integer (an id) becomes text."""
        for name in names:
            value = item.get(name)
            if isinstance(value, str):
                return value
            if isinstance(value, int) and not isinstance(value, bool):
                return str(value)
            if value is not None:
                raise self.wrong(f'"{name}" is a {type(value).__name__}, expected a string')
        if default is None:
            problem = f'"{names[0]}" is null' if names[0] in item else f'no "{names[0]}"'
            raise self.wrong(f"{problem} in an object of {shown(', '.join(item) or 'nothing')}")
        return default

    def objects(self, item: dict, name: str, required: bool = False) -> list[dict]:
        """Return the named value of a JSON object, a list of objects; it is empty if there is none."""
        value = item.get(name, None if required else [])
        if not isinstance(value, list) or not all(isinstance(element, dict) for element in value):
            given = type(value).__name__ if name in item else "missing"
            raise self.wrong(f'"{name}" is {given}, expected a list of objects')
        return value
