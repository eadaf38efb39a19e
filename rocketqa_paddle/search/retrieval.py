"""Corpus → vectors → index → hits → re-ranked hits. Processes that `fleetrun` started share the work."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.records import Hit, Passages, Queries, Run
from rocketqa_paddle.runtime import device, distributed
from rocketqa_paddle.runtime.folders import replacing, scratch
from rocketqa_paddle.runtime.storage import save_array, writing
from rocketqa_paddle.search.index import CONTENTS, VectorIndex
from rocketqa_paddle.search.texts import PassageTexts, write_texts

_QUERY_BLOCK = 1024  # queries whose hits processes exchange at once


class CorpusIndex:
    """A corpus encoded by one retriever, ready for any number of searches.

    Each rank encodes and indexes its part of the `passages`, of which it has all, and searches this part for
    all queries. The best hits of the parts are merged, so that every rank gets the whole run. `vectors` are
    those of this rank's part if they are known, and `progress` names a progress bar if there is to be one.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        passages: Passages,
        *,
        vectors: np.ndarray | None = None,
        batch_size: int = 64,
        progress: str = "corpus",
    ) -> None:
        if not passages:
            raise ValueError("the corpus is empty")
        if vectors is None:
            own = distributed.shard(list(passages.values()))
            columns = [passage.title for passage in own], [passage.text for passage in own]
            vectors = forward.encode_passages(checkpoint, *columns, batch_size=batch_size, progress=progress)
        self._checkpoint, self._passages, self._batch_size = checkpoint, passages, batch_size
        ids, self._vectors = distributed.shard(list(passages)), vectors
        self._local = VectorIndex(vectors, ids, gpu=device.gpu_id()) if len(ids) else None

    @classmethod
    def load(
        cls, folder: str | Path, checkpoint: Checkpoint, passages: Passages, *, batch_size: int = 64
    ) -> CorpusIndex:
        """Read the vectors that `save` wrote instead of encoding the corpus again.

        The errors are those of `VectorIndex.load`, and ValueError for the index of another corpus.
        """
        whole = VectorIndex.load(folder, checkpoint.digest())
        texts = PassageTexts(folder, whole.ids)
        if whole.ids != list(passages) or any(map(operator.ne, texts, passages.values())):
            raise ValueError(f"{folder}: the index of another corpus")
        rows = distributed.shard(range(len(whole)))
        return cls(checkpoint, passages, vectors=whole.vectors(rows.start, len(rows)), batch_size=batch_size)

    def search(self, queries: Queries, k: int) -> Run:
        """Find the `k` best passages of every query by inner product."""
        ids, run = list(queries), {}
        blocks = range(0, len(ids), _QUERY_BLOCK)
        silent = not distributed.is_main()
        for start in tqdm(blocks, desc="search", unit=" blocks", leave=False, disable=silent):
            block = ids[start : start + _QUERY_BLOCK]
            texts = [queries[query_id].text for query_id in block]
            vectors = forward.encode_queries(self._checkpoint, texts, batch_size=self._batch_size)
            local = to_run(block, self._local.ids, *self._local.search(vectors, k)) if self._local else {}
            run |= merge(distributed.gather(local), k)
        return run

    def save(self, folder: str | Path, model: str) -> None:
        """Write the whole corpus as one index folder, with its texts, which replaces an older one.

        Every rank writes its vectors to a file; rank 0 then joins them, with one such file in memory at a
        time. `model` is the digest of the checkpoint. Files of something else raise ValueError.
        """
        with scratch(folder, keep=not distributed.is_main()) as parts:
            with writing(parts):
                save_array(parts / f"{distributed.rank():05d}.npy", self._vectors)
            distributed.barrier()
            if distributed.is_main():
                with replacing(folder, CONTENTS) as new:
                    vectors = (np.load(parts / f"{r:05d}.npy") for r in range(distributed.world_size()))
                    texts = write_texts(new, self._passages.values())
                    VectorIndex(vectors, list(self._passages), model).save(new, texts)
        distributed.barrier()


def to_run(
    query_ids: Sequence[str], passage_ids: Sequence[str], scores: np.ndarray, rows: np.ndarray
) -> dict[str, list[Hit]]:
    """Turn scores and rows of passages, both `[queries, k]` and best first, into hits."""
    return {
        query_id: to_hits(query_id, zip((passage_ids[row] for row in best), values, strict=True))
        for query_id, best, values in zip(query_ids, rows.tolist(), scores.tolist(), strict=True)
    }


def merge(runs: Sequence[Run], k: int) -> dict[str, list[Hit]]:
    """Keep the `k` best hits of each query from runs over separate parts of a corpus."""
    if len(runs) == 1:
        return {query_id: hits[:k] for query_id, hits in runs[0].items()}
    merged = {}
    for query_id in dict.fromkeys(query_id for run in runs for query_id in run):
        hits = [(hit.passage_id, hit.score) for run in runs for hit in run.get(query_id, [])]
        merged[query_id] = to_hits(query_id, sorted(hits, key=lambda hit: -hit[1])[:k])
    return merged


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
) -> Run:
    """Order the first `depth` hits of every query by the cross encoder. Processes share the queries.

    The deeper hits follow in their old order, each with 1 less than the score before it, so that scores fall
    throughout. A query without hits is left out.
    """
    hits = [hit for query_id in distributed.shard(list(run)) for hit in run[query_id][:depth]]
    found = [passages[hit.passage_id] for hit in hits]
    columns = [queries[hit.query_id].text for hit in hits], [p.title for p in found], [p.text for p in found]
    scores = forward.score_pairs(checkpoint, *columns, batch_size=batch_size, progress=progress)
    own = [(h.query_id, h.passage_id, s) for h, s in zip(hits, scores.reshape(-1).tolist(), strict=True)]
    by_query: dict[str, list[tuple[str, float]]] = {}
    for query_id, passage_id, score in itertools.chain(*distributed.gather(own)):
        by_query.setdefault(query_id, []).append((passage_id, score))
    for query_id, scored in by_query.items():
        scored.sort(key=lambda item: -item[1])
        last = scored[-1][1]
        scored += [(hit.passage_id, last - n) for n, hit in enumerate(run[query_id][depth:], 1)]
    return {query_id: to_hits(query_id, scored) for query_id, scored in by_query.items()}
