"""What a collection of Milvus is: its fields, its entities and its record.

An entity is a passage: its `id`, which is the primary key, its `row`, which orders passages of equal scores,
its `title` and `text`, and its vector. The field of the vector has the digest of the model in its name, so an
engine that is open while the collection is replaced never searches the vectors of another model. With BM25,
the field `words` has the sparse vector of its words, see `milvus_words`. The property `rocketqa` of the
collection is a JSON object, see `Record`.

Source: https://milvus.io/docs. The file of milvus-lite and a server are spoken to alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from rocketqa_paddle.records import Passage
from rocketqa_paddle.search.milvus_words import passage_vectors

if TYPE_CHECKING:
    from pymilvus import MilvusClient

FORMAT_VERSION, METRIC = 2, "IP"
LONGEST = 65535
"""Bytes of an id, a title and a text at most, and the limit of Milvus."""
FIELDS = ("id", "title", "text")
"""The fields of a passage."""
WORDS = "words"
"""The field with the words, if there is BM25."""
PROPERTY = "rocketqa"
"""The property of a collection of passages."""


@dataclass(frozen=True)
class Record:
    """What a collection is, as its property says. Version 1 has no BM25, and is the same otherwise."""

    model: str
    """The digest of the model."""
    dimension: int
    metric: str = METRIC
    passages: int | None = None
    """The number of passages; None while they change, and after a stop until the change is made again."""
    next_row: int = 0
    """The row of the next new passage."""
    mean_length: float | None = None
    """The mean number of words of a passage when the collection was built; None without BM25."""
    format_version: int = FORMAT_VERSION

    @property
    def field(self) -> str:
        """The name of the field with the vectors."""
        return f"vector_{self.model}"

    @property
    def has_words(self) -> bool:
        """Whether there is BM25."""
        return self.mean_length is not None

    def properties(self) -> dict[str, str]:
        """Return the properties of the collection."""
        return {PROPERTY: json.dumps(asdict(self))}

    def entities(
        self, passages: Sequence[Passage], rows: Sequence[int], vectors: np.ndarray
    ) -> list[dict[str, Any]]:
        """Return passages as the collection keeps them; `vectors` are `[passages, hidden]`.

        Raises:
            ValueError: a passage is too long for Milvus.
        """
        check_lengths(passages)
        entities = [
            {"id": passage.id, "row": row, "title": passage.title, "text": passage.text, self.field: vector}
            for passage, row, vector in zip(passages, rows, vectors, strict=True)
        ]
        if self.has_words:
            for entity, words in zip(entities, passage_vectors(passages, self.mean_length), strict=True):
                entity[WORDS] = words
        return entities


def read_record(client: MilvusClient, collection: str, place: str) -> Record:
    """Read what a collection is.

    Raises:
        ValueError: it is none of ours, or of another version.
    """
    given = check_ours(client, collection, place, PROPERTY)
    try:
        record = Record(**json.loads(given))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: its property {PROPERTY} is damaged ({error}); drop it") from None
    if record.format_version not in (1, FORMAT_VERSION):
        raise ValueError(f"{place}: format {record.format_version}, expected {FORMAT_VERSION}: drop it")
    return replace(record, format_version=FORMAT_VERSION)


def check_ours(client: MilvusClient, collection: str, place: str, name: str) -> str:
    """Return a property of a collection that only those of this project have.

    Raises:
        ValueError: it has not got it.
    """
    properties: Mapping[str, str] = client.describe_collection(collection).get("properties") or {}
    if name not in properties:
        raise ValueError(
            f"{place} is a collection that this project did not write, and stays as it is: give another name "
            "with --collection"
        )
    return properties[name]


def create(client: MilvusClient, name: str, record: Record) -> None:
    """Make a collection with no passages yet."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=LONGEST)
    schema.add_field("row", DataType.INT64)
    schema.add_field("title", DataType.VARCHAR, max_length=LONGEST)
    schema.add_field("text", DataType.VARCHAR, max_length=LONGEST)
    schema.add_field(record.field, DataType.FLOAT_VECTOR, dim=record.dimension)
    index = client.prepare_index_params()
    index.add_index(record.field, index_name=record.field, index_type="FLAT", metric_type=METRIC)
    if record.has_words:
        schema.add_field(WORDS, DataType.SPARSE_FLOAT_VECTOR)
        index.add_index(WORDS, index_name=WORDS, index_type="SPARSE_INVERTED_INDEX", metric_type=METRIC)
    client.create_collection(
        name,
        schema=schema,
        index_params=index,
        properties=record.properties(),
        consistency_level="Strong",
    )


def check_lengths(passages: Iterable[Passage]) -> None:
    """Refuse passages that are too long for Milvus.

    Raises:
        ValueError: names the first one.
    """
    for passage in passages:
        sizes = {name: len(getattr(passage, name).encode()) for name in FIELDS}
        if max(sizes.values()) > LONGEST:
            name = max(sizes, key=sizes.get)
            raise ValueError(
                f"passage {passage.id[:80]!r}: its {name} has {sizes[name]} bytes, but Milvus keeps {LONGEST}"
                ": split it into several passages"
            )


def bar(name: str, total: int) -> tqdm:
    """Return a progress bar of passages."""
    return tqdm(total=total, desc=name, unit=" passages", leave=False)
