"""Artefacts: what the steps of a run hand to one another, each with a fingerprint of what it was made of.

A step is a function of values: settings, data, and artefacts of earlier steps. `described` writes such values
down under dotted names, and two artefacts are the same if and only if these are equal. So what a step was
handed decides its result, and nothing else does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from rocketqa_paddle import checkpoints
from rocketqa_paddle.data.candidates import queries_file
from rocketqa_paddle.data.dataset import QuerySet
from rocketqa_paddle.data.runs import HITS
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.records import Group, Model, Run
from rocketqa_paddle.runtime.storage import fingerprint

Facts = dict[str, Any]
"""Values as they are written down: plain values under dotted names, artefacts as `name fingerprint`."""
Built = tuple[list[Group], list[str]]
"""Training groups, and sentences on how they were built."""
EXPORT = ".tsv"
"""The ending of the copy of a run for people and other programs."""
_ARTEFACT = re.compile(r"(.+?)(?:\.[0-9a-f]{16})? [0-9a-f]{16}")  # as it is written down


class Artefact:
    """Something that a run makes: its name, the values that decide it, and how to get the result."""

    def __init__(self, name: str, made_of: Mapping[str, Any], get: Callable[[Any], Any]) -> None:
        self.name, self.made_of, self.parents = name, described(made_of), list(artefacts_in(made_of))
        self._get, self._value = get, None

    @property
    def fingerprint(self) -> str:
        """Names the result by the values that decide it."""
        return fingerprint_of(self.made_of)

    def value(self) -> Any:
        """The result, which `get` reads or makes when it is first asked for."""
        if self._value is None:
            self._value = self._get(self)
        return self._value

    def hold(self, value: Any) -> None:
        """Keep a result in memory that was just made, or let go of it (None)."""
        self._value = value

    def __str__(self) -> str:
        return f"{self.name} {self.fingerprint}"


# In memory ---------------------------------------------------------------------------------------


class Derived(Artefact):
    """What a function gives for some values, among which artefacts stand for their results."""

    def __init__(self, function: Callable[..., Any], made_of: Mapping[str, Any]) -> None:
        call = partial(function, **made_of)
        name, made_of = function.__qualname__, {"function": function, **made_of}
        super().__init__(name, made_of, lambda artefact: resolved(call)())


class Groups(Derived):
    """Training groups, built by a function when a training needs them: at most so many, of one size."""

    def __init__(
        self, function: Callable[..., Built], made_of: Mapping[str, Any], *, at_most: int, size: int
    ) -> None:
        super().__init__(function, made_of)
        self.at_most, self.size = at_most, size

    def __add__(self, other: Groups) -> Groups:
        """The groups of both."""
        at_most, size = self.at_most + other.at_most, max(self.size, other.size)
        return Groups(_joined, {"first": self, "second": other}, at_most=at_most, size=size)

    def one_per_negative(self) -> Groups:
        """A group of every negative, with the query and the positive."""
        return Groups(_split, {"groups": self}, at_most=self.at_most * (self.size - 1), size=2)


def _joined(first: Built, second: Built) -> Built:
    return first[0] + second[0], first[1] + second[1]


def _split(groups: Built) -> Built:
    return [single for group in groups[0] for single in group.one_per_negative()], groups[1]


# On disk -----------------------------------------------------------------------------------------


class Stored(Artefact):
    """An artefact that the run folder keeps: a file `STEP/PIECE` and an ending, or a checkpoint folder."""

    def __init__(
        self,
        name: str,
        made_of: Mapping[str, Any],
        get: Callable[[Any], Any],
        *,
        ending: str = "",
    ) -> None:
        super().__init__(name, made_of, get)
        self.step, _, self.piece = name.rpartition("/")
        self.place = name + ending

    @property
    def files(self) -> list[str]:
        """The files without which it is not there."""
        return [self.place]


class StoredRun(Stored):
    """What a retriever found for some queries, at most `depth` hits each, or a re-ranker's scores of that.

    If it is `exported`, it has a copy for people and other programs.
    """

    def __init__(
        self,
        name: str,
        made_of: Mapping[str, Any],
        get: Callable[[Any], Run],
        queries: QuerySet,
        depth: int,
        exported: bool,
    ) -> None:
        super().__init__(name, made_of, get, ending=HITS)
        self.queries, self.depth = queries, depth
        self.export = name + EXPORT if exported else None

    @property
    def files(self) -> list[str]:
        """The hits, the ids of their queries, and the copy."""
        return [self.place, str(queries_file(Path(self.place))), *([self.export] if self.export else [])]


class ModelHandle(Artefact):
    """A retriever or a re-ranker (`kind`), the step that it belongs to, and what tables call that."""

    kind: Model
    step: str
    title: str

    def take(self) -> Checkpoint:
        """The model, to be trained in place: whoever asks again gets another copy."""
        value, self._value = self.value(), None
        return value


INITIAL = "initial"
"""The step that measures the initial checkpoint."""


class InitialModel(ModelHandle):
    """A model before any training, which `build` makes."""

    def __init__(self, kind: Model, made_of: Mapping[str, Any], build: Callable[[], Checkpoint]) -> None:
        super().__init__(f"initial {kind.title}", made_of, lambda artefact: build())
        self.kind, self.step, self.title = kind, INITIAL, "initial checkpoint"

    def value(self) -> Checkpoint:
        """A new copy of the model."""
        return self._get(self)


class TrainedModel(Stored, ModelHandle):
    """A model that a step trained, or took as it was; `title` is what tables call the step."""

    def __init__(
        self, kind: Model, step: str, title: str, made_of: Mapping[str, Any], get: Callable[[Any], Checkpoint]
    ) -> None:
        super().__init__(f"{step}/{kind.value}", made_of, get)
        self.kind, self.title = kind, title

    @property
    def files(self) -> list[str]:
        """The files that every checkpoint has."""
        return [f"{self.place}/{file}" for file in checkpoints.CHECKPOINT_FILES]


# Values ------------------------------------------------------------------------------------------


def fingerprint_of(values: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name some values."""
    return fingerprint([json.dumps(described(values), sort_keys=True)])


def described(values: Mapping[str, Any]) -> Facts:
    """Write values down: nested ones under dotted names, settings without the fields that have no effect.

    Raises:
        TypeError: a value that cannot be told from another of its kind.
    """
    return dict(_flat(values, ""))


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    nested = _nested(value)
    if nested is None:
        yield name, _plain(value)
        return
    for key, inner in nested.items():
        yield from _flat(inner, f"{name}.{key}" if name else str(key))


def _nested(value: Any) -> Mapping[Any, Any] | None:
    """What a value consists of, or None if it is written down as one."""
    if isinstance(value, Derived | InitialModel):
        return value.made_of
    if hasattr(value, "fingerprint"):
        return None
    if is_dataclass(value):
        return with_effect(value)
    if isinstance(value, partial):
        return {"function": value.func, **dict(enumerate(value.args)), **value.keywords}
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple) and not all(isinstance(v, str | int | float) for v in value):
        return dict(enumerate(value))
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "fingerprint") or isinstance(value, Path):
        return str(value)
    if callable(value):
        return value.__qualname__
    if value is None or isinstance(value, str | int | float | list | tuple):
        return list(value) if isinstance(value, tuple) else value
    raise TypeError(f"{type(value).__name__} is not a value that a step can be handed: {value!r}")


def with_effect(settings: Any) -> dict[str, Any]:
    """The fields of settings that change a result; see `settings.without_effect`."""
    shown = [field.name for field in fields(settings) if field.metadata.get("effect", True)]
    return {name: getattr(settings, name) for name in shown}


def artefacts_in(value: Any) -> Iterator[Artefact]:
    """The artefacts inside of a value, and those that derived ones among them are made of."""
    if isinstance(value, Artefact):
        yield value
        yield from value.parents if isinstance(value, Derived) else ()
    elif isinstance(value, partial | Mapping | list | tuple):
        for inner in (_nested(value) or {}).values():
            yield from artefacts_in(inner)


def resolved(value: Any) -> Any:
    """The same value with the results of the artefacts in their places."""
    if isinstance(value, Artefact):
        return value.value()
    if isinstance(value, partial):
        return partial(value.func, *map(resolved, value.args), **resolved(value.keywords))
    if isinstance(value, dict):
        return {key: resolved(inner) for key, inner in value.items()}
    return [resolved(inner) for inner in value] if isinstance(value, list) else value


def changes(before: Facts, now: Facts) -> list[str]:
    """Sentences on what is different: which values, or whose they are, if there are other ones at all."""
    now = json.loads(json.dumps(now))  # as it is read back from the disk
    nested = {name.partition(".")[0] for name in before.keys() | now.keys() if "." in name}
    others = {name.partition(".")[0] for name in before.keys() ^ now.keys()} & nested
    told = []
    for name in sorted(before.keys() | now.keys()):
        was, new, first = before.get(name), now.get(name), name.partition(".")[0]
        if was != new:
            told.append(f"{first} changed" if first in others else _change(name, was, new))
    return list(dict.fromkeys(told))


def _change(name: str, before: Any, now: Any) -> str:
    was, new = ("not set" if value is None else value for value in (before, now))
    artefacts = {match[1] if (match := _ARTEFACT.fullmatch(str(value))) else None for value in (was, new)}
    if len(artefacts) == 1 and None not in artefacts:
        return f"{artefacts.pop()} changed"
    return f"{name} was {was}, is now {new}"
