"""The data of a run: the corpus, labelled and unlabelled training queries, and the splits to evaluate on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rocketqa_paddle.data.collections import read_collection, read_unlabelled
from rocketqa_paddle.data.store import Store, ids_of, rows_of, texts_fingerprint
from rocketqa_paddle.records import Passages, Qrels, Queries, Query, Split
from rocketqa_paddle.runtime.storage import fingerprint
from rocketqa_paddle.settings import DataSettings


class Corpus:
    """The passages of a run, by id and by row, and a fingerprint that names them."""

    def __init__(self, passages: Passages, fingerprint: str = "") -> None:
        self.passages, self.rows, self.ids = passages, rows_of(passages), ids_of(passages)
        self._fingerprint = fingerprint

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the texts in a store."""
        return self._fingerprint or texts_fingerprint(self.passages)

    def row_of(self, id: str) -> int:
        """The row of a passage id."""
        return self.passages.row_of(id) if isinstance(self.passages, Store) else self._places[id]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.passages)

    def __str__(self) -> str:
        return f"corpus {self.fingerprint}"


class QuerySet:
    """Queries with their judgements, and a name that tells them from the other sets of a run."""

    def __init__(self, name: str, queries: Queries, qrels: Qrels) -> None:
        self.name, self.queries, self.qrels = name, queries, qrels

    @cached_property
    def texts(self) -> str:
        """The name, and a fingerprint of the queries without their judgements."""
        return f"{self.name} {fingerprint(self.queries.values())}"

    @cached_property
    def fingerprint(self) -> str:
        """A fingerprint of queries and judgements."""
        return fingerprint([*self.queries.values(), *self.qrels.items()])

    def part(self, name: str, ids: Iterable[str]) -> QuerySet:
        """Return the queries of these ids under a name of their own."""
        queries = {id: self.queries[id] for id in ids}
        return QuerySet(name, queries, {id: self.qrels[id] for id in queries if id in self.qrels})

    def __len__(self) -> int:
        return len(self.queries)

    def __str__(self) -> str:
        return f"{self.name} {self.fingerprint}"


class Deal:
    """Deals out queries in a random order, from the place `first` on and after the last from the start."""

    def __init__(self, queries: QuerySet, seed: int, first: int = 0) -> None:
        self.dealt, self._queries = first, queries
        self._ids = sorted(queries.queries)
        random.Random(seed).shuffle(self._ids)

    def take(self, name: str, count: int | None) -> QuerySet:
        """The next `count` queries, under a name of their own; as many as there are if it is None."""
        total = len(self._ids)
        count = total if count is None else min(count, total)
        chosen = [self._ids[(self.dealt + n) % total] for n in range(count)]
        self.dealt += count
        return self._queries.part(name, chosen)


@dataclass(frozen=True)
class Dataset:
    """A collection as a run uses it."""

    corpus: Corpus
    labelled: QuerySet
    """Labelled queries to train on."""
    unlabelled: QuerySet | None
    """Queries for pseudo labels; none of them is a labelled training query."""
    evaluated: Mapping[str, QuerySet]
    """The dev split and the test splits, by name."""
    notes: tuple[str, ...] = ()
    """Sentences for the user about what was left out."""


def load(settings: DataSettings, store: Path) -> Dataset:
    """Read the corpus and the splits that the settings name, each cut down to the limits that they set.

    The corpus is in a store in the folder `store`, which rank 0 makes if it is not there.

    It is a ValueError if a split to train or evaluate on has no judgements, or no unlabelled query is left.
    For faulty records see `read_collection` and the setting `on_error`.
    """
    names = dict.fromkeys([settings.train, settings.dev, *settings.tests])
    collection = read_collection(settings.folder, list(names), settings.on_error, store)
    for name in names:
        if not collection.splits[name].qrels:
            left_out = "".join(f"\n  {note}" for note in collection.notes)
            raise ValueError(
                f"{settings.folder}: split {name!r} has no judgements (qrels.{name}.tsv) "
                f"of its queries and passages, but it needs them{left_out}"
            )
    limits = dict.fromkeys(settings.tests, settings.max_test_queries)
    limits[settings.dev] = settings.max_dev_queries
    evaluated = {name: _sample(name, collection.splits[name], limit) for name, limit in limits.items()}
    labelled = _sample("train.labelled", collection.splits[settings.train], settings.max_train_queries)
    unlabelled, notes = None, collection.notes
    if settings.unlabelled is not None:
        held_out = [collection.splits[name] for name in evaluated if name != settings.train]
        unlabelled, more = _unlabelled(settings, labelled, held_out)
        notes += more
    return Dataset(
        Corpus(collection.passages, collection.fingerprint), labelled, unlabelled, evaluated, notes
    )


def _unlabelled(
    settings: DataSettings, train: QuerySet, held_out: Iterable[Split]
) -> tuple[QuerySet, tuple[str, ...]]:
    """Read the unlabelled queries, without labelled, dev and test queries and repeated texts; and notes."""
    queries, faults = read_unlabelled(settings.folder, name := settings.unlabelled, settings.on_error)
    kept: dict[str, Query] = {}
    taken = {
        "are also labelled training queries": {query.key for query in train.queries.values()},
        "are dev or test queries": {query.key for split in held_out for query in split.queries.values()},
        "repeat another query": kept,
    }
    left_out: Counter[str] = Counter()
    for query in queries.values():
        if why := next((why for why, keys in taken.items() if query.key in keys), None):
            left_out[why] += 1
        else:
            kept[query.key] = query
    if not kept:
        raise ValueError(
            f"data.unlabelled: none of the {len(queries)} queries of {name!r} is left "
            f"({', '.join(f'{n} {why}' for why, n in left_out.items())}): name another split, set "
            "max_train_queries to leave some over, or leave data.unlabelled empty"
        )
    notes = (
        f"{name}: {n} of {len(queries)} unlabelled queries {why}: left out" for why, n in left_out.items()
    )
    split = Split({query.id: query for query in kept.values()})
    return _sample("train.unlabelled", split, settings.max_unlabelled_queries), (*faults, *notes)


def _sample(name: str, split: Split, count: int | None) -> QuerySet:
    """Cut a split down to `count` random queries, the same ones every time."""
    queries = QuerySet(name, split.queries, split.qrels)
    if count is None or count >= len(queries):
        return queries
    return queries.part(name, random.Random(0).sample(sorted(split.queries), count))
