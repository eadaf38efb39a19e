"""What a run would do, and about how long it would take, told before it does it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rocketqa_paddle import distributed
from rocketqa_paddle.checkpoints import Checkpoint, named_tensors
from rocketqa_paddle.records import Passage, Query
from rocketqa_paddle.report import align
from rocketqa_paddle.retrieval import encode_passages, score_pairs
from rocketqa_paddle.stages import Stage, State, Work

_ROWS = 64  # that are timed
_WITH_GRADIENT = 3  # a backward pass costs two forward passes
_BYTES_A_HIT = 48


@dataclass(frozen=True)
class Speed:
    """Measured here: seconds for a text in the retriever, and for a pair in the re-ranker."""

    text: float
    pair: float

    def seconds(self, work: Work) -> float:
        """How long a stage is likely to take, on all processes together."""
        texts = work.encoded + _WITH_GRADIENT * work.trained_texts
        pairs = work.scored + _WITH_GRADIENT * work.trained_pairs
        return (self.text * texts + self.pair * pairs) / distributed.world_size()


def measure(
    retriever: Checkpoint, reranker: Checkpoint, passages: Sequence[Passage], queries: Sequence[Query]
) -> Speed:
    """Time both networks, as they start, on some of the data."""
    step = max(1, len(passages) // _ROWS)
    sample = passages[::step][:_ROWS]
    titles, texts = [passage.title for passage in sample], [passage.text for passage in sample]
    asked = [queries[i % len(queries)].text for i in range(len(sample))]
    return Speed(
        _time(lambda: encode_passages(retriever, titles, texts)) / len(sample),
        _time(lambda: score_pairs(reranker, asked, titles, texts)) / len(sample),
    )


def _time(compute: Callable[[], object]) -> float:
    compute()  # the first call prepares what later ones find ready
    begin = time.perf_counter()
    compute()
    return time.perf_counter() - begin


def table(
    stages: Sequence[Stage], states: Mapping[str, State], speed: Speed, sizes: Mapping[str, int]
) -> str:
    """One row a stage: what the folder says of it, its sizes, and estimates of time and disk.

    Args:
        stages: of the run.
        states: of those that would be looked at, by name.
        speed: of the networks.
        sizes: parameters of a model, by name.
    """
    rows = [("stage", "", "state", "steps", "trained", "encoded", "scored", "time", "disk")]
    total_seconds, total_bytes = 0.0, 0
    for stage in stages:
        work, state = stage.work, states.get(stage.name)
        seconds = speed.seconds(work)
        size = _BYTES_A_HIT * work.hits + sum(4 * sizes[model] for model in work.models)
        todo = state is not None and state.status != "finished"
        total_seconds, total_bytes = total_seconds + todo * seconds, total_bytes + todo * size
        numbers = (work.steps, work.trained_texts + work.trained_pairs, work.encoded, work.scored)
        status = state.status if state else "left out"
        cells = (stage.name, stage.title, status, *(f"{number:,}" for number in numbers))
        rows.append((*cells, _duration(seconds), _bytes(size)))
    text = f"{align(rows)}\n\nto do: about {_duration(total_seconds)} and {_bytes(total_bytes)}"
    changes = [
        f"{stage.name} would be done again: {change}"
        for stage in stages
        if stage.name in states
        for change in states[stage.name].changes.values()
    ]
    return "\n".join([text, *changes])


def parameters(model: Checkpoint) -> int:
    """How many numbers a model is."""
    return sum(tensor.size for tensor in named_tensors(model.network).values())


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
