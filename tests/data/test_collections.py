"""Collections: what their files read and refuse, and that any collection is read as it was written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import toy
from datafiles import SHARED, consume, fails, texts, words, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rocketqa_paddle.data.collections import read_beir, read_collection, read_unlabelled
from rocketqa_paddle.data.places import FormatError
from rocketqa_paddle.data.qrels import load_qrels
from rocketqa_paddle.data.texts import load_passages, load_queries, read_passages, read_queries
from rocketqa_paddle.records import Collection, Passage, Query, Split


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
        (load_qrels, "1\t2\n1\n", 2, ["1 column, expected 2 (query id, passage id)"]),
        (load_qrels, "1 0 2 1\n1 2\n", 2, ["2 columns, expected 4 (query id, 0, passage id, relevance)"]),
        (load_qrels, "1 2 1\n", 1, ["3 columns without a header", "query-id corpus-id score"]),
        (load_qrels, "1 0 2 1\n1 0 3 1e9\n", 2, ["relevance '1e9', expected an integer"]),
        (load_qrels, "1 0 2 1\n1 0 3 99999999\n", 2, ["relevance 99999999, expected at most 1000000"]),
        (load_qrels, "# a comment\n1 0 2 1\n#1 0 3\n", 3, ["3 columns, expected 4"]),
        (load_qrels, "1\t2\n\ufeff1\t3\n", 2, ["a byte-order mark begins the line"]),
        (read_queries, "1\ta\n\ufeff2\tb\n", 2, ["a byte-order mark begins the line", "joined", "remove it"]),
        (read_queries, "\ufeff\ufeff1\ta\n", 1, ["a byte-order mark begins the line"]),
        (read_queries, "1\ta\n2\r\tb\n", 2, ["query id '2\\r' has a line end in it"]),
        (read_queries, "1\ta\n2\r3\tb\n", 2, ["query id '2\\r3' has a line end in it"]),
        (read_queries, "1\0\ta\n", 1, ["query id '1\\x00' has a NUL (is the file UTF-16?) in it"]),
        (
            read_queries,
            "1\ta\r2\tb\r",
            1,
            ["3 columns, expected 2", "lone carriage return", "tr '\\r' '\\n'"],
        ),
        (read_queries, "1" * 5_000_000 + "\u2003\ta\n", 1, ["query id '111", "1'… (5000001 characters)"]),
        (read_passages, "1\ta\nAlan Turing\tb\n", 2, ["passage id 'Alan Turing' has spaces", "id TAB title"]),
        (load_passages, "1\ta\n2\tb\n1\tc\n", 3, ["passage id '1' is already on line 1", "add ids"]),
        (load_queries, "qid\tquery\n1\ta\n1\tb\n", 3, ["query id '1' is already on line 2"]),
        (load_queries, "", 1, ["empty file, expected one query a line"]),
        (load_qrels, "1 2 3 4 5\n", 1, ["5 columns, expected 2", "or 3", "or 4"]),
        (load_qrels, "1 0 2 1\n1 0 3 0.9\n", 2, ["relevance '0.9', expected an integer"]),
        (load_qrels, "1\t\n", 1, ["passage id ''"]),
        (
            load_qrels,
            "1 0 2 1\n1 0 2 1\n1 0 2 0\n",
            3,
            ["query '1' and passage '2'", "relevance 0", "1 before"],
        ),
    ],
)
def test_refused(tmp_path: Path, reader: Callable, content: str, line: int, parts: list[str]) -> None:
    path = write(tmp_path / "data.tsv", content)
    with fails(path, line, *parts):
        consume(reader(path))


# Passages and judgements -------------------------------------------------------------------------


def test_passages_without_titles(tmp_path: Path) -> None:
    path = write(tmp_path / "para.txt", "7\ta text\n8\tanother\n")
    assert list(read_passages(path)) == [Passage("7", "", "a text"), Passage("8", "", "another")]


@pytest.mark.parametrize(
    "titles",
    ["7\tSeven\n8\t-\n9\t\n", "9\t\n8\t-\n7\tSeven\n", "1\tunused\n8\t-\n7\tSeven\n9\t\n2\tunused\n"],
)
def test_titles_in_any_order(tmp_path: Path, titles: str) -> None:
    path = write(tmp_path / "para.txt", "7\ta\n8\tb\n9\tc\n")
    passages = read_passages(path, write(tmp_path / "para.title.txt", titles))
    assert [(passage.id, passage.title) for passage in passages] == [("7", "Seven"), ("8", "-"), ("9", "")]


def test_title_makes_up_for_text(tmp_path: Path) -> None:
    titles = write(tmp_path / "para.title.txt", "7\tSeven\n")
    assert list(read_passages(write(tmp_path / "para.txt", "7\t\n"), titles)) == [Passage("7", "Seven", "")]


def test_titles_that_do_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "para.txt", "7\ta\n8\tb\n")
    titles = write(tmp_path / "para.title.txt", "7\tSeven\n")
    with fails(path, 2, f"passage id '8' has no line in {titles}"):
        consume(read_passages(path, titles))
    write(titles, "7\tSeven\n8\n")
    with fails(titles, 2, "1 column, expected 2 (id, title)"):
        consume(read_passages(path, titles))


@pytest.mark.parametrize(
    "content, expected",
    [
        ("1\t2\n1\t3\n", {"1": {"2": 1, "3": 1}}),
        ("1 2\n", {"1": {"2": 1}}),
        ("1\t0\t2\t1\n1\t0\t3\t-2\n", {"1": {"2": 1, "3": -2}}),
        ("q  0 p   3\n", {"q": {"p": 3}}),
        ("query-id\tcorpus-id\tscore\nq\tp\t2\n", {"q": {"p": 2}}),
        ("query-id\tcorpus-id\tscore\n", {}),
        ("qid\tpid\nq\tp\n", {"q": {"p": 1}}),
        ("query_id 0 doc_id relevance\nq 0 p 1.0\n", {"q": {"p": 1}}),
        ("q\tp\nqid\tpid\n", {"q": {"p": 1}, "qid": {"pid": 1}}),
        ("# judged in 2021\n#\n1 0 2 1\n# more\n1 0 3 0\n", {"1": {"2": 1, "3": 0}}),
        ("# judged\n1\t2\n# 1\t3\n#4 5\n", {"1": {"2": 1}, "# 1": {"3": 1}, "#4": {"5": 1}}),
        ("1 0 2 1.\n1 0 3 -2.00\n1 0 4 +1\n", {"1": {"2": 1, "3": -2, "4": 1}}),
        ("a query\ta passage\n", {"a query": {"a passage": 1}}),
        ("1\t2\n2\t2\n1\t3\n1\t2\n", {"1": {"2": 1, "3": 1}, "2": {"2": 1}}),
        ("", {}),
    ],
)
def test_qrels(tmp_path: Path, content: str, expected: dict[str, dict[str, int]]) -> None:
    assert load_qrels(write(tmp_path / "qrels.tsv", content)) == expected


# Folders -----------------------------------------------------------------------------------------

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


def fill(folder: Path, files: dict[str, str], end: str = "") -> None:
    for name, content in files.items():
        write(folder / f"{name}{end}", content)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_collection(tmp_path: Path, end: str) -> None:
    fill(tmp_path, FOLDER, end)
    collection = read_collection(tmp_path, ["train", "test"])
    assert collection == Collection(PASSAGES, {"train": TRAIN, "test": TEST})
    assert list(collection.passages) == ["1", "2", "3"]


def test_collection_without_titles_or_splits(tmp_path: Path) -> None:
    write(tmp_path / "para.txt", FOLDER["para.txt"])
    collection = read_collection(tmp_path, [])
    assert [passage.title for passage in collection.passages.values()] == ["", "", ""]
    assert collection.splits == {}


@pytest.mark.parametrize("reader", [read_collection, read_beir])
def test_beir(tmp_path: Path, reader: Callable) -> None:
    fill(tmp_path, BEIR)
    assert reader(tmp_path, ["train"]) == Collection(PASSAGES, {"train": TRAIN})


def test_beir_keeps_and_counts_empty_passages(tmp_path: Path) -> None:
    fill(tmp_path, {**BEIR, "corpus.jsonl": BEIR["corpus.jsonl"] + '{"_id": "4", "title": "", "text": ""}\n'})
    collection = read_beir(tmp_path, ["train"])
    assert collection.passages["4"] == Passage("4", "", "")
    path = tmp_path / "corpus.jsonl"
    told = f"{path}: 1 of 4 passages have neither title nor text"
    assert collection.notes == (told,)
    with pytest.warns(UserWarning, match=re.escape(told)):
        assert load_passages(path) == collection.passages


@pytest.mark.parametrize(
    "name, content, line, parts",
    [
        ("para.txt", "", 1, ["empty file, expected one passage a line"]),
        ("train.query.txt", "\n", 1, ["empty file, expected one query a line"]),
        ("para.txt", "1\tone\n2\ttwo\n3\tthree\n2\tagain\n", 4, ["passage id '2'"]),
        ("train.query.txt", "10\ta\n11\tb\n10\tc\n", 3, ["query id '10' is already on line 1"]),
        ("train.query.txt", "10\ta\n\n11\tb\n", 2, ["empty line"]),
    ],
)
def test_collection_refused(tmp_path: Path, name: str, content: str, line: int, parts: list[str]) -> None:
    fill(tmp_path, {**FOLDER, name: content})
    with fails(tmp_path / name, line, *parts):
        read_collection(tmp_path, ["train"])


def test_duplicate_passage_without_titles(tmp_path: Path) -> None:
    fill(tmp_path, {"para.txt": FOLDER["para.txt"] + "2\tagain\n"})
    with fails(tmp_path / "para.txt", 4, "passage id '2' is already on line 2"):
        read_collection(tmp_path, [])


@pytest.mark.parametrize(
    "files, qrels, judged, queries, line",
    [
        (FOLDER, "qrels.train.tsv", "10 0 1 1\n11 0 2 0\n11 0 3 -1\n", "train.query.txt", 2),
        (BEIR, "qrels/train.tsv", "query-id\tcorpus-id\tscore\n10\t1\t1\n11\t2\t0\n", "queries.jsonl", 3),
    ],
    ids=["RocketQA", "BEIR"],
)
def test_query_with_only_irrelevant_passages(
    tmp_path: Path, files: dict[str, str], qrels: str, judged: str, queries: str, line: int
) -> None:
    fill(tmp_path, {**files, qrels: judged})
    place = tmp_path / queries
    told = f"queries of {queries} without a relevant passage: 1, the first is '11' ({place}:{line})"
    with pytest.raises(FormatError, match=re.escape(told)):
        read_collection(tmp_path, ["train"])
    assert list(read_collection(tmp_path, ["train"], "skip").splits["train"].queries) == ["10"]


# Records that do not hold together ---------------------------------------------------------------

FAULTY = {
    "para.txt": "1\tone\n2\ttwo\n3\t \n4\t\n5\tfive\n",
    "train.query.txt": "10\ta\n11\tb\n12\t\n13\tc\n14\td\n15\te\n16\tf\n",
    "qrels.train.tsv": "10\t1\n11\t2\n11\t8\n99\t1\n12\t1\n13\t3\n14\t9\n15\t8\n98\t1\n99\t2\n",
    "more.query.txt": "20\ttwenty\n21\t\n",
}
FAULTY_BEIR = {
    "corpus.jsonl": '{"_id": "1", "text": "a"}\n{"_id": "2", "text": "b"}\n{"_id": "3", "text": null}\n',
    "queries.jsonl": '{"_id": "10", "text": "a"}\n{"_id": "11", "text": "b"}\n{"_id": "12", "text": null}\n'
    '{"_id": "13", "text": "c"}\n{"_id": "other", "text": ""}\n',
    "qrels/train.tsv": "query-id\tcorpus-id\tscore\n10\t1\t1.0\n11\t3\t1\n12\t1\t1\n13\t9\t1\n14\t1\t1\n",
}


def test_faults_of_every_kind_are_counted_in_one_message(tmp_path: Path) -> None:
    fill(tmp_path, FAULTY)
    queries, qrels = tmp_path / "train.query.txt", tmp_path / "qrels.train.tsv"
    with pytest.raises(FormatError) as caught:
        read_collection(tmp_path, ["train"])
    assert str(caught.value).split("\n") == [
        f"{tmp_path}: the files do not hold together",
        f"  queries of train.query.txt without a text: 1, the first is '12' ({queries}:3)",
        f"  passages of para.txt without a text: 2, the first is '3' ({tmp_path / 'para.txt'}:3)",
        f"  judged queries that are not in train.query.txt: 2, the first is '99' ({qrels}:4)",
        f"  judged passages that are not in para.txt: 2, the first is '8' ({qrels}:3)",
        f"  queries of train.query.txt without a relevant passage: 4, the first is '13' ({queries}:4)",
        "  correct them, or leave them out by --data.on_error skip",
    ]


def test_faults_are_left_out_and_named(tmp_path: Path) -> None:
    fill(tmp_path, FAULTY)
    collection = read_collection(tmp_path, ["train"], "skip")
    assert list(collection.passages) == ["1", "2", "5"]
    split = collection.splits["train"]
    assert split == Split({"10": Query("10", "a"), "11": Query("11", "b")}, {"10": {"1": 1}, "11": {"2": 1}})
    queries, qrels = tmp_path / "train.query.txt", tmp_path / "qrels.train.tsv"
    assert collection.notes[2:] == (
        "judged queries that are not in train.query.txt: 2 left out, such as "
        f"'99' ({qrels}:4), '98' ({qrels}:9)",
        f"judged passages that are not in para.txt: 2 left out, such as '8' ({qrels}:3), '9' ({qrels}:7)",
        "queries of train.query.txt without a relevant passage: 4 left out, such as "
        f"'13' ({queries}:4), '14' ({queries}:5), '15' ({queries}:6)",
    )
    assert len(collection.notes) == 5


def test_faults_of_beir(tmp_path: Path) -> None:
    """Its empty passages are kept, and a query of another split may be empty."""
    fill(tmp_path, FAULTY_BEIR)
    with pytest.raises(
        FormatError, match="(?s)without a text: 1, .*queries that .*: 1, .*passages that .*: 1, "
    ):
        read_collection(tmp_path, ["train"])
    collection = read_collection(tmp_path, ["train"], "skip")
    assert list(collection.passages) == ["1", "2", "3"]
    assert collection.splits["train"].qrels == {"10": {"1": 1}, "11": {"3": 1}}
    assert [note.split(" left out")[0] for note in collection.notes[:-1]] == [
        "queries of queries.jsonl without a text: 1",
        "judged queries that are not in queries.jsonl: 1",
        "judged passages that are not in corpus.jsonl: 1",
        "queries of queries.jsonl without a relevant passage: 1",
    ]
    assert collection.notes[-1].endswith("1 of 3 passages have neither title nor text")


def test_faults_of_unlabelled_queries(tmp_path: Path) -> None:
    fill(tmp_path, FAULTY)
    with pytest.raises(FormatError, match="queries of more.query.txt without a text: 1, the first is '21'"):
        read_unlabelled(tmp_path, "more")
    queries, notes = read_unlabelled(tmp_path, "more", "skip")
    assert queries == {"20": Query("20", "twenty")}
    assert [note.split(",")[0] for note in notes] == ["queries of more.query.txt without a text: 1 left out"]
    fill(tmp_path / "beir", FAULTY_BEIR)
    queries, notes = read_unlabelled(tmp_path / "beir", "train", "skip")
    assert list(queries) == ["10", "11", "13"]
    assert [note.split(",")[0] for note in notes] == [
        "queries of queries.jsonl without a text: 1 left out",
        "judged queries that are not in queries.jsonl: 1 left out",
    ]


@pytest.mark.parametrize(
    "name, content, line, parts",
    [
        ("corpus.jsonl", '{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}\n', 2, ["already on line 1"]),
        ("corpus.jsonl", '{"_id": "1", "text": "a"}\n{"text": "b"}\n', 2, ['no "_id"']),
        ("queries.jsonl", '{"_id": "1"}\n', 1, ["no \"text\" in an object of '_id'"]),
        (
            "queries.jsonl",
            '{"_id": "1", "text": "\\ud83d"}\n',
            1,
            ["query '1' has '\\ud83d' in it", "surrogate"],
        ),
        (
            "corpus.jsonl",
            '{"_id": "\\ude00", "text": "a"}\n',
            1,
            ["passage id '\\ude00' has '\\ude00' in it"],
        ),
        ("corpus.jsonl", '{"_id": "1", "title": "\\ude00"}\n', 1, ['no "text"']),
        (
            "corpus.jsonl",
            '{"_id": "1", "title": "\\ude00", "text": ""}\n',
            1,
            ["passage '1' has '\\ude00' in it"],
        ),
        ("corpus.jsonl", '{"_id": "a\\tb", "text": "a"}\n', 1, ["passage id 'a\\tb' has a tab in it"]),
        ("corpus.jsonl", '{"_id": "a\\r", "text": "a"}\n', 1, ["passage id 'a\\r' has a line end in it"]),
        ("corpus.jsonl", '{"_id": null, "text": "a"}\n', 1, ['"_id" is null']),
        ("corpus.jsonl", '{"_id": ' + "9" * 5000 + ', "text": "a"}\n', 1, ["not JSON"]),
        ("corpus.jsonl", '{"_id": ' + "[" * 100_000 + "]" * 100_000 + "}\n", 1, ["not JSON"]),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\n", 1, ["no judgements"]),
    ],
)
def test_beir_refused(tmp_path: Path, name: str, content: str, line: int, parts: list[str]) -> None:
    fill(tmp_path, {**BEIR, name: content})
    with fails(tmp_path / name, line, *parts):
        read_beir(tmp_path, ["train"])


def test_missing_parts_of_a_collection(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a collection.*para\.txt.*corpus\.jsonl.*no files"):
        read_collection(tmp_path, ["train"])
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        read_collection(tmp_path / "nowhere", ["train"])
    fill(tmp_path, {**FOLDER, **BEIR})
    with pytest.raises(
        FileNotFoundError, match=r"dev\.query\.txt: no such file; the folder has .*query\.txt"
    ):
        read_collection(tmp_path, ["train", "dev"])
    with pytest.raises(FileNotFoundError, match=r"dev\.tsv: no such file; the folder has train\.tsv"):
        read_beir(tmp_path, ["dev"])


def test_graded_judgements(tmp_path: Path) -> None:
    graded = Split(TRAIN.queries, {"10": {"1": 3, "2": 0}, "11": {"2": 1}})
    toy.write(tmp_path, Collection(PASSAGES, {"train": graded}))
    assert read_collection(tmp_path, ["train"]).splits["train"] == graded


@st.composite
def collections(draw: st.DrawFn) -> Collection:
    titles = texts | st.sampled_from(["", "-"])
    passages = {
        id: Passage(id, draw(titles), draw(texts)) for id in draw(st.sets(words, min_size=1, max_size=3))
    }
    queries = {id: Query(id, draw(texts)) for id in draw(st.sets(words, min_size=1, max_size=3))}
    relevance = st.dictionaries(st.sampled_from(list(passages)), st.integers(-2, 3), min_size=1)
    positive = relevance.filter(lambda judged: max(judged.values()) > 0)
    qrels = {id: draw(positive) for id in queries} if draw(st.booleans()) else {}
    return Collection(passages, {"train": Split(queries, qrels)})


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(collection=collections())
def test_round_trip(tmp_path: Path, collection: Collection) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    toy.write(tmp_path, collection)
    again = read_collection(tmp_path, ["train"])
    assert again == collection
    assert list(again.passages) == list(collection.passages)


# Real files --------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "medquad").is_dir(), reason="no ../shared/data/medquad")
def test_medquad() -> None:
    collection = read_collection(SHARED / "medquad", ["train", "dev"])
    assert len(collection.passages) == 42_195
    assert {name: len(split.queries) for name, split in collection.splits.items()} == {
        "train": 12_486,
        "dev": 678,
    }
    assert sum(map(len, collection.splits["dev"].qrels.values())) == 1_225
    assert collection.passages["0"].title == "Adult Acute Lymphoblastic Leukemia"


@pytest.mark.skipif(not (SHARED / "rocketqa_examples").is_dir(), reason="no ../shared/data/rocketqa_examples")
def test_inference_files_are_refused() -> None:
    path = SHARED / "rocketqa_examples" / "dureader.q"
    with fails(path, 1, "4 columns", "have no ids"):
        consume(read_queries(path))
