"""The small immutable records that every other file speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Source = Literal["labelled", "denoised", "random", "pseudo", "cloze"]
Qrels = Mapping[str, Mapping[str, int]]
"""Relevance judgements: query id -> passage id -> relevance (above 0 is relevant)."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a person asks."""

    id: str
    text: str

    @property
    def key(self) -> str:
        """What makes two queries one, whatever their ids."""
        return " ".join(self.text.split()).casefold()


@dataclass(frozen=True, slots=True)
class Passage:
    """A unit of retrieval; `title` is empty where the collection has none."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """One line of a run. `rank` counts from 1; a higher `score` is better."""

    query_id: str
    passage_id: str
    rank: int
    score: float


Run = Mapping[str, list[Hit]]
"""What a system retrieved: query id -> hits, best first."""


@dataclass(frozen=True, slots=True)
class Group:
    """A query with the passages it is trained on: the positive first, then the negatives.

    `labels` holds 1 for a positive and 0 for a negative, one a passage. `source` says where the
    negatives came from: `labelled` (the training file itself), `random` (drawn from the retrieved
    candidates as they are), `denoised` (candidates that the re-ranker rejects), `pseudo` (the
    positive, too, was chosen by the re-ranker) or `cloze` (the query is a sentence of the positive).
    """

    query: Query
    passages: tuple[Passage, ...]
    labels: tuple[int, ...]
    source: Source = "labelled"

    def __post_init__(self) -> None:
        assert len(self.passages) == len(self.labels), (len(self.passages), len(self.labels))

    def singles(self) -> list[Group]:
        """A group of every negative, with the query and the positive."""
        positive, *negatives = self.passages
        return [Group(self.query, (positive, negative), (1, 0), self.source) for negative in negatives]


@dataclass(frozen=True)
class Split:
    """The queries of one split (train, dev, ...) and their judgements."""

    queries: Mapping[str, Query]
    qrels: Qrels = field(default_factory=dict)


@dataclass(frozen=True)
class Collection:
    """A corpus with its splits. The order of `passages` is the order of the file."""

    passages: Mapping[str, Passage]
    splits: Mapping[str, Split]


def with_positives(run: Run, split: Split, queries: Mapping[str, Query]) -> dict[str, list[Hit]]:
    """A run whose hits contain every labelled positive, appended where the retriever missed it."""
    complete = {}
    for query_id in queries:
        hits = list(run.get(query_id, []))
        found = {hit.passage_id for hit in hits}
        missed = [
            i for i, relevance in split.qrels.get(query_id, {}).items() if relevance > 0 and i not in found
        ]
        complete[query_id] = hits + [
            Hit(query_id, i, len(hits) + n, float("-inf")) for n, i in enumerate(missed, 1)
        ]
    return complete
