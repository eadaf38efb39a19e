"""Vectors in parts, and the folder in which they are made shard by shard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toy

from rocketqa_paddle.networks import forward
from rocketqa_paddle.search import retrieval, vectors
from rocketqa_paddle.search.vectors import Shards, Vectors


@pytest.fixture
def whole() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((23, 4)).astype(np.float32)


@pytest.mark.parametrize("parts", [1, 2, 5, 23])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_parts_are_the_whole(whole: np.ndarray, parts: int, dtype: type) -> None:
    whole = whole.astype(dtype)
    joined = Vectors(np.array_split(whole, parts))
    assert (len(joined), joined.dimension) == (23, 4)
    rows = np.random.default_rng(1).integers(0, 23, (3, 7))
    np.testing.assert_array_equal(joined.take(rows), whole.astype(np.float32)[rows])
    for size in (1, 4, 100):
        blocks = list(joined.blocks(size))
        assert [first for first, _ in blocks] == list(np.cumsum([0, *(len(b) for _, b in blocks)])[:-1])
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), whole)
    for first, count in ((0, 23), (3, 11), (22, 1), (5, 0)):
        piece = joined.slice(first, count)
        assert len(piece) == count
        if count:
            np.testing.assert_array_equal(piece.take(np.arange(count)), whole[first : first + count])


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "SHARD_ROWS", 5)


def test_shards_that_are_there_are_kept(tmp_path: Path, whole: np.ndarray, few_rows: None) -> None:
    shards = Shards(tmp_path / "v", 23, "float32", model="m", corpus="c")
    assert (len(shards), shards.missing()) == (5, [0, 1, 2, 3, 4])
    for number in (0, 3, 4):
        shards.write(number, whole[shards.rows_of(number)])
    (tmp_path / "v" / "00003.npy").write_bytes(b"cut off")
    again = Shards(tmp_path / "v", 23, "float32", model="m", corpus="c")
    assert again.missing() == [1, 2, 3]
    for number in again.missing():
        again.write(number, whole[again.rows_of(number)])
    np.testing.assert_array_equal(again.vectors().take(np.arange(23)), whole)
    assert all(isinstance(part.base, np.memmap) for part in again.vectors().parts)
    again.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"model": "n"}, {"corpus": "d"}, {"passages": 22}, {"dtype": "float16"}])
def test_shards_of_something_else_are_removed(tmp_path: Path, whole: np.ndarray, change: dict) -> None:
    made_of = {"passages": 23, "dtype": "float32", "model": "m", "corpus": "c"}
    Shards(tmp_path / "v", **made_of).write(0, whole)
    assert Shards(tmp_path / "v", **made_of).missing() == []
    assert Shards(tmp_path / "v", **(made_of | change)).missing() == [0]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="v holds mine.txt, which would be lost"):
        Shards(tmp_path / "v", 23, "float32", model="m", corpus="c")


def test_a_stopped_encoding_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is encoded again is the shard that was in the making."""
    monkeypatch.setattr(vectors, "SHARD_ROWS", 16)
    passages = toy.collection().passages  # 60
    retriever = toy.dual(toy.tokenizer(tmp_path))
    encoded, write = [], Shards.write

    def dying(self: Shards, number: int, rows: np.ndarray) -> None:
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(number)
        write(self, number, rows)

    def index() -> retrieval.CorpusIndex:
        return retrieval.CorpusIndex(retriever, passages, folder=tmp_path / "v", progress="")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Shards, "write", dying)
        index()
    assert encoded == [0, 1]
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "write", lambda *a: encoded.append(a[1]) or write(*a))
        made = index()
    assert encoded == [0, 1, 2, 3]
    queries = toy.collection().splits["dev"].queries
    assert made.search(queries, 9) == retrieval.CorpusIndex(retriever, passages, progress="").search(
        queries, 9
    )
    made.close()
    assert not (tmp_path / "v").exists()


def test_parts_of_a_corpus_are_encoded_as_the_whole(tmp_path: Path) -> None:
    retriever = toy.dual(toy.tokenizer(tmp_path))
    rows = list(toy.collection().passages.values())
    columns = [p.title for p in rows], [p.text for p in rows]
    parts = (rows[start : start + 7] for start in range(0, len(rows), 7))
    joined = np.concatenate(list(forward.encode_parts(retriever, parts, len(rows))))
    np.testing.assert_allclose(joined, forward.encode_passages(retriever, *columns), atol=1e-5)
