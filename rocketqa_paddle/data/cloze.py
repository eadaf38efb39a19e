"""The inverse cloze task (ICT), which makes training groups from a corpus alone.

Lee et al., ACL 2019 (ORQA), section 4. AR2 pre-trains its retriever on such groups for NQ and TriviaQA.
"""

import random
import re
from collections.abc import Iterable, Iterator

from rocketqa_paddle.records import Group, Passage, Query

_SHORTEST = 10  # characters of a query: a shorter sentence is an initial, a number or a heading
# A sentence ends at . ! ? before a space, or at a Chinese full stop, which needs no space after it.
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")


def sentences(text: str) -> list[str]:
    """Split a text into sentences, without the white space between them."""
    return [sentence for sentence in (part.strip() for part in _END.split(text)) if sentence]


def inverse_cloze(passages: Iterable[Passage], *, keep: float, seed: int) -> Iterator[Group]:
    """Yield groups whose query is a random sentence of a passage and whose positive is the rest of it.

    A passage of one sentence, or of very short ones, gives no group. `keep` is the share of passages that
    keep the sentence, so that the model also learns to match words (0.1 in ORQA). The `seed` decides which.
    """
    draw = random.Random(seed)
    for passage in passages:
        parts = sentences(passage.text)
        candidates = [place for place, part in enumerate(parts) if len(part) >= _SHORTEST]
        if len(parts) < 2 or not candidates:
            continue
        query = parts.pop(draw.choice(candidates))
        text = passage.text if draw.random() < keep else " ".join(parts)
        yield Group(Query(passage.id, query), (Passage(passage.id, passage.title, text),), (1,), "ict")
