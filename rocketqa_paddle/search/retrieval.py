"""Corpus → vectors → index → hits, and hits → re-ranked hits; sharded over ranks where there are some."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from rocketqa_paddle.networks.batching import Batch, collate, length_buckets
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.tokenization import Packed
from rocketqa_paddle.records import Hit, Passage, Query, Run
from rocketqa_paddle.runtime import device, distributed
from rocketqa_paddle.runtime.storage import replacing
from rocketqa_paddle.search.index import VectorIndex, read_texts, write_texts

_CHUNK = 32768  # rows that are tokenised together: enough to sort by length, little enough to hold
_QUERY_BLOCK = 1024  # queries searched together


def encode_queries(
    checkpoint: Checkpoint, queries: Sequence[str], *, batch_size: int = 64, progress: str = ""
) -> np.ndarray:
    """Vectors `[queries, hidden]`, float32. `progress` names the bar; without it there is none."""
    tokenizer, length = checkpoint.tokenizer, checkpoint.lengths["query"]
    return _infer(
        checkpoint,
        lambda rows: tokenizer.pack_queries([queries[i] for i in rows], length),
        checkpoint.network.encode_queries,
        len(queries),
        batch_size,
        progress,
    )


def encode_passages(
    checkpoint: Checkpoint,
    titles: Sequence[str],
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    progress: str = "",
) -> np.ndarray:
    """Vectors `[passages, hidden]`, float32. `progress` names the bar; without it there is none."""
    tokenizer, length = checkpoint.tokenizer, checkpoint.lengths["passage"]

    def pack(rows: range) -> list[Packed]:
        return tokenizer.pack_passages([titles[i] for i in rows], [texts[i] for i in rows], length)

    return _infer(checkpoint, pack, checkpoint.network.encode_passages, len(texts), batch_size, progress)


def score_pairs(
    checkpoint: Checkpoint,
    queries: Sequence[str],
    titles: Sequence[str],
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    progress: str = "",
) -> np.ndarray:
    """The cross encoder's scores `[pairs]`, float32; a sigmoid makes them probabilities."""
    tokenizer, length = checkpoint.tokenizer, checkpoint.lengths["pair"]

    def pack(rows: range) -> list[Packed]:
        columns = ([column[i] for i in rows] for column in (queries, titles, texts))
        return tokenizer.pack_pairs(*columns, length)

    return _infer(checkpoint, pack, checkpoint.network, len(texts), batch_size, progress)


def _infer(
    checkpoint: Checkpoint,
    pack: Callable[[range], list[Packed]],
    forward: Callable[[Batch], paddle.Tensor],
    count: int,
    batch_size: int,
    progress: str,
) -> np.ndarray:
    """Run `forward` without gradient over `count` rows, in buckets of like length, back in order."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}, expected at least 1")
    network, pad_id = checkpoint.network, checkpoint.tokenizer.pad_id
    training, parts = network.training, []
    network.eval()
    bar = tqdm(total=count, desc=progress, unit=" rows", disable=not (progress and distributed.is_main()))
    with paddle.no_grad(), bar:
        for start in range(0, count, _CHUNK):
            packed = pack(range(start, min(start + _CHUNK, count)))
            for rows in length_buckets([len(sequence.token_ids) for sequence in packed], batch_size):
                output = forward(collate([packed[i] for i in rows], pad_id)).astype("float32").numpy()
                parts.append((rows + start, output))
                bar.update(len(rows))
    if training:
        network.train()
    return _in_order(parts, count, network.config.hidden_size)


def _in_order(parts: list[tuple[np.ndarray, np.ndarray]], count: int, hidden: int) -> np.ndarray:
    if not parts:
        return np.zeros((0, hidden), dtype=np.float32)
    output = np.empty((count, *parts[0][1].shape[1:]), dtype=np.float32)
    for rows, values in parts:
        output[rows] = values
    return output


class CorpusIndex:
    """A corpus encoded by one retriever, ready for any number of searches.

    Each rank encodes and indexes its part of the corpus and searches it for all queries; the parts'
    best are merged, so that every rank gets the whole run.

    Args:
        checkpoint: the dual encoder.
        passages: the whole corpus, the same on every rank.
        batch_size: rows encoded together.
        progress: name of the progress bar.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        passages: Mapping[str, Passage],
        *,
        batch_size: int = 64,
        progress: str = "corpus",
    ) -> None:
        if not passages:
            raise ValueError("the corpus is empty")
        ids = list(distributed.shard(list(passages)))
        columns = [passages[i].title for i in ids], [passages[i].text for i in ids]
        vectors = encode_passages(checkpoint, *columns, batch_size=batch_size, progress=progress)
        self._keep(checkpoint, passages, vectors, batch_size)

    def _keep(
        self,
        checkpoint: Checkpoint,
        passages: Mapping[str, Passage],
        vectors: np.ndarray,
        batch_size: int,
    ) -> None:
        """Index this rank's part of the corpus, whose vectors are given."""
        self._checkpoint, self._passages, self._batch_size = checkpoint, passages, batch_size
        self._ids, self._vectors = list(distributed.shard(list(passages))), vectors
        self._local = VectorIndex([self._vectors], self._ids, gpu=device.gpu_id()) if self._ids else None

    @classmethod
    def load(
        cls,
        folder: str | Path,
        checkpoint: Checkpoint,
        passages: Mapping[str, Passage],
        *,
        batch_size: int = 64,
    ) -> CorpusIndex:
        """The same, out of what `save` wrote.

        Args:
            folder: of the index.
            checkpoint: the dual encoder.
            passages: the whole corpus, the same on every rank.
            batch_size: queries encoded together.

        Raises:
            FileNotFoundError: no whole index there.
            ValueError: it is damaged, of another retriever, or of another corpus.
        """
        whole = VectorIndex.load(folder, checkpoint.digest())
        if whole.ids != list(passages) or read_texts(folder, passages) != passages:
            raise ValueError(f"{folder}: the index of another corpus")
        rows = distributed.shard(range(len(whole)))
        index = cls.__new__(cls)
        index._keep(checkpoint, passages, whole.vectors(rows.start, len(rows)), batch_size)
        return index

    def search(self, queries: Mapping[str, Query], k: int) -> Run:
        """The `k` best passages of every query, by inner product."""
        ids, run = list(queries), {}
        blocks = range(0, len(ids), _QUERY_BLOCK)
        for start in tqdm(
            blocks, desc="search", unit=" blocks", leave=False, disable=not distributed.is_main()
        ):
            block = ids[start : start + _QUERY_BLOCK]
            texts = [queries[query_id].text for query_id in block]
            vectors = encode_queries(self._checkpoint, texts, batch_size=self._batch_size)
            local = search(self._local, vectors, block, k) if self._local else {}
            run |= merge(distributed.gather(local), k)
        return run

    def save(self, folder: str | Path, model: str) -> None:
        """Write the whole corpus as one index folder, with the passages' texts beside the vectors.

        Every rank writes its vectors to a file, and rank 0 puts them together one file after another.

        Args:
            folder: replaced if it exists.
            model: digest of the checkpoint.
        """
        parts = Path(folder).resolve().with_name(f".{Path(folder).name}.parts")
        parts.mkdir(parents=True, exist_ok=True)
        np.save(parts / f"{distributed.rank():05d}.npy", self._vectors)
        distributed.barrier()
        if distributed.is_main():
            with replacing(folder, marker="meta.json") as new:
                vectors = (np.load(parts / f"{r:05d}.npy") for r in range(distributed.world_size()))
                VectorIndex(vectors, list(self._passages), model).save(new)
                write_texts(new, self._passages.values())
            shutil.rmtree(parts)
        distributed.barrier()


def search(index: VectorIndex, vectors: np.ndarray, query_ids: Sequence[str], k: int) -> dict[str, list[Hit]]:
    """The `k` best passages for query vectors `[queries, hidden]`."""
    run = {}
    for start in range(0, len(query_ids), _QUERY_BLOCK):
        scores, rows = index.search(vectors[start : start + _QUERY_BLOCK], k)
        for query_id, query_scores, query_rows in zip(query_ids[start:], scores, rows, strict=False):
            pairs = zip((index.ids[i] for i in query_rows), query_scores.tolist(), strict=True)
            run[query_id] = to_hits(query_id, pairs)
    return run


def merge(runs: Sequence[Run], k: int) -> dict[str, list[Hit]]:
    """The `k` best hits of several runs over separate parts of a corpus."""
    if len(runs) == 1:
        return {query_id: hits[:k] for query_id, hits in runs[0].items()}
    query_ids = dict.fromkeys(query_id for run in runs for query_id in run)
    merged = {}
    for query_id in query_ids:
        hits = [hit for run in runs for hit in run.get(query_id, [])]
        best = sorted(hits, key=lambda hit: -hit.score)[:k]
        merged[query_id] = to_hits(query_id, ((hit.passage_id, hit.score) for hit in best))
    return merged


def to_hits(query_id: str, scored: Iterator[tuple[str, float]]) -> list[Hit]:
    """Hits with ranks from 1, for passages and scores that are in order."""
    return [Hit(query_id, passage_id, rank, score) for rank, (passage_id, score) in enumerate(scored, 1)]


def rerank(
    checkpoint: Checkpoint,
    run: Run,
    passages: Mapping[str, Passage],
    queries: Mapping[str, Query],
    depth: int,
    *,
    batch_size: int = 64,
    progress: str = "re-rank",
) -> Run:
    """The first `depth` hits of every query, ordered by the cross encoder. Ranks share the queries.

    The hits below keep their order behind them, with scores that only say so.
    """
    hits = [hit for query_id in distributed.shard(list(run)) for hit in run[query_id][:depth]]
    scores = score_pairs(
        checkpoint,
        [queries[hit.query_id].text for hit in hits],
        [passages[hit.passage_id].title for hit in hits],
        [passages[hit.passage_id].text for hit in hits],
        batch_size=batch_size,
        progress=progress,
    ).reshape(-1)
    everywhere = distributed.gather(
        [(h.query_id, h.passage_id, float(s)) for h, s in zip(hits, scores, strict=True)]
    )
    by_query: dict[str, list[tuple[str, float]]] = {}
    for query_id, passage_id, score in (row for rows in everywhere for row in rows):
        by_query.setdefault(query_id, []).append((passage_id, score))
    for query_id, scored in by_query.items():
        scored.sort(key=lambda item: -item[1])
        last = scored[-1][1]
        scored += [(hit.passage_id, last - n) for n, hit in enumerate(run[query_id][depth:], 1)]
    return {query_id: to_hits(query_id, iter(scored)) for query_id, scored in by_query.items()}


def bm25(passages: Mapping[str, Passage], queries: Mapping[str, Query], k: int) -> Run:
    """The `k` best passages of every query by BM25 over title and text, for comparison. Needs bm25s."""
    import bm25s

    if not queries:
        return {}
    ids = list(passages)
    tokens = bm25s.tokenize(
        [f"{passages[i].title} {passages[i].text}" for i in ids], stopwords="en", show_progress=False
    )
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    texts = [query.text for query in queries.values()]
    rows, scores = index.retrieve(
        bm25s.tokenize(texts, stopwords="en", show_progress=False), k=min(k, len(ids)), show_progress=False
    )
    return {
        query_id: to_hits(
            query_id, ((ids[i], float(s)) for i, s in zip(query_rows, query_scores, strict=True) if s > 0)
        )
        for query_id, query_rows, query_scores in zip(queries, rows, scores, strict=True)
    }
