"""What does not hold together in a collection: counted by kind, and refused or left out."""

from collections.abc import Iterator
from itertools import islice
from typing import Literal

from rocketqa_paddle.data.places import FilePath, FormatError, Place, shown

OnError = Literal["stop", "skip"]

_NAMED = 3  # faults of a kind that a note names


class Faults:
    """Ids that do not hold together, by kind. Each counts once in its kind, at the first place of it."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Place]] = {}

    def add(self, kind: str, id: str, place: Place) -> None:
        """Note an id that is of a kind such as "queries without a text"."""
        self._kinds.setdefault(kind, {}).setdefault(id, place)

    def settle(self, folder: FilePath, on_error: OnError) -> tuple[str, ...]:
        """Say what is left out, a sentence a kind; or raise FormatError for all kinds, if that is wanted."""
        if self._kinds and on_error == "stop":
            counts = [f"\n  {kind}: {len(ids)}, the first is {_first(ids, 1)}" for kind, ids in self]
            remedy = "\n  correct them, or leave them out by --data.on_error skip"
            raise FormatError(f"{folder}: the files do not hold together{''.join(counts)}{remedy}")
        return tuple(f"{kind}: {len(ids)} left out, such as {_first(ids, _NAMED)}" for kind, ids in self)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Place]]]:
        return iter(self._kinds.items())


def _first(ids: dict[str, Place], count: int) -> str:
    return ", ".join(f"{shown(id)} ({place})" for id, place in islice(ids.items(), count))
