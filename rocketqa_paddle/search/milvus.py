"""Passages and their vectors in a collection of Milvus, for search engines on more than one machine.

`milvus_collection` says what a collection is, and `milvus_building` makes one.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rocketqa_paddle.data.candidates import Candidates, as_hits, no_hits
from rocketqa_paddle.data.dataset import Corpus
from rocketqa_paddle.records import Hit, Passage, Passages, Run
from rocketqa_paddle.search import fusion, milvus_connection
from rocketqa_paddle.search.fusion import Fusion
from rocketqa_paddle.search.index import check_model, check_queries
from rocketqa_paddle.search.milvus_collection import FIELDS, METRIC, WORDS, bar, read_record
from rocketqa_paddle.search.milvus_connection import batches, connect, is_file, one_of, shown, speaking
from rocketqa_paddle.search.milvus_words import WordCounts, is_words
from rocketqa_paddle.search.retrieval import to_hits
from rocketqa_paddle.search.vectors import DType, Vectors
from rocketqa_paddle.settings import COLLECTION, need_bm25s

MOST_HITS = 16384
"""Hits of a query at most, which is the limit of Milvus."""

_NUMBERS = 1 << 21  # numbers of vectors in an answer
_ROWS = 1024  # rows of an answer with the words alone
_SPARE = 8  # further hits of a search: the scores of Milvus may differ in their last bits

Found = list[tuple[float, dict[str, Any]]]
"""Entities and their scores, best first."""


class MilvusIndex:
    """A collection of Milvus that `build` made, open for searches and changes. Threads may share one.

    Args:
        uri: a file of milvus-lite, `NAME.db`, or a server, `http://HOST:19530`.
        collection: its name.
        model: the digest of the model that will encode the queries, to check it.

    Raises:
        FileNotFoundError: the file or the collection is not there.
        ValueError: another model made the collection, it is of something else, or has not the passages that
            it announces; or another process has the file.
        ImportError: pymilvus or milvus-lite is not installed.
        OSError: Milvus does not answer.
    """

    dtype: DType = "float32"
    """The numbers of the vectors."""

    def __init__(self, uri: str, collection: str = COLLECTION, model: str | None = None) -> None:
        if is_file(uri) and not Path(uri).exists():
            raise FileNotFoundError(f"{uri}: not there; make it with `rocketqa index --engine milvus`")
        self._client, self._name, self.place = connect(uri), collection, f"{shown(uri)}, {collection}"
        with speaking(self.place):
            if not self._client.has_collection(collection):
                names = [other for other in self._client.list_collections() if not is_words(other)]
                there = ", ".join(sorted(names)[:10]) or "none"
                raise FileNotFoundError(
                    f"{self.place}: no such collection (there: {there}); name another, or make it with "
                    "`rocketqa index --engine milvus`"
                )
            self._record = read_record(self._client, collection, self.place)
            check_model(self.place, self._record.model, model)
            self._check_field()
            self._client.load_collection(collection)
            self._check_count()
            self._words = WordCounts(self._client, collection)
            if self._record.has_words and not self._words.is_there():
                raise ValueError(
                    f"{self.place}: the counts of its words are missing: build it again with "
                    "`rocketqa index --engine milvus --bm25 true`"
                )

    def _check_count(self) -> None:
        """Compare the number of passages with the record, unless they are being changed."""
        announced, count = self._record.passages, len(self)
        changing = read_record(self._client, self._name, self.place) != self._record
        if announced not in (None, count) and not changing:
            raise ValueError(
                f"{self.place}: {count} passages, but its record says {announced}: something else has "
                "changed it, build it again with `rocketqa index --engine milvus`"
            )

    def _check_field(self) -> None:
        """Compare the field of the vectors, and how it is searched, with the record."""
        record, described = self._record, self._client.describe_collection(self._name)
        sizes = {field["name"]: field["params"].get("dim") for field in described["fields"]}
        index = self._client.describe_index(self._name, record.field) or {}
        found = {"dimension": sizes.get(record.field), "metric": index.get("metric_type")}
        announced = {"dimension": record.dimension, "metric": record.metric}
        if found != announced or record.metric != METRIC:
            raise ValueError(
                f"{self.place}: its record announces {announced}, but it has {found}, expected the metric "
                f"{METRIC}: build it again with `rocketqa index --engine milvus`"
            )

    def __len__(self) -> int:
        (counted,) = self._client.query(self._name, filter="", output_fields=["count(*)"])
        return counted["count(*)"]

    def find(self, query_ids: Sequence[str], queries: np.ndarray, k: int) -> tuple[Run, Passages]:
        """Find the `k` best passages for query vectors `[queries, hidden]`; return the hits and their texts.

        The scores are those of `VectorIndex`, computed here from the vectors of the hits, and passages of
        equal scores come in the order of their rows.

        Raises:
            ValueError: the queries are of another dimension or hold NaN or infinity, or `k` is too large.
            OSError: Milvus does not answer, or the collection is gone or of another model by now.
        """
        run: dict[str, list[Hit]] = {}
        passages: dict[str, Passage] = {}
        for part in self._parts(queries, k):
            for query_id, found in zip(query_ids[part], self._dense(queries[part], k), strict=True):
                run[query_id] = to_hits(query_id, ((entity["id"], score) for score, entity in found))
                passages |= _passages(entity for _, entity in found)
        return run, passages

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

        Return the hits, their texts, and the inner product of every hit by the query's id. The fusion is
        that of an index folder.

        Raises:
            ValueError: the collection has no BM25; or as in `find`.
            OSError: as in `find`.
        """
        self._need_words()
        depth = max(k, fusion.POOL)
        run: dict[str, list[Hit]] = {}
        passages: dict[str, Passage] = {}
        inner: dict[str, list[float]] = {}
        for part in self._parts(queries, depth):
            dense, lexical, entities = self._sides(queries[part], texts[part], depth)
            hits = fusion.fuse(dense, lexical, fuse, weight)[:, :k]
            for query_id, query, best in zip(query_ids[part], queries[part], hits, strict=True):
                best = best[best["row"] >= 0]
                found = [entities[row] for row in best["row"].tolist()]
                scored = zip((entity["id"] for entity in found), best["score"].tolist(), strict=True)
                run[query_id] = to_hits(query_id, scored)
                inner[query_id] = self._scores(query, found).tolist()
                passages |= _passages(found)
        return run, passages, inner

    def both(
        self, query_ids: Sequence[str], queries: np.ndarray, texts: Sequence[str], k: int
    ) -> tuple[Candidates, Candidates]:
        """Find the `k` best passages for query vectors, and those by BM25 for their texts.

        Raises:
            ValueError: the collection has no BM25; or as in `find`.
            OSError: as in `find`.
        """
        self._need_words()
        ids: dict[int, str] = {}
        blocks = [(no_hits(0, k), no_hits(0, k))]
        for part in self._parts(queries, k):
            *sides, entities = self._sides(queries[part], texts[part], k)
            blocks.append(tuple(sides))
            ids |= {row: entity["id"] for row, entity in entities.items()}
        rows = np.array(sorted(ids), np.int64)
        names = [ids[row] for row in rows.tolist()]
        dense, lexical = (_renumbered(np.concatenate(hits), rows) for hits in zip(*blocks, strict=True))
        return Candidates(query_ids, names, dense), Candidates(query_ids, names, lexical)

    @property
    def has_bm25(self) -> bool:
        """Whether it can be searched with BM25 as well."""
        return self._record.has_words and importlib.util.find_spec("bm25s") is not None

    def need_bm25s(self, setting: str) -> None:
        """Refuse a setting that needs the package bm25s for this collection, where it is not installed."""
        if self._record.has_words:
            need_bm25s(setting)

    def _need_words(self) -> None:
        if not self._record.has_words:
            raise ValueError(
                f"{self.place} has no BM25: build it with `rocketqa index --engine milvus --bm25 true`"
            )
        need_bm25s("a fusion with BM25")

    def _parts(self, queries: np.ndarray, k: int) -> Iterator[slice]:
        """Check the queries, and yield those of one request after the other."""
        check_queries(queries, self._record.dimension)
        if k + _SPARE > MOST_HITS:
            raise ValueError(f"{k} hits of a query, but Milvus gives at most {MOST_HITS - _SPARE}")
        step = max(1, _NUMBERS // ((k + _SPARE) * self._record.dimension))
        for first in range(0, len(queries), step):
            yield slice(first, first + step)

    def _sides(
        self, queries: np.ndarray, texts: Sequence[str], k: int
    ) -> tuple[np.ndarray, np.ndarray, dict[int, dict[str, Any]]]:
        """What the vectors and BM25 find, as hits `[queries, k]`, and the entities of both by their rows."""
        sides, entities = [], {}
        for side in (self._dense(queries, k), self._lexical(texts, k)):
            hits = no_hits(len(queries), k)
            for best, found in zip(hits, side, strict=True):
                rows = [entity["row"] for _, entity in found]
                best[: len(found)] = as_hits([score for score, _ in found], np.array(rows, np.int64))
                entities |= {entity["row"]: entity for _, entity in found}
            sides.append(hits)
        return *sides, entities

    def _dense(self, queries: np.ndarray, k: int) -> Iterator[Found]:
        """Yield the best passages of every query vector."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        answers = self._search(self._record.field, list(queries), k)
        for query, found in zip(queries, answers, strict=True):
            entities = [entity for _, entity in found]
            yield _best(zip(self._scores(query, entities).tolist(), entities, strict=True), k)

    def _lexical(self, texts: Sequence[str], k: int) -> Iterator[Found]:
        """Yield the best passages of every query text by BM25."""
        with speaking(self.place):
            vectors = self._words.query_vectors(texts)
        answers = iter(self._search(WORDS, [vector for vector in vectors if vector], k))
        for vector in vectors:
            found = next(answers) if vector else []
            yield _best(((score, entity) for score, entity in found if score > 0), k)

    def _search(self, field: str, data: list[Any], k: int) -> list[Found]:
        """What Milvus finds for every query: its scores and entities, in no order to rely on."""
        if not data:
            return []
        with speaking(self.place):
            answer = self._client.search(
                self._name,
                data=data,
                anns_field=field,
                limit=k + _SPARE,
                search_params={"metric_type": METRIC},
                output_fields=[*FIELDS, "row", self._record.field],
            )
        return [[(hit["distance"], hit["entity"] | {"id": hit["id"]}) for hit in hits] for hits in answer]

    def _scores(self, query: np.ndarray, entities: Sequence[dict[str, Any]]) -> np.ndarray:
        """The inner products of a query vector and those of entities."""
        if not entities:
            return np.zeros(0, np.float32)
        vectors = np.array([entity[self._record.field] for entity in entities], np.float32)
        return np.einsum("qd,qkd->qk", query[None].astype(np.float32), vectors[None])[0]

    def update(self, corpus: Corpus, vectors: Vectors) -> int:
        """Add passages and replace those of the same id, which keep their rows; return how many those were.

        `vectors` are `[passages, hidden]`, by the model of this index. Searches see every passage as soon as
        it is there. After a stop, the same update goes on. Only one process may change a collection at once.

        Raises:
            ValueError: a text is too long for Milvus.
            OSError: Milvus does not answer.
        """
        replaced, changes = 0, Counter()
        with speaking(self.place), bar("update", len(corpus)) as progress, self._changing(changes):
            row = self._record.next_row
            self._note(next_row=row + len(corpus))
            for first, block in vectors.blocks(milvus_connection.BATCH):
                passages = corpus.rows[first : first + len(block)]
                known = self._known([passage.id for passage in passages])
                rows = [
                    known[passage.id]["row"] if passage.id in known else row + first + place
                    for place, passage in enumerate(passages)
                ]
                entities = self._record.entities(passages, rows, block)
                self._client.upsert(self._name, entities)
                _count(changes, entities, known.values())
                replaced += len(known)
                progress.update(len(block))
        return replaced

    def delete(self, ids: Iterable[str]) -> int:
        """Take passages out, and return how many there were of these ids.

        Raises:
            ValueError: no passage would be left.
            OSError: Milvus does not answer.
        """
        ids, changes = list(dict.fromkeys(ids)), Counter()
        with speaking(self.place):
            gone = sum(len(self._known(batch)) for batch in batches(ids))
            if gone == len(self):
                raise ValueError(f"{self.place}: no passage would be left: drop the collection instead")
            with self._changing(changes):
                for batch in batches(ids):
                    _count(changes, [], self._known(batch).values())
                    self._client.delete(self._name, filter=one_of(batch))
        return gone

    def _known(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        """The rows, and the words if there is BM25, of those ids that there are."""
        fields = ["id", "row", *([WORDS] if self._record.has_words else [])]
        found = self._client.query(self._name, filter=one_of(ids), output_fields=fields)
        return {entity["id"]: entity for entity in found}

    @contextmanager
    def _changing(self, changes: Counter[int]) -> Iterator[None]:
        """Note that passages change, and afterwards add the changes to the counts of the words.

        If the last change was stopped, all words are counted again.
        """
        before, self._record = self._record, read_record(self._client, self._name, self.place)
        check_model(self.place, self._record.model, before.model)
        stopped = self._record.passages is None
        self._note(passages=None)
        yield
        if self._record.has_words:
            if stopped:
                self._words.replace(self._counted())
            else:
                self._words.add(changes)
        self._note(passages=len(self))

    def _counted(self) -> Counter[int]:
        """The number of passages that have each word, counted in all passages."""
        counts: Counter[int] = Counter()
        for first in range(0, self._record.next_row, _ROWS):
            rows = f"row >= {first} and row < {first + _ROWS}"
            _count(counts, self._client.query(self._name, filter=rows, output_fields=[WORDS]), [])
        return counts

    def _note(self, **changes: int | None) -> None:
        self._record = replace(self._record, **changes)
        self._client.alter_collection_properties(self._name, self._record.properties())


def _best(found: Iterable[tuple[float, dict[str, Any]]], k: int) -> Found:
    """The best entities, in their order: of equal scores, the lower row is first."""
    return sorted(found, key=lambda pair: (-pair[0], pair[1]["row"]))[:k]


def _passages(entities: Iterable[dict[str, Any]]) -> dict[str, Passage]:
    return {entity["id"]: Passage(*(entity[name] for name in FIELDS)) for entity in entities}


def _renumbered(hits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Hits with the place of each row among sorted rows, which keeps their order; -1 stays."""
    return as_hits(hits["score"], np.where(hits["row"] < 0, -1, np.searchsorted(rows, hits["row"])))


def _count(counts: Counter[int], added: Iterable[dict[str, Any]], removed: Iterable[dict[str, Any]]) -> None:
    """Count the passages with each word up by entities that were added, down by those that are gone."""
    for entity in added:
        counts.update(list(entity.get(WORDS, ())))
    for entity in removed:
        counts.subtract(list(entity.get(WORDS, ())))
