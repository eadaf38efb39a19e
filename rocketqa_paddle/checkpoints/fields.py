"""Values in the JSON files of models, each checked for its type before anything is made of it."""

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_REQUIRED = object()
_NAMES = {bool: "true or false", int: "a whole number", str: "a text", dict: "an object", list: "a list"}
_TOKENIZER = ("lower_case", "for_cn", "one_segment")


@contextmanager
def naming(source: str | Path) -> Iterator[None]:
    """Begin the message of a ValueError with the source, unless the message names it already."""
    try:
        yield
    except ValueError as error:
        if str(source) in str(error):
            raise
        raise ValueError(f"{source}: {error}") from None


def field(
    values: Mapping[str, Any], key: str, kind: type, source: str | Path, default: Any = _REQUIRED
) -> Any:
    """Return `values[key]`, or the default where it is missing or null.

    Raises:
        ValueError: it is of another kind, or missing without a default; the message names `source`.
    """
    value = values.get(key)
    if value is None and default is not _REQUIRED:
        return default
    if type(value) is not kind:
        given = "missing" if key not in values else reprlib.repr(value)
        raise ValueError(f"{source}: {key} is {given}, expected {_NAMES[kind]}")
    return value


def tokenizer_settings(values: Mapping[str, Any], source: str | Path) -> dict[str, bool]:
    """Return the settings of `Tokenizer` beside the path.

    Raises:
        ValueError: there are other settings, or one is not true or false.
    """
    if unknown := sorted(values.keys() - {*_TOKENIZER}):
        raise ValueError(
            f"{source}: unknown tokenizer settings {reprlib.repr(unknown)}, expected {', '.join(_TOKENIZER)}"
        )
    return {key: field(values, key, bool, source) for key in values}
