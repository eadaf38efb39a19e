"""Ranks that encode a corpus together: as one does, and on after a death, with another number of ranks."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import ranks
import toy

from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.storage import map_array
from rocketqa_paddle.search import vectors
from rocketqa_paddle.search.index import VectorIndex
from rocketqa_paddle.search.retrieval import CorpusIndex
from rocketqa_paddle.settings import IndexSettings

ROWS = 4
"""Passages of a shard: the 60 of the corpus fill 15."""


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(vectors, "SHARD_ROWS", ROWS)


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    return toy.dual(toy.tokenizer(tmp_path_factory.mktemp("vocabulary")), pooling="mean")


@pytest.fixture
def one(retriever, tmp_path):
    """The shards that one process writes."""
    CorpusIndex(retriever, toy.collection().passages, folder=tmp_path / "one", progress="")
    return shards(tmp_path / "one")


def shards(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.array(map_array(path)) for path in sorted(folder.glob("*.npy"))}


def encode(retriever: Checkpoint, folder: Path, dies_after: dict[int, int]) -> None:
    """Encode the corpus in `folder/vectors` as one of several ranks, and tell which shards this one writes.

    Some ranks are killed when they have written a number of shards.
    """
    distributed.init()
    write, left = vectors.Shards.write, dies_after.get(distributed.rank(), 100)

    def counted(self: vectors.Shards, number: int, rows: np.ndarray) -> None:
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, number, rows)
        left -= 1
        print(f"wrote {number:05d}.npy")

    vectors.Shards.write = counted
    CorpusIndex(retriever, toy.collection().passages, folder=folder / "vectors", progress="")


def together(
    count: int, retriever: Checkpoint, folder: Path, **dies_after: int
) -> tuple[list[int], list[str]]:
    """The exit codes of so many ranks, and the shards that they have written."""
    deaths = {int(rank.removeprefix("rank")): shards for rank, shards in dies_after.items()}
    ends = ranks.fork(count, lambda: encode(retriever, folder, deaths), folder)
    lines = [line for end in ends for line in end.printed.splitlines()]
    return [end.code for end in ends], sorted(line[6:] for line in lines if line.startswith("wrote "))


def find(retriever: Checkpoint, folder: Path, parameters: str) -> None:
    """Search as one of several ranks, each with an index of its own part; rank 0 writes the hits."""
    distributed.init()
    queries, settings = toy.collection().splits["dev"].queries, IndexSettings("IVF4,Flat", parameters)
    index = CorpusIndex(retriever, toy.collection().passages, settings=settings, progress="")
    hits = index.search(queries, 20).hits
    index.save(folder / "index", "m", settings)
    if distributed.is_main():
        np.save(folder / "hits.npy", hits)


def check_equal(folder: Path, expected: dict[str, np.ndarray]) -> None:
    found = shards(folder / "vectors")
    assert list(found) == list(expected)
    for name, rows in expected.items():
        np.testing.assert_allclose(found[name], rows, rtol=0, atol=1e-6, err_msg=name)


def test_four_ranks_write_the_vectors_of_one(retriever, one, tmp_path):
    codes, written = together(4, retriever, tmp_path)
    assert codes == [0] * 4
    assert written == [*one]
    check_equal(tmp_path, one)


def test_an_encoding_that_was_killed_goes_on_with_any_number_of_ranks(retriever, one, tmp_path):
    """What is finished is not encoded again, and a shard that was damaged since then is."""
    codes, before = together(4, retriever, tmp_path, rank1=1, rank3=2)
    assert codes == [1, -signal.SIGKILL, 1, -signal.SIGKILL]
    assert len(before) == 3 + 1 + 4 + 2  # of 3, 4, 4 and 4
    for count in (3, 1):
        folder = tmp_path / f"on-{count}"
        shutil.copytree(tmp_path / "vectors", folder / "vectors")
        damaged = folder / "vectors" / before[0]
        damaged.write_bytes(damaged.read_bytes()[:-4])
        codes, after = together(count, retriever, folder)
        assert codes == [0] * count
        assert after == sorted({*one} - {*before[1:]})
        check_equal(folder, one)


def test_ranks_search_their_parts_by_an_index_each(retriever, tmp_path):
    """With every list, they find what one exact search finds; with one list, some passages are missed."""
    queries = toy.collection().splits["dev"].queries
    expected = CorpusIndex(retriever, toy.collection().passages, progress="").search(queries, 20).hits
    for parameters in ("nprobe=4", "nprobe=1"):
        ends = ranks.fork(2, lambda given=parameters: find(retriever, tmp_path, given), tmp_path)
        assert [end.code for end in ends] == [0, 0], ends[0].printed
        hits, found = np.load(tmp_path / "hits.npy"), VectorIndex.load(tmp_path / "index")
        assert (len(found), found.settings.factory) == (60, "IVF4,Flat")
        if parameters == "nprobe=4":
            np.testing.assert_array_equal(hits["row"], expected["row"])
            np.testing.assert_allclose(hits["score"], expected["score"], atol=1e-5)
    whole = dict(zip(*(expected[0][name].tolist() for name in ("row", "score")), strict=True))
    known = [(row, score) for row, score in hits[0].tolist() if row in whole]
    assert known and {-1} <= {*hits["row"].flat} <= {*range(-1, 60)}
    np.testing.assert_allclose([score for _, score in known], [whole[row] for row, _ in known], atol=1e-5)
    assert (np.isneginf(hits["score"]) == (hits["row"] < 0)).all()
