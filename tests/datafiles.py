"""What the tests of data files share: made files, expected errors, and texts for round trips."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import strategies as st

from rocketqa_paddle.data.places import FormatError

SHARED = Path(__file__).parents[2] / "shared" / "data"
"""Real files, if this machine has them."""


def write(path: Path, content: str | bytes | list | dict) -> Path:
    """Write a file of a text, of bytes, or of an object as JSON; gzipped if its name says so."""
    if isinstance(content, list | dict):
        content = json.dumps(content, ensure_ascii=False)
    content = content if isinstance(content, bytes) else content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def fails(path: Path, place: int | str, *parts: str) -> AbstractContextManager:
    """Expect a FormatError that begins with the file and the line (or another place) and has the parts."""
    start = f"{path}:{place}: " if isinstance(place, int) else f"{path}: {place}"
    pattern = re.escape(start) + ".*".join(["", *map(re.escape, parts)])
    return pytest.raises(FormatError, match=f"(?s)^{pattern}")


def consume(records: Iterable) -> None:
    for _ in records:
        pass


# Strategies. A line of a table holds any of these texts, and a line of a TREC run any of the words.
texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), min_size=1, max_size=8
).filter(str.strip)
ids = texts.filter(lambda id: id == id.strip() and not set("\0\ufeff") & set(id))
words = ids.filter(lambda id: id.split() == [id])
