"""Files of queries and passages: their forms, headers, titles, and an id that is there twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from datafiles import consume, fails, write

from rocketqa_paddle.data.places import Place
from rocketqa_paddle.data.texts import load_passages, load_queries, read_passages, read_queries
from rocketqa_paddle.records import Passage, Query

QUERIES = [Query("q1", "who ?"), Query("q2", "谁 ?")]
PASSAGES = [Passage("1", "One", "a text"), Passage("2", "", "\ufeffanother")]


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(
    "name, content",
    [
        ("queries.txt", "q1\twho ?\nq2\t谁 ?\n"),
        ("queries.tsv", "qid\tquery\nq1\twho ?\nq2\t谁 ?\n"),
        ("queries.tsv", "\ufeffQuery_ID\tText\r\nq1\twho ?\r\nq2\t谁 ?\r\n"),
        ("queries.jsonl", '{"_id": "q1", "text": "who ?", "metadata": {}}\n{"_id": "q2", "text": "谁 ?"}\n'),
        ("queries", '\ufeff{"text": "who ?", "_id": "q1"}\n{"_id": "q2", "text": "\\u8c01 ?"}\n'),
    ],
    ids=["TSV", "header", "header with capitals", "BEIR by its name", "BEIR by its content"],
)
def test_queries_in_every_form(tmp_path: Path, name: str, content: str, end: str) -> None:
    path = write(tmp_path / f"{name}{end}", content)
    assert list(read_queries(path)) == list(load_queries(path).values()) == QUERIES


def test_passages_in_every_form(tmp_path: Path) -> None:
    titles = write(tmp_path / "title.tsv", "pid\ttitle\n1\tOne\n2\t\n")
    table = write(tmp_path / "para.tsv", "pid\tpassage\n1\ta text\n2\t\ufeffanother\n")
    lines = (
        '{"_id": 1, "title": "One", "text": "a text"}\n{"_id": "2", "title": null, "text": "\ufeffanother"}\n'
    )
    beir = write(tmp_path / "corpus.jsonl.gz", lines)
    for passages in (read_passages(table, titles), read_passages(beir), load_passages(beir).values()):
        assert list(passages) == PASSAGES


@pytest.mark.parametrize("content", ["1\tid\n", "id\tof something\n", "number\ttext\n", "{1\ttext\n"])
def test_what_is_no_header(tmp_path: Path, content: str) -> None:
    assert len(list(read_queries(write(tmp_path / "q.txt", content)))) == 1
    assert len(list(read_queries(write(tmp_path / "q.txt", f"0\ta\nid\ttext\n{content}")))) == 3


def test_json_lines_have_their_own_titles(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.jsonl", '{"_id": "1", "text": "a"}\n')
    with fails(path, 1, "have their own titles: leave out", "para.title.txt"):
        consume(read_passages(path, tmp_path / "para.title.txt"))


@pytest.mark.parametrize(
    "titles, line",
    [
        ("1\tOne\n1\tUno\n2\tTwo\n", 2),
        ("2\tTwo\n2\tTwo\n1\tOne\n", 2),
        ("1\tOne\n2\tTwo\n3\tThree\n1\tUno\n", 4),
    ],
)
def test_a_passage_with_two_titles(tmp_path: Path, titles: str, line: int) -> None:
    path = write(tmp_path / "para.txt", "1\ta\n2\tb\n")
    titles = write(tmp_path / "para.title.txt", titles)
    with fails(titles, line, "passage id '", "has a title already; remove one"):
        load_passages(path, titles)


def test_some_passages(tmp_path: Path) -> None:
    """Those that are not asked for may be there twice, as nobody holds them."""
    path = write(tmp_path / "para.txt", "1\ta\n2\tb\n1\tc\n3\td\n")
    assert list(load_passages(path, only={"2", "3", "4"})) == ["2", "3"]
    assert load_passages(path, only=set()) == {}
    with fails(path, 3, "passage id '1' is already on line 1"):
        load_passages(path, only={"1"})


def test_the_toolkits_passages_without_ids(tmp_path: Path) -> None:
    """`title TAB text`: a title of several words is no id, and one of a word may come again."""
    path = write(tmp_path / "para.tsv", "Paris\ta text\nAlan Turing\ta text\n")
    with fails(path, 2, "passage id 'Alan Turing' has spaces in it, as a title has", "id TAB text"):
        load_passages(path)
    write(path, "Paris\ta text\nLyon\ta text\nParis\tanother\n")
    with fails(path, 3, "passage id 'Paris' is already on line 1", "add ids if the first column holds none"):
        load_passages(path)


def test_what_errors_show_is_cut(tmp_path: Path) -> None:
    place = Place(tmp_path / "x", 3)
    long = "\U0001f600" * 1000
    for error in (
        place.wrong("x"),
        *(caught(lambda call=call: call(long)) for call in (place.label, lambda t: place.integer("rank", t))),
        caught(lambda: place.string({long: 1}, "text")),
        caught(lambda: place.id("query", f"{long}\t")),
        caught(lambda: place.query(long, "")),
    ):
        assert str(error).startswith(f"{tmp_path}/x:3: ")
        assert len(str(error)) < len(str(tmp_path)) + 300


def caught(call) -> ValueError:
    with pytest.raises(ValueError) as error:
        call()
    return error.value
