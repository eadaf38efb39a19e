"""Collections: what their files read and refuse, and that any collection is read as it was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import toy
from datafiles import SHARED, consume, fails, ids, texts, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rocketqa_paddle.data.collections import (
    load_qrels,
    read_beir,
    read_collection,
    read_passages,
    read_queries,
)
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
        (load_qrels, "1 2 1\n", 1, ["3 columns without BEIR's header", "query-id corpus-id score"]),
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
    with pytest.warns(UserWarning, match="1 of 4 passages have neither title nor text; kept"):
        collection = read_beir(tmp_path, ["train"])
    assert collection.passages["4"] == Passage("4", "", "")


@pytest.mark.parametrize(
    "name, content, line, parts",
    [
        ("para.txt", "", 1, ["empty file, expected one passage a line"]),
        ("train.query.txt", "\n", 1, ["empty file, expected one query a line"]),
        ("para.txt", "1\tone\n2\ttwo\n3\tthree\n2\tagain\n", 4, ["passage id '2'"]),
        ("train.query.txt", "10\ta\n11\tb\n10\tc\n", 3, ["query id '10' is already on line 1"]),
        ("qrels.train.tsv", "10\t1\n11\t8\n11\t9\n", 2, ["passage id '8' is not in", "para.txt", "2 of 3"]),
        ("qrels.train.tsv", "10\t1\n11\t2\n12\t3\n", 3, ["query id '12' is not in", "query.txt", "1 of 3"]),
        ("train.query.txt", "10\ta\n11\tb\n12\tc\n", 3, ["query '12' has no relevant passage", "1 of 3"]),
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
    with fails(tmp_path / queries, line, "query '11' has no relevant passage", "1 of 2"):
        read_collection(tmp_path, ["train"])


@pytest.mark.parametrize(
    "name, content, line, parts",
    [
        ("corpus.jsonl", '{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}\n', 2, ["already on line 1"]),
        ("corpus.jsonl", '{"_id": "1", "text": "a"}\n{"text": "b"}\n', 2, ['no "_id"']),
        ("queries.jsonl", '{"_id": "1", "text": ""}\n', 1, ["query '1' has no text"]),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\n", 1, ["no judgements"]),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\n10\t9\t1\n", 2, ["passage id '9'", "1 of 1"]),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\n8\t1\t1\n", 2, ["query id '8'", "queries.jsonl"]),
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
        id: Passage(id, draw(titles), draw(texts)) for id in draw(st.sets(ids, min_size=1, max_size=3))
    }
    queries = {id: Query(id, draw(texts)) for id in draw(st.sets(ids, min_size=1, max_size=3))}
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
