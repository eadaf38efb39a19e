"""Small damages to files, as crashes, editors and other programs do them: drawn by hypothesis."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 999, 2**31, 10**400, 1.5, float("nan"), float("inf"), 1e308]),
    st.sampled_from(["", "x", " ", "\ud83d", "x" * 3000, "é", "../x", "\x00"]),
    st.sampled_from([[], {}, [[]], {"": None}, [1, "x"], {"a": {"b": []}}]),
)
"""What may stand where something else was."""


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """The content of a file after a damage to its bytes."""
    kind = draw(st.sampled_from(["cut", "bytes", "line", "other"]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if kind == "bytes":
        start = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 8))
        return content[:start] + draw(st.binary(max_size=8)) + content[start + length :]
    if kind == "line":
        lines = content.split(b"\n")
        place = draw(st.integers(0, len(lines) - 1))
        line = draw(
            st.sampled_from([b"", b"{}", b"[]", b"null", b"\t", b"x", b"\xff", b"a: 1", lines[place] * 2])
        )
        return b"\n".join([*lines[:place], line, *lines[place + draw(st.integers(0, 1)) :]])
    return draw(
        st.sampled_from(
            [
                b"",
                b"\n",
                b"{}",
                b"[]",
                b"null",
                b"{" * 9_999,
                b"[" * 9_999,
                b"\x00\x01\xff",
                b"\xff\xfex\x00",
            ]
        )
    )


@st.composite
def changed(draw: Any, value: Any) -> Any:
    """A JSON value with one of its parts replaced, removed or added."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 5)):
        names = list(value) if isinstance(value, dict) else list(range(len(value)))
        name = draw(st.sampled_from(names))
        value = value.copy()
        match draw(st.sampled_from(["inside", "inside", "inside", "remove", "add"])):
            case "inside":
                value[name] = draw(changed(value[name]))
            case "remove":
                del value[name]
            case "add" if isinstance(value, dict):
                value[draw(st.sampled_from(["x", "", "step", "made_of"]))] = draw(VALUES)
        return value
    return draw(VALUES)


@st.composite
def mutated(draw: Any, name: str, content: bytes) -> bytes:
    """A file after a damage; a file of JSON may get another object."""
    if name.endswith((".json", ".jsonl")) and draw(st.booleans()):
        lines = content.decode().splitlines() if name.endswith(".jsonl") else [content.decode()]
        place = draw(st.integers(0, len(lines) - 1))
        lines[place] = json.dumps(draw(changed(json.loads(lines[place]))))
        return ("\n".join(lines) + "\n").encode()
    return draw(damaged(content))
