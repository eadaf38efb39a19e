"""Corpus → vectors → index → hits → re-ranked hits. Processes that `fleetrun` started share the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from rocketqa_paddle.data.candidates import Candidates, as_hits, gathered, no_hits
from rocketqa_paddle.data.dataset import Corpus
from rocketqa_paddle.data.store import texts_record, write_store
from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.records import Hit, Passages, Queries, Run
from rocketqa_paddle.runtime import device, distributed
from rocketqa_paddle.runtime.folders import replacing
from rocketqa_paddle.search.bm25 import BM25Index
from rocketqa_paddle.search.index import CONTENTS, EXACT, VectorIndex
from rocketqa_paddle.search.vectors import DType, Shards, Vectors
from rocketqa_paddle.settings import IndexSettings

_QUERY_BLOCK = 1024  # queries whose hits processes exchange at once
_PAIR_BLOCK = 1 << 14  # pairs whose texts are in memory at once


class CorpusIndex:
    """A corpus encoded by one retriever, ready for any number of searches.

    The ranks share the shards of vectors that the `folder` does not have yet, and each searches its part of
    the vectors for all queries. The best hits of the parts are merged, so every rank gets the whole run.

    Args:
        checkpoint: the retriever.
        corpus: the passages, of which every rank has all.
        folder: where the vectors are kept until `close`, so that a stopped encoding goes on; a temporary
            folder when empty.
        vectors: all vectors, if they are known.
        settings: how each rank searches its part; an approximate index learns from that part alone.
        digest: of the retriever, if it is known.
        dtype: of the vectors on the disk.
        precision: arithmetic of the network for the passages.
        batch_size: rows computed together.
        progress: name of the progress bar.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        corpus: Corpus | Passages,
        *,
        folder: Path | None = None,
        vectors: Vectors | None = None,
        settings: IndexSettings = EXACT,
        digest: str = "",
        dtype: DType = "float32",
        precision: str = "fp32",
        batch_size: int = 64,
        progress: str = "corpus",
    ) -> None:
        if not corpus:
            raise ValueError("the corpus is empty")
        self._corpus = corpus = corpus if isinstance(corpus, Corpus) else Corpus(corpus)
        self._checkpoint, self._settings, self._batch_size = checkpoint, settings, batch_size
        self.digest = digest or checkpoint.digest()
        self._shards: Shards | None = None
        if vectors is None:
            if folder is None:
                self._temporary = TemporaryDirectory(prefix="rocketqa-")
                folder = Path(distributed.gather(self._temporary.name)[0]) / "vectors"
            made_of = {"model": self.digest, "corpus": corpus.fingerprint}
            self._shards = Shards(folder, len(corpus), dtype, precision=precision, **made_of)
            with device.arithmetic(precision):
                self._encode(self._shards, progress)
            vectors = self._shards.vectors()
        self.vectors, self._own = vectors, distributed.shard(range(len(corpus)))

    @cached_property
    def _local(self) -> VectorIndex | None:
        """The index of this rank's part, if it has any; it reads all its vectors."""
        part = self.vectors.slice(self._own.start, len(self._own))
        options = {"gpu": device.gpu_id(), "settings": self._settings}
        return VectorIndex(part, self._own, **options) if self._own else None

    def _encode(self, shards: Shards, progress: str) -> None:
        """Encode this rank's part of the shards that are missing."""
        own = distributed.shard(distributed.gather(shards.missing() if distributed.is_main() else None)[0])
        rows = self._corpus.rows
        parts = (rows[shards.rows_of(number)] for number in own)
        count = sum(len(range(len(rows))[shards.rows_of(number)]) for number in own)
        options = {"batch_size": self._batch_size, "progress": progress}
        encoded = forward.encode_parts(self._checkpoint, parts, count, **options)
        for number, vectors in zip(own, encoded, strict=True):
            shards.write(number, vectors)
        distributed.barrier()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        checkpoint: Checkpoint,
        corpus: Corpus | Passages,
        *,
        settings: IndexSettings = EXACT,
        batch_size: int = 64,
    ) -> CorpusIndex:
        """Read the vectors that `save` wrote, in an index of any kind, instead of encoding the corpus again.

        The errors are those of `VectorIndex.load`, and ValueError for the index of another corpus.
        """
        whole = VectorIndex.load(folder, digest := checkpoint.digest())
        corpus = corpus if isinstance(corpus, Corpus) else Corpus(corpus)
        if texts_record(folder)["fingerprint"] != corpus.fingerprint:
            raise ValueError(f"{folder}: the index of another corpus")
        options = {"settings": settings, "digest": digest, "batch_size": batch_size}
        return cls(checkpoint, corpus, vectors=whole.all, **options)

    def search(self, queries: Queries, k: int) -> Candidates:
        """Find the `k` best passages of every query by inner product."""
        hits = np.concatenate([no_hits(0, min(k, len(self._corpus))), *self.blocks(queries, k)])
        return Candidates(list(queries), self._corpus.ids, hits)

    def blocks(self, queries: Queries, k: int) -> Iterator[np.ndarray]:
        """Yield the hits of the queries in blocks, `[queries, k]` of the type `candidates.HIT`."""
        ids, k = list(queries), min(k, len(self._corpus))
        silent = not distributed.is_main()
        for start in tqdm(
            range(0, len(ids), _QUERY_BLOCK), desc="search", unit=" blocks", leave=False, disable=silent
        ):
            texts = [queries[query_id].text for query_id in ids[start : start + _QUERY_BLOCK]]
            vectors = forward.encode_queries(self._checkpoint, texts, batch_size=self._batch_size)
            local = no_hits(len(texts), 0)
            if self._local:
                scores, rows = self._local.search(vectors, k)
                local = as_hits(scores, np.where(rows < 0, -1, rows + self._own.start))
            yield merge(distributed.gather(local), k)

    def save(
        self, folder: str | Path, model: str, settings: IndexSettings = EXACT, *, bm25: bool = False
    ) -> None:
        """Write the whole corpus as one index folder, with its texts, which replaces an older one.

        Rank 0 does. `model` is the digest of the checkpoint. With `bm25`, the folder also gets a `BM25Index`
        of the passages, for searches that fuse the two. Files of something else raise ValueError.
        """
        if distributed.is_main():
            with replacing(folder, CONTENTS) as new:
                texts = write_store(new, self._corpus.passages)
                self._whole(model, settings).save(new, texts)
                if bm25:
                    BM25Index(self._corpus.rows).save(new)
        distributed.barrier()

    def _whole(self, model: str, settings: IndexSettings) -> VectorIndex:
        """An index of the whole corpus; a rank that has searched all of it need not build another."""
        local: VectorIndex | None = vars(self).get("_local")
        if local and len(local) == len(self._corpus) and local.settings == settings:
            return local.named(self._corpus.ids, model)
        return VectorIndex(self.vectors, self._corpus.ids, model, settings=settings)

    def close(self) -> None:
        """Delete the vectors on the disk. Every rank calls it when it is done with the index."""
        if self._shards:
            self.__dict__.pop("_local", None)
            self.vectors = None
            self._shards.remove()


def merge(parts: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Keep the `k` best hits of each query, `[queries, k]`, from those in separate parts of a corpus."""
    hits = np.concatenate(parts, axis=1)
    best = np.lexsort((hits["row"], -hits["score"]))[:, :k]
    return np.take_along_axis(hits, best, axis=1)


def to_hits(query_id: str, scored: Iterable[tuple[str, float]]) -> list[Hit]:
    """Number passage ids and scores, which come best first, as hits from rank 1."""
    return [Hit(query_id, passage_id, rank, score) for rank, (passage_id, score) in enumerate(scored, 1)]


def rerank(
    checkpoint: Checkpoint,
    run: Run,
    passages: Passages,
    queries: Queries,
    depth: int,
    *,
    batch_size: int = 64,
    progress: str = "re-rank",
) -> Candidates:
    """Order the first `depth` hits of every query by the cross encoder. Processes share the queries.

    The deeper hits follow in their old order, each with 1 less than the score before it, so that scores fall
    throughout. A query without hits stays without.
    """
    found = gathered(run)
    places = distributed.shard(range(len(found)))
    own = np.array(found.hits[places.start : places.stop])
    read = own[:, :depth]
    ids, there = found.queries[places.start : places.stop], read["row"] >= 0
    pairs = _pairs(ids, read["row"], found.passages, passages, queries)
    options = {"batch_size": batch_size, "progress": progress}
    parts = [*forward.score_parts(checkpoint, pairs, int(there.sum()), **options)]
    scores = np.full(there.shape, -np.inf, np.float32)
    scores[there] = np.concatenate([np.zeros(0, np.float32), *(part.reshape(-1) for part in parts)])
    reorder(own, scores)
    hits = np.concatenate(distributed.gather(own))
    return Candidates(found.queries, found.passages, hits)


def reorder(hits: np.ndarray, scores: np.ndarray) -> None:
    """Order the first hits of every query by a re-ranker's scores, in place; see `rerank`.

    Args:
        hits: `[queries, n]` of the type `candidates.HIT`.
        scores: of the first `depth` hits, `[queries, depth]`; minus infinity where there is no hit.
    """
    depth = scores.shape[1]
    read = hits[:, :depth]
    read["score"] = scores
    order = np.argsort(-scores, axis=1, kind="stable")
    read[:] = np.take_along_axis(read, order, axis=1)
    _continue(hits, depth)


def _pairs(
    query_ids: Sequence[str], rows: np.ndarray, ids: Sequence[str], passages: Passages, queries: Queries
) -> Iterator[list[list[str]]]:
    """Yield the texts of pairs in parts: queries, titles and texts."""
    step = max(1, _PAIR_BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(query_ids), step):
        block = zip(query_ids[start : start + step], rows[start : start + step].tolist(), strict=True)
        pairs = [(queries[id].text, passages[ids[row]]) for id, best in block for row in best if row >= 0]
        if pairs:
            yield [[text for text, _ in pairs], [p.title for _, p in pairs], [p.text for _, p in pairs]]


def _continue(hits: np.ndarray, depth: int) -> None:
    """Give the hits behind `depth` scores that fall by 1 from the last of those before, in place."""
    rest = hits[:, depth:]
    last = np.where(hits["row"][:, :depth] >= 0, hits["score"][:, :depth], np.inf).min(axis=1, initial=np.inf)
    rest["score"] = last[:, None] - np.arange(1, rest.shape[1] + 1)
