"""Records: names and types are checked, and a mistake is told with its place and remedy."""

from __future__ import annotations

import json
from typing import Any, TypedDict

import pytest

from rocketqa_paddle.runtime.typed import parse_typed, read_typed, typed


class Named(TypedDict):
    name: str


class Inner(Named, total=False):
    values: list[float]


class Outer(TypedDict):
    count: int
    inner: Inner
    more: dict[str, int | None]
    anything: Any


GOOD = {"count": 1, "inner": {"name": "x", "values": [1, 0.5]}, "more": {"a": None, "b": 2}, "anything": []}


def test_what_fits_is_returned_as_it_is():
    assert typed(GOOD, Outer, "x") is GOOD
    assert typed({**GOOD, "unknown": 5, "inner": {"name": "x"}}, Outer, "x")["unknown"] == 5
    assert parse_typed('{"a": 1}', dict[str, float], "x") == {"a": 1}


def test_an_object_or_nothing():
    assert typed({"a": {"name": "x"}, "b": None}, dict[str, Named | None], "x")
    with pytest.raises(ValueError, match="x: a: 'name' is missing"):
        typed({"a": {}}, dict[str, Named | None], "x")
    with pytest.raises(ValueError, match="x: a is 5, expected an object"):
        typed({"a": 5}, dict[str, Named | None], "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": True}, "file: count is True, expected a whole number"),
        ({"count": 1.0}, "file: count is 1.0, expected a whole number"),
        ({"inner": []}, "file: inner is [], expected an object"),
        ({"inner": {}}, "file: inner: 'name' is missing"),
        ({"inner": {"name": None}}, "file: inner: name is None, expected a text"),
        ({"inner": {"name": "x", "values": 5}}, "file: inner: values is 5, expected a list"),
        (
            {"inner": {"name": "x", "values": [1, float("nan")]}},
            "file: inner: values: 1 is nan, expected a finite",
        ),
        ({"inner": {"name": "x", "values": [10**400]}}, "values: 0 is 1000"),
        ({"more": {"a": "b"}}, "file: more: a is 'b', expected a whole number or null"),
        ({"count": "x" * 5000}, "…, expected a whole number"),
    ],
)
def test_what_does_not_fit_is_told_by_its_name(change, message):
    with pytest.raises(ValueError) as error:
        typed({**GOOD, **change}, Outer, "file")
    assert message in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "expected a JSON object, found a list: remove it"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, ": remove it"),
        (json.dumps({"count": 1}).encode(), ": 'inner' is missing: remove it"),
    ],
)
def test_a_file_is_told_with_its_remedy(tmp_path, content, message):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_typed(path, Outer, "remove it")
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert str(error.value).endswith(": remove it")
