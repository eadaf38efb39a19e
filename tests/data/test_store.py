"""A corpus on disk: any passage comes back, by row and by id, and damage is named."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketqa_paddle.data import store
from rocketqa_paddle.data.store import (
    FILES,
    ID_OFFSETS,
    OFFSETS,
    TEXTS,
    PassageTexts,
    Store,
    Writer,
    some,
    texts_fingerprint,
    texts_record,
    write_store,
)
from rocketqa_paddle.records import Content, Passage

PASSAGES = [
    Passage("1", "a\ttitle", "two\nlines\r\nand \u2028 more"),
    Passage("two words", "", '"quotes" and \\ and \x00'),
    Passage("三", "检索", "🚀 é"),
    Passage("4", "", ""),
]
IDS = [passage.id for passage in PASSAGES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_store(tmp_path, {p.id: p for p in PASSAGES})
    return tmp_path


@pytest.fixture(params=[True, False], ids=["with offsets", "without"])
def either(request: pytest.FixtureRequest, folder: Path) -> Path:
    """An index folder of today, and one that an older version wrote."""
    if not request.param:
        (folder / OFFSETS).unlink()
    return folder


def test_any_text_comes_back_as_it_was(either: Path) -> None:
    found = PassageTexts(either, IDS)
    assert len(found) == 4
    assert list(found) == PASSAGES
    assert [found[row] for row in (2, 0, 2)] == [PASSAGES[2], PASSAGES[0], PASSAGES[2]]


def test_rows_that_are_not_there_are_refused(either: Path) -> None:
    for row in (-1, 4):
        with pytest.raises(IndexError, match=f"row {row}, expected 0 to 3"):
            PassageTexts(either, IDS)[row]


@given(st.lists(st.tuples(st.text(), st.text()).map(lambda pair: Passage("id", *pair)), max_size=5))
def test_offsets_that_are_found_equal_those_that_are_written(
    tmp_path_factory: pytest.TempPathFactory, passages: list[Passage]
) -> None:
    passages = [p for p in passages if not any("\ud800" <= c <= "\udfff" for c in p.title + p.text)]
    folder, ids = tmp_path_factory.mktemp("index"), ["id"] * len(passages)
    write_store(folder, dict(enumerate(passages)))
    written = np.load(folder / OFFSETS)
    assert list(PassageTexts(folder, ids)) == passages
    (folder / OFFSETS).unlink()
    found = PassageTexts(folder, ids)
    np.testing.assert_array_equal(found._offsets, written)
    assert list(found) == passages


@pytest.mark.parametrize("block", [1, 7, 64])
def test_offsets_are_found_in_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(store, "_BLOCK", block)
    (folder / OFFSETS).unlink()
    assert list(PassageTexts(folder, IDS)) == PASSAGES


def test_a_row_costs_its_own_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The offsets are mapped, and of the texts one line is read."""
    read, sizes = os.pread, []
    monkeypatch.setattr(os, "pread", lambda *call: sizes.append(call[1]) or read(*call))
    found = PassageTexts(folder, IDS)
    assert isinstance(found._offsets, np.memmap)
    assert sizes == []
    assert found[2] == PASSAGES[2]
    assert sizes == [len((folder / TEXTS).read_bytes().split(b"\n")[2]) + 1]


def test_texts_that_are_open_outlive_the_file(folder: Path) -> None:
    """A new index takes the folder's place while a search engine is at work."""
    found = PassageTexts(folder, IDS)
    for name in (TEXTS, OFFSETS):
        (folder / name).unlink()
    write_store(folder, {"other": Passage("other", "", "other")})
    assert list(found) == PASSAGES


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="passages.jsonl: not there; make the index with"):
        PassageTexts(tmp_path, ["a"])


@pytest.mark.parametrize("ids", [IDS[:-1], [*IDS, "5"], []])
def test_ids_of_another_number_are_refused(either: Path, ids: list[str]) -> None:
    with pytest.raises(
        ValueError, match=f"{len(ids)} ids, but offsets of 4 passages .*damaged, build the index again"
    ):
        PassageTexts(either, ids)


@pytest.mark.parametrize("offsets", [[0], [0, 1, 2, 3], [0, 1, 2, 3, 4]])
def test_offsets_of_other_texts_are_refused(folder: Path, offsets: list[int]) -> None:
    np.save(folder / OFFSETS, np.array(offsets))
    with pytest.raises(ValueError, match=f"4 ids, but offsets of {len(offsets) - 1} passages"):
        PassageTexts(folder, IDS)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY\x01\x00"])
def test_offsets_that_are_no_array_are_refused(folder: Path, content: bytes) -> None:
    (folder / OFFSETS).write_bytes(content)
    with pytest.raises(ValueError, match="passages.offsets.npy is not an array .*build the index again"):
        PassageTexts(folder, IDS)


@pytest.mark.parametrize("change", [b"", b"more\n"])
def test_texts_that_were_cut_or_grew_are_refused(folder: Path, change: bytes) -> None:
    path = folder / TEXTS
    path.write_bytes(path.read_bytes()[: None if change else -3] + change)
    with pytest.raises(ValueError, match="4 ids, but offsets .*the folder is damaged"):
        PassageTexts(folder, IDS)


@pytest.mark.parametrize("row", range(4))
def test_a_line_of_another_passage_is_refused(either: Path, row: int) -> None:
    ids = [*IDS[:row], "other", *IDS[row + 1 :]]
    with pytest.raises(ValueError, match=f"row {row} of passages.jsonl has the id .* expected 'other'"):
        PassageTexts(either, ids)[row]


@pytest.mark.parametrize("line", [b"{", b"3", b"[1]", b"null", b'["\xff"]', b"[" * 9])
def test_a_line_that_is_no_passage_is_refused(either: Path, line: bytes) -> None:
    lines = (either / TEXTS).read_bytes().split(b"\n")
    lines[1] = line.ljust(len(lines[1]))
    (either / TEXTS).write_bytes(b"\n".join(lines))
    found = PassageTexts(either, IDS)
    assert found[0] == PASSAGES[0]
    with pytest.raises(ValueError, match="row 1 of passages.jsonl is not a passage .*build the index again"):
        found[1]


@pytest.mark.parametrize("middle", [-5, 0, 10**15])
def test_offsets_that_make_no_sense_are_refused(folder: Path, middle: int) -> None:
    offsets = np.load(folder / OFFSETS)
    offsets[2] = middle
    np.save(folder / OFFSETS, offsets)
    found = PassageTexts(folder, IDS)
    for row in (1, 2):
        with pytest.raises(ValueError, match="the folder is damaged"):
            found[row]


# The passages by id --------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n\r"), max_size=6)


@given(st.lists(st.tuples(names, st.text(max_size=9), st.text(max_size=9)), min_size=1, max_size=30))
def test_a_store_is_the_dictionary_that_it_was_written_from(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    rows = [row for row in rows if not any("\ud800" <= c <= "\udfff" for c in row[1] + row[2])]
    passages = {id: Passage(id, title, text) for id, title, text in rows} or {"a": Passage("a", "", "")}
    folder = tmp_path_factory.mktemp("store")
    record = write_store(folder, passages)
    assert record == texts_record(folder)
    assert record["fingerprint"] == texts_fingerprint(passages)
    found = Store(folder)
    assert list(found) == list(passages) == list(found.ids)
    assert list(found.values()) == list(passages.values())
    assert dict(found.items()) == passages
    for row, (id, passage) in enumerate(passages.items()):
        assert (found[id], found.row_of(id), id in found) == (passage, row, True)
        assert found.content_of(id) == Content.of(passage)
    for other in ("", "other", None, 3):
        assert (other in found) == (other in passages)
    some_ids = list(passages)[::-2]
    assert some(found, some_ids) == some(passages, some_ids) == tuple(passages[id] for id in some_ids)
    assert list(some(found, some_ids)[1:]) == list(some(passages, some_ids))[1:]


def test_ids_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "digest", lambda key: 7)
    passages = {id: Passage(id, "", f"text of {id}") for id in "abc"}
    write_store(tmp_path, passages)
    found = Store(tmp_path)
    assert {id: found[id] for id in "cab"} == passages
    assert "d" not in found
    with pytest.raises(KeyError, match="'d'"):
        found["d"]


@pytest.mark.parametrize(
    ("ids", "rows"), [("abca", (0, 3)), ("abcbca", (1, 3)), ("aa", (0, 1)), ("abc", None)]
)
def test_an_id_that_is_there_twice_is_found(tmp_path: Path, ids: str, rows: tuple[int, int] | None) -> None:
    writer = Writer(tmp_path)
    for id in ids:
        writer.add(Passage(id, "", "text"))
        assert id in writer
    assert "z" not in writer
    assert writer.close() == rows


def test_a_store_copies_its_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    record = write_store(tmp_path / "one", {p.id: p for p in PASSAGES})
    assert write_store(tmp_path / "two", Store(tmp_path / "one")) == record
    assert list(Store(tmp_path / "two").values()) == PASSAGES


@pytest.mark.parametrize("name", FILES)
def test_a_store_without_a_file_or_with_a_damaged_one_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    if name not in (OFFSETS, ID_OFFSETS):  # which are found again
        path.unlink()
        with pytest.raises(FileNotFoundError, match=name):
            Store(folder)
    for damaged in (b"", content[:-1], content[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{folder}: "):
            Store(folder)


def test_a_reader_has_no_memory_that_grows_with_the_corpus(tmp_path: Path) -> None:
    write_store(tmp_path, {str(n): Passage(str(n), "", "a text of some words " * 5) for n in range(20_000)})
    tracemalloc.start()
    found = Store(tmp_path)
    assert all(str(n) in found for n in range(0, 20_000, 500))
    assert sum(len(p.text) for p in found.values()) > 2_000_000
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()
