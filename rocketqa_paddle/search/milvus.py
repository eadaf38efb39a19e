"""Passages and their vectors in a collection of Milvus, for search engines on more than one machine.

An entity is a passage: its `id`, which is the primary key, its `row`, which orders passages of equal scores,
its `title` and `text`, and its vector. The field of the vector has the digest of the model in its name, so an
engine that is open while the collection is replaced never searches the vectors of another model. The property
`rocketqa` of the collection is a JSON object, see `_Record`.

Source: https://milvus.io/docs. The file of milvus-lite and a server are spoken to alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from rocketqa_paddle.data.dataset import Corpus
from rocketqa_paddle.records import Hit, Passage, Passages, Run
from rocketqa_paddle.search.index import check_model, check_queries
from rocketqa_paddle.search.milvus_connection import connect, is_file, shown, speaking
from rocketqa_paddle.search.retrieval import to_hits
from rocketqa_paddle.search.vectors import DType, Vectors
from rocketqa_paddle.settings import COLLECTION

if TYPE_CHECKING:
    from pymilvus import MilvusClient

FORMAT_VERSION, METRIC = 1, "IP"
LONGEST = 65535
"""Bytes of an id, a title and a text at most, and the limit of Milvus."""
MOST_HITS = 16384
"""Hits of a query at most, which is the limit of Milvus."""

_PROPERTY = "rocketqa"
_BATCH = 256  # passages of a request: with texts of the greatest length below the 64 MB of a server
_NUMBERS = 1 << 21  # numbers of vectors in an answer
_SPARE = 8  # further hits of a search: the scores of Milvus may differ in their last bits
_FIELDS = ("id", "title", "text")


@dataclass(frozen=True)
class _Record:
    """What a collection is, as its property says."""

    model: str
    """The digest of the model."""
    dimension: int
    metric: str = METRIC
    passages: int | None = None
    """The number of passages; None while they change, and after a stop until the change is made again."""
    next_row: int = 0
    """The row of the next new passage."""
    format_version: int = FORMAT_VERSION

    @property
    def field(self) -> str:
        """The name of the field with the vectors."""
        return f"vector_{self.model}"


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
                there = ", ".join(sorted(self._client.list_collections())[:10]) or "none"
                raise FileNotFoundError(
                    f"{self.place}: no such collection (there: {there}); name another, or make it with "
                    "`rocketqa index --engine milvus`"
                )
            self._record = _read_record(self._client, collection, self.place)
            check_model(self.place, self._record.model, model)
            self._check_field()
            self._client.load_collection(collection)
            self._check_count()

    def _check_count(self) -> None:
        """Compare the number of passages with the record, unless they are being changed."""
        announced, count = self._record.passages, len(self)
        changing = _read_record(self._client, self._name, self.place) != self._record
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
        check_queries(queries, self._record.dimension)
        if k + _SPARE > MOST_HITS:
            raise ValueError(f"{k} hits of a query, but Milvus gives at most {MOST_HITS - _SPARE}")
        step = max(1, _NUMBERS // ((k + _SPARE) * self._record.dimension))
        run: dict[str, list[Hit]] = {}
        passages: dict[str, Passage] = {}
        for first in range(0, len(queries), step):
            part = np.ascontiguousarray(queries[first : first + step], dtype=np.float32)
            for query_id, query, found in zip(query_ids[first:], part, self._search(part, k), strict=False):
                best = self._best(query, found, k)
                run[query_id] = to_hits(query_id, ((hit["id"], score) for score, hit in best))
                passages |= {hit["id"]: Passage(*(hit[name] for name in _FIELDS)) for _, hit in best}
        return run, passages

    def _search(self, queries: np.ndarray, k: int) -> Iterator[list[dict[str, Any]]]:
        """Yield what Milvus finds for every query: its fields, in no order to rely on."""
        with speaking(self.place):
            answer = self._client.search(
                self._name,
                data=list(queries),
                anns_field=self._record.field,
                limit=k + _SPARE,
                search_params={"metric_type": METRIC},
                output_fields=[*_FIELDS, "row", self._record.field],
            )
        for hits in answer:
            yield [hit["entity"] | {"id": hit["id"]} for hit in hits]

    def _best(self, query: np.ndarray, hits: list[dict[str, Any]], k: int) -> list[tuple[float, dict]]:
        """The best hits with their scores, in their order."""
        if not hits:
            return []
        vectors = np.array([hit[self._record.field] for hit in hits], np.float32)
        scores = np.einsum("qd,qkd->qk", query[None], vectors[None])[0]
        order = np.lexsort(([hit["row"] for hit in hits], -scores))[:k]
        return [(float(scores[place]), hits[place]) for place in order.tolist()]

    def update(self, corpus: Corpus, vectors: Vectors) -> int:
        """Add passages and replace those of the same id, which keep their rows; return how many those were.

        `vectors` are `[passages, hidden]`, by the model of this index. Searches see every passage as soon as
        it is there. After a stop, the same update goes on. Only one process may change a collection at once.

        Raises:
            ValueError: a text is too long for Milvus.
            OSError: Milvus does not answer.
        """
        row, replaced = self._record.next_row, 0
        with speaking(self.place), _bar("update", len(corpus)) as bar:
            self._note(passages=None, next_row=row + len(corpus))
            for first, block in vectors.blocks(_BATCH):
                passages = corpus.rows[first : first + len(block)]
                known = self._rows_of([passage.id for passage in passages])
                rows = [known.get(passage.id, row + first + place) for place, passage in enumerate(passages)]
                self._client.upsert(self._name, _entities(passages, rows, block, self._record))
                replaced += len(known)
                bar.update(len(block))
            self._note(passages=len(self))
        return replaced

    def delete(self, ids: Iterable[str]) -> int:
        """Take passages out, and return how many there were of these ids.

        Raises:
            ValueError: no passage would be left.
            OSError: Milvus does not answer.
        """
        ids = list(dict.fromkeys(ids))
        with speaking(self.place):
            gone = sum(len(self._rows_of(batch)) for batch in _batches(ids))
            if gone == len(self):
                raise ValueError(f"{self.place}: no passage would be left: drop the collection instead")
            self._note(passages=None)
            for batch in _batches(ids):
                self._client.delete(self._name, filter=_one_of(batch))
            self._note(passages=len(self))
        return gone

    def _rows_of(self, ids: list[str]) -> dict[str, int]:
        """The rows of those ids that there are."""
        found = self._client.query(self._name, filter=_one_of(ids), output_fields=["id", "row"])
        return {entity["id"]: entity["row"] for entity in found}

    def _note(self, **changes: int | None) -> None:
        self._record = replace(self._record, **changes)
        self._client.alter_collection_properties(self._name, {_PROPERTY: json.dumps(asdict(self._record))})


# Building -----------------------------------------------------------------------------------------


def check_replaceable(uri: str, collection: str) -> None:
    """Refuse a place where `build` would replace something that we did not write, before any work.

    Raises:
        ValueError: says what is there; or another process has the file.
        OSError: Milvus does not answer.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", collection):
        raise ValueError(
            f"collection {collection!r}: expected at most 200 letters, digits and _, and no digit at first"
        )
    client = connect(uri)
    with speaking(shown(uri)):
        for name in (collection, _unfinished(collection)):
            if client.has_collection(name):
                _read_record(client, name, f"{shown(uri)}, {name}")


def check_lengths(passages: Iterable[Passage]) -> None:
    """Refuse passages that are too long for Milvus.

    Raises:
        ValueError: names the first one.
    """
    for passage in passages:
        sizes = {name: len(getattr(passage, name).encode()) for name in _FIELDS}
        if max(sizes.values()) > LONGEST:
            name = max(sizes, key=sizes.get)
            raise ValueError(
                f"passage {passage.id[:80]!r}: its {name} has {sizes[name]} bytes, but Milvus keeps {LONGEST}"
                ": split it into several passages"
            )


def build(uri: str, collection: str, model: str, corpus: Corpus, vectors: Vectors) -> None:
    """Write a corpus into a collection, batch by batch, which replaces an older one of ours when it is whole.

    Args:
        uri: a file of milvus-lite, `NAME.db`, which is made if it is not there, or a server.
        collection: its name. While it is filled, the name ends in `_rocketqa_new`.
        model: the digest of the model that made the vectors.
        corpus: the passages.
        vectors: their vectors, `[passages, hidden]`.

    Raises:
        ValueError: see `check_replaceable` and `check_lengths`.
        OSError: Milvus does not answer.
    """
    check_replaceable(uri, collection)
    client, new = connect(uri), _unfinished(collection)
    record = _Record(model, vectors.dimension, passages=len(corpus), next_row=len(corpus))
    with speaking(f"{shown(uri)}, {collection}"):
        client.drop_collection(new)
        _create(client, new, record)
        with _bar("insert", len(corpus)) as bar:
            for first, block in vectors.blocks(_BATCH):
                rows = range(first, first + len(block))
                client.insert(new, _entities(corpus.rows[first : rows.stop], rows, block, record))
                bar.update(len(block))
        client.drop_collection(collection)
        client.rename_collection(new, collection)
        client.load_collection(collection)


def _create(client: MilvusClient, name: str, record: _Record) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=LONGEST)
    schema.add_field("row", DataType.INT64)
    schema.add_field("title", DataType.VARCHAR, max_length=LONGEST)
    schema.add_field("text", DataType.VARCHAR, max_length=LONGEST)
    schema.add_field(record.field, DataType.FLOAT_VECTOR, dim=record.dimension)
    index = client.prepare_index_params()
    index.add_index(record.field, index_name=record.field, index_type="FLAT", metric_type=METRIC)
    properties = {_PROPERTY: json.dumps(asdict(record))}
    client.create_collection(
        name, schema=schema, index_params=index, properties=properties, consistency_level="Strong"
    )


def _entities(
    passages: Sequence[Passage], rows: Sequence[int], vectors: np.ndarray, record: _Record
) -> list[dict[str, Any]]:
    check_lengths(passages)
    return [
        {"id": passage.id, "row": row, "title": passage.title, "text": passage.text, record.field: vector}
        for passage, row, vector in zip(passages, rows, vectors, strict=True)
    ]


def _unfinished(collection: str) -> str:
    return f"{collection}_rocketqa_new"


# Records ------------------------------------------------------------------------------------------


def _read_record(client: MilvusClient, collection: str, place: str) -> _Record:
    """Read what a collection is.

    Raises:
        ValueError: it is none of ours, or of another version.
    """
    properties: Mapping[str, str] = client.describe_collection(collection).get("properties") or {}
    if _PROPERTY not in properties:
        raise ValueError(
            f"{place} is a collection that this project did not write, and stays as it is: give another name "
            "with --collection"
        )
    try:
        record = _Record(**json.loads(properties[_PROPERTY]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: its property {_PROPERTY} is damaged ({error}); drop it") from None
    if record.format_version != FORMAT_VERSION:
        raise ValueError(f"{place}: format {record.format_version}, expected {FORMAT_VERSION}: drop it")
    return record


# Requests ------------------------------------------------------------------------------------------


def _bar(name: str, total: int) -> tqdm:
    return tqdm(total=total, desc=name, unit=" passages", leave=False)


def _batches(ids: Iterable[str]) -> Iterator[list[str]]:
    ids = iter(ids)
    while batch := list(islice(ids, _BATCH)):
        yield batch


def _one_of(ids: list[str]) -> str:
    """The expression for passages of some ids."""
    return f"id in {json.dumps(ids, ensure_ascii=False)}"
