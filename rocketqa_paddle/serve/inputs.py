"""Texts and token ids of requests as the sequences that the networks read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.tokenization import Packed, Tokenizer, truncate_pair
from rocketqa_paddle.serve.errors import Refused

Side = Literal["query", "passage"]
Input = str | list[int]
"""A text, or its token ids."""
Pair = tuple[str, str, str]
"""A query, a title and a text."""


@dataclass(frozen=True)
class Truncation:
    """What happens to a text that is longer than the model reads."""

    allowed: bool = True
    """Cut it; otherwise refuse it."""
    keep_end: bool = False
    """Cut at the beginning instead of the end."""


CUT = Truncation()


def pack_inputs(
    model: Checkpoint, side: Side, inputs: Sequence[Input], how: Truncation = CUT
) -> list[Packed]:
    """Pack queries or passages without titles.

    Raises:
        Refused: an input is empty, holds ids that are none, or is too long and may not be cut.
    """
    tokenizer, length = model.tokenizer, model.lengths[side]
    texts = [value if isinstance(value, str) else "" for value in inputs]
    if empty := [place for place, value in enumerate(inputs) if not value]:
        raise Refused("Validation", f"input {empty[0]} is empty: give a text")
    encoded = tokenizer.encode(texts, _limit(length, how))
    ids = [
        known if isinstance(value, str) else _checked_ids(tokenizer, value)
        for value, known in zip(inputs, encoded, strict=True)
    ]

    def pack(row: list[int], most: int) -> Packed:
        if side == "query":
            return tokenizer.pack_query_ids(row, most)
        return tokenizer.pack_passage_ids([], row, most)

    room = length - len(pack([], length).token_ids)
    rows = [row[-room:] if how.keep_end and how.allowed else row for row in ids]
    return _cut(rows, pack, length, how)


def pack_pairs(model: Checkpoint, pairs: Sequence[Pair], how: Truncation = CUT) -> list[Packed]:
    """Pack pairs for a re-ranker.

    Raises:
        Refused: a pair is too long and may not be cut.
    """
    tokenizer, length = model.tokenizer, model.lengths["pair"]
    columns = zip(*pairs, strict=True) if pairs else ((), (), ())
    queries, titles, texts = (tokenizer.encode(column, _limit(length, how)) for column in columns)
    rows = [(query, title + text) for query, title, text in zip(queries, titles, texts, strict=True)]
    if how.keep_end and how.allowed:  # the rule of `truncate_pair`, at the other end
        turned = (truncate_pair(first[::-1], second[::-1], length - 3) for first, second in rows)
        rows = [(first[::-1], second[::-1]) for first, second in turned]
    return _cut(rows, lambda row, most: tokenizer.pack_pair_ids(*row, most), length, how)


def _limit(length: int, how: Truncation) -> int | None:
    """How many ids of a text are needed: all of them for its end, one more than fit to see that it is cut."""
    return None if how.keep_end else length + 1


def _cut(
    rows: Sequence[list[int]] | Sequence[tuple[list[int], list[int]]],
    pack: Callable[..., Packed],
    length: int,
    how: Truncation,
) -> list[Packed]:
    packed = [pack(row, length if how.allowed else length + 1) for row in rows]
    if too_long := [place for place, row in enumerate(packed) if len(row.token_ids) > length]:
        raise Refused(
            "Validation",
            f"input {too_long[0]} has more than {length} tokens with the special ones, which is all that the "
            "model reads: shorten it, or let it be cut with truncate",
            reason="tokenization",
        )
    return packed


def _checked_ids(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The ids of a text without the special tokens around it.

    Raises:
        Refused: the vocabulary has no such id.
    """
    size = len(tokenizer)  # which looks at all tokens, so not for every id
    if wrong := [i for i in ids if not 0 <= i < size]:
        raise Refused(
            "Tokenizer",
            f"token id {wrong[0]}, but the vocabulary has {size}: ids come from /tokenize, other "
            "tokenizers' do not fit",
            reason="tokenization",
        )
    inner = ids[1:] if ids[0] == tokenizer.cls_id else ids
    return inner[:-1] if inner and inner[-1] == tokenizer.sep_id else inner
