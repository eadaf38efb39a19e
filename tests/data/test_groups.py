"""Training groups: what each layout reads and refuses, and that written groups read the same."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

import pytest
from datafiles import SHARED, consume, fails, texts, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rocketqa_paddle.data.groups import (
    LAYOUTS,
    GroupLayout,
    check_group_file,
    read_cross,
    read_dpr,
    read_dual,
    read_groups,
    read_list,
    read_tevatron,
    with_other_positives,
    without_false_negatives,
    write_groups,
)
from rocketqa_paddle.records import Group, Passage, Query

WRITTEN = get_args(GroupLayout)
CROSS = "a query\ta title\ta text\t1\n"
DUAL = "a query\tgood title\tgood text\tbad title\tbad text\t0\n"


def pairs(path: Path) -> Iterable[Group]:
    return read_list(path, 2)


def test_the_written_layouts_are_those_with_a_format() -> None:
    assert [name for name, layout in LAYOUTS.items() if layout.format] == [*WRITTEN]
    assert all((layout.columns is None) != (layout.ending is None) for layout in LAYOUTS.values())


# Columns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reader, content, line, parts",
    [
        (read_cross, CROSS + "q\tt\tx\n", 2, ["3 columns, expected 4 (query, title, text, label)"]),
        (read_cross, CROSS + "q\tt\tx\ty\t1\n", 2, ["5 columns, expected 4"]),
        (read_cross, CROSS + "q\tt\tx\tyes\n", 2, ["label 'yes', expected 0 or 1"]),
        (read_cross, CROSS + " \tt\tx\t1\n", 2, ["query '2' has no text"]),
        (read_cross, CROSS + "q\t-\t \t1\n", 2, ["passage '2' has neither title nor text"]),
        (read_dual, DUAL + CROSS, 2, ["4 columns, expected 6 (query, positive title"]),
        (read_dual, DUAL + "q\tt\tx\tt\tx\t2\n", 2, ["label '2'"]),
        (read_dual, DUAL + "q\tt\tx\t\t\t0\n", 2, ["passage '2-' has neither"]),
        (read_groups, DUAL + CROSS, 2, ["4 columns, expected 6"]),
        (read_groups, "1\t2\n", 1, ["2 columns, expected 4 (", "or 6 ("]),
        (read_groups, "", 1, ["empty file"]),
        (pairs, CROSS * 2 + "a query\tt\tx\tno\n", 3, ["label 'no', expected an integer"]),
        (pairs, CROSS * 3, 3, ["ends after 1 of the 2 lines", "begins on line 3"]),
        (pairs, CROSS * 3 + "another\tt\tx\t0\n", 4, ["not the query of line 3", "list_size"]),
        (
            pairs,
            CROSS * 2 + "q\tt\tx\t0\nq\tt\tx\t1\n",
            3,
            ["label 0", "line 4 has label 1", "positive first"],
        ),
    ],
)
def test_refused(tmp_path: Path, reader: Callable, content: str, line: int, parts: list[str]) -> None:
    path = write(tmp_path / "data.tsv", content)
    with fails(path, line, *parts):
        consume(reader(path))


def test_cross(tmp_path: Path) -> None:
    one, two = read_cross(write(tmp_path / "cross.tsv", CROSS + "q\t-\tx\t0\n"))
    assert (one.query, one.passages) == (Query("1", "a query"), (Passage("1", "a title", "a text"),))
    assert (two.passages, two.labels, two.source) == ((Passage("2", "-", "x"),), (0,), "labelled")
    assert one.labels == (1,)


def test_dual(tmp_path: Path) -> None:
    _, group = read_dual(write(tmp_path / "dual.tsv", DUAL * 2))
    assert group.query == Query("2", "a query")
    assert group.passages == (
        Passage("2+", "good title", "good text"),
        Passage("2-", "bad title", "bad text"),
    )
    assert group.labels == (1, 0)


@pytest.mark.parametrize(
    "labels, expected", [("100", (1, 0, 0)), ("000", (1, 0, 0)), ("110", (1, 1, 0)), ("190", (1, 1, 0))]
)
def test_list(tmp_path: Path, labels: str, expected: tuple[int, ...]) -> None:
    lines = [f"q{query}\tt\tx{label}\t{label}\n" for query in "ab" for label in labels]
    one, two = read_list(write(tmp_path / "list.tsv", "".join(lines)), 3)
    assert one.labels == two.labels == expected
    assert (two.query, [passage.id for passage in two.passages]) == (Query("4", "qb"), ["4", "5", "6"])


def test_list_size_is_2_or_more() -> None:
    with pytest.raises(ValueError, match="list_size is 1, expected 2 or more"):
        consume(read_list("unread", 1))


# JSON --------------------------------------------------------------------------------------------


def context(number: int, **fields: object) -> dict:
    return {"title": f"title {number}", "text": f"text {number}", "score": 1.5, **fields}


DPR = [
    {
        "question": "who ?",
        "answers": ["me"],
        "positive_ctxs": [context(1, passage_id="11"), context(2)],
        "negative_ctxs": [context(3, psg_id=33)],
        "hard_negative_ctxs": [context(4, id="44"), context(5)],
    },
    {"question": '什么 ["{ ?', "positive_ctxs": [context(6, has_answer=True, url=None)], "s": -1.5e-07},
]


def test_dpr(tmp_path: Path) -> None:
    one, two = read_dpr(write(tmp_path / "train.json", DPR))
    assert one.query == Query("1", "who ?")
    assert [passage.id for passage in one.passages] == ["11", "44", "1.3", "33"]
    assert [passage.text for passage in one.passages] == ["text 1", "text 4", "text 5", "text 3"]
    assert one.labels == (1, 0, 0, 0)
    assert (two.query, two.passages) == (Query("2", '什么 ["{ ?'), (Passage("2.1", "title 6", "text 6"),))


def test_dpr_question_without_positive_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "train.json", [*DPR, {"question": "q", "positive_ctxs": []}])
    with pytest.warns(UserWarning, match=r"train\.json: left out 1 of 3 queries"):
        assert len(list(read_dpr(path))) == 2


@pytest.mark.parametrize(
    "second, parts",
    [
        ({"positive_ctxs": []}, ['no "question"', "positive_ctxs"]),
        ({"question": "a"}, ['"positive_ctxs" is missing, expected a list']),
        ({"question": "a", "positive_ctxs": "b"}, ['"positive_ctxs" is str']),
        ({"question": ["a"], "positive_ctxs": []}, ['"question" is a list, expected a string']),
        ({"question": "a", "positive_ctxs": [{"title": "t"}]}, ['no "text"', "title"]),
        ({"question": "", "positive_ctxs": []}, ["query '2' has no text"]),
    ],
)
def test_dpr_refused(tmp_path: Path, second: dict, parts: list[str]) -> None:
    path = write(tmp_path / "train.json", [DPR[0], second])
    with fails(path, "object 2: ", *parts):
        consume(read_dpr(path))


TEVATRON = {
    "query_id": "q1",
    "query": "who ?",
    "positive_passages": [
        {"docid": "1", "title": "-", "text": "a"},
        {"docid": "2", "title": "", "text": "b"},
    ],
    "negative_passages": [{"docid": 3, "text": "c"}],
}


def test_tevatron(tmp_path: Path) -> None:
    (group,) = read_tevatron(write(tmp_path / "train.jsonl", TEVATRON))
    assert group.query == Query("q1", "who ?")
    assert group.passages == (Passage("1", "-", "a"), Passage("3", "", "c"))
    assert group.labels == (1, 0)


def test_tevatron_line_without_positive_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", {**TEVATRON, "positive_passages": []})
    with pytest.warns(UserWarning, match=r"train\.jsonl: left out 1 of 1 queries"):
        assert list(read_tevatron(path)) == []


@pytest.mark.parametrize(
    "second, parts",
    [
        ("{", ["not JSON", "one object a line"]),
        ("[1]", ["a JSON list, expected one object a line"]),
        ('{"query": "a"}', ['no "query_id"']),
        ('{"query_id": "1", "query": "a"}', ['"positive_passages" is missing']),
        ('{"query_id": "1", "query": "a", "positive_passages": [3]}', ["expected a list of objects"]),
        ('{"query_id": true, "query": "a"}', ['"query_id" is a bool']),
        ('{"query_id": " 1", "query": "a"}', ["query id ' 1'"]),
        ("[" * 100_000, ["not JSON"]),
    ],
)
def test_tevatron_refused(tmp_path: Path, second: str, parts: list[str]) -> None:
    path = write(tmp_path / "train.jsonl", json.dumps(TEVATRON) + "\n" + second + "\n")
    with fails(path, 2, *parts):
        consume(read_tevatron(path))


# Any layout --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, list_size, sizes",
    [
        ("train.tsv", CROSS * 4, None, [1, 1, 1, 1]),
        ("train.tsv", CROSS * 4, 2, [2, 2]),
        ("train.tsv", DUAL, None, [2]),
        ("train", DUAL, 8, [2]),
        ("train.json", DPR, None, [4, 1]),
        ("train.jsonl", TEVATRON, None, [2]),
    ],
    ids=["cross", "list", "dual", "dual with a list size", "dpr", "tevatron"],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_the_layout_is_found(
    tmp_path: Path, name: str, content: str | list | dict, list_size: int | None, sizes: list[int], end: str
) -> None:
    path = write(tmp_path / f"{name}{end}", content)
    assert [len(group.passages) for group in read_groups(path, list_size)] == sizes


def test_read_groups_looks_at_the_file_at_once(tmp_path: Path) -> None:
    for name in ("train.json", "train.jsonl", "train.tsv"):
        with pytest.raises(FileNotFoundError):
            read_groups(tmp_path / name)
    path = write(tmp_path / "train.tsv", "one column\n")
    with fails(path, 1, "1 column, expected 4"):
        read_groups(path)


# Negatives that are none --------------------------------------------------------------------------

YES, TWIN, ALSO = {"title": "t", "text": "yes"}, {"title": "T", "text": " Yes"}, {"title": "-", "text": "me"}
NO, ASKED = {"title": "", "text": "no"}, {"title": "x", "text": "WHO ?"}
QUESTION = {"question": "who ?", "positive_ctxs": [YES, ALSO], "hard_negative_ctxs": [TWIN, NO, ASKED]}
LINE = {"query_id": "q", "query": "who ?", "positive_passages": [YES, ALSO], "negative_passages": [ALSO, NO]}


def rows(*passages: dict, label: str = "0", positive: tuple[str, ...] = ()) -> str:
    lines = (("who ?", *positive, passage["title"], passage["text"], label) for passage in passages)
    return "".join("\t".join(line) + "\n" for line in lines)


NEGATIVES_THAT_ARE_NONE = {
    "dpr": ("x.json", [QUESTION], None, [["yes", "no"]], (2, 0)),
    "dpr, negatives": (
        "x.json",
        [{**QUESTION, "negative_ctxs": [{"text": "me"}, NO]}],
        None,
        [["yes", "no", "no"]],
        (3, 0),
    ),
    "dpr, none left": ("x.json", [QUESTION | {"hard_negative_ctxs": [TWIN]}], None, [], (1, 1)),
    "tevatron": ("x.jsonl", LINE, None, [["yes", "no"]], (1, 0)),
    "list": ("x.tsv", rows(YES, NO, TWIN, ALSO, NO, TWIN), 3, [["yes", "no"], ["me", "no", " Yes"]], (1, 0)),
    "list, none left": ("x.tsv", rows(YES, TWIN, ASKED), 3, [], (2, 1)),
    "list, labels": ("x.tsv", rows(YES, ALSO, label="1") + rows(NO), 3, [["yes", "no"]], (1, 0)),
    "dual": ("x.tsv", rows(NO, TWIN, YES, ASKED, positive=("t", "yes")), None, [["yes", "no"]], (3, 3)),
}


@pytest.mark.parametrize("case", NEGATIVES_THAT_ARE_NONE.values(), ids=NEGATIVES_THAT_ARE_NONE)
def test_negatives_that_are_positives_or_the_query_are_left_out(tmp_path: Path, case: tuple) -> None:
    """A reader gives what the file has; what trains on it leaves them out, with one warning."""
    name, content, list_size, kept, counts = case
    path = write(tmp_path / name, content)
    message = r"{}: left out {} negatives that are positives .* and {} groups".format(name, *counts)
    with pytest.warns(UserWarning, match=message) as warned:
        groups = list(without_false_negatives(path, read_groups(path, list_size)))
    assert [[passage.text for passage in group.passages] for group in groups] == kept
    assert len(warned) == 1


def test_groups_of_one_query_know_one_another_s_positives() -> None:
    """A toolkit's file has a line for each negative, so a positive is there again and again."""
    first, twin, second = Passage("1+", "", "yes"), Passage("2+", "-", "Yes"), Passage("3+", "", "me")
    negative = Passage("-", "", "no")
    groups = [Group(Query(p.id, "who ?"), (p, negative), (1, 0)) for p in (first, twin, second)]
    groups.append(Group(Query("4", "what ?"), (second, negative), (1, 0)))
    others = [group.other_positives for group in with_other_positives(groups)]
    assert others == [(second,), (second,), (first,), ()]


def test_further_positives_are_kept_beside_the_first(tmp_path: Path) -> None:
    (dpr,) = read_groups(write(tmp_path / "x.json", [QUESTION]))
    assert dpr.other_positives == (Passage("1+2", "-", "me"),)
    (tevatron,) = read_groups(write(tmp_path / "x.jsonl", TEVATRON))
    assert tevatron.other_positives == (Passage("2", "", "b"),)


# Writing -----------------------------------------------------------------------------------------

GROUP = Group(Query("q7", "a query"), (Passage("1", "One", "yes"), Passage("2", "", "no")), (1, 0))


def a_group(query: str = "a query", title: str = "One", text: str = "yes") -> Group:
    return Group(Query("q7", query), (Passage("1", "", "x"), Passage("2", title, text)), (1, 0))


def name(layout: str) -> str:
    return "x.jsonl" if layout == "tevatron" else "x.tsv"


@pytest.mark.parametrize(
    "layout, lines",
    [
        ("list", ["a query\tOne\tyes\t1", "a query\t\tno\t0"]),
        ("dual", ["a query\tOne\tyes\t\tno\t0"]),
        ("tevatron", None),
    ],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_written_groups(tmp_path: Path, layout: GroupLayout, lines: list[str] | None, end: str) -> None:
    path = tmp_path / "new" / f"{name(layout)}{end}"
    write_groups(path, [GROUP], layout)
    (again,) = read_groups(path, 2 if layout == "list" else None)
    assert (again.query.text, again.labels) == ("a query", (1, 0))
    content = path.read_bytes()
    text = (gzip.decompress(content) if end else content).decode()
    assert text.splitlines() == lines if lines else again == GROUP


@pytest.mark.parametrize("layout", WRITTEN)
def test_the_name_must_fit_the_layout(tmp_path: Path, layout: GroupLayout) -> None:
    for ending in (".tsv", ".jsonl", ".json", "", ".tsv.gz", ".jsonl.gz", ".json.gz"):
        path = tmp_path / f"x{ending}"
        if ending.removesuffix(".gz") in ({".jsonl"} if layout == "tevatron" else {".tsv", ""}):
            check_group_file(path, layout)
        else:
            with pytest.raises(ValueError, match=f"expected .* for the layout {layout}"):
                check_group_file(path, layout)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match="a folder, expected the name of a file"):
        check_group_file(tmp_path / "folder.jsonl" if layout == "tevatron" else tmp_path, layout)


def test_a_layout_that_is_only_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout 'dpr', expected one .* written: list, dual, tevatron"):
        write_groups(tmp_path / "x.json", [GROUP], "dpr")


@pytest.mark.parametrize("layout", ["list", "dual"])
def test_groups_with_tabs_are_refused(tmp_path: Path, layout: GroupLayout) -> None:
    """The error names the query's id, and an older file stays as it was. Tevatron's JSON holds any text."""
    path = tmp_path / "groups.tsv"
    write_groups(path, [GROUP], layout)
    before = path.read_text()
    for mark, field in zip("\t\n\r", ("query", "title", "text"), strict=True):
        bad = a_group(**{field: f"a{mark}b"})
        named = "the query" if field == "query" else "passage '2'"
        with pytest.raises(ValueError, match=f"query 'q7': {named} has a tab or line end.*tevatron"):
            write_groups(path, [GROUP, bad], layout)
        assert path.read_text() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["groups.tsv"]


@pytest.mark.parametrize("old", [True, False])
def test_groups_that_fail_midway(tmp_path: Path, old: bool) -> None:
    def groups() -> Iterable[Group]:
        yield a_group()
        raise RuntimeError("mining failed")

    if old:
        write_groups(tmp_path / "groups.jsonl", [GROUP], "tevatron")
    with pytest.raises(RuntimeError, match="mining failed"):
        write_groups(tmp_path / "groups.jsonl", groups(), "tevatron")
    assert [list(read_groups(path)) for path in tmp_path.iterdir()] == [[GROUP]] * old


@pytest.mark.parametrize("layout", WRITTEN)
@pytest.mark.parametrize(
    "group",
    [
        a_group(query="\ufeffa query"),
        a_group(query=" "),
        a_group(title="-", text=" "),
        a_group(text="\ud800"),
        Group(GROUP.query, GROUP.passages, (1, 1)),
        Group(GROUP.query, GROUP.passages[:1], (1,)),
    ],
    ids=["byte-order mark", "no query", "no passage", "surrogate", "two positives", "no negative"],
)
def test_groups_are_given_back_or_refused(tmp_path: Path, layout: GroupLayout, group: Group) -> None:
    """A group that the layout would not give back exactly is refused, and the error names the query."""
    path = tmp_path / name(layout)
    try:
        write_groups(path, [group], layout)
    except ValueError as error:
        assert "'q7'" in str(error)
        assert not path.exists()
    else:
        (again,) = read_groups(path, len(group.labels)) if len(group.labels) > 1 else read_groups(path)
        assert (again.query.text, again.labels) == (group.query.text, group.labels)


@st.composite
def group_lists(draw: st.DrawFn, texts: st.SearchStrategy[str], smallest: int) -> list[Group]:
    """Groups of one size. No query begins with a byte-order mark, which a file cannot begin with."""
    made, size = [], draw(st.integers(smallest, 4))
    for number in range(draw(st.integers(1, 3))):
        query = Query(f"q{number}", draw(texts.filter(lambda text: not text.startswith("\ufeff"))))
        columns = [(draw(texts | st.sampled_from(["", "-"])), draw(texts)) for _ in range(size)]
        passages = (Passage(f"{number}.{i}", *column) for i, column in enumerate(columns))
        made.append(Group(query, tuple(passages), (1, *[0] * (size - 1))))
    return made


def contents(groups: Iterable[Group]) -> list[tuple]:
    return [(g.query.text, [(p.title, p.text) for p in g.passages], g.labels) for g in groups]


anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
round_trip = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


@round_trip
@given(groups=group_lists(texts, 2))
def test_tsv_round_trips(tmp_path: Path, groups: list[Group]) -> None:
    """`list` gives the groups back, and `dual` gives a group for each negative."""
    path = tmp_path / "x.tsv"
    write_groups(path, groups, "list")
    assert contents(read_groups(path, len(groups[0].labels))) == contents(groups)
    write_groups(path, groups, "dual")
    single = [one for group in groups for one in group.one_per_negative()]
    assert contents(read_groups(path)) == contents(single)


@round_trip
@given(groups=group_lists(anything, 1))
def test_tevatron_round_trip(tmp_path: Path, groups: list[Group]) -> None:
    """Any text comes back, and so do the ids."""
    write_groups(tmp_path / "x.jsonl", groups, "tevatron")
    assert list(read_groups(tmp_path / "x.jsonl")) == groups


# Records -----------------------------------------------------------------------------------------


def test_one_group_per_negative_keeps_its_scores() -> None:
    passages = tuple(Passage(id, "", id) for id in "abc")
    group = Group(Query("q", "q"), passages, (1, 0, 0), "denoised", (3.0, 2.0, 1.0))
    assert group.one_per_negative() == [
        Group(group.query, (passages[0], passages[1]), (1, 0), "denoised", (3.0, 2.0)),
        Group(group.query, (passages[0], passages[2]), (1, 0), "denoised", (3.0, 1.0)),
    ]
    assert [one.scores for one in GROUP.one_per_negative()] == [None]


@pytest.mark.parametrize(("labels", "scores"), [((1, 0), (1.0,)), ((1,), None)])
def test_labels_and_scores_are_one_a_passage(labels: tuple[int, ...], scores: tuple | None) -> None:
    with pytest.raises(AssertionError):
        Group(GROUP.query, GROUP.passages, labels, scores=scores)


# Real files --------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "rocketqa_examples").is_dir(), reason="no ../shared/data/rocketqa_examples")
def test_rocketqa_examples() -> None:
    folder = SHARED / "rocketqa_examples"
    dual = list(read_groups(folder / "dual.train.tsv"))
    assert [group.labels for group in dual] == [(1, 0)] * 100
    cross = list(read_groups(folder / "cross.train.tsv"))
    assert (len(cross), sum(group.labels[0] for group in cross)) == (100, 20)
    lists = list(read_groups(folder / "cross.train.tsv", list_size=5))
    assert [group.labels for group in lists] == [(1, 0, 0, 0, 0)] * 20
