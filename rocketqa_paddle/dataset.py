"""What a run reads: corpus, labelled and unlabelled queries, dev and tests; and digests that name them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocketqa_paddle import formats
from rocketqa_paddle.config import DataSettings
from rocketqa_paddle.records import Passage, Query, Split


@dataclass(frozen=True)
class Dataset:
    """A collection as a run uses it."""

    passages: Mapping[str, Passage]
    train: Split
    """Labelled queries to train on."""
    unlabelled: Split
    """Queries for pseudo labels; none of them is a labelled training query."""
    evaluated: Mapping[str, Split]
    """Dev and tests, by name."""
    notes: tuple[str, ...] = ()
    """What to tell the user."""


def load(settings: DataSettings) -> Dataset:
    """Read the corpus and the splits that the settings name, each cut down to the queries asked for.

    Raises:
        ValueError: a split that trains or measures has no judgements, or no unlabelled query is left.
    """
    judged = [settings.train, settings.dev, *settings.tests]
    names = dict.fromkeys([*judged, *([settings.unlabelled] if settings.unlabelled else [])])
    collection = formats.read_collection(settings.folder, list(names))
    for name in judged:
        if not collection.splits[name].qrels:
            raise ValueError(
                f"{settings.folder}: split {name!r} has no judgements (qrels.{name}.tsv), but it needs them"
            )
    limits = dict.fromkeys(settings.tests, settings.max_test_queries)
    limits[settings.dev] = settings.max_dev_queries
    evaluated = {name: _sample(collection.splits[name], limit) for name, limit in limits.items()}
    train = _sample(collection.splits[settings.train], settings.max_train_queries)
    if settings.unlabelled is None:
        return Dataset(collection.passages, train, Split({}), evaluated)
    asked = collection.splits[settings.unlabelled].queries
    rest = _without(asked, train)
    notes = ()
    if left_out := len(asked) - len(rest):
        notes = (
            f"unlabelled: {left_out} of {len(asked)} queries of {settings.unlabelled!r} are labelled "
            "training queries, too: left out",
        )
    if not rest:
        raise ValueError(
            f"data.unlabelled: every query of {settings.unlabelled!r} is a labelled training query: name "
            "another split, set max_train_queries to leave some over, or leave data.unlabelled empty"
        )
    unlabelled = _sample(Split(rest), settings.max_unlabelled_queries)
    return Dataset(collection.passages, train, unlabelled, evaluated, notes)


def _without(queries: Mapping[str, Query], labelled: Split) -> dict[str, Query]:
    """The queries whose text no labelled one has, whatever their ids."""
    known = {_key(query) for query in labelled.queries.values()}
    return {i: query for i, query in queries.items() if _key(query) not in known}


def _key(query: Query) -> str:
    return " ".join(query.text.split()).casefold()


def _sample(split: Split, count: int | None) -> Split:
    """A split cut down to `count` queries, the same ones every time."""
    if count is None or count >= len(split.queries):
        return split
    kept = random.Random(0).sample(sorted(split.queries), count)
    return Split({i: split.queries[i] for i in kept}, {i: split.qrels[i] for i in kept if i in split.qrels})


def digest_records(records: Iterable[Any]) -> str:
    """16 hexadecimal digits that name some records and their order."""
    state = hashlib.sha256()
    for record in records:
        state.update(repr(record).encode())
    return state.hexdigest()[:16]


def digest_split(split: Split) -> str:
    """Of queries and judgements."""
    return digest_records([*split.queries.values(), *split.qrels.items()])


def digest_file(path: str | Path) -> str:
    """Of a file's content."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()[:16]
