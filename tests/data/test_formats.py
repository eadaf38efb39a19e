"""Data files: what each format reads, what it refuses and where, and that what is written reads the same."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import re
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocketqa_paddle.data import formats
from rocketqa_paddle.data.formats import (
    FormatError,
    load_qrels,
    read_beir,
    read_collection,
    read_cross_tsv,
    read_dpr_json,
    read_dual_tsv,
    read_joint_tsv,
    read_passages,
    read_qrels,
    read_queries,
    read_run,
    read_tevatron,
    read_training_groups,
    write_collection,
    write_run_tsv,
    write_training_groups,
    write_trec_run,
)
from rocketqa_paddle.records import Collection, Group, Hit, Passage, Query, Split

DATA = Path(__file__).parents[2].parent / "shared" / "data"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of the test's folder from text, bytes or an object for JSON."""

    def _write(name: str, content: str | bytes | list | dict) -> Path:
        if isinstance(content, (list, dict)):
            content = json.dumps(content, ensure_ascii=False)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _write


def fails(path: Path, line: int, *parts: str) -> AbstractContextManager:
    """Expect a FormatError that starts with the file and line and has the parts."""
    pattern = re.escape(f"{path}:{line}: ") + ".*".join(["", *map(re.escape, parts)])
    return pytest.raises(FormatError, match=f"(?s)^{pattern}")


def consume(records: Iterable) -> None:
    for _ in records:
        pass


# ------------------------------------------------------------------------------------------ any file

TWO = [Query("1", "what is a passage ?"), Query("q-2", "谁写了 红楼梦")]
TEXT = "1\twhat is a passage ?\nq-2\t谁写了 红楼梦\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.rstrip("\n").encode(),
        TEXT.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.encode() + b"\n\r\n \t\n",
        gzip.compress(TEXT.encode()),
        gzip.compress(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()),
    ],
    ids=["plain", "no end", "CRLF", "BOM", "empty end", "gzip", "gzip BOM CRLF"],
)
@pytest.mark.parametrize("name", ["q.txt", "q.txt.gz"])
def test_encodings_of_a_file(write: Write, content: bytes, name: str) -> None:
    assert list(read_queries(write(name, content))) == TWO


def test_nothing_is_trimmed(write: Write) -> None:
    path = write("q.txt", "1\t  a\u2028b\x85 \n2\tc\x0cd\re\n")
    assert [query.text for query in read_queries(path)] == ["  a\u2028b\x85 ", "c\x0cd\re"]


def test_path_may_be_a_string(write: Write) -> None:
    assert list(read_queries(str(write("q.txt", TEXT)))) == TWO


def test_readers_stream(write: Write) -> None:
    path = write("q.txt", "1\ta\n2\tb\nbroken\n")
    assert [query.id for query in islice(read_queries(path), 2)] == ["1", "2"]


def test_empty_line_in_the_middle(write: Write) -> None:
    path = write("q.txt", "1\ta\n\n\n2\tb\n")
    with fails(path, 2, "empty line", "remove it"):
        consume(read_queries(path))


@pytest.mark.parametrize("content", ["问题".encode("gb18030"), "问题".encode("utf-16"), b"\x80"])
def test_bad_utf8_names_the_line(write: Write, content: bytes) -> None:
    path = write("q.txt", b"1\ta\n2\t" + content + b"\n")
    with fails(path, 2, "not UTF-8", "iconv"):
        consume(read_queries(path))


@pytest.mark.parametrize("cut", [slice(0, 30), slice(0, -4)])
def test_broken_gzip(write: Write, cut: slice) -> None:
    path = write("q.txt.gz", gzip.compress(TEXT.encode() * 10)[cut])
    with pytest.raises(FormatError, match=re.escape(f"{path}: broken gzip file")):
        consume(read_queries(path))


def test_missing_file_lists_near_names(write: Write, tmp_path: Path) -> None:
    write("para.title.txt", "")
    write("para.txt", "")
    write("zebra", "")
    with pytest.raises(FileNotFoundError, match=r"para\.text: no such file; the folder has para") as caught:
        consume(read_passages(tmp_path / "para.text"))
    assert "para.txt" in str(caught.value) and "zebra" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file, and no folder"):
        consume(read_passages(tmp_path / "nowhere" / "para.txt"))
    with pytest.raises(FileNotFoundError, match="this is a folder"):
        consume(read_passages(tmp_path))


def test_errors_survive_pickling() -> None:
    assert str(pickle.loads(pickle.dumps(FormatError("a:1: b")))) == "a:1: b"


# ----------------------------------------------------------------------------------- TSV: what is refused

CROSS = "a query\ta title\ta text\t1\n"
DUAL = "a query\tgood title\tgood text\tbad title\tbad text\t0\n"


def joint(path: Path) -> Iterable:
    return read_joint_tsv(path, 2)


@pytest.mark.parametrize(
    "reader, content, line, parts",
    [
        (read_queries, "1\ta\n2\n", 2, ["1 column, expected 2 (id, text)", "tab"]),
        (read_queries, "1\ta\n2\tb\tc\n", 2, ["3 columns, expected 2 (id, text)"]),
        (read_queries, "a query\t-\t-\t0\n", 1, ["4 columns", "have no ids"]),
        (read_queries, "1\ta\n2\t \n", 2, ["query '2' has no text"]),
        (read_queries, "1\ta\n\tb\n", 2, ["query id ''"]),
        (read_queries, "1 \ta\n", 1, ["query id '1 '", "spaces"]),
        (read_passages, "1\ta\n2\t\n", 2, ["passage '2' has neither title nor text"]),
        (read_passages, "1\ta\n2 b\n", 2, ["1 column, expected 2"]),
        (read_passages, "-\ttitle\ttext\t0\n", 1, ["4 columns", "have no ids"]),
        (read_qrels, "1\t2\n1\n", 2, ["1 column, expected 2 (query id, passage id)"]),
        (read_qrels, "1 0 2 1\n1 2\n", 2, ["2 columns, expected 4 (query id, 0, passage id, relevance)"]),
        (read_qrels, "1 2 1\n", 1, ["3 columns without BEIR's header", "query-id corpus-id score"]),
        (read_qrels, "1 2 3 4 5\n", 1, ["5 columns, expected 2", "or 3", "or 4"]),
        (read_qrels, "1 0 2 1\n1 0 3 0.9\n", 2, ["relevance '0.9', expected an integer"]),
        (read_qrels, "1\t\n", 1, ["passage id ''"]),
        (
            load_qrels,
            "1 0 2 1\n1 0 2 1\n1 0 2 0\n",
            3,
            ["query '1' and passage '2'", "relevance 0", "1 before"],
        ),
        (read_cross_tsv, CROSS + "q\tt\tx\n", 2, ["3 columns, expected 4 (query, title, text, label)"]),
        (read_cross_tsv, CROSS + "q\tt\tx\ty\t1\n", 2, ["5 columns, expected 4"]),
        (read_cross_tsv, CROSS + "q\tt\tx\tyes\n", 2, ["label 'yes', expected 0 or 1"]),
        (read_cross_tsv, CROSS + " \tt\tx\t1\n", 2, ["query '2' has no text"]),
        (read_cross_tsv, CROSS + "q\t-\t \t1\n", 2, ["passage '2' has neither title nor text"]),
        (read_dual_tsv, DUAL + CROSS, 2, ["4 columns, expected 6 (query, positive title"]),
        (read_dual_tsv, DUAL + "q\tt\tx\tt\tx\t2\n", 2, ["label '2'"]),
        (read_dual_tsv, DUAL + "q\tt\tx\t\t\t0\n", 2, ["passage '2-' has neither"]),
        (read_training_groups, DUAL + CROSS, 2, ["4 columns, expected 6"]),
        (read_training_groups, "1\t2\n", 1, ["2 columns, expected 4 (", "or 6 ("]),
        (read_training_groups, "", 1, ["empty file"]),
        (joint, CROSS * 2 + "a query\tt\tx\tno\n", 3, ["label 'no', expected an integer"]),
        (joint, CROSS * 3, 3, ["ends after 1 of the 2 lines", "begins in line 3"]),
        (joint, CROSS * 3 + "another\tt\tx\t0\n", 4, ["another query than in line 3", "list_size"]),
        (
            joint,
            CROSS * 2 + "q\tt\tx\t0\nq\tt\tx\t1\n",
            3,
            ["label 0", "line 4 has label 1", "positive first"],
        ),
        (read_run, "1\t2\t1\n", 1, ["3 columns, expected 4 (query id", "or 6 (query id, Q0"]),
        (read_run, "1\t2\t1\t0.5\n1\t3\t0\t0.5\n", 2, ["rank 0", "add 1 to each"]),
        (read_run, "1\t2\t1\t0.5\n1\t3\tx\t0.5\n", 2, ["rank 'x', expected an integer"]),
        (read_run, "1 Q0 2 1 nan t\n", 1, ["score 'nan', expected a finite number"]),
        (read_run, "1 Q0 2 1 high t\n", 1, ["score 'high'"]),
        (read_run, "1\t2\t1\t0.5\n1\t2\t2\t0.4\n", 2, ["query '1'", "passage '2' already"]),
        (read_run, "1\t2\t1\t1\n2\t2\t1\t1\n1\t3\t1\t1\n", 3, ["query '1' has rank 1"]),
    ],
)
def test_refused(write: Write, reader: Callable, content: str, line: int, parts: list[str]) -> None:
    path = write("data.tsv", content)
    with fails(path, line, *parts):
        consume(reader(path))


# --------------------------------------------------------------------------- queries, passages, judgements


def test_passages_without_titles(write: Write) -> None:
    path = write("para.txt", "7\ta text\n8\tanother\n")
    assert list(read_passages(path)) == [Passage("7", "", "a text"), Passage("8", "", "another")]


@pytest.mark.parametrize(
    "titles",
    ["7\tSeven\n8\t-\n9\t\n", "9\t\n8\t-\n7\tSeven\n", "1\tunused\n8\t-\n7\tSeven\n9\t\n2\tunused\n"],
)
def test_titles_in_any_order(write: Write, titles: str) -> None:
    path = write("para.txt", "7\ta\n8\tb\n9\tc\n")
    passages = read_passages(path, write("para.title.txt", titles))
    assert [(passage.id, passage.title) for passage in passages] == [("7", "Seven"), ("8", "-"), ("9", "")]


def test_title_makes_up_for_text(write: Write) -> None:
    (passage,) = read_passages(write("para.txt", "7\t\n"), write("para.title.txt", "7\tSeven\n"))
    assert passage == Passage("7", "Seven", "")


def test_titles_that_do_not_fit(write: Write) -> None:
    path, titles = write("para.txt", "7\ta\n8\tb\n"), write("para.title.txt", "7\tSeven\n")
    with fails(path, 2, f"passage id '8' has no line in {titles}"):
        consume(read_passages(path, titles))
    titles = write("para.title.txt", "7\tSeven\n8\n")
    with fails(titles, 2, "1 column, expected 2 (id, title)"):
        consume(read_passages(path, titles))


@pytest.mark.parametrize(
    "content, expected",
    [
        ("1\t2\n1\t3\n", [("1", "2", 1), ("1", "3", 1)]),
        ("1 2\n", [("1", "2", 1)]),
        ("1\t0\t2\t1\n1\t0\t3\t-2\n", [("1", "2", 1), ("1", "3", -2)]),
        ("q  0 p   3\n", [("q", "p", 3)]),
        ("query-id\tcorpus-id\tscore\nq\tp\t2\n", [("q", "p", 2)]),
        ("query-id\tcorpus-id\tscore\n", []),
        ("a query\ta passage\n", [("a query", "a passage", 1)]),
        ("", []),
    ],
)
def test_qrels(write: Write, content: str, expected: list[tuple[str, str, int]]) -> None:
    assert list(read_qrels(write("qrels.tsv", content))) == expected


def test_load_qrels(write: Write) -> None:
    path = write("qrels.tsv", "1\t2\n2\t2\n1\t3\n1\t2\n")
    assert load_qrels(path) == {"1": {"2": 1, "3": 1}, "2": {"2": 1}}


# ---------------------------------------------------------------------------------------- training groups


def test_cross(write: Write) -> None:
    one, two = read_cross_tsv(write("cross.tsv", CROSS + "q\t-\tx\t0\n"))
    assert (one.query, one.passages) == (Query("1", "a query"), (Passage("1", "a title", "a text"),))
    assert (two.passages, two.labels, two.source) == ((Passage("2", "-", "x"),), (0,), "labelled")
    assert one.labels == (1,)


def test_dual(write: Write) -> None:
    _, group = read_dual_tsv(write("dual.tsv", DUAL * 2))
    assert group.query == Query("2", "a query")
    assert group.passages == (
        Passage("2+", "good title", "good text"),
        Passage("2-", "bad title", "bad text"),
    )
    assert group.labels == (1, 0)


@pytest.mark.parametrize(
    "labels, expected", [("100", (1, 0, 0)), ("000", (1, 0, 0)), ("110", (1, 1, 0)), ("190", (1, 1, 0))]
)
def test_joint(write: Write, labels: str, expected: tuple[int, ...]) -> None:
    lines = [f"q{query}\tt\tx{label}\t{label}\n" for query in "ab" for label in labels]
    one, two = read_joint_tsv(write("joint.tsv", "".join(lines)), 3)
    assert one.labels == two.labels == expected
    assert (two.query, [passage.id for passage in two.passages]) == (Query("4", "qb"), ["4", "5", "6"])


def test_joint_needs_a_list() -> None:
    with pytest.raises(ValueError, match="list_size is 1, expected 2 or more"):
        consume(read_joint_tsv("unread", 1))


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


@pytest.fixture(params=[1, 7, 1 << 16])
def chunk_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    chunks = formats._chunks
    monkeypatch.setattr(formats, "_chunks", lambda path: chunks(path, request.param))
    return request.param


@pytest.mark.usefixtures("chunk_size")
@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize("end", ["", "\n\n"])
def test_dpr(write: Write, indent: int | None, ascii: bool, end: str) -> None:
    text = json.dumps(DPR, indent=indent, ensure_ascii=ascii) + end
    one, two = read_dpr_json(write("train.json", b"\xef\xbb\xbf" + text.encode()))
    assert one.query == Query("1", "who ?")
    assert [passage.id for passage in one.passages] == ["11", "44", "1.3", "33"]
    assert [passage.text for passage in one.passages] == ["text 1", "text 4", "text 5", "text 3"]
    assert one.labels == (1, 0, 0, 0)
    assert (two.query, two.passages) == (Query("2", '什么 ["{ ?'), (Passage("2.1", "title 6", "text 6"),))


def test_dpr_question_without_positive_is_counted(write: Write) -> None:
    path = write("train.json", [*DPR, {"question": "q", "positive_ctxs": []}])
    with pytest.warns(UserWarning, match=r"train\.json: left out 1 of 3 queries"):
        assert len(list(read_dpr_json(path))) == 2


@pytest.mark.parametrize("content", ["[]", " [ ]\n", "[\n]"])
def test_dpr_empty_list(write: Write, content: str) -> None:
    assert list(read_dpr_json(write("train.json", content))) == []


@pytest.mark.parametrize(
    "content, line, parts",
    [
        ('{"question": 1}', 1, ["'{' where a JSON list", "'['", ".jsonl"]),
        ("", 1, ["the end of the file", "'['"]),
        ("[\n\n3]", 3, ["'3' where a JSON list of objects needs '{'"]),
        ('[\n{"question": "a"\n"b": 1}]', 3, ["not JSON (Expecting ',' delimiter)"]),
        ('[\n{"question": "a', 2, ["not JSON (Unterminated string"]),
        ('[{"question": "q", "positive_ctxs": []}\n', 2, ["the end of the file", "','"]),
        ('[{"question": "q", "positive_ctxs": []}\n{', 2, ["'{'", "','"]),
        ("[]\n\n[]", 3, ["more text after the end"]),
        ('[\n{"positive_ctxs": []}]', 2, ['no "question"', "positive_ctxs"]),
        ('[\n{"question": "a"}]', 2, ['"positive_ctxs" is missing, expected a list']),
        ('[\n{"question": "a", "positive_ctxs": "b"}]', 2, ['"positive_ctxs" is str']),
        ('[\n{"question": ["a"], "positive_ctxs": []}]', 2, ['"question" is a list, expected a string']),
        ('[\n{"question": "a", "positive_ctxs": [{"title": "t"}]}]', 2, ['no "text"', "title"]),
        ('[\n{"question": "", "positive_ctxs": []}]', 2, ["query '1' has no text"]),
        ("[" + '{"a":' * 100_000, 1, ["not readable JSON"]),
        ('[\n{"a": ' + "1" * 5000 + "}]", 2, ["not readable JSON"]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*left out")
def test_dpr_refused(write: Write, content: str, line: int, parts: list[str]) -> None:
    path = write("train.json", content)
    with fails(path, line, *parts):
        consume(read_dpr_json(path))


@pytest.mark.usefixtures("chunk_size")
def test_dpr_cut_anywhere(write: Write) -> None:
    """Wherever the text in memory ends, in a literal or an escape too, the rest is read first."""
    texts = ["é\\\n" * count for count in range(1, 40)]
    objects = [
        {"question": text, "positive_ctxs": [context(1, ok=True, no=None)], "n": 1e-07} for text in texts
    ]
    groups = read_dpr_json(write("train.json", json.dumps(objects)))
    assert [group.query.text for group in groups] == texts


@pytest.mark.usefixtures("chunk_size")
def test_dpr_bad_utf8_names_the_line(write: Write) -> None:
    path = write("train.json", b'[\n{"question": "a",\n"answers": "\xb4"}]')
    with fails(path, 3, "byte 0xb4 is not UTF-8"):
        consume(read_dpr_json(path))


TEVATRON = {
    "query_id": "q1",
    "query": "who ?",
    "positive_passages": [
        {"docid": "1", "title": "-", "text": "a"},
        {"docid": "2", "title": "", "text": "b"},
    ],
    "negative_passages": [{"docid": 3, "text": "c"}],
}


def test_tevatron(write: Write) -> None:
    (group,) = read_tevatron(write("train.jsonl", TEVATRON))
    assert group.query == Query("q1", "who ?")
    assert group.passages == (Passage("1", "-", "a"), Passage("3", "", "c"))
    assert group.labels == (1, 0)


def test_tevatron_line_without_positive_is_counted(write: Write) -> None:
    path = write("train.jsonl", json.dumps({**TEVATRON, "positive_passages": []}))
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
def test_tevatron_refused(write: Write, second: str, parts: list[str]) -> None:
    path = write("train.jsonl", json.dumps(TEVATRON) + "\n" + second + "\n")
    with fails(path, 2, *parts):
        consume(read_tevatron(path))


@pytest.mark.parametrize(
    "name, content, list_size, sizes",
    [
        ("train.tsv", CROSS * 4, None, [1, 1, 1, 1]),
        ("train.tsv", CROSS * 4, 2, [2, 2]),
        ("train.tsv", DUAL, None, [2]),
        ("train", DUAL, 8, [2]),
        ("train.json", json.dumps(DPR), None, [4, 1]),
        ("train.jsonl", json.dumps(TEVATRON), None, [2]),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_training_groups(
    write: Write, name: str, content: str, list_size: int | None, sizes: list[int], zipped: bool
) -> None:
    path = write(f"{name}.gz", gzip.compress(content.encode())) if zipped else write(name, content)
    assert [len(group.passages) for group in read_training_groups(path, list_size)] == sizes


def test_training_groups_looks_at_once(write: Write, tmp_path: Path) -> None:
    for name in ("train.json", "train.jsonl", "train.tsv"):
        with pytest.raises(FileNotFoundError):
            read_training_groups(tmp_path / name)
    path = write("train.tsv", "one column\n")
    with fails(path, 1, "1 column, expected 4"):
        read_training_groups(path)


# --------------------------------------------------------------------------------------------- collections

FOLDER = {
    "para.txt": "1\tone\n2\ttwo\n3\tthree\n",
    "para.title.txt": "1\tOne\n2\t\n3\t-\n",
    "train.query.txt": "10\tten\n11\televen\n",
    "qrels.train.tsv": "10\t1\n11\t2\n11\t3\n",
    "test.query.txt": "20\ttwenty\n",
}
BEIR = {
    "corpus.jsonl": '{"_id": "1", "title": "One", "text": "one", "metadata": {}}\n'
    '{"_id": "2", "text": "two"}\n{"_id": 3, "title": "-", "text": "three"}\n',
    "queries.jsonl": '{"_id": "9", "text": "nine"}\n{"_id": "10", "text": "ten"}\n'
    '{"_id": "11", "text": "eleven"}\n',
    "qrels/train.tsv": "query-id\tcorpus-id\tscore\n10\t1\t1\n11\t2\t1\n11\t3\t1\n",
}
PASSAGES = {"1": Passage("1", "One", "one"), "2": Passage("2", "", "two"), "3": Passage("3", "-", "three")}
TRAIN = Split(
    {"10": Query("10", "ten"), "11": Query("11", "eleven")}, {"10": {"1": 1}, "11": {"2": 1, "3": 1}}
)
TEST = Split({"20": Query("20", "twenty")})


def fill(write: Write, files: dict[str, str], **changes: str | None) -> None:
    for name, content in {**files, **changes}.items():
        if content is not None:
            write(name, content)


@pytest.mark.parametrize("zipped", [False, True])
def test_collection(write: Write, tmp_path: Path, zipped: bool) -> None:
    for name, content in FOLDER.items():
        write(f"{name}.gz", gzip.compress(content.encode())) if zipped else write(name, content)
    collection = read_collection(tmp_path, ["train", "test"])
    assert collection == Collection(PASSAGES, {"train": TRAIN, "test": TEST})
    assert list(collection.passages) == ["1", "2", "3"]


def test_collection_without_titles_or_splits(write: Write, tmp_path: Path) -> None:
    write("para.txt", FOLDER["para.txt"])
    collection = read_collection(tmp_path, [])
    assert [passage.title for passage in collection.passages.values()] == ["", "", ""]
    assert collection.splits == {}


@pytest.mark.parametrize("reader", [read_collection, read_beir])
def test_beir(write: Write, tmp_path: Path, reader: Callable) -> None:
    fill(write, BEIR)
    assert reader(tmp_path, ["train"]) == Collection(PASSAGES, {"train": TRAIN})


def test_beir_keeps_and_counts_empty_passages(write: Write, tmp_path: Path) -> None:
    fill(write, BEIR, **{"corpus.jsonl": BEIR["corpus.jsonl"] + '{"_id": "4", "title": "", "text": ""}\n'})
    with pytest.warns(UserWarning, match="1 of 4 passages have neither title nor text; kept"):
        collection = read_beir(tmp_path, ["train"])
    assert collection.passages["4"] == Passage("4", "", "")
    with pytest.raises(ValueError, match="passage '4' has neither"):
        write_collection(tmp_path / "copy", collection)


@pytest.mark.parametrize(
    "name, content, line, parts",
    [
        ("para.txt", "", 1, ["empty file, expected one passage a line"]),
        ("train.query.txt", "\n", 1, ["empty file, expected one query a line"]),
        ("para.txt", "1\tone\n2\ttwo\n3\tthree\n2\tagain\n", 4, ["passage id '2'"]),
        ("train.query.txt", "10\ta\n11\tb\n10\tc\n", 3, ["query id '10' stands in line 1 already"]),
        ("qrels.train.tsv", "10\t1\n11\t8\n11\t9\n", 2, ["passage id '8' is not in", "para.txt", "2 of 3"]),
        (
            "qrels.train.tsv",
            "10\t1\n11\t2\n12\t3\n",
            3,
            ["query id '12' is not in", "train.query.txt", "1 of 3"],
        ),
        ("train.query.txt", "10\ta\n11\tb\n12\tc\n", 3, ["query '12' has no relevant passage", "1 of 3"]),
        ("train.query.txt", "10\ta\n\n11\tb\n", 2, ["empty line"]),
    ],
)
def test_collection_refused(
    write: Write, tmp_path: Path, name: str, content: str, line: int, parts: list[str]
) -> None:
    fill(write, FOLDER, **{name: content})
    with fails(tmp_path / name, line, *parts):
        read_collection(tmp_path, ["train"])


def test_duplicate_passage_without_titles(write: Write, tmp_path: Path) -> None:
    fill(write, FOLDER, **{"para.title.txt": None, "para.txt": FOLDER["para.txt"] + "2\tagain\n"})
    with fails(tmp_path / "para.txt", 4, "passage id '2' stands in line 2 already"):
        read_collection(tmp_path, ["train"])


def test_query_with_only_irrelevant_passages(write: Write, tmp_path: Path) -> None:
    fill(write, FOLDER, **{"qrels.train.tsv": "10 0 1 1\n11 0 2 0\n11 0 3 -1\n"})
    with fails(tmp_path / "train.query.txt", 2, "query '11' has no relevant passage"):
        read_collection(tmp_path, ["train"])


@pytest.mark.parametrize(
    "name, content, line, parts",
    [
        ("corpus.jsonl", '{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}\n', 2, ["in line 1 already"]),
        ("corpus.jsonl", '{"_id": "1", "text": "a"}\n{"text": "b"}\n', 2, ['no "_id"']),
        ("queries.jsonl", '{"_id": "1", "text": ""}\n', 1, ["query '1' has no text"]),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\n", 1, ["no judgements"]),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\n10\t9\t1\n", 2, ["passage id '9'", "1 of 1"]),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\n8\t1\t1\n", 2, ["query id '8'", "queries.jsonl"]),
    ],
)
def test_beir_refused(
    write: Write, tmp_path: Path, name: str, content: str, line: int, parts: list[str]
) -> None:
    fill(write, BEIR, **{name: content})
    with fails(tmp_path / name, line, *parts):
        read_beir(tmp_path, ["train"])


def test_beir_query_with_only_irrelevant_passages(write: Write, tmp_path: Path) -> None:
    fill(write, BEIR, **{"qrels/train.tsv": "query-id\tcorpus-id\tscore\n10\t1\t1\n11\t2\t0\n"})
    with fails(tmp_path / "queries.jsonl", 3, "query '11' has no relevant passage", "1 of 2"):
        read_beir(tmp_path, ["train"])


def test_missing_parts_of_a_collection(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a collection.*para\.txt.*corpus\.jsonl.*no files"):
        read_collection(tmp_path, ["train"])
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        read_collection(tmp_path / "nowhere", ["train"])
    fill(write, {**FOLDER, **BEIR})
    with pytest.raises(
        FileNotFoundError, match=r"dev\.query\.txt: no such file; the folder has .*query\.txt"
    ):
        read_collection(tmp_path, ["train", "dev"])
    with pytest.raises(FileNotFoundError, match=r"dev\.tsv: no such file; the folder has train\.tsv"):
        read_beir(tmp_path, ["dev"])


# ------------------------------------------------------------------------------------------------- writers

RUN = {
    "q1": [Hit("q1", "p1", 1, 79.25), Hit("q1", "p2", 2, 0.1)],
    "q2": [Hit("q2", "p1", 1, -1e-9)],
}


def test_written_runs(tmp_path: Path) -> None:
    write_trec_run(tmp_path / "run.trec", RUN, tag="dual")
    assert (tmp_path / "run.trec").read_text().splitlines() == [
        "q1 Q0 p1 1 79.25 dual",
        "q1 Q0 p2 2 0.1 dual",
        "q2 Q0 p1 1 -1e-09 dual",
    ]
    write_run_tsv(tmp_path / "new" / "run.tsv", RUN)
    assert (tmp_path / "new" / "run.tsv").read_text().splitlines()[0] == "q1\tp1\t1\t79.25"
    assert read_run(tmp_path / "run.trec") == read_run(tmp_path / "new" / "run.tsv") == RUN


def test_written_gzip(tmp_path: Path) -> None:
    write_run_tsv(tmp_path / "run.tsv.gz", RUN)
    assert gzip.decompress((tmp_path / "run.tsv.gz").read_bytes()).startswith(b"q1\tp1\t1\t79.25\n")
    assert read_run(tmp_path / "run.tsv.gz") == RUN


def test_run_is_sorted_by_rank(write: Write) -> None:
    run = read_run(write("run.tsv", "b\t1\t2\t0.5\na\t1\t1\t3\nb\t2\t1\t0.9\n"))
    assert {query: [hit.passage_id for hit in hits] for query, hits in run.items()} == {
        "b": ["2", "1"],
        "a": ["1"],
    }


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.tsv"
    write_run_tsv(path, RUN)
    with pytest.raises(ValueError, match="finite score"):
        write_run_tsv(path, {"q": [Hit("q", "p", 1, 1.0), Hit("q", "p2", 2, math.nan)]})
    assert read_run(path) == RUN
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.tsv"]


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a file"):
        write_run_tsv(tmp_path, RUN)


@pytest.mark.parametrize(
    "writer, hit, message",
    [
        (write_trec_run, Hit("a query", "p", 1, 1.0), "'a query'.*not one word"),
        (write_trec_run, Hit("q", "a\u2003p", 1, 1.0), "of query 'q' is not one word"),
        (write_run_tsv, Hit("q", "a\tp", 1, 1.0), "id 'q' has a tab"),
        (write_run_tsv, Hit("q", "", 1, 1.0), "not empty"),
        (write_run_tsv, Hit("\ufeffq", "p", 1, 1.0), "byte-order mark"),
        (write_run_tsv, Hit("q", "p", 0, 1.0), "rank from 1"),
        (write_run_tsv, Hit("q", "p", 1, math.inf), "finite score"),
        (write_run_tsv, Hit("q", "\ud800", 1, 1.0), "id 'q' has text that UTF-8 cannot hold"),
    ],
)
def test_runs_that_cannot_be_written(tmp_path: Path, writer: Callable, hit: Hit, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        writer(tmp_path / "run", {hit.query_id: [hit]})
    assert not list(tmp_path.iterdir())


def test_tag_is_one_word(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'my run'.*not one word"):
        write_trec_run(tmp_path / "run", RUN, tag="my run")


@pytest.mark.parametrize(
    "passage, query, message",
    [
        (Passage("7", "", "a\tb"), Query("1", "a"), "id '7' has a tab or line end"),
        (Passage("7", "a\nb", "c"), Query("1", "a"), "id '7' has a tab or line end"),
        (Passage("7", "-", " "), Query("1", "a"), "passage '7' has neither title nor text"),
        (Passage("7", "", " "), Query("1", "a"), "passage '7' has neither title nor text"),
        (Passage(" 7", "", "a"), Query("1", "a"), "id ' 7'"),
        (Passage("7", "", "a"), Query("1", "a\r"), "id '1' has a tab or line end"),
        (Passage("7", "", "a"), Query("1", ""), "query '1' has no text"),
        (Passage("7", "", "a"), Query("", "a"), "id '' is empty"),
    ],
)
def test_collections_that_cannot_be_written(
    tmp_path: Path, passage: Passage, query: Query, message: str
) -> None:
    collection = Collection({passage.id: passage}, {"train": Split({query.id: query})})
    with pytest.raises(ValueError, match=message):
        write_collection(tmp_path, collection)


def test_written_collection(tmp_path: Path) -> None:
    write_collection(tmp_path, Collection(PASSAGES, {"train": TRAIN, "test": TEST}))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == FOLDER


def test_graded_judgements_take_four_columns(tmp_path: Path) -> None:
    graded = Split(TRAIN.queries, {"10": {"1": 3, "2": 0}, "11": {"2": 1}})
    write_collection(tmp_path, Collection(PASSAGES, {"train": graded}))
    assert (tmp_path / "qrels.train.tsv").read_text() == "10\t0\t1\t3\n10\t0\t2\t0\n11\t0\t2\t1\n"
    assert read_collection(tmp_path, ["train"]).splits["train"] == graded


def test_unlabelled_split_takes_the_place_of_a_labelled_one(tmp_path: Path) -> None:
    write_collection(tmp_path, Collection(PASSAGES, {"train": TRAIN}))
    write_collection(tmp_path, Collection(PASSAGES, {"train": Split(TRAIN.queries)}))
    assert read_collection(tmp_path, ["train"]).splits["train"] == Split(TRAIN.queries)


GROUP = Group(Query("q7", "a query"), (Passage("1", "One", "yes"), Passage("2", "", "no")), (1, 0))


def a_group(query: str = "a query", title: str = "One", text: str = "yes") -> Group:
    return Group(Query("q7", query), (Passage("1", "", "x"), Passage("2", title, text)), (1, 0))


@pytest.mark.parametrize(
    "layout, lines",
    [
        ("list", ["a query\tOne\tyes\t1", "a query\t\tno\t0"]),
        ("dual", ["a query\tOne\tyes\t\tno\t0"]),
        ("tevatron", None),
    ],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_written_groups(
    tmp_path: Path, layout: formats.GroupLayout, lines: list[str] | None, end: str
) -> None:
    path = tmp_path / "new" / f"x{'.tsv' if lines else '.jsonl'}{end}"
    write_training_groups(path, [GROUP], layout)
    (again,) = read_training_groups(path, 2 if layout == "list" else None)
    assert (again.query.text, again.labels) == ("a query", (1, 0))
    content = path.read_bytes()
    text = (gzip.decompress(content) if end else content).decode()
    assert text.splitlines() == lines if lines else again == GROUP


@pytest.mark.parametrize("layout", ["list", "dual"])
@pytest.mark.parametrize("mark", ["\t", "\n", "\r"])
@pytest.mark.parametrize("field", ["query", "title", "text"])
def test_groups_with_tabs_are_refused(
    tmp_path: Path, layout: formats.GroupLayout, mark: str, field: str
) -> None:
    """By the query's id; Tevatron's JSON takes them. An older file stays as it was."""
    bad, path = a_group(**{field: f"a{mark}b"}), tmp_path / "groups.tsv"
    write_training_groups(path, [GROUP], layout)
    before = path.read_text()
    with pytest.raises(ValueError, match="query 'q7'.*tab, line end.*tevatron"):
        write_training_groups(path, [GROUP, bad], layout)
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["groups.tsv"]
    write_training_groups(tmp_path / "groups.jsonl", [bad], "tevatron")
    assert list(read_training_groups(tmp_path / "groups.jsonl")) == [bad]


@pytest.mark.parametrize("old", [True, False])
def test_groups_that_fail_midway(tmp_path: Path, old: bool) -> None:
    def groups() -> Iterable[Group]:
        yield a_group()
        raise RuntimeError("mining failed")

    if old:
        write_training_groups(tmp_path / "groups.jsonl", [GROUP], "tevatron")
    with pytest.raises(RuntimeError, match="mining failed"):
        write_training_groups(tmp_path / "groups.jsonl", groups(), "tevatron")
    assert [list(read_training_groups(path)) for path in tmp_path.iterdir()] == [[GROUP]] * old


@pytest.mark.parametrize("layout", ["list", "dual", "tevatron"])
@pytest.mark.parametrize(
    "group",
    [
        a_group(query="\ufeffa query"),
        a_group(query=" "),
        a_group(title="-", text=" "),
        a_group(text="\ud800"),
        Group(GROUP.query, GROUP.passages, (1, 1)),
    ],
    ids=["byte-order mark", "no query", "no passage", "surrogate", "two positives"],
)
def test_groups_are_given_back_or_refused(tmp_path: Path, layout: formats.GroupLayout, group: Group) -> None:
    """What the format would not give back exactly, the writer refuses, and names the query."""
    path = tmp_path / ("x.jsonl" if layout == "tevatron" else "x.tsv")
    try:
        write_training_groups(path, [group], layout)
    except ValueError as error:
        assert "'q7'" in str(error)
        assert not path.exists()
    else:
        (again,) = read_training_groups(path, 2 if layout == "list" else None)
        assert (again.query.text, again.labels) == (group.query.text, group.labels)


# --------------------------------------------------------------------------------------------- round trips

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r")
texts = st.text(characters, min_size=1, max_size=8).filter(str.strip)
ids = texts.filter(lambda id: id == id.strip() and not id.startswith("\ufeff"))
words = ids.filter(lambda id: id.split() == [id])
scores = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def runs(draw: st.DrawFn, names: st.SearchStrategy[str]) -> dict[str, list[Hit]]:
    queries = draw(st.lists(names, max_size=3, unique=True))
    hit_lists = [draw(st.lists(names, min_size=1, max_size=4, unique=True)) for _ in queries]
    return {
        query: [Hit(query, passage, rank, draw(scores)) for rank, passage in enumerate(passages, 1)]
        for query, passages in zip(queries, hit_lists, strict=True)
    }


@st.composite
def collections(draw: st.DrawFn) -> Collection:
    titles = texts | st.sampled_from(["", "-"])
    passages = {
        id: Passage(id, draw(titles), draw(texts)) for id in draw(st.sets(ids, min_size=1, max_size=4))
    }
    queries = {id: Query(id, draw(texts)) for id in draw(st.sets(ids, min_size=1, max_size=3))}
    relevance = st.dictionaries(st.sampled_from(list(passages)), st.integers(-2, 3), min_size=1)
    positive = relevance.filter(lambda judged: max(judged.values()) > 0)
    qrels = {id: draw(positive) for id in queries} if draw(st.booleans()) else {}
    return Collection(passages, {"train": Split(queries, qrels)})


@settings(max_examples=60, deadline=None)
@given(runs(ids))
def test_run_tsv_round_trip(run: dict[str, list[Hit]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_run_tsv(Path(folder) / "run.tsv", run)
        assert read_run(Path(folder) / "run.tsv") == run


@settings(max_examples=60, deadline=None)
@given(runs(words), words)
def test_trec_run_round_trip(run: dict[str, list[Hit]], tag: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_trec_run(Path(folder) / "run.trec", run, tag)
        assert read_run(Path(folder) / "run.trec") == run


@settings(max_examples=60, deadline=None)
@given(collections())
def test_collection_round_trip(collection: Collection) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_collection(folder, collection)
        again = read_collection(folder, ["train"])
    assert again == collection
    assert list(again.passages) == list(collection.passages)


@st.composite
def group_lists(draw: st.DrawFn, texts: st.SearchStrategy[str], size: int) -> list[Group]:
    """Groups of `size` passages. Two may have one query text, which the first of them may not begin with a
    byte-order mark: the start of a file is no place for it."""
    made = []
    for number in range(draw(st.integers(1, 4))):
        query = Query(f"q{number}", draw(texts.filter(lambda text: not text.startswith("\ufeff"))))
        columns = [(draw(texts | st.sampled_from(["", "-"])), draw(texts)) for _ in range(size)]
        passages = (Passage(f"{number}.{i}", *column) for i, column in enumerate(columns))
        made.append(Group(query, tuple(passages), (1, *[0] * (size - 1))))
    return made


def contents(groups: Iterable[Group]) -> list[tuple]:
    return [(g.query.text, [(p.title, p.text) for p in g.passages], g.labels) for g in groups]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.data())
def test_list_round_trip(size: int, data: st.DataObject) -> None:
    groups = data.draw(group_lists(texts, size))
    with tempfile.TemporaryDirectory() as folder:
        write_training_groups(Path(folder) / "x.tsv", groups, "list")
        assert contents(read_training_groups(Path(folder) / "x.tsv", size)) == contents(groups)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.data())
def test_dual_round_trip(size: int, data: st.DataObject) -> None:
    """A line a negative, each with the positive."""
    groups = data.draw(group_lists(texts, size))
    pairs = [Group(g.query, (g.passages[0], other), (1, 0)) for g in groups for other in g.passages[1:]]
    with tempfile.TemporaryDirectory() as folder:
        write_training_groups(Path(folder) / "x.tsv", groups, "dual")
        assert contents(read_training_groups(Path(folder) / "x.tsv")) == contents(pairs)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.data())
def test_tevatron_round_trip(size: int, data: st.DataObject) -> None:
    """Any text, and the ids, too."""
    anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
    groups = data.draw(group_lists(anything, size))
    with tempfile.TemporaryDirectory() as folder:
        write_training_groups(Path(folder) / "x.jsonl", groups, "tevatron")
        assert list(read_training_groups(Path(folder) / "x.jsonl")) == groups


@settings(max_examples=100, deadline=None)
@given(scores)
def test_scores_keep_all_float32_digits(score: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_run_tsv(Path(folder) / "run.tsv", {"q": [Hit("q", "p", 1, score)]})
        (hit,) = read_run(Path(folder) / "run.tsv")["q"]
    assert struct.pack("f", hit.score) == struct.pack("f", score)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.text('\t\n\r 01-a\ufeff[]{}":,', max_size=40).map(str.encode))
def test_any_bytes_read_or_raise_a_format_error(content: bytes) -> None:
    readers = [read_queries, read_passages, load_qrels, read_training_groups, joint, read_run, read_dpr_json]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "data"
        path.write_bytes(content)
        for reader in [*readers, read_tevatron]:
            try:
                consume(reader(path))
            except FormatError as error:
                assert str(error).startswith(str(path))


# --------------------------------------------------------------------------------------------- real files


@pytest.mark.skipif(not (DATA / "medquad").is_dir(), reason="no ../shared/data/medquad")
def test_medquad() -> None:
    collection = read_collection(DATA / "medquad", ["train", "dev"])
    assert len(collection.passages) == 42_195
    assert {name: len(split.queries) for name, split in collection.splits.items()} == {
        "train": 12_486,
        "dev": 678,
    }
    assert sum(map(len, collection.splits["dev"].qrels.values())) == 1_225
    assert collection.passages["0"].title == "Adult Acute Lymphoblastic Leukemia"


@pytest.mark.skipif(not (DATA / "rocketqa_examples").is_dir(), reason="no ../shared/data/rocketqa_examples")
def test_rocketqa_examples() -> None:
    folder = DATA / "rocketqa_examples"
    dual = list(read_training_groups(folder / "dual.train.tsv"))
    assert [group.labels for group in dual] == [(1, 0)] * 100
    cross = list(read_training_groups(folder / "cross.train.tsv"))
    assert (len(cross), sum(group.labels[0] for group in cross)) == (100, 20)
    joint = list(read_training_groups(folder / "cross.train.tsv", list_size=5))
    assert [group.labels for group in joint] == [(1, 0, 0, 0, 0)] * 20
    with fails(folder / "dureader.q", 1, "4 columns", "have no ids"):
        consume(read_queries(folder / "dureader.q"))
