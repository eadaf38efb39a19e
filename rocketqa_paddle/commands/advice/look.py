"""A look at a collection as `rocketqa train` would read it: sizes, language and lengths."""

import math
import random
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

from rocketqa_paddle.commands.advice.initial import Init, choose_init, language_of, tokenizer_of
from rocketqa_paddle.commands.advice.machine import Machine
from rocketqa_paddle.commands.advice.splits import Splits, find_splits
from rocketqa_paddle.data.dataset import Dataset, load
from rocketqa_paddle.data.places import FormatError
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.networks.truncation import SAMPLE
from rocketqa_paddle.records import Passage
from rocketqa_paddle.settings import DataSettings

T = TypeVar("T")
POSITIONS = 512
"""The greatest length of the encoders that are chosen."""
TOKENS_A_WORD = 1.4
"""Tokens of a word or a punctuation mark, where no vocabulary is at hand; a Chinese character is one."""
_WORDS = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+|[^\w\s]")


@dataclass(frozen=True)
class Look:
    """What was found.

    `left_out` tells which records do not hold together, and so have to be left out.
    `tokens` has the lengths that 95 % of the queries, passages and pairs do not exceed. They were counted
    with the vocabulary of the model, or `estimated` by the words.
    """

    folder: Path
    machine: Machine
    splits: Splits
    left_out: tuple[str, ...]
    passages: int
    labelled: int
    unlabelled: int
    evaluated: Mapping[str, int]
    init: Init
    tokens: Mapping[str, int]
    estimated: bool


def look_at(folder: str, machine: Machine, one_tower: bool) -> Look:
    """Read a collection as training reads it, with records that do not hold together left out.

    Raises:
        FileNotFoundError: the folder lacks what training needs.
        FormatError: a file breaks its format.
    """
    splits = find_splits(Path(folder))
    with tempfile.TemporaryDirectory(prefix="rocketqa-") as work:
        data, left_out = _read(folder, splits, Path(work) / "corpus")
        sets = [data.labelled, *([data.unlabelled] if data.unlabelled else []), *data.evaluated.values()]
        queries = _sample(list({query.text: 0 for found in sets for query in found.queries.values()}))
        passages = [data.corpus.rows[row] for row in _sample(range(len(data.corpus)))]
        counts = len(data.corpus), len(data.labelled), len(data.unlabelled or ())
    language = language_of([*queries, *(passage.text for passage in passages)])
    init = choose_init(language, bool(machine.gpus), one_tower)
    tokenizer = tokenizer_of(init, for_cn=False)
    lengths = _counted(tokenizer, queries, passages) if tokenizer else _estimated(queries, passages)
    tokens = {kind: sorted(row)[math.ceil(0.95 * len(row)) - 1] for kind, row in lengths.items()}
    evaluated = {name: len(found) for name, found in data.evaluated.items()}
    return Look(Path(folder), machine, splits, left_out, *counts, evaluated, init, tokens, tokenizer is None)


def _read(folder: str, splits: Splits, store: Path) -> tuple[Dataset, tuple[str, ...]]:
    """Read the data, and tell what of them has to be left out for that."""
    names = splits.train, splits.dev, list(splits.tests), splits.unlabelled
    try:
        return load(DataSettings(folder, None, *names), store), ()
    except FormatError:  # raised again, unless records can be left out
        data = load(DataSettings(folder, None, *names, "skip"), store)
        return data, data.notes


def _sample(items: Sequence[T]) -> Sequence[T]:
    return random.Random(0).sample(items, SAMPLE) if len(items) > SAMPLE else items


def _counted(
    tokenizer: Tokenizer, queries: Sequence[str], passages: Sequence[Passage]
) -> dict[str, list[int]]:
    """The numbers of tokens of queries, passages and pairs, with the special ones."""
    titles, texts = [passage.title for passage in passages], [passage.text for passage in passages]
    asked, beyond = list(islice(cycle(queries), len(passages))), POSITIONS + 1
    packed = {
        "query": tokenizer.pack_queries(queries, beyond),
        "passage": tokenizer.pack_passages(titles, texts, beyond),
        "pair": tokenizer.pack_pairs(asked, titles, texts, beyond),
    }
    return {kind: [len(row.token_ids) for row in rows] for kind, rows in packed.items()}


def _estimated(queries: Sequence[str], passages: Sequence[Passage]) -> dict[str, list[int]]:
    """The same, by the words."""
    asked = [_tokens(query) for query in queries]
    found = [_tokens(f"{passage.title} {passage.text}") for passage in passages]
    pairs = [query + passage + 3 for query, passage in zip(cycle(asked), found, strict=False)]
    return {"query": [n + 2 for n in asked], "passage": [n + 3 for n in found], "pair": pairs}


def _tokens(text: str) -> int:
    words = _WORDS.findall(text)
    characters = sum("\u4e00" <= word <= "\u9fff" for word in words)
    return characters + round(TOKENS_A_WORD * (len(words) - characters))
