"""Training data out of a corpus alone: the inverse cloze task.

Lee et al., ACL 2019 (ORQA), section 4. AR2 pre-trains its retriever on them for NQ and TriviaQA.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator

from rocketqa_paddle.records import Group, Passage, Query

_SHORTEST = 10  # characters of a query: less is an initial, a number, a heading
# Behind . ! ? and a space, or behind the full stops of Chinese, which no space follows.
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the space between them."""
    return [sentence for sentence in (part.strip() for part in _END.split(text)) if sentence]


def inverse_cloze(passages: Iterable[Passage], *, keep: float, seed: int) -> Iterator[Group]:
    """A sentence of a passage, drawn at random, is a query; the rest of the passage is its positive.

    A passage of one sentence, or of very short ones, gives none.

    Args:
        passages: one group each.
        keep: share of the passages that keep the sentence, so that the model also learns to match words
            (ORQA: 0.1).
        seed: of sentences and shares.
    """
    draw = random.Random(seed)
    for passage in passages:
        parts = sentences(passage.text)
        askable = [place for place, part in enumerate(parts) if len(part) >= _SHORTEST]
        if len(parts) < 2 or not askable:
            continue
        asked = parts.pop(draw.choice(askable))
        text = passage.text if draw.random() < keep else " ".join(parts)
        yield Group(Query(passage.id, asked), (Passage(passage.id, passage.title, text),), (1,), "cloze")
