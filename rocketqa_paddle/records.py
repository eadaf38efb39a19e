"""The small immutable records that the whole package shares."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal, NamedTuple

Source = Literal["labelled", "denoised", "random", "pseudo", "ict"]
"""Where the negatives of a group come from; see `Group`."""

Qrels = Mapping[str, Mapping[str, int]]
"""Relevance judgements: query id -> passage id -> relevance. A passage is relevant if this is above 0."""


def positives(qrels: Qrels, query_id: str) -> list[str]:
    """Return the ids of the relevant passages of a query; there are none if it has no judgements."""
    return [id for id, relevance in qrels.get(query_id, {}).items() if relevance > 0]


class Model(Enum):
    """The two models of a search engine. The value names folders, files and settings."""

    RETRIEVER = "retriever"
    RERANKER = "reranker"

    @property
    def title(self) -> str:
        """What sentences and tables call it."""
        return {"retriever": "retriever", "reranker": "re-ranker"}[self.value]


@dataclass(frozen=True, slots=True)
class Query:
    """A question or search request."""

    id: str
    text: str

    @property
    def key(self) -> str:
        """The text in a form that is equal for queries that differ only in id, case or white space."""
        return _key(self.text)


@dataclass(frozen=True, slots=True)
class Passage:
    """A unit of retrieval. Its title is empty if the collection has none."""

    id: str
    title: str
    text: str

    @property
    def key(self) -> str:
        """Title and text in the form of `Query.key`; a title `-` stands for none."""
        return _key(self.text if self.title.strip() == "-" else f"{self.title} {self.text}")

    @property
    def text_key(self) -> str:
        """The text alone in the form of `Query.key`."""
        return _key(self.text)


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()


def digest(key: str) -> int:
    """64 bits that stand for a key."""
    state = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(state.digest(), "little")


class Content(NamedTuple):
    """What a passage says, as digests of `Passage.key` and `Passage.text_key`."""

    whole: int
    text: int

    @classmethod
    def of(cls, passage: Passage) -> Content:
        """The content of a passage."""
        return cls(digest(passage.key), digest(passage.text_key))


class FalseNegatives:
    """The passages that are known to be no negatives of a query, whatever their ids.

    These are its positives, and the query itself where it is a passage, as in ArguAna: there, the text of the
    passage is the query, and the title is another. The id does not tell, because queries and passages may
    have the same ids and nothing in common.
    """

    def __init__(self, query: Query, positives: Iterable[Content]) -> None:
        self.query, self.positives = digest(query.key), {content.whole for content in positives}

    def __contains__(self, content: Content) -> bool:
        return content.whole in self.positives or self.query in content


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found for a query. Ranks count from 1; a higher score is better."""

    query_id: str
    passage_id: str
    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class Result:
    """A passage that a search found.

    `score` is the one that orders the results. It is the re-ranker's if there is a re-ranker; passages beyond
    the depth that it read follow in the order before it, each with 1 less than the passage before it. Without
    one it is the retriever's, or that of a fusion with BM25.
    """

    rank: int
    """Counts from 1."""
    score: float
    passage: Passage
    retriever_score: float
    """Inner product of the vectors of query and passage."""
    reranker_score: float | None = None
    """The cross encoder's score; None if no re-ranker read the passage."""
    found_rank: int = 0
    """The rank before a re-ranker read the passages, from 1 on."""


Queries = Mapping[str, Query]
"""Query id -> query."""
Passages = Mapping[str, Passage]
"""Passage id -> passage, in the order of the corpus."""
Run = Mapping[str, list[Hit]]
"""What a system found: query id -> hits, best first."""


@dataclass(frozen=True, slots=True)
class Group:
    """A training example: a query and its passages, the positive first and then the negatives."""

    query: Query
    passages: Sequence[Passage]
    labels: tuple[int, ...]
    """1 for a positive, 0 for a negative; one a passage."""
    source: Source = "labelled"
    """Where the negatives come from: `labelled` (the training file), `random` (drawn from the retrieved
    candidates), `denoised` (candidates that the re-ranker rejects), `pseudo` (denoised, and the re-ranker
    also chose the positive), `ict` (there are none: the query is a sentence of the positive)."""
    scores: tuple[float, ...] | None = None
    """Teacher scores, one a passage, carried with the group so that distillation need not score again."""
    other_positives: Sequence[Passage] = ()
    """Further positives of the query. They are not trained on, but no negatives in a batch either."""

    def __post_init__(self) -> None:
        assert len(self.passages) == len(self.labels), (len(self.passages), len(self.labels))
        assert self.scores is None or len(self.passages) == len(self.scores), (self.passages, self.scores)

    def one_per_negative(self) -> list[Group]:
        """Split the group into one group for each negative, with the positive and their teacher scores."""
        groups = []
        for i in range(1, len(self.passages)):
            scores = self.scores and (self.scores[0], self.scores[i])
            passages = (self.passages[0], self.passages[i])
            groups.append(Group(self.query, passages, (1, 0), self.source, scores, self.other_positives))
        return groups

    def without_false_negatives(self) -> Group:
        """Leave out the negatives that are positives of the query by their content, or the query itself.

        A positive that is not the first passage is left out as well, because losses take it for a negative.
        """
        labelled = [p for p, label in zip(self.passages, self.labels, strict=True) if label > 0]
        false = FalseNegatives(self.query, map(Content.of, (*labelled, *self.other_positives)))
        contents = enumerate(map(Content.of, self.passages))
        kept = [i for i, content in contents if (i == 0 and self.labels[0] > 0) or content not in false]
        if len(kept) == len(self.passages):
            return self
        passages, labels = tuple(self.passages[i] for i in kept), tuple(self.labels[i] for i in kept)
        scores = self.scores and tuple(self.scores[i] for i in kept)
        return replace(self, passages=passages, labels=labels, scores=scores)


@dataclass(frozen=True)
class Split:
    """The queries of one split (train, dev, ...) and their judgements."""

    queries: Queries
    qrels: Qrels = field(default_factory=dict)


@dataclass(frozen=True)
class Collection:
    """A corpus and its splits, by name."""

    passages: Passages
    splits: Mapping[str, Split]
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Sentences for the user about what was left out, or kept although it is empty."""
    fingerprint: str = field(default="", compare=False)
    """Names the passages, if they are in a store."""
