"""Files of training groups, read in the five layouts of `LAYOUTS` and written in three of them.

Every file may be gzipped, and its name may end in `.gz`.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from rocketqa_paddle.data.places import FilePath, Place, id_problem, is_empty, shown, text_problem
from rocketqa_paddle.data.tables import Columns, json_lines, json_list, open_bytes, table, write_lines
from rocketqa_paddle.records import Group, Passage, Query

GroupLayout = Literal["list", "dual", "tevatron"]
"""The layouts that can be written."""

PASSAGE_ROW: Columns = ("query", "title", "text", "label")
PAIR_ROW: Columns = ("query", "positive title", "positive text", "negative title", "negative text", "label")


class Layout(NamedTuple):
    """A layout of group files. A file in it is known by its columns or by the ending of its name."""

    read: Callable[..., Iterator[Group]]
    columns: Columns | None = None
    ending: str | None = None
    format: Callable[[Group], Iterator[str]] | None = None
    """Turns a group into lines, if the layout can be written."""


def read_groups(path: FilePath, list_size: int | None = None) -> Iterator[Group]:
    """Read training groups from a file in any layout. The layout is found before this returns.

    A file of 4 columns is read as lists of `list_size` passages if that is given; other layouts ignore it.
    """
    with open_bytes(path):
        pass  # raises if there is no file
    for layout in LAYOUTS.values():
        if layout.ending == _ending(path):
            return layout.read(path)
    other = "list" if list_size is None else "cross"  # both have 4 columns
    tables = [layout for name, layout in LAYOUTS.items() if layout.columns and name != other]
    for _, fields in table(path, *(layout.columns for layout in tables)):
        (read,) = (layout.read for layout in tables if len(layout.columns) == len(fields))
        return read(path, list_size) if read is read_list else read(path)
    raise Place(path, 1).wrong("empty file, expected training examples")


def _ending(path: FilePath) -> str:
    return Path(Path(path).name.removesuffix(".gz")).suffix


def read_cross(path: FilePath) -> Iterator[Group]:
    """Read a cross encoder's training file: `query TAB title TAB text TAB label`, label 0 or 1.

    Each line is a group of one passage; the ids of query and passage are the line's number.
    Source: rocketqa/reader/reader_ce_train.py.
    """
    for place, (query, title, text, label) in table(path, PASSAGE_ROW):
        id = str(place.number)
        passage = place.passage(id, title, text)
        yield Group(place.query(id, query), (passage,), (place.label(label),))


def read_dual(path: FilePath) -> Iterator[Group]:
    """Read a dual encoder's training file: query, positive title and text, negative title and text, label.

    Line 17 is a group of two, the query `17` and the passages `17+` and `17-`. The label is 0 in the
    reference's files and means nothing; it must be 0 or 1.
    Source: rocketqa/reader/reader_de_train.py.
    """
    for place, (query, *passages, label) in table(path, PAIR_ROW):
        place.label(label)
        id = str(place.number)
        positive = place.passage(f"{id}+", *passages[:2])
        negative = place.passage(f"{id}-", *passages[2:])
        yield Group(place.query(id, query), (positive, negative), (1, 0))


def read_list(path: FilePath, list_size: int) -> Iterator[Group]:
    """Read a joint training file: `query TAB title TAB text TAB label`, and `list_size` lines a group.

    The lines of a group have one query, whose id is the number of the first; a passage's id is the number of
    its own line. The first passage is the positive, whatever its label, as for RocketQAv2's loss
    (finetune/joint_encoder.py); but 0 before a label above 0 is an error, because the order is wrong then.
    Labels are integers, and those above 0 are positive.
    Source: research/RocketQAv2_EMNLP2021/model/src/reader/task_reader_shuffle.py.
    """
    if list_size < 2:
        raise ValueError(f"list_size is {list_size}, expected 2 or more: a positive and its negatives")
    rows: list[tuple[Place, Query, Passage, int]] = []
    for place, (query, title, text, label) in table(path, PASSAGE_ROW):
        id = str(place.number)
        passage = place.passage(id, title, text)
        rows.append((place, place.query(id, query), passage, place.integer("label", label)))
        if len(rows) == list_size:
            yield _list_group(rows)
            rows = []
    if rows:
        raise place.wrong(
            f"the file ends after {len(rows)} of the {list_size} lines of the list that begins on line "
            f"{rows[0][0].number}; complete it, or correct list_size"
        )


def _list_group(rows: list[tuple[Place, Query, Passage, int]]) -> Group:
    first, query, _, first_label = rows[0]
    for place, other, _, label in rows[1:]:
        if other.text != query.text:
            raise place.wrong(
                f"not the query of line {first.number}, where this list of {len(rows)} begins; "
                "sort the lines by query, or correct list_size"
            )
        if label > 0 >= first_label:
            raise first.wrong(
                f"label {first_label} on the first line of a list whose line {place.number} "
                f"has label {label}; put the positive first"
            )
    _, _, passages, labels = zip(*rows, strict=True)
    return Group(query, passages, (1, *(int(label > 0) for label in labels[1:])))


def read_dpr(path: FilePath) -> Iterator[Group]:
    """Read DPR's training data, a JSON list of objects.

    Each has `question`, `positive_ctxs` and maybe `hard_negative_ctxs` and `negative_ctxs`. Each context has
    `text` and maybe `title` and an id, `passage_id`, `psg_id` or `id`. Question 17, counted from 1, becomes
    the group `17` of its first positive, the hard negatives and the negatives; its passage 3 gets the id
    `17.3` if it has none. Its further positives, `17+2` and so on, are `Group.other_positives`. Questions
    without a positive are left out, as in DPR, and a warning counts them.
    Source: github.com/facebookresearch/DPR, "Retriever input data format".
    """
    questions = (
        (
            place,
            place.query(str(place.number), place.string(item, "question")),
            place.objects(item, "positive_ctxs", required=True),
            place.objects(item, "hard_negative_ctxs") + place.objects(item, "negative_ctxs"),
        )
        for place, item in json_list(path)
    )
    return _json_groups(path, questions, "passage_id", "psg_id", "id")


def read_tevatron(path: FilePath) -> Iterator[Group]:
    """Read Tevatron's training data, one JSON object a line.

    Each has `query_id`, `query`, `positive_passages` and maybe `negative_passages`. Each passage has `text`
    and maybe `docid` and `title`. A line becomes one group as in `read_dpr`; passage 3 of query `q` gets the
    id `q.3` if it has none.
    Source: github.com/texttron/tevatron.
    """
    questions = (
        (
            place,
            place.query(place.string(item, "query_id"), place.string(item, "query")),
            place.objects(item, "positive_passages", required=True),
            place.objects(item, "negative_passages"),
        )
        for place, item in json_lines(path)
    )
    return _json_groups(path, questions, "docid")


def _json_groups(
    path: FilePath, questions: Iterable[tuple[Place, Query, list[dict], list[dict]]], *id_names: str
) -> Iterator[Group]:
    """Make groups of queries, their positives and their negatives; a passage has one of the `id_names`."""
    total = dropped = 0
    for place, query, positives, negatives in questions:
        total += 1
        if not positives:
            dropped += 1
            continue
        passages, others = (
            tuple(
                place.passage(
                    place.string(item, *id_names, default=f"{query.id}{sign}{position}"),
                    place.string(item, "title", default=""),
                    place.string(item, "text"),
                )
                for position, item in enumerate(items, first)
            )
            for sign, first, items in ((".", 1, [positives[0], *negatives]), ("+", 2, positives[1:]))
        )
        yield Group(query, passages, (1,) + (0,) * len(negatives), other_positives=others)
    if dropped:
        warnings.warn(
            f"{os.fspath(path)}: left out {dropped} of {total} queries, which have no positive", stacklevel=2
        )


def with_other_positives(groups: Sequence[Group]) -> Iterator[Group]:
    """Tell every group of the positives that its query has in other groups, such as other lines of a file."""
    known: dict[str, dict[str, Passage]] = {}
    for group in groups:
        if group.labels[0] > 0:
            known.setdefault(group.query.key, {}).setdefault(group.passages[0].key, group.passages[0])
    for group in groups:
        positives = dict(known.get(group.query.key, {}))
        if group.labels[0] > 0:
            del positives[group.passages[0].key]
        yield replace(group, other_positives=(*group.other_positives, *positives.values()))


def without_false_negatives(path: FilePath, groups: Iterable[Group]) -> Iterator[Group]:
    """Leave out of the groups of a file the negatives that are positives of the query, or the query itself.

    They are told by label and content, see `Group.without_false_negatives`. A group that has no other
    negative is left out as well. One warning counts both.
    """
    dropped = left_out = 0
    for group in groups:
        kept = group.without_false_negatives()
        dropped += len(group.passages) - len(kept.passages)
        if kept is group or len(kept.passages) > 1:
            yield kept
        else:
            left_out += 1
    if dropped:
        warnings.warn(
            f"{os.fspath(path)}: left out {dropped} negatives that are positives of their query or the query "
            f"itself, and {left_out} groups that have no other negative",
            stacklevel=2,
        )


def write_groups(path: FilePath, groups: Iterable[Group], layout: GroupLayout) -> None:
    """Write training groups so that `read_groups` reads them again.

    Only `tevatron` keeps ids. `dual` writes a line for each negative. Sources, scores and other positives are
    not written. It is a ValueError if the ending of the file's name means another layout, or if the layout
    cannot hold a group: a tab or line end in `list` and `dual`, not exactly one positive in `dual` and
    `tevatron`, an empty query or passage in all.
    """
    check_group_file(path, layout)
    write_lines(path, _group_lines(path, groups, layout))


def _group_lines(path: FilePath, groups: Iterable[Group], layout: GroupLayout) -> Iterator[tuple[str, str]]:
    for group in groups:
        name = f"query {shown(group.query.id)}"
        if problem := _problem(group, layout):
            raise ValueError(f"{os.fspath(path)}: {name}: {problem}")
        yield from ((name, line) for line in LAYOUTS[layout].format(group))


def check_texts(
    path: FilePath, layout: GroupLayout, files: Mapping[FilePath, Iterable[Query | Passage]]
) -> None:
    """Check that a file of groups of any of these queries and passages can be written.

    Raises:
        ValueError: some have texts that the layout would not give back; it counts them for the file they are
            from, and names the first.
    """
    for file, records in files.items():
        faulty = [(record, problem) for record in records if (problem := _record_problem(record, layout))]
        if faulty:
            record, problem = faulty[0]
            raise ValueError(
                f"{os.fspath(file)}: {len(faulty)} texts do not fit into {os.fspath(path)}; the first is "
                f"{_named(record)}, which {problem}"
            )


def check_group_file(path: FilePath, layout: GroupLayout) -> None:
    """Check that a file of this name can be written, and that `read_groups` would read it in this layout."""
    writable = [name for name, known in LAYOUTS.items() if known.format]
    if layout not in writable:
        raise ValueError(f"layout {layout!r}, expected one that can be written: {', '.join(writable)}")
    ending, needed = _ending(path), LAYOUTS[layout].ending
    others = {other.ending for other in LAYOUTS.values()} - {needed}
    if ending in others or needed not in (None, ending):
        expected = needed or "another ending, such as .tsv"
        raise ValueError(f"{path}: ends in {ending!r}, expected {expected} for the layout {layout}")
    if Path(path).is_dir():
        raise ValueError(f"{path}: a folder, expected the name of a file to write")


def _problem(group: Group, layout: GroupLayout) -> str | None:
    """Say why a layout cannot hold a group, if so."""
    if layout != "list" and group.labels != (1, *[0] * (len(group.labels) - 1)):
        return f"layout {layout} needs exactly one positive, and it must be the first passage"
    if layout == "dual" and len(group.passages) < 2:
        return "there is no negative to write"
    for record in (group.query, *group.passages):
        problem = _record_problem(record, layout)
        if is_empty(record) or problem:
            name = "the query" if record is group.query else _named(record)
            return f"{name} {problem or 'is empty'}"
    return None


def _record_problem(record: Query | Passage, layout: GroupLayout) -> str | None:
    """Say why a layout would not give back a query or a passage, if so."""
    texts = [record.text] if isinstance(record, Query) else [record.title, record.text]
    if layout == "tevatron":
        return id_problem(record.id) or next(filter(None, map(text_problem, texts)), None)
    if any(mark in text for mark in "\t\n\r" for text in texts):
        return "has a tab or line end; replace it, or choose the layout tevatron"
    if isinstance(record, Query) and record.text.startswith("\ufeff"):
        return "begins with a byte-order mark; remove it, or choose the layout tevatron"
    return next(filter(None, map(text_problem, texts)), None)


def _named(record: Query | Passage) -> str:
    return f"{'query' if isinstance(record, Query) else 'passage'} {shown(record.id)}"


def _list_lines(group: Group) -> Iterator[str]:
    for passage, label in zip(group.passages, group.labels, strict=True):
        yield "\t".join((group.query.text, passage.title, passage.text, str(label)))


def _dual_lines(group: Group) -> Iterator[str]:
    for positive, negative in (pair.passages for pair in group.one_per_negative()):
        texts = (positive.title, positive.text, negative.title, negative.text)
        yield "\t".join((group.query.text, *texts, "0"))


def _tevatron_lines(group: Group) -> Iterator[str]:
    positive, *negatives = ({"docid": p.id, "title": p.title, "text": p.text} for p in group.passages)
    item = {"query_id": group.query.id, "query": group.query.text}
    item |= {"positive_passages": [positive], "negative_passages": negatives}
    yield json.dumps(item, ensure_ascii=False)


LAYOUTS = {
    "cross": Layout(read_cross, columns=PASSAGE_ROW),
    "list": Layout(read_list, columns=PASSAGE_ROW, format=_list_lines),
    "dual": Layout(read_dual, columns=PAIR_ROW, format=_dual_lines),
    "dpr": Layout(read_dpr, ending=".json"),
    "tevatron": Layout(read_tevatron, ending=".jsonl", format=_tevatron_lines),
}
