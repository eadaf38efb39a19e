"""JSON objects whose names and types are checked: a crash or an editor may have changed what was written.

An object is described by a `TypedDict`. Its values may be `str`, `int`, a finite `float`, `None`, a union of
these, lists, `dict[str, ...]`, other `TypedDict`s and `Any`. Names that are not described are not looked at.
"""

import json
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from rocketqa_paddle.runtime.storage import read_json

T = TypeVar("T")
_LARGEST = sys.float_info.max  # a whole number of JSON may be larger
_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a finite number",
    dict: "an object",
    list: "a list",
    NoneType: "null",
}


def read_typed(path: Path, kind: type[T], remedy: str) -> T:
    """Return the object in a JSON file.

    Raises:
        ValueError: it is not JSON, or not such an object; has the file, the place in it and the remedy.
    """
    try:
        return typed(read_json(path), kind, str(path))
    except RecursionError:
        raise ValueError(f"{path}: not JSON (values inside of values, too deep): {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{error}: {remedy}") from None


def parse_typed(text: str, kind: type[T], place: str) -> T:
    """Return the object that a JSON text holds; `place` stands at the beginning of errors.

    Raises:
        ValueError: it is not JSON, or not such an object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON ({error})") from None
    return typed(value, kind, place)


def typed(value: Any, kind: Any, place: str) -> Any:
    """Return a value if it is of a kind.

    Raises:
        ValueError: it is not; has the place, and the name of the part that is wrong.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        shapes = [choice for choice in arguments if is_typeddict(choice)]
        if shapes and isinstance(value, dict):
            typed(value, shapes[0], place)
        elif not any(_is(value, choice) for choice in arguments if choice not in shapes):
            raise _wrong(value, " or ".join(map(_name, arguments)), place)
    elif is_typeddict(kind):
        _demand(value, dict, place)
        for name, hint in get_type_hints(kind).items():
            if name in value:
                typed(value[name], hint, f"{place}: {name}")
            elif name in kind.__required_keys__:
                raise ValueError(f"{place}: {name!r} is missing")
    elif origin is dict:
        for name, part in _demand(value, dict, place).items():
            typed(part, arguments[1], f"{place}: {name}")
    elif origin is list:
        for number, part in enumerate(_demand(value, list, place)):
            typed(part, arguments[0], f"{place}: {number}")
    else:
        _demand(value, kind, place)
    return value


def _demand(value: Any, kind: Any, place: str) -> Any:
    if not _is(value, kind):
        raise _wrong(value, _name(kind), place)
    return value


def _is(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _wrong(value: Any, expected: str, place: str) -> ValueError:
    told = repr(value)
    return ValueError(f"{place} is {told if len(told) <= 60 else told[:60] + '…'}, expected {expected}")


def _name(kind: Any) -> str:
    return _NAMES[dict] if is_typeddict(kind) else _NAMES.get(kind) or str(kind)
