"""The texts of an index folder: any text comes back, row by row, and damage is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketqa_paddle.data import store as texts
from rocketqa_paddle.data.store import OFFSETS, TEXTS, PassageTexts, write_store
from rocketqa_paddle.records import Passage

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
    monkeypatch.setattr(texts, "_BLOCK", block)
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
