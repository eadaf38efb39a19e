"""Candidates: what was found for many queries, as two arrays that may be mapped from a file."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from rocketqa_paddle.data.runs import HITS
from rocketqa_paddle.data.store import Store
from rocketqa_paddle.records import Hit, Qrels, Run, positives
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.storage import array_writer, atomic, map_array, write_text

HIT = np.dtype([("row", "<i4"), ("score", "<f4")])
"""A hit in a file: the row of its passage, -1 for none, and its score."""


def no_hits(queries: int, depth: int) -> np.ndarray:
    """Room for hits: `[queries, depth]` of the type `HIT`."""
    hits = np.zeros((queries, depth), HIT)
    hits["row"] = -1
    return hits


def as_hits(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Put scores and rows, of the same shape, into one array of the type `HIT`."""
    hits = np.empty(rows.shape, HIT)
    hits["row"], hits["score"] = rows, scores
    return hits


class Candidates(Mapping[str, list[Hit]]):
    """A run whose hits take 8 bytes each: query id -> hits, best first, made when they are asked for.

    Args:
        queries: the ids of the queries.
        passages: the passage ids by row.
        hits: `[queries, depth]` of the type `HIT`. Where a query has fewer hits, the row of the last is -1.
    """

    def __init__(self, queries: Sequence[str], passages: Sequence[str], hits: np.ndarray) -> None:
        assert hits.dtype == HIT, hits.dtype
        assert hits.shape[0] == len(queries), (hits.shape, len(queries))
        self.queries, self.passages, self.hits = queries, passages, hits
        self._places = {id: place for place, id in enumerate(queries)}

    @property
    def depth(self) -> int:
        """The most hits that a query has room for."""
        return self.hits.shape[1]

    def __len__(self) -> int:
        return len(self.queries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.queries)

    def __contains__(self, query_id: object) -> bool:
        return query_id in self._places

    def __getitem__(self, query_id: str) -> list[Hit]:
        found = self.hits[self._places[query_id]]
        return [
            Hit(query_id, self.passages[row], rank, score)
            for rank, (row, score) in enumerate(found[found["row"] >= 0].tolist(), 1)
        ]

    def first(self, count: int | None) -> Candidates:
        """The first hits of every query."""
        return Candidates(self.queries, self.passages, self.hits[:, :count])

    def sample(self, count: int, seed: int) -> Candidates:
        """At most `count` hits of every query, drawn at random, in their order."""
        draw = random.Random(seed)
        hits = no_hits(len(self), min(count, self.depth))
        for place, found in enumerate(self.hits):
            there = int((found["row"] >= 0).sum())
            chosen = sorted(draw.sample(range(there), count)) if count < there else range(there)
            hits[place, : len(chosen)] = found[list(chosen)]
        return Candidates(self.queries, self.passages, hits)

    def with_positives(self, qrels: Qrels, row_of: Callable[[str], int]) -> Candidates:
        """The hits, and behind them the positives that the run lacks, scored minus infinity.

        `row_of` gives the row of a passage id.
        """
        lacking: list[list[int]] = []
        for query_id, found in zip(self.queries, self.hits, strict=True):
            there = {*found["row"].tolist()}
            rows = [row_of(id) for id in positives(qrels, query_id)]
            lacking.append([row for row in rows if row not in there])
        counts = (self.hits["row"] >= 0).sum(axis=1)
        width = max((n + len(more) for n, more in zip(counts.tolist(), lacking, strict=True)), default=0)
        hits = no_hits(len(self), width)
        shared = min(width, self.depth)
        hits[:, :shared] = self.hits[:, :shared]
        for place, (count, more) in enumerate(zip(counts.tolist(), lacking, strict=True)):
            hits[place, count : count + len(more)] = [(row, -math.inf) for row in more]
        return Candidates(self.queries, self.passages, hits)

    @classmethod
    def load(cls, path: Path, passages: Sequence[str]) -> Candidates:
        """Map the file that `write_hits` wrote, and read the ids of the queries beside it.

        Raises:
            FileNotFoundError: one of the two is not there.
            ValueError: it is no such file, or of other queries.
        """
        queries = queries_file(path).read_text(encoding="utf-8").split("\n")[:-1]
        hits = map_array(path)
        if hits.dtype != HIT or hits.ndim != 2 or len(hits) != len(queries):
            given = f"{hits.dtype} {list(hits.shape)}, expected hits of {len(queries)} queries"
            raise ValueError(f"{path}: {given}")
        return cls(queries, passages, hits)


QUERIES = ".queries.txt"
"""The ending of the file with the ids of the queries of a file of hits."""


def queries_file(path: Path) -> Path:
    """The place of the ids of the queries of a file of hits."""
    return path.with_name(path.name.removesuffix(HITS) + QUERIES)


def write_hits(path: Path, queries: Iterable[str], depth: int, blocks: Iterable[np.ndarray]) -> None:
    """Write hits that come in blocks, `[rows, depth]`, into a `.npy` file, whole or not at all.

    The ids of the queries, one a line, go beside it. Rank 0 writes; every rank runs through the blocks.
    """
    queries = list(queries)
    if not distributed.is_main():
        for _ in blocks:
            pass
    else:
        write_text(queries_file(path), "".join(f"{id}\n" for id in queries))
        with atomic(path) as new, array_writer(new, (len(queries), depth), HIT) as write:
            for block in blocks:
                write(block)
    distributed.barrier()


class Filtered(Mapping[str, list[Hit]]):
    """A run of which a function takes something away, query by query, when the hits are asked for."""

    def __init__(self, run: Run, function: Callable[[str, list[Hit]], list[Hit]]) -> None:
        self._run, self._function = run, function

    def __len__(self) -> int:
        return len(self._run)

    def __iter__(self) -> Iterator[str]:
        return iter(self._run)

    def __getitem__(self, query_id: str) -> list[Hit]:
        return self._function(query_id, self._run[query_id])


def gathered(run: Run, store: Store | None = None) -> Candidates:
    """A run as candidates, by the rows of a store, or else of a list of the passages that the run has."""
    if isinstance(run, Candidates):
        return run
    rows: dict[str, int] = {}
    row_of = store.row_of if store is not None else lambda id: rows.setdefault(id, len(rows))
    hits = no_hits(len(run), max(map(len, run.values()), default=0))
    for place, found in enumerate(run.values()):
        hits[place, : len(found)] = [(row_of(hit.passage_id), hit.score) for hit in found]
    return Candidates(list(run), store.ids if store is not None else list(rows), hits)
