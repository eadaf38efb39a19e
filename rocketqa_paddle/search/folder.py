"""An index folder as a search uses it: its vectors and its texts together, and how passages change in it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rocketqa_paddle.data.candidates import Candidates, as_hits
from rocketqa_paddle.data.dataset import Corpus
from rocketqa_paddle.data.store import Ids, PassageTexts, Store, Writer
from rocketqa_paddle.records import Passage, Passages, Run
from rocketqa_paddle.runtime.folders import replacing, whole
from rocketqa_paddle.search import bm25, fusion
from rocketqa_paddle.search.bm25 import BM25Index
from rocketqa_paddle.search.fusion import Fusion
from rocketqa_paddle.search.index import CONTENTS, VectorIndex
from rocketqa_paddle.search.vectors import DType, Vectors
from rocketqa_paddle.settings import need_bm25s


class IndexFolder:
    """The vectors and texts of an index folder. Texts stay on the disk until a search finds them.

    The `model` that will encode the queries is checked by its digest. Errors are those of `VectorIndex.load`
    and `PassageTexts`.
    """

    def __init__(self, folder: str | Path, model: str | None = None) -> None:
        self._folder, self._index = Path(folder), VectorIndex.load(folder, model)
        self._texts = PassageTexts(folder, self._index.ids)
        self._lexical = _bm25_of(folder, self._index)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def dtype(self) -> DType:
        """The numbers of the vectors on the disk."""
        return str(self._index.all.parts[0].dtype)

    @property
    def has_bm25(self) -> bool:
        """Whether there is BM25, and the package for it."""
        return self._lexical is not None

    def find(self, query_ids: Sequence[str], queries: np.ndarray, k: int) -> tuple[Run, Passages]:
        """Find the `k` best passages for query vectors `[queries, hidden]`; return the hits and their texts.

        Errors are those of `VectorIndex.search`.
        """
        hits = as_hits(*self._index.search(queries, k))
        return Candidates(query_ids, self._index.ids, hits), self._passages(hits)

    def fused(
        self,
        query_ids: Sequence[str],
        queries: np.ndarray,
        texts: Sequence[str],
        k: int,
        fuse: Fusion,
        weight: float | None,
    ) -> tuple[Run, Passages, dict[str, list[float]]]:
        """Find passages for query vectors and by BM25 for their texts, and fuse the two.

        Return the hits, their texts, and the inner product of every hit by the query's id.

        Raises:
            ValueError: the index has no BM25.
        """
        sides = self.both(query_ids, queries, texts, max(k, fusion.POOL))
        hits = fusion.fuse(*(side.hits for side in sides), fuse, weight)[:, :k]
        inner = self._index.scores(queries, hits["row"]).tolist()
        found = Candidates(query_ids, self._index.ids, hits)
        return found, self._passages(hits), dict(zip(query_ids, inner, strict=True))

    def both(
        self, query_ids: Sequence[str], queries: np.ndarray, texts: Sequence[str], k: int
    ) -> tuple[Candidates, Candidates]:
        """Find the `k` best passages for query vectors, and those by BM25 for their texts.

        Raises:
            ValueError: the index has no BM25.
        """
        if self._lexical is None:
            need_bm25s("a fusion with BM25")
            raise ValueError("the index has no bm25/: build it with `rocketqa index --bm25 true`")
        sides = as_hits(*self._index.search(queries, k)), self._lexical.search(texts, k)
        dense, lexical = (Candidates(query_ids, self._index.ids, hits) for hits in sides)
        return dense, lexical

    def need_bm25s(self, setting: str) -> None:
        """Refuse a setting that needs the package bm25s for this index, where it is not installed."""
        if (whole(self._folder) / bm25.FOLDER).is_dir():
            need_bm25s(setting)

    def _passages(self, hits: np.ndarray) -> Passages:
        rows = np.unique(hits["row"][hits["row"] >= 0]).tolist()
        return {self._index.ids[row]: self._texts[row] for row in rows}

    def update(self, corpus: Corpus, vectors: Vectors) -> int:
        """Add passages and replace those of the same id, which keep their rows; return how many those were.

        `vectors` are `[passages, hidden]`, by the model of this index. The folder is written again as a whole
        and replaced, and this object keeps what it was.

        Raises:
            NotWritten: the old folder stays.
        """
        store = Store(self._folder)
        old = np.array([store.row_of(id) if id in store else -1 for id in corpus.ids])
        new, rows = np.arange(len(corpus)) + len(store), np.arange(len(store))
        rows[old[old >= 0]] = new[old >= 0]
        self._rewrite(np.concatenate([rows, new[old < 0]]), store, corpus.rows, vectors)
        return int((old >= 0).sum())

    def delete(self, ids: Iterable[str]) -> int:
        """Take passages out, and return how many there were of these ids; see `update`.

        Raises:
            ValueError: no passage would be left.
            NotWritten: the old folder stays.
        """
        store = Store(self._folder)
        gone = {store.row_of(id) for id in ids if id in store}
        if len(gone) == len(store):
            raise ValueError(f"{self._folder}: no passage would be left: remove the folder instead")
        if gone:
            self._rewrite(np.delete(np.arange(len(store)), sorted(gone)), store, [], Vectors([]))
        return len(gone)

    def _rewrite(self, rows: np.ndarray, store: Store, passages: Sequence[Passage], vectors: Vectors) -> None:
        """Write the folder again with some rows of what it holds, followed by more passages."""
        self.need_bm25s("a change of an index with BM25")
        parts = Vectors([*self._index.all.parts, *vectors.parts])
        with replacing(self._folder, CONTENTS) as new:
            with Writer(new) as writer:
                for row in rows.tolist():
                    writer.add(store.rows[row] if row < len(store) else passages[row - len(store)])
                writer.close()
            chosen, kept = parts.chosen(rows), self._index
            VectorIndex(chosen, Ids(new), kept.model, settings=kept.settings).save(new, writer.record)
            if self._lexical:
                BM25Index(PassageTexts(new, Ids(new))).save(new)


def _bm25_of(folder: str | Path, vectors: VectorIndex) -> BM25Index | None:
    """Open the BM25 of an index folder, where it has one and the package for it is installed."""
    if not (whole(folder) / bm25.FOLDER).is_dir() or importlib.util.find_spec("bm25s") is None:
        return None
    lexical = BM25Index.load(folder)
    if len(lexical) != len(vectors):
        given = f"{bm25.FOLDER}/ has {len(lexical)} passages, the index {len(vectors)}"
        raise ValueError(f"{folder}: {given}: the folder is damaged, build the index again")
    return lexical
