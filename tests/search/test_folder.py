"""An index folder after changes is what it would be if it had been made of the changed passages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toy

from rocketqa_paddle.data.dataset import Corpus
from rocketqa_paddle.data.store import FILES, write_store
from rocketqa_paddle.records import Passage, Passages
from rocketqa_paddle.search.folder import IndexFolder
from rocketqa_paddle.search.index import META, VECTORS, VectorIndex, is_whole
from rocketqa_paddle.search.vectors import Vectors
from rocketqa_paddle.settings import IndexSettings

PASSAGES = toy.collection().passages
VALUES = np.random.default_rng(1).normal(size=(64, 16)).astype(np.float32)


def write(path: Path, passages: Passages, vectors: np.ndarray, settings: IndexSettings) -> IndexFolder:
    path.mkdir()
    texts = write_store(path, passages)
    VectorIndex(vectors, list(passages), "m", settings=settings).save(path, texts)
    return IndexFolder(path, "m")


def assert_same(path: Path, other: Path) -> None:
    assert is_whole(path)
    assert {file.name for file in path.iterdir()} == {file.name for file in other.iterdir()}
    for name in (META, VECTORS, *FILES):
        assert (path / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("factory", ["Flat", "HNSW8"])
def test_changes_make_the_folder_that_these_passages_would_make(tmp_path, dtype, factory):
    settings, vectors = IndexSettings(factory), VALUES.astype(dtype)
    index = write(tmp_path / "index", PASSAGES, vectors[:60], settings)
    assert index.dtype == dtype
    more = {id: Passage(id, "", f"text of {id}") for id in ("new1", "p3", "p0", "new2")}
    assert index.update(Corpus(more), Vectors([vectors[60:62], vectors[62:]])) == 2
    changed, rows = {**PASSAGES, **more}, np.r_[:60, 60, 63]
    rows[[3, 0]] = 61, 62
    write(tmp_path / "updated", changed, vectors[rows], settings)
    assert_same(tmp_path / "index", tmp_path / "updated")

    assert IndexFolder(tmp_path / "index").delete(["p5", "new1", "nobody", "p5", "p59"]) == 3
    for id in ("p5", "p59", "new1"):
        changed.pop(id)
    rows = np.delete(rows, [5, 59, 60])
    write(tmp_path / "fewer", changed, vectors[rows], settings)
    assert_same(tmp_path / "index", tmp_path / "fewer")


def test_an_open_index_keeps_what_it_has(tmp_path):
    index = write(tmp_path / "index", PASSAGES, VALUES[:60], IndexSettings())
    before = index.find(["q"], VALUES[:1], 60)
    assert IndexFolder(tmp_path / "index").delete(["p0", "p1"]) == 2
    run, passages = index.find(["q"], VALUES[:1], 60)
    assert (run["q"], passages) == (before[0]["q"], before[1])
    assert len(index) == 60 and len(IndexFolder(tmp_path / "index")) == 58


def test_what_nobody_asked_for_stays(tmp_path):
    index = write(tmp_path / "index", PASSAGES, VALUES[:60], IndexSettings())
    with pytest.raises(ValueError, match="no passage would be left: remove the folder"):
        index.delete(PASSAGES)
    (tmp_path / "index" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds notes.txt, which would be lost"):
        index.delete(["p1"])
    assert index.delete(["nobody"]) == 0
    assert len(IndexFolder(tmp_path / "index")) == 60


def test_chosen_vectors_are_mapped_in_runs():
    vectors = Vectors([VALUES[:5], VALUES[5:8].astype(np.float16)])
    rows = np.array([3, 4, 5, 6, 0, 7])
    chosen = vectors.chosen(rows)
    assert [len(part) for part in chosen.parts] == [2, 2, 1, 1]
    assert all(any(np.shares_memory(part, base) for base in vectors.parts) for part in chosen.parts)
    np.testing.assert_array_equal(chosen.take(np.arange(6)), vectors.take(rows))
