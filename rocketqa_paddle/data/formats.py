"""Data files in and out: queries, passages, judgements, training groups, collections and runs.

Readers are generators: they hold one line or one JSON object at a time, so a problem in line 17 is raised
when line 17 is reached. They share these rules:

- Text is UTF-8; a byte-order mark, CRLF line ends, gzip compression and empty lines at the very end are
  accepted. An empty line anywhere else is an error.
- TSV has no quoting: a tab always ends a column. No white space is trimmed, and an id with spaces around it
  is an error.
- Titles are taken as they stand. The RocketQA files write `-` where there is none, and the reference gives
  the dash to its networks, so that its models know it
  (research/RocketQA_NAACL2021/data_process/construct_marco_train_de.py).
- A query needs a text, and a passage a title or a text.

A file that breaks its format raises `FormatError`; one that is not there, `FileNotFoundError`. A writer
refuses (`ValueError`) a text that the format would not give back exactly, and replaces the file only once it
is whole.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import os
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Collection as Container
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TextIO, TypeVar

from rocketqa_paddle.records import Collection, Group, Hit, Passage, Query, Run, Split

FilePath = str | os.PathLike[str]
Columns = tuple[str, ...]
Record = TypeVar("Record", Query, Passage)

GroupLayout = Literal["list", "dual", "tevatron"]

NO_TITLE = "-"

CROSS: Columns = ("query", "title", "text", "label")
DUAL: Columns = ("query", "positive title", "positive text", "negative title", "negative text", "label")
QRELS: tuple[Columns, ...] = (
    ("query id", "passage id"),
    ("query-id", "corpus-id", "score"),
    ("query id", "0", "passage id", "relevance"),
)
RUN: tuple[Columns, ...] = (
    ("query id", "passage id", "rank", "score"),
    ("query id", "Q0", "passage id", "rank", "score", "tag"),
)


# ------------------------------------------------------------------------------------------------- errors


class FormatError(ValueError):
    """A data file breaks its format: `path:line: what was given, what is allowed, the remedy`."""


class _Place(NamedTuple):
    """A line of a file, which is where every problem is reported."""

    path: FilePath
    line: int

    def wrong(self, problem: str) -> FormatError:
        return FormatError(f"{os.fspath(self.path)}:{self.line}: {problem}")

    def not_utf8(self, error: UnicodeDecodeError) -> FormatError:
        byte = error.object[error.start]
        return self.wrong(f"byte 0x{byte:02x} is not UTF-8; convert the file, e.g. iconv -f GB18030 -t UTF-8")


def _not_there(path: Path) -> FileNotFoundError:
    if path.is_dir():
        return FileNotFoundError(f"{path}: this is a folder, expected a file")
    if not path.parent.is_dir():
        return FileNotFoundError(f"{path}: no such file, and no folder {path.parent}")
    return FileNotFoundError(f"{path}: no such file; the folder has {_names_near(path)}")


def _names_near(path: Path) -> str:
    names = sorted(entry.name for entry in path.parent.iterdir())
    near = get_close_matches(path.name, names, n=5, cutoff=0.4) or names[:5]
    return ", ".join(near) or "no files"


# ------------------------------------------------------------------------------- bytes -> lines -> columns


@contextmanager
def _open(path: FilePath) -> Iterator[BinaryIO]:
    """Open for reading. Compression is told by gzip's first two bytes, which no UTF-8 text begins with."""
    path = Path(path)
    if path.is_dir() or not path.exists():
        raise _not_there(path)
    with path.open("rb") as raw:
        compressed = raw.peek(2)[:2] == b"\x1f\x8b"
        try:
            yield gzip.GzipFile(fileobj=raw) if compressed else raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FormatError(f"{path}: broken gzip file ({error}); fetch or compress it again") from error


def _lines(path: FilePath) -> Iterator[tuple[_Place, str]]:
    empty = None
    with _open(path) as stream:
        for number, raw in enumerate(stream, 1):
            place = _Place(path, number)
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise place.not_utf8(error) from error
            if not line.strip():
                empty = empty or place
            elif empty:
                raise empty.wrong("empty line before the end of the file; remove it")
            else:
                yield place, line.removesuffix("\n").removesuffix("\r")


def _by_tab(line: str) -> list[str]:
    return line.split("\t")


def _by_tab_or_space(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else line.split()


def _table(
    path: FilePath,
    *layouts: Columns,
    split: Callable[[str], list[str]] = _by_tab,
    remedy: str = "put one tab between columns, and none inside a text",
) -> Iterator[tuple[_Place, list[str]]]:
    """The lines of a file in one of the layouts; the first line settles which."""
    allowed = {len(columns): columns for columns in layouts}
    for place, line in _lines(path):
        fields = split(line)
        if len(fields) not in allowed:
            expected = " or ".join(f"{count} ({', '.join(names)})" for count, names in allowed.items())
            given = f"{len(fields)} column{'s' * (len(fields) != 1)}"
            raise place.wrong(f"{given}, expected {expected}; {remedy}")
        if len(allowed) > 1:
            allowed = {len(fields): allowed[len(fields)]}
        yield place, fields


# ---------------------------------------------------------------------------- columns -> checked values


def _id(place: _Place, noun: str, id: str) -> str:
    if not id or id != id.strip():
        raise place.wrong(f"{noun} id {id!r}: expected an id that is not empty and has no spaces around it")
    return id


def _query(place: _Place, id: str, text: str) -> Query:
    if not text.strip():
        raise place.wrong(f"query {id!r} has no text; write one or remove the query")
    return Query(_id(place, "query", id), text)


def _passage(place: _Place, id: str, title: str, text: str, may_be_empty: bool = False) -> Passage:
    passage = Passage(_id(place, "passage", id), title, text)
    if _is_empty(passage) and not may_be_empty:
        raise place.wrong(f"passage {id!r} has neither title nor text; write one or remove the passage")
    return passage


def _is_empty(passage: Passage) -> bool:
    return not passage.text.strip() and passage.title.strip() in ("", NO_TITLE)


def _integer(place: _Place, noun: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise place.wrong(f"{noun} {text!r}, expected an integer") from None


def _label(place: _Place, text: str) -> int:
    if text not in ("0", "1"):
        raise place.wrong(f"label {text!r}, expected 0 or 1 in the last column")
    return int(text)


# ----------------------------------------------------------------------- queries, passages, judgements

_NO_IDS = (
    "put one tab between columns, and none inside a text; the reference's inference files of 4 columns "
    "(*.format, para_8part/*) have no ids: give the files they were made from"
)


def read_queries(path: FilePath) -> Iterator[Query]:
    """Read queries: `id TAB text` a line (the RocketQA corpora's `<split>.query.txt`)."""
    for place, (id, text) in _table(path, ("id", "text"), remedy=_NO_IDS):
        yield _query(place, id, text)


def read_passages(path: FilePath, titles: FilePath | None = None) -> Iterator[Passage]:
    """Read passages: `id TAB text` a line (`para.txt`); and `id TAB title` from `titles` (`para.title.txt`).

    Every passage needs a line in `titles`; titles of other passages are passed over. The
    two files are read side by side, so that titles in the passages' order take no memory; in another order
    they are matched by id.

    Source: research/RocketQA_NAACL2021/data_process/utils.py. The 4-column inference files that wget_data.sh
    there derives from these (`- TAB title TAB text TAB 0`, `query TAB - TAB - TAB 0`) are refused: they carry
    no ids.
    """
    rows = _table(path, ("id", "text"), remedy=_NO_IDS)
    if titles is None:
        yield from (_passage(place, id, "", text) for place, (id, text) in rows)
        return
    title_rows = _table(titles, ("id", "title"))
    waiting: dict[str, str] = {}  # titles met before their passages
    for place, (id, text) in rows:
        while id not in waiting and (row := next(title_rows, None)):
            title_id, title = row[1]
            waiting[title_id] = title
        if id not in waiting:
            raise place.wrong(
                f"passage id {id!r} has no line in {os.fspath(titles)}, or stands here twice; "
                f"give each passage one line in both files ({NO_TITLE} for no title)"
            )
        yield _passage(place, id, waiting.pop(id), text)


class _Judgement(NamedTuple):
    place: _Place
    query_id: str
    passage_id: str
    relevance: int


_JUDGEMENT_COLUMNS = {2: (0, 1), 3: (0, 1, 2), 4: (0, 2, 3)}  # query id, passage id, relevance


def _judgements(path: FilePath) -> Iterator[_Judgement]:
    for place, fields in _table(path, *QRELS, split=_by_tab_or_space):
        if len(fields) == 3 and place.line == 1:
            if tuple(fields) != QRELS[1]:
                header = " ".join(QRELS[1])
                raise place.wrong(
                    f"3 columns without BEIR's header ({header}); add it, or give 2 or 4 columns"
                )
            continue
        query_id, passage_id, *relevance = (fields[column] for column in _JUDGEMENT_COLUMNS[len(fields)])
        yield _Judgement(
            place,
            _id(place, "query", query_id),
            _id(place, "passage", passage_id),
            _integer(place, "relevance", relevance[0]) if relevance else 1,
        )


def read_qrels(path: FilePath) -> Iterator[tuple[str, str, int]]:
    """Read judgements as (query id, passage id, relevance), columns separated by tabs or else by spaces.

    - 2 columns, `query passage`: relevance 1 (the RocketQA corpora's `qrels.<split>.tsv`)
    - 3 columns under BEIR's header, `query-id corpus-id score`
    - 4 columns, `query 0 passage relevance`: TREC, and MS MARCO's own
    """
    return (tuple(judgement[1:]) for judgement in _judgements(path))


def load_qrels(path: FilePath) -> dict[str, dict[str, int]]:
    """Load the judgements of a file (see `read_qrels`): query id -> passage id -> relevance.

    A pair judged twice must have one relevance.
    """
    return _nested(_judgements(path))


def _nested(judgements: Iterable[_Judgement]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for place, query_id, passage_id, relevance in judgements:
        before = qrels.setdefault(query_id, {}).setdefault(passage_id, relevance)
        if before != relevance:
            raise place.wrong(
                f"query {query_id!r} and passage {passage_id!r} have relevance {relevance} here "
                f"and {before} before; keep one"
            )
    return qrels


# ------------------------------------------------------------------------------ training groups in TSV


def read_training_groups(path: FilePath, list_size: int | None = None) -> Iterator[Group]:
    """Read training groups from a file of any of these formats. The file is looked at before this returns.

    | name or columns | format | group |
    |---|---|---|
    | `.json` | DPR, `read_dpr_json` | positive, hard negatives, negatives |
    | `.jsonl` | Tevatron, `read_tevatron` | positive, negatives |
    | 6 columns | dual encoder, `read_dual_tsv` | positive, negative |
    | 4 columns, and a `list_size` | joint, `read_joint_tsv` | positive, `list_size - 1` others |
    | 4 columns | cross encoder, `read_cross_tsv` | one passage |

    `list_size` is for the 4 columns alone: the other formats hold whole lists. Names may end in `.gz`, too.
    """
    with _open(path):  # raises at once where there is no file
        suffix = Path(Path(path).name.removesuffix(".gz")).suffix
    if suffix == ".json":
        return read_dpr_json(path)
    if suffix == ".jsonl":
        return read_tevatron(path)
    for _, fields in _table(path, CROSS, DUAL):
        if len(fields) == len(DUAL):
            return read_dual_tsv(path)
        return read_cross_tsv(path) if list_size is None else read_joint_tsv(path, list_size)
    raise _Place(path, 1).wrong("empty file, expected training examples")


def read_cross_tsv(path: FilePath) -> Iterator[Group]:
    """Read a cross encoder's training file: `query TAB title TAB text TAB label`, label 0 or 1.

    Each line is a group of one passage; the ids of both query and passage are the line's number.
    Source: rocketqa/reader/reader_ce_train.py.
    """
    for place, (query, title, text, label) in _table(path, CROSS):
        id = str(place.line)
        passage = _passage(place, id, title, text)
        yield Group(_query(place, id, query), (passage,), (_label(place, label),))


def read_dual_tsv(path: FilePath) -> Iterator[Group]:
    """Read a dual encoder's training file: query, positive title and text, negative title and text, label.

    Each line is a group of two. Line 17 has query `17` and passages `17+` and `17-`, so a passage that stands
    on two lines has two ids. The label (0 in the files of the reference) says nothing and is only checked to
    be 0 or 1. Source: rocketqa/reader/reader_de_train.py.
    """
    for place, (query, *passages, label) in _table(path, DUAL):
        _label(place, label)
        id = str(place.line)
        positive = _passage(place, f"{id}+", *passages[:2])
        negative = _passage(place, f"{id}-", *passages[2:])
        yield Group(_query(place, id, query), (positive, negative), (1, 0))


def read_joint_tsv(path: FilePath, list_size: int) -> Iterator[Group]:
    """Read a joint training file: `query TAB title TAB text TAB label`, each `list_size` lines one list.

    The lines of a list share their query, and the first holds the positive. The query's id is the number of
    that line, a passage's that of its own. As in RocketQAv2, whose loss takes the first passage for the
    positive and never looks at the labels (finetune/joint_encoder.py), the first counts as 1 whatever it
    says, unless it says 0 where a later one says 1: then the order is wrong. Later labels may be any integer;
    above 0 is positive.
    Source: research/RocketQAv2_EMNLP2021/model/src/reader/task_reader_shuffle.py.
    """
    if list_size < 2:
        raise ValueError(f"list_size is {list_size}, expected 2 or more: a positive and its negatives")
    rows: list[_JointRow] = []
    for place, (query, title, text, label) in _table(path, CROSS):
        id = str(place.line)
        passage = _passage(place, id, title, text)
        rows.append(_JointRow(place, _query(place, id, query), passage, _integer(place, "label", label)))
        if len(rows) == list_size:
            yield _joint_group(rows)
            rows = []
    if rows:
        raise rows[-1].place.wrong(
            f"the file ends after {len(rows)} of the {list_size} lines of the list that begins in line "
            f"{rows[0].place.line}; complete it, or correct list_size"
        )


class _JointRow(NamedTuple):
    place: _Place
    query: Query
    passage: Passage
    label: int


def _joint_group(rows: list[_JointRow]) -> Group:
    first, *rest = rows
    for row in rest:
        if row.query.text != first.query.text:
            raise row.place.wrong(
                f"another query than in line {first.place.line}, where this list of {len(rows)} begins; "
                "sort the lines by query, or correct list_size"
            )
        if row.label > 0 and first.label <= 0:
            raise first.place.wrong(
                f"label {first.label} on the first line of a list whose line {row.place.line} "
                f"has label {row.label}; put the positive first"
            )
    labels = (1, *(int(row.label > 0) for row in rest))
    return Group(first.query, tuple(row.passage for row in rows), labels)


# ----------------------------------------------------------------------------- training groups in JSON


def read_dpr_json(path: FilePath) -> Iterator[Group]:
    """Read DPR's training data: a JSON list of objects with `question`, `positive_ctxs`, `hard_negative_ctxs`
    and `negative_ctxs`; each context has `title`, `text` and maybe `passage_id`, `psg_id` or `id`.

    A question becomes one group: its first positive, then the hard negatives, then the negatives. Its id is
    its number in the list, counted from 1; passage 3 of question 17 that has no id of its own is `17.3`.
    Questions without a positive are left out, as DPR does, and counted in a warning.
    Source: github.com/facebookresearch/DPR, "Retriever input data format".
    """
    groups = (
        _json_group(
            place,
            _query(place, str(number), _string(place, item, "question")),
            _objects(place, item, "positive_ctxs", required=True),
            _objects(place, item, "hard_negative_ctxs") + _objects(place, item, "negative_ctxs"),
            ("passage_id", "psg_id", "id"),
        )
        for number, (place, item) in enumerate(_json_list(path), 1)
    )
    return _with_positive(path, groups)


def read_tevatron(path: FilePath) -> Iterator[Group]:
    """Read Tevatron's training data: JSON lines of `query_id`, `query`, `positive_passages` and
    `negative_passages`, each passage with `docid`, `title` and `text`.

    A line becomes one group: its first positive, then the negatives. Passage 3 of query `q` that has no id of
    its own is `q.3`. Lines without a positive are left out and counted in a warning.
    Source: github.com/texttron/tevatron.
    """
    groups = (
        _json_group(
            place,
            _query(place, _string(place, item, "query_id"), _string(place, item, "query")),
            _objects(place, item, "positive_passages", required=True),
            _objects(place, item, "negative_passages"),
            ("docid",),
        )
        for place, item in _json_lines(path)
    )
    return _with_positive(path, groups)


def _json_group(
    place: _Place, query: Query, positives: list[dict], negatives: list[dict], id_names: Columns
) -> Group | None:
    if not positives:
        return None
    passages = tuple(
        _passage(
            place,
            _string(place, item, *id_names, default=f"{query.id}.{position}"),
            _string(place, item, "title", default=""),
            _string(place, item, "text"),
        )
        for position, item in enumerate([positives[0], *negatives], 1)
    )
    return Group(query, passages, (1,) + (0,) * len(negatives))


def _with_positive(path: FilePath, groups: Iterable[Group | None]) -> Iterator[Group]:
    total = dropped = 0
    for group in groups:
        total += 1
        if group is None:
            dropped += 1
        else:
            yield group
    if dropped:
        warnings.warn(
            f"{os.fspath(path)}: left out {dropped} of {total} queries, which have no positive", stacklevel=2
        )


def _string(place: _Place, item: dict, *names: str, default: str | None = None) -> str:
    """The value of the first of `names` that `item` has. An id may be a number."""
    for name in names:
        value = item.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            raise place.wrong(f'"{name}" is a {type(value).__name__}, expected a string')
    if default is None:
        raise place.wrong(f'no "{names[0]}" in an object of {", ".join(item) or "nothing"}')
    return default


def _objects(place: _Place, item: dict, name: str, required: bool = False) -> list[dict]:
    value = item.get(name, None if required else [])
    if not isinstance(value, list) or not all(isinstance(element, dict) for element in value):
        given = type(value).__name__ if name in item else "missing"
        raise place.wrong(f'"{name}" is {given}, expected a list of objects')
    return value


def _json_lines(path: FilePath) -> Iterator[tuple[_Place, dict[str, Any]]]:
    for place, line in _lines(path):
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise place.wrong(f"not JSON ({error}); expected one object a line") from error
        if not isinstance(item, dict):
            raise place.wrong(f"a JSON {type(item).__name__}, expected one object a line")
        yield place, item


def _json_list(path: FilePath) -> Iterator[tuple[_Place, dict[str, Any]]]:
    """The objects of one JSON list, with the lines on which they begin; one object is in memory at a time."""
    text = _JsonText(path)
    text.take("[")
    while text.next() != "]":
        yield text.place, text.take_object()
        if text.next() != "]":
            text.take(",")
    text.take("]")
    if text.next():
        raise text.place.wrong("more text after the end of the JSON list; remove it")


class _JsonText:
    """The text of a JSON file that is not taken yet, of which only the beginning is in memory."""

    def __init__(self, path: FilePath) -> None:
        self.place = _Place(path, 1)
        self._chunks = _chunks(path)
        self._text = ""

    def next(self) -> str:
        """The next character after white space; "" at the end of the file."""
        while True:
            self._drop(len(self._text) - len(self._text.lstrip(" \t\r\n")))
            if self._text or not self._grow():
                return self._text[:1]

    def take(self, mark: str) -> None:
        if (found := self.next()) != mark:
            given = repr(found) if found else "the end of the file"
            raise self.place.wrong(
                f"{given} where a JSON list of objects needs {mark!r}; one object a line is .jsonl"
            )
        self._drop(1)

    def take_object(self) -> dict[str, Any]:
        if self.next() != "{":
            raise self.place.wrong(f"{self.next()!r} where a JSON list of objects needs '{{'")
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text)
            except json.JSONDecodeError as error:
                if not (self._may_be_cut(error) and self._grow()):
                    line = self.place.line + error.lineno - 1
                    raise self.place._replace(line=line).wrong(f"not JSON ({error.msg})") from error
            except (ValueError, RecursionError) as error:
                raise self.place.wrong(f"not readable JSON ({error})") from error
            else:
                self._drop(end)
                return value

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether more text can mend the error: it is in a string without end, or in the last token."""
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 16

    def _grow(self) -> bool:
        """Read as much text again, so that a long object is tried only a few times."""
        parts, size = [self._text], 0
        while size <= len(self._text) and (chunk := next(self._chunks, "")):
            parts.append(chunk)
            size += len(chunk)
        self._text = "".join(parts)
        return size > 0

    def _drop(self, count: int) -> None:
        newlines = self._text.count("\n", 0, count)
        self.place = self.place._replace(line=self.place.line + newlines)
        self._text = self._text[count:]


def _chunks(path: FilePath, size: int = 1 << 16) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    line, data = 1, b" "
    with _open(path) as stream:
        while data:
            data = stream.read(size)
            try:
                text = decode(data, final=not data)
            except UnicodeDecodeError as error:
                place = _Place(path, line + error.object.count(b"\n", 0, error.start))
                raise place.not_utf8(error) from error
            line += text.count("\n")
            if text:
                yield text


# --------------------------------------------------------------------------------------- collections


def read_collection(folder: FilePath, splits: Sequence[str]) -> Collection:
    """Read a corpus and the named splits from a folder, and check that they fit one another.

    A folder with `para.txt` is read in the layout of RocketQA and MS MARCO. Every file may be gzipped
    (`.gz`):

    - `para.txt` (`id TAB text`) and, if there, `para.title.txt` (`id TAB title`)
    - `<split>.query.txt` (`id TAB text`)
    - `qrels.<split>.tsv` (see `read_qrels`), if there: a split without it is unlabelled

    Otherwise a folder with `corpus.jsonl` is read by `read_beir`.

    Raises `FileNotFoundError` for a missing file, and `FormatError` for a corpus or split without lines, an
    id that stands twice, a judgement of an unknown query or passage, and a query of a labelled split without
    a relevant passage.
    """
    folder = Path(folder)
    if _find(folder, "para.txt"):
        return _read_rocketqa(folder, splits)
    if _find(folder, "corpus.jsonl"):
        return read_beir(folder, splits)
    given = f"it has {_names_near(folder / 'para.txt')}" if folder.is_dir() else "there is no such folder"
    raise FileNotFoundError(
        f"{folder}: expected a collection, with para.txt (RocketQA) or corpus.jsonl (BEIR); {given}"
    )


def read_unlabelled(folder: FilePath, name: str) -> dict[str, Query]:
    """Read the queries of a split of a collection, and none of its judgements.

    In the layout of RocketQA they are `<name>.query.txt`. In a BEIR folder they are `<name>.jsonl` (`_id`,
    `text`) or, where there is none, the queries that `qrels/<name>.tsv` names.
    """
    folder = Path(folder)
    if _find(folder, "para.txt"):
        path = _need(folder, f"{name}.query.txt")
        return keyed(path, "query", read_queries(path))
    if path := _find(folder, f"{name}.jsonl"):
        return keyed(path, "query", _beir_queries(path))
    named = {judgement.query_id for judgement in _judgements(_need(folder / "qrels", f"{name}.tsv"))}
    asked = _need(folder, "queries.jsonl")
    return {i: query for i, query in keyed(asked, "query", _beir_queries(asked)).items() if i in named}


def _read_rocketqa(folder: Path, splits: Sequence[str]) -> Collection:
    corpus, titles = _need(folder, "para.txt"), _find(folder, "para.title.txt")
    asked = {split: _need(folder, f"{split}.query.txt") for split in splits}
    judged = {split: _find(folder, f"qrels.{split}.tsv") for split in splits}
    labels = {split: list(_judgements(path)) for split, path in judged.items() if path}
    checked = {
        split: _split(path, keyed(path, "query", read_queries(path)), labels.get(split))
        for split, path in asked.items()
    }
    return Collection(_corpus(corpus, read_passages(corpus, titles), labels), checked)


def read_beir(folder: FilePath, splits: Sequence[str]) -> Collection:
    """Read a BEIR folder: `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`) and
    `qrels/<split>.tsv` (`query-id`, `corpus-id`, `score` under a header), each maybe gzipped (`.gz`).

    A split has the queries that its judgements name. The checks are those of `read_collection`, except that a
    passage with neither title nor text is kept, since BEIR has some (FiQA) and scores are reported with them;
    a warning counts these. Source: github.com/beir-cellar/beir.
    """
    folder = Path(folder)
    corpus, asked = _need(folder, "corpus.jsonl"), _need(folder, "queries.jsonl")
    judged = {split: _need(folder / "qrels", f"{split}.tsv") for split in splits}
    labels = {split: list(_judgements(path)) for split, path in judged.items()}
    for split, path in judged.items():
        if not labels[split]:
            raise _Place(path, 1).wrong("no judgements")
    queries = keyed(asked, "query", _beir_queries(asked))
    checked = {split: _split(asked, queries, labels[split], only_judged=True) for split in splits}
    return Collection(_corpus(corpus, _beir_passages(corpus), labels), checked)


def _beir_queries(path: Path) -> Iterator[Query]:
    for place, item in _json_lines(path):
        yield _query(place, _string(place, item, "_id"), _string(place, item, "text"))


def _beir_passages(path: Path) -> Iterator[Passage]:
    total = empty = 0
    for place, item in _json_lines(path):
        id, text = _string(place, item, "_id"), _string(place, item, "text")
        passage = _passage(place, id, _string(place, item, "title", default=""), text, may_be_empty=True)
        total += 1
        empty += _is_empty(passage)
        yield passage
    if empty:
        warnings.warn(f"{path}: {empty} of {total} passages have neither title nor text; kept", stacklevel=2)


def _find(folder: Path, name: str) -> Path | None:
    """The file of that name, else the one with `.gz` behind it."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _need(folder: Path, name: str) -> Path:
    if found := _find(folder, name):
        return found
    raise _not_there(folder / name)


def keyed(path: FilePath, noun: str, records: Iterable[Record]) -> dict[str, Record]:
    """Records by id, of which there must be some, and each once.

    One stands on each line, so that its number is also its line.
    """
    found: dict[str, Record] = {}
    for line, record in enumerate(records, 1):
        if record.id in found:
            before = list(found).index(record.id) + 1
            raise _Place(path, line).wrong(
                f"{noun} id {record.id!r} stands in line {before} already; remove one"
            )
        found[record.id] = record
    if not found:
        raise _Place(path, 1).wrong(f"empty file, expected one {noun} a line")
    return found


def _corpus(
    path: Path, records: Iterable[Passage], labels: dict[str, list[_Judgement]]
) -> dict[str, Passage]:
    passages = keyed(path, "passage", records)
    for judgements in labels.values():
        _check_ids("passage", judgements, passages, path)
    return passages


def _split(
    path: Path, queries: dict[str, Query], judgements: list[_Judgement] | None, only_judged: bool = False
) -> Split:
    if judgements is None:
        return Split(queries)
    _check_ids("query", judgements, queries, path)
    qrels = _nested(judgements)
    asked = qrels if only_judged else queries
    idle = {id for id in asked if not any(relevance > 0 for relevance in qrels.get(id, {}).values())}
    for line, id in enumerate(queries, 1):
        if id in idle:
            raise _Place(path, line).wrong(
                f"query {id!r} has no relevant passage, as {len(idle)} of {len(asked)} in the split; "
                "judge them or remove them"
            )
    return Split({id: queries[id] for id in asked}, qrels)


def _check_ids(noun: str, judgements: list[_Judgement], known: Container[str], path: Path) -> None:
    named = [(judgement.place, getattr(judgement, f"{noun}_id")) for judgement in judgements]
    lost = [(place, id) for place, id in named if id not in known]
    if lost:
        place, id = lost[0]
        raise place.wrong(
            f"{noun} id {id!r} is not in {path}, like those of {len(lost)} of {len(named)} judgements; "
            "give files of one collection"
        )


# --------------------------------------------------------------------------------------------- writers


@contextmanager
def _atomic_writer(path: FilePath) -> Iterator[TextIO]:
    """Write to a temporary name and rename at the end, so that a crash leaves an older file whole."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a file, expected the name of a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(temporary, "wt", encoding="utf-8", newline="\n") as stream:
            yield stream
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_rows(path: FilePath, rows: Iterable[Sequence[str]], separator: str = "\t") -> None:
    """Write a table whose first column is an id."""
    with _atomic_writer(path) as stream:
        for row in rows:
            id = row[0]
            if not id or id != id.strip() or id.startswith("\ufeff"):
                raise ValueError(
                    f"{path}: id {id!r} is empty, has spaces around it or begins with a byte-order mark"
                )
            if any(mark in field for field in row for mark in "\t\n\r"):
                raise ValueError(
                    f"{path}: id {id!r} has a tab or line end in a column; replace it by a space"
                )
            try:
                stream.write(separator.join(row) + "\n")
            except UnicodeEncodeError as error:
                raise ValueError(f"{path}: id {id!r} has text that UTF-8 cannot hold ({error})") from error


def write_collection(folder: FilePath, collection: Collection) -> None:
    """Write a collection in the RocketQA layout, so that `read_collection` reads the same again.

    Judgements take 2 columns where all are 1, and 4 (`query TAB 0 TAB passage TAB relevance`) otherwise; a
    split without any gets no file. Raises `ValueError` naming the id where a text holds a tab or line end, or
    a query or passage is empty.
    """
    folder = Path(folder)
    passages = collection.passages.values()
    _write_rows(folder / "para.txt", map(_passage_row, passages))
    _write_rows(folder / "para.title.txt", map(_title_row, passages))
    for name, split in collection.splits.items():
        _write_rows(folder / f"{name}.query.txt", map(_query_row, split.queries.values()))
        _write_qrels(folder / f"qrels.{name}.tsv", split)


def _passage_row(passage: Passage) -> Sequence[str]:
    if _is_empty(passage):
        raise ValueError(f"passage {passage.id!r} has neither title nor text; give it one or leave it out")
    return passage.id, passage.text


def _title_row(passage: Passage) -> Sequence[str]:
    return passage.id, passage.title


def _query_row(query: Query) -> Sequence[str]:
    if not query.text.strip():
        raise ValueError(f"query {query.id!r} has no text; give it one or leave it out")
    return query.id, query.text


def _write_qrels(path: Path, split: Split) -> None:
    judgements = [
        (query_id, passage_id, relevance)
        for query_id, judged in split.qrels.items()
        for passage_id, relevance in judged.items()
    ]
    if not judgements:
        path.unlink(missing_ok=True)  # an older one would label the split
    elif all(relevance == 1 for *_, relevance in judgements):
        _write_rows(path, (ids for *ids, _ in judgements))
    else:
        _write_rows(path, ((query_id, "0", id, str(relevance)) for query_id, id, relevance in judgements))


def check_group_file(path: FilePath, layout: GroupLayout) -> None:
    """Refuse a name that `read_training_groups` would take for another layout, or that is no file's.

    Raises `ValueError`.
    """
    suffix = Path(Path(path).name.removesuffix(".gz")).suffix
    if (layout == "tevatron") != (suffix == ".jsonl") or suffix == ".json":
        expected = ".jsonl" if layout == "tevatron" else "another ending, such as .tsv"
        raise ValueError(
            f"{path}: a name that ends in {suffix!r}, expected {expected} for the layout {layout}"
        )
    if Path(path).is_dir():
        raise ValueError(f"{path}: a folder, expected the name of a file to write")


def write_training_groups(path: FilePath, groups: Iterable[Group], layout: GroupLayout) -> None:
    """Write training groups so that `read_training_groups` reads them again.

    | layout | name ends in | one group is |
    |---|---|---|
    | `list` | `.tsv`, ... | a line of 4 columns a passage: `read_joint_tsv`, `read_cross_tsv` |
    | `dual` | `.tsv`, ... | a line of 6 columns a negative: `read_dual_tsv` |
    | `tevatron` | `.jsonl` | a line of JSON, with ids: `read_tevatron` |

    Raises `ValueError` naming the query for what the layout cannot hold: a tab or line end in the first two,
    more or less than one positive in the last two, an empty query or passage in all.
    """
    check_group_file(path, layout)
    with _atomic_writer(path) as stream:
        for group in groups:
            _check_group(path, group, layout)
            stream.writelines(line + "\n" for line in _GROUP_WRITERS[layout](group))


def _check_group(path: FilePath, group: Group, layout: GroupLayout) -> None:
    texts = [group.query.text, *(text for p in group.passages for text in (p.title, p.text))]
    marks = "" if layout == "tevatron" else "\t\n\r\ufeff"
    problems = {
        "the query, or a passage, is empty": not group.query.text.strip()
        or any(map(_is_empty, group.passages)),
        f"layout {layout} needs one positive, and it first": layout != "list"
        and group.labels != (1, *[0] * (len(group.labels) - 1)),
        "no negative to write": layout == "dual" and len(group.passages) < 2,
        "a text has a tab, line end or byte-order mark; replace it, or choose the layout tevatron": any(
            mark in text for mark in marks for text in texts
        ),
        "a text that UTF-8 cannot hold": any(not _is_utf8(text) for text in texts),
    }
    for problem, found in problems.items():
        if found:
            raise ValueError(f"{path}: query {group.query.id!r}: {problem}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _list_lines(group: Group) -> Iterator[str]:
    for passage, label in zip(group.passages, group.labels, strict=True):
        yield "\t".join((group.query.text, passage.title, passage.text, str(label)))


def _dual_lines(group: Group) -> Iterator[str]:
    positive, *negatives = group.passages
    for negative in negatives:
        texts = (positive.title, positive.text, negative.title, negative.text)
        yield "\t".join((group.query.text, *texts, "0"))


def _tevatron_lines(group: Group) -> Iterator[str]:
    positive, *negatives = ({"docid": p.id, "title": p.title, "text": p.text} for p in group.passages)
    yield json.dumps(
        {
            "query_id": group.query.id,
            "query": group.query.text,
            "positive_passages": [positive],
            "negative_passages": negatives,
        },
        ensure_ascii=False,
    )


_GROUP_WRITERS: dict[GroupLayout, Callable[[Group], Iterator[str]]] = {
    "list": _list_lines,
    "dual": _dual_lines,
    "tevatron": _tevatron_lines,
}


# ------------------------------------------------------------------------------------------------ runs

_HIT_COLUMNS = {4: (0, 1, 2, 3), 6: (0, 2, 3, 4)}  # query id, passage id, rank, score


def read_run(path: FilePath) -> dict[str, list[Hit]]:
    """Read a run of either form, TREC's (6 columns) or the reference's TSV (4): query id -> hits by rank.

    Ranks count from 1; a query has each rank and each passage once.
    """
    run: dict[str, list[Hit]] = {}
    current, ranks, passages = None, set(), set()
    for place, fields in _table(path, *RUN, split=_by_tab_or_space):
        hit = _hit(place, *(fields[column] for column in _HIT_COLUMNS[len(fields)]))
        hits = run.setdefault(hit.query_id, [])
        if hit.query_id != current:
            current, ranks, passages = hit.query_id, {h.rank for h in hits}, {h.passage_id for h in hits}
        if hit.rank in ranks or hit.passage_id in passages:
            raise place.wrong(
                f"query {current!r} has rank {hit.rank} or passage {hit.passage_id!r} already; remove one"
            )
        ranks.add(hit.rank)
        passages.add(hit.passage_id)
        hits.append(hit)
    for hits in run.values():
        hits.sort(key=lambda hit: hit.rank)
    return run


def _hit(place: _Place, query_id: str, passage_id: str, rank: str, score: str) -> Hit:
    number = _integer(place, "rank", rank)
    if number < 1:
        raise place.wrong(f"rank {number}, expected ranks from 1; add {1 - number} to each")
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise place.wrong(f"score {score!r}, expected a finite number")
    return Hit(sys.intern(_id(place, "query", query_id)), _id(place, "passage", passage_id), number, value)


def write_trec_run(path: FilePath, run: Run, tag: str = "rocketqa") -> None:
    """Write a run as TREC does: `query Q0 passage rank score tag`, separated by spaces.

    Scores keep all their digits. A query without hits has no line. Raises `ValueError` for an id or tag with
    white space inside, a rank below 1 or a score that is not finite.
    """
    rows = ((query, "Q0", passage, rank, score, tag) for query, passage, rank, score in _run_rows(path, run))
    _write_rows(path, map(_words, rows), separator=" ")


def _words(row: Sequence[str]) -> Sequence[str]:
    for word in row:
        if word.split() != [word]:
            raise ValueError(
                f"{word!r} of query {row[0]!r} is not one word, as TREC needs; write the run as TSV"
            )
    return row


def write_run_tsv(path: FilePath, run: Run) -> None:
    """Write a run as the reference does: `query TAB passage TAB rank TAB score`.

    Scores keep all their digits. A query without hits has no line. Raises `ValueError` for an id with a tab
    or line end inside, a rank below 1 or a score that is not finite.
    Source: research/RocketQA_NAACL2021/model/src/index_search.py.
    """
    _write_rows(path, _run_rows(path, run))


def _run_rows(path: FilePath, run: Run) -> Iterator[tuple[str, str, str, str]]:
    for query_id, hits in run.items():
        for hit in hits:
            assert hit.query_id == query_id, (hit.query_id, query_id)
            if hit.rank < 1 or not math.isfinite(hit.score):
                raise ValueError(f"{path}: {hit}, expected a rank from 1 and a finite score")
            if not hit.passage_id or hit.passage_id != hit.passage_id.strip():
                raise ValueError(
                    f"{path}: {hit}, expected an id that is not empty and has no spaces around it"
                )
            yield hit.query_id, hit.passage_id, str(hit.rank), repr(float(hit.score))
