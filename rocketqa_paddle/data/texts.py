"""Files of queries and of passages: lines of `id TAB text`, or BEIR's JSON lines."""

import os
import warnings
from array import array
from collections.abc import Container, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Generic, TypeVar

from rocketqa_paddle.data.places import FilePath, Place, is_empty, shown
from rocketqa_paddle.data.tables import Row, columns, json_objects, lines, peek, plain
from rocketqa_paddle.records import Passage, Query

Record = TypeVar("Record", Query, Passage)
Placed = Iterator[tuple[Place, Record]]

ID_NAMES = {
    "id",
    "qid",
    "pid",
    "queryid",
    "passageid",
    "docid",
    "documentid",
    "corpusid",
    "paraid",
    "topicid",
}
"""What a header calls a column of ids, as `plain` gives it."""
_TEXT_NAMES = {"text", "query", "question", "title", "passage", "paragraph", "document", "contents", "body"}
_NO_IDS = (
    "put one tab between columns, and none inside a text; titles are in a file of their own (para.title.txt, "
    "--titles); the reference's inference files of 4 columns (*.format, para_8part/*) have no ids: give the "
    "files they were made from"
)


def read_queries(path: FilePath) -> Iterator[Query]:
    """Read queries, one a line: `id TAB text` (`<split>.query.txt` of RocketQA), or BEIR's JSON."""
    return (query for _, query in placed_queries(path))


def read_passages(path: FilePath, titles: FilePath | None = None) -> Iterator[Passage]:
    """Read passages, one a line: `id TAB text` (`para.txt`), or BEIR's JSON (`corpus.jsonl`).

    `titles` has `id TAB title` lines (`para.title.txt`), one for every passage; titles of other passages are
    ignored. Both files are read side by side, so titles in the order of the passages take no memory; in
    another order, they are matched by id.
    Source: research/RocketQA_NAACL2021/data_process/utils.py.
    """
    return (passage for _, passage in placed_passages(path, titles))


def load_queries(path: FilePath) -> dict[str, Query]:
    """Load queries by id; refuse an empty file and an id on two lines."""
    return Records(path, "query").fill(placed_queries(path)).by_id


def load_passages(
    path: FilePath, titles: FilePath | None = None, only: Container[str] | None = None
) -> dict[str, Passage]:
    """Load passages by id, maybe only some; refuse an empty file and an id on two lines of either file.

    A warning counts BEIR's passages with neither title nor text.
    """
    passages = Records(path, "passage")
    passages.fill(placed_passages(path, titles, loaded=passages.by_id), only)
    if told := count_empty(path, len(passages.by_id), passages.empty):
        warnings.warn(told, stacklevel=2)
    return passages.by_id


def count_empty(path: FilePath, passages: int, empty: int) -> str | None:
    """Say how many of so many passages have neither title nor text, if there are any."""
    told = f"{os.fspath(path)}: {empty} of {passages} passages have neither title nor text"
    return told if empty else None


class Records(Generic[Record]):
    """The records of a file by id, and on which line each of them is."""

    def __init__(self, path: FilePath, noun: str) -> None:
        self.path, self.noun = Path(path), noun
        self.by_id: dict[str, Record] = {}
        self.fingerprint = ""
        self._lines = array("q")

    def fill(self, placed: Placed, only: Container[str] | None = None) -> "Records[Record]":
        """Take the records of the file, maybe only some; refuse a file without any, and an id twice."""
        place = None
        for place, record in placed:
            if only is not None and record.id not in only:
                continue
            if record.id in self.by_id:
                before = next(self.places([record.id]))[1].number
                given = f"{self.noun} id {shown(record.id)} is already on line {before}"
                raise place.wrong(f"{given}; remove one, or add ids if the first column holds none")
            self.by_id[record.id] = record
            self._lines.append(place.number)
        if place is None:
            raise Place(self.path, 1).wrong(f"empty file, expected one {self.noun} a line")
        return self

    @property
    def empty(self) -> int:
        """The number of records without a text, or a title."""
        return sum(map(is_empty, self.by_id.values()))

    def places(self, ids: Iterable[str]) -> Iterator[tuple[str, Place]]:
        """Say where the records of some ids are."""
        numbers: dict[str, int] = {}
        for id in ids:
            numbers = numbers or dict(zip(self.by_id, self._lines, strict=True))
            yield id, Place(self.path, numbers[id])


# Records and their places -------------------------------------------------------------------------


def placed_queries(path: FilePath, may_be_empty: bool = False) -> Placed[Query]:
    """Yield the queries of a file and their places; see `read_queries`."""
    first, rows = peek(lines(path))
    if _is_json(path, first):
        for place, item in json_objects(rows):
            text = place.string(item, "text", default="" if "text" in item else None)
            yield place, place.query(place.string(item, "_id"), text, may_be_empty)
        return
    for place, (id, text) in _table(rows, "query", "text"):
        yield place, place.query(id, text, may_be_empty)


def placed_passages(
    path: FilePath,
    titles: FilePath | None = None,
    may_be_empty: bool = False,
    loaded: Container[str] = (),
) -> Placed[Passage]:
    """Yield the passages of a file and their places; see `read_passages`.

    Those of BEIR may be empty: some datasets (FiQA) have such passages, and published scores include them.
    An id of `loaded`, where the caller collects the passages, must not have another title.
    """
    first, rows = peek(lines(path))
    if _is_json(path, first):
        if titles is not None:
            raise Place(path, 1).wrong(f"JSON lines have their own titles: leave out {os.fspath(titles)}")
        yield from _beir_passages(rows)
        return
    table = _table(rows, "passage", "text")
    if titles is None:
        yield from ((place, place.passage(id, "", text, may_be_empty)) for place, (id, text) in table)
        return
    title_rows = _table(lines(titles), "passage", "title")
    waiting: dict[str, tuple[Place, str]] = {}  # titles that were read before their passages
    for place, (id, text) in table:
        while id not in waiting and (row := next(title_rows, None)):
            title_place, (title_id, title) = row
            if title_id in waiting:
                raise title_place.wrong(f"passage id {shown(title_id)} has a title already; remove one")
            waiting[title_id] = title_place, title
        if id not in waiting:
            raise place.wrong(
                f"passage id {shown(id)} has no line in {os.fspath(titles)}, or appears here twice; "
                f"give each passage one line in both files (- for no title)"
            )
        yield place, place.passage(id, waiting.pop(id)[1], text, may_be_empty)
    others = chain(((id, place) for id, (place, _) in waiting.items()), ((r[0], p) for p, r in title_rows))
    if again := next(((id, place) for id, place in others if id in loaded), None):
        raise again[1].wrong(f"passage id {shown(again[0])} has a title already; remove one")


def _beir_passages(rows: Iterable[Row]) -> Placed[Passage]:
    for place, item in json_objects(rows):
        id, title = place.string(item, "_id"), place.string(item, "title", default="")
        text = place.string(item, "text", default="" if "text" in item else None)
        yield place, place.passage(id, title, text, may_be_empty=True)


def _is_json(path: FilePath, first: str) -> bool:
    """Whether a file holds JSON lines, by its name or its first line."""
    ending = Path(os.fspath(path).removesuffix(".gz")).suffix
    return ending == ".jsonl" or (first.startswith("{") and "\t" not in first)


def _table(rows: Iterable[Row], noun: str, column: str) -> Iterator[tuple[Place, list[str]]]:
    """Yield ids and texts and their places, without a header."""
    for place, fields in columns(rows, ("id", column), remedy=_NO_IDS):
        id, text = fields
        if place.number == 1 and plain(id) in ID_NAMES and plain(text) in _TEXT_NAMES:
            continue
        if len(place.id(noun, id).split()) > 1:
            raise place.wrong(
                f"{noun} id {shown(id)} has spaces in it, as a title has; expected lines of id TAB text, and "
                "titles in a file of their own (para.title.txt, --titles), of id TAB title"
            )
        yield place, fields
