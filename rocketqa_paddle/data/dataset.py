"""What a run reads: corpus, labelled and unlabelled queries, dev and tests; and digests that name them."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocketqa_paddle.data import formats
from rocketqa_paddle.records import Passage, Query, Split
from rocketqa_paddle.settings import DataSettings


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
    names = dict.fromkeys([settings.train, settings.dev, *settings.tests])
    collection = formats.read_collection(settings.folder, list(names))
    for name in names:
        if not collection.splits[name].qrels:
            raise ValueError(
                f"{settings.folder}: split {name!r} has no judgements (qrels.{name}.tsv), but it needs them"
            )
    limits = dict.fromkeys(settings.tests, settings.max_test_queries)
    limits[settings.dev] = settings.max_dev_queries
    evaluated = {name: _sample(collection.splits[name], limit) for name, limit in limits.items()}
    train = _sample(collection.splits[settings.train], settings.max_train_queries)
    rest, notes = Split({}), ()
    if settings.unlabelled is not None:
        measured = [collection.splits[name] for name in evaluated if name != settings.train]
        rest, notes = _unlabelled(settings, train, measured)
    return Dataset(collection.passages, train, rest, evaluated, notes)


def _unlabelled(
    settings: DataSettings, train: Split, evaluated: Sequence[Split]
) -> tuple[Split, tuple[str, ...]]:
    """Queries of the unlabelled split that are neither labelled nor measured, each text once; and notes."""
    asked = formats.read_unlabelled(settings.folder, settings.unlabelled)
    labelled = {query.key for query in train.queries.values()}
    measured = {query.key for split in evaluated for query in split.queries.values()}
    kept: dict[str, Query] = {}
    left_out: Counter[str] = Counter()
    for query in asked.values():
        if query.key in labelled:
            left_out["are labelled training queries, too"] += 1
        elif query.key in measured:
            left_out["are dev or test queries"] += 1
        elif query.key in kept:
            left_out["stand there twice"] += 1
        else:
            kept[query.key] = query
    name = settings.unlabelled
    notes = [f"{name}: {n} of {len(asked)} unlabelled queries {why}: left out" for why, n in left_out.items()]
    if not kept:
        raise ValueError(
            f"data.unlabelled: of the {len(asked)} queries of {name!r} none is left "
            f"({', '.join(f'{n} {why}' for why, n in left_out.items())}): name another split, set "
            "max_train_queries to leave some over, or leave data.unlabelled empty"
        )
    rest = Split({query.id: query for query in kept.values()})
    return _sample(rest, settings.max_unlabelled_queries), tuple(notes)


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
