"""BM25 in Milvus: the words of passages as sparse vectors, and the number of passages that have each word.

The inner product of a query's vector and a passage's is the score of `BM25Index`: the passage has how often a
word occurs in it, saturated, and the query has how rare the word is. How rare it is changes with every change
of the passages, so it is read for every search from a collection of its own, `WordCounts`.

A word is known by a number below 2**32, the CRC-32 of its letters. Two words may have the same number, as in
the BM25 of Milvus itself, but seldom have.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rocketqa_paddle.records import Passage
from rocketqa_paddle.search import bm25
from rocketqa_paddle.search.milvus_connection import batches, one_of

if TYPE_CHECKING:
    from pymilvus import MilvusClient

PROPERTY = "rocketqa_words"
"""The property of a collection of word counts."""
EVERYWHERE = 0
"""The number of a word that every passage has: no vector is empty, and its count is that of the passages."""
_ENDING = "_rocketqa_words"
_LARGEST = 2**32 - 3  # of the numbers that Milvus takes
_K1, _B = 1.5, 0.75  # those of bm25s
_BUCKETS = 4096  # entities with the counts of all words


def words_of(collection: str) -> str:
    """Return the name of the word counts of a collection."""
    return f"{collection}{_ENDING}"


def is_words(collection: str) -> bool:
    """Tell whether a name is one of word counts."""
    return collection.endswith(_ENDING)


def count_words(texts: Iterable[str]) -> list[Counter[int]]:
    """Count the words of every text, by their numbers. Needs the package bm25s."""
    return [Counter(map(_number, found)) for found in bm25.words(texts)]


def _number(word: str) -> int:
    return zlib.crc32(word.encode()) % _LARGEST + 1


def count_passages(passages: Sequence[Passage]) -> tuple[Counter[int], float]:
    """Return the number of passages that have each word, and the mean number of words of a passage."""
    passages_with, words = Counter({EVERYWHERE: len(passages)}), 0
    for batch in batches(passages):
        for counts in count_words(map(_text, batch)):
            passages_with.update(counts.keys())
            words += counts.total()
    return passages_with, words / len(passages) or 1.0


def passage_vectors(passages: Iterable[Passage], mean_length: float) -> list[dict[int, float]]:
    """Return the sparse vector of every passage: how often each word occurs, saturated.

    `mean_length` is the mean number of words of a passage.
    """
    return [_saturated(counts, mean_length) for counts in count_words(map(_text, passages))]


def _text(passage: Passage) -> str:
    return f"{passage.title} {passage.text}"


def _saturated(counts: Counter[int], mean_length: float) -> dict[int, float]:
    """Lucene's variant of BM25 without the rareness of the words."""
    norm = _K1 * (1 - _B + _B * counts.total() / mean_length)
    return {EVERYWHERE: 1.0} | {word: count / (count + norm) for word, count in counts.items()}


class WordCounts:
    """The number of passages that have each word, in a collection of Milvus.

    An entity is a bucket: the words whose numbers leave the same rest, in a sparse vector of their counts.

    Args:
        client: the connection.
        collection: the name of the collection with the passages.
    """

    def __init__(self, client: MilvusClient, collection: str) -> None:
        self._client, self._name = client, words_of(collection)

    def create(self) -> None:
        """Make the collection, with no words yet."""
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("counts", DataType.SPARSE_FLOAT_VECTOR)
        index = self._client.prepare_index_params()
        index.add_index("counts", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        self._client.create_collection(
            self._name,
            schema=schema,
            index_params=index,
            properties={PROPERTY: "1"},
            consistency_level="Strong",
        )

    def is_there(self) -> bool:
        """Open the collection if it is there, and tell whether it is."""
        if not self._client.has_collection(self._name):
            return False
        self._client.load_collection(self._name)
        return True

    def query_vectors(self, texts: Sequence[str]) -> list[dict[int, float]]:
        """Return the sparse vector of every query: the rareness of its words that any passage has."""
        asked = count_words(texts)
        held = self._held({_bucket(word) for counts in asked for word in [*counts, EVERYWHERE]})
        passages = held.get(_bucket(EVERYWHERE), {}).get(EVERYWHERE, 0)
        vectors = []
        for counts in asked:
            there = {word: held.get(_bucket(word), {}).get(word, 0) for word in counts}
            vectors.append(
                {word: counts[word] * _rareness(there[word], passages) for word in counts if there[word]}
            )
        return vectors

    def add(self, changes: Mapping[int, int]) -> None:
        """Add to the counts, or take from them what is below 0. Words that no passage has are forgotten."""
        buckets: dict[int, Counter[int]] = defaultdict(Counter)
        for word, change in changes.items():
            if change:
                buckets[_bucket(word)][word] = change
        for batch in batches(buckets):
            held = self._held(batch)
            for bucket in batch:
                buckets[bucket].update(held.get(bucket, {}))
            counts = {bucket: +buckets[bucket] for bucket in batch}
            entities = [
                {"id": bucket, "counts": {word: float(count) for word, count in there.items()}}
                for bucket, there in counts.items()
                if there
            ]
            if entities:
                self._client.upsert(self._name, entities)
            if empty := [bucket for bucket, there in counts.items() if not there]:
                self._client.delete(self._name, filter=one_of(empty))

    def replace(self, counts: Mapping[int, int]) -> None:
        """Make the counts those given."""
        held = self._held(range(_BUCKETS))
        changes = Counter(counts)
        for there in held.values():
            changes.subtract(there)
        self.add(changes)

    def _held(self, buckets: Iterable[int]) -> dict[int, dict[int, int]]:
        """The counts of some buckets."""
        held = {}
        for batch in batches(sorted(buckets)):
            found = self._client.query(self._name, filter=one_of(batch), output_fields=["id", "counts"])
            for entity in found:
                held[entity["id"]] = {word: round(count) for word, count in entity["counts"].items()}
        return held


def _bucket(word: int) -> int:
    return word % _BUCKETS


def _rareness(passages_with: int, passages: int) -> float:
    """The inverse document frequency of Lucene's variant of BM25."""
    without = max(passages - passages_with, 0)  # the counts of a change that was stopped may not fit
    return math.log(1 + (without + 0.5) / (passages_with + 0.5))
