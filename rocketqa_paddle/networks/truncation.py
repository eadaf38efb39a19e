"""How many texts are longer than what a model reads, and what length would keep most of them whole."""

import math
import random
from collections.abc import Sequence
from itertools import cycle, islice
from typing import TypeVar

from rocketqa_paddle.networks.encoders import CROSS, Checkpoint
from rocketqa_paddle.records import Passage

T = TypeVar("T")
SAMPLE = 2000
"""At most so many texts of a kind are looked at."""
_PLURALS = {"query": "queries", "passage": "passages", "pair": "pairs"}


def truncations(checkpoint: Checkpoint, queries: Sequence[str], passages: Sequence[Passage]) -> list[str]:
    """Tell how many texts a model cuts at its lengths: a sentence for each kind, if any of it are cut.

    A retriever reads queries and passages, a re-ranker pairs of both. Of a large collection a random sample
    is looked at, always the same one.
    """
    asked, found = _sample(queries), _sample(passages)
    titles, texts = [passage.title for passage in found], [passage.text for passage in found]
    pack, beyond = checkpoint.tokenizer, checkpoint.network.config.max_positions + 1
    if checkpoint.kind == CROSS:
        asked = list(islice(cycle(asked), len(found)))
        packed = {"pair": pack.pack_pairs(asked, titles, texts, beyond) if asked else []}
    else:
        packed = {"query": pack.pack_queries(asked, beyond)}
        packed["passage"] = pack.pack_passages(titles, texts, beyond)
    told = [_tell(checkpoint, kind, [len(row.token_ids) for row in rows]) for kind, rows in packed.items()]
    return [sentence for sentence in told if sentence]


def _sample(items: Sequence[T]) -> list[T]:
    return random.Random(0).sample(items, SAMPLE) if len(items) > SAMPLE else list(items)


def _tell(checkpoint: Checkpoint, kind: str, tokens: Sequence[int]) -> str:
    """Say how many texts of so many tokens are cut; nothing if none is."""
    length, positions = checkpoint.lengths[kind], checkpoint.network.config.max_positions
    cut = sum(count > length for count in tokens)
    if not cut:
        return ""
    share = f"{100 * cut / len(tokens):.0f} %" if 100 * cut >= len(tokens) else "less than 1 %"
    of = f"{len(tokens):,} {'sampled ' if len(tokens) == SAMPLE else ''}{_PLURALS[kind]}"
    told = f"{share} of {of} are longer than the {kind} length, {length} tokens, and are cut"
    needed = sorted(tokens)[math.ceil(0.95 * len(tokens)) - 1]
    if needed > positions:
        return f"{told}; 95 % of them whole would take more than the encoder's {positions} positions"
    return f"{told}; {needed} tokens would keep 95 % of them whole" if needed > length else told
