"""A corpus is read once, and again when its files have changed."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from pathlib import Path

import pytest

from rocketqa_paddle.data.corpus import StoredCorpus
from rocketqa_paddle.data.places import Place
from rocketqa_paddle.data.texts import placed_passages
from rocketqa_paddle.records import Passage


class Reader:
    """Reads a corpus and counts how often."""

    def __init__(self, folder: Path, *lines: str) -> None:
        self.store, self.file, self.times = folder / "store", folder / "para.txt", 0
        self.write(*lines)

    def write(self, *lines: str) -> None:
        self.file.write_text("".join(f"{line}\n" for line in lines))

    def read(self, loaded: Container[str]) -> Iterator[tuple[Place, Passage]]:
        self.times += 1
        return placed_passages(self.file, loaded=loaded)

    def corpus(self, is_whole: bool = True) -> StoredCorpus:
        return StoredCorpus(self.store, [self.file], self.read, lambda: is_whole)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path, "1\tone", "2\ttwo")


def test_a_corpus_is_read_once_while_its_file_is_the_same(reader: Reader) -> None:
    first = reader.corpus()
    os.utime(reader.file, (1, 1))  # another time, and the same content
    second = reader.corpus()
    assert reader.times == 1
    assert (
        dict(first.by_id.items())
        == dict(second.by_id.items())
        == {
            "1": Passage("1", "", "one"),
            "2": Passage("2", "", "two"),
        }
    )
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("lines", [("1\tone", "2\ttwe"), ("1\tone",), ("1\tone", "2\ttwo", "3\tthree")])
def test_a_file_that_changed_is_read_again(reader: Reader, lines: tuple[str, ...]) -> None:
    before = reader.corpus()
    reader.write(*lines)
    after = reader.corpus()
    assert reader.times == 2
    assert after.fingerprint != before.fingerprint
    assert [f"{p.id}\t{p.text}" for p in after.by_id.values()] == [*lines]
    assert len(before.by_id) == 2  # who works with the old one is not disturbed
    assert before.by_id["2"].text == "two"


def test_a_corpus_that_leaves_something_out_is_read_every_time(reader: Reader) -> None:
    for times in (1, 2):
        reader.corpus(is_whole=False)
        assert reader.times == times
    reader.corpus()
    reader.corpus()
    assert reader.times == 3


@pytest.mark.parametrize("name", ["corpus.json", "passages.jsonl", "ids.rows.npy", "contents.npy"])
@pytest.mark.parametrize("damage", [b"", None])
def test_a_store_that_was_damaged_is_made_again(reader: Reader, name: str, damage: bytes | None) -> None:
    reader.corpus()
    path = reader.store / name
    path.write_bytes(damage) if damage is not None else path.unlink()
    if name == "corpus.json":  # without it, nobody knows that the folder is ours
        with pytest.raises(ValueError, match="no corpus that this project wrote"):
            reader.corpus()
        return
    assert reader.corpus().by_id["2"].text == "two"
    assert reader.times == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "para.txt:1: empty file, expected one passage a line"),
        (("1\tone", "2\ttwo", "1\tone"), "para.txt:3: passage id '1' is already on line 1; remove one"),
        (("1\tone", "two"), "para.txt:2: 1 column"),
    ],
)
def test_what_is_wrong_is_told_and_leaves_nothing(
    reader: Reader, lines: tuple[str, ...], message: str
) -> None:
    reader.write(*lines)
    with pytest.raises(ValueError, match=message):
        reader.corpus()
    assert sorted(path.name for path in reader.file.parent.iterdir()) == ["para.txt"]


def test_nothing_of_somebody_else_is_replaced(reader: Reader) -> None:
    reader.store.mkdir()
    (reader.store / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds notes.txt, which would be lost"):
        reader.corpus()
    assert (reader.store / "notes.txt").read_text() == "mine"


def test_empty_passages_are_counted(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.file = tmp_path / "corpus.jsonl"
    reader.write('{"_id": "1", "title": "", "text": ""}', '{"_id": "2", "title": "t", "text": ""}')
    assert (reader.corpus().empty, reader.corpus().empty, reader.times) == (1, 1, 1)
