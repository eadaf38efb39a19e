"""How fast networks are on this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.forward import encode_passages, score_pairs
from rocketqa_paddle.records import Passage, Query

_ROWS = 64  # that are timed


@dataclass(frozen=True)
class Speed:
    """Seconds for a text in the retriever, and for a pair in the re-ranker, without gradient."""

    text: float
    pair: float


def measure_speed(
    retriever: Checkpoint, reranker: Checkpoint, passages: Sequence[Passage], queries: Sequence[Query]
) -> Speed:
    """Time both networks on some of the data."""
    sample = passages[:: max(1, len(passages) // _ROWS)][:_ROWS]
    titles, texts = [passage.title for passage in sample], [passage.text for passage in sample]
    questions = [queries[i % len(queries)].text for i in range(len(sample))]
    return Speed(
        _time(lambda: encode_passages(retriever, titles, texts)) / len(sample),
        _time(lambda: score_pairs(reranker, questions, titles, texts)) / len(sample),
    )


def _time(compute: Callable[[], object]) -> float:
    compute()  # the first call prepares what later ones find ready
    begin = time.perf_counter()
    compute()
    return time.perf_counter() - begin
