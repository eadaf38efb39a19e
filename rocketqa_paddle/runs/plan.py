"""What a run would do, and about how long it would take, told before it does it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from rocketqa_paddle.evaluation.tables import align
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.parameters import named_tensors
from rocketqa_paddle.records import Passage, Query
from rocketqa_paddle.runs.stages import AGAIN, RERANK_DEPTH, Stage, State, Work
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.search.retrieval import encode_passages, score_pairs

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
    stages: Sequence[Stage],
    states: Mapping[str, State],
    speed: Speed,
    models: Mapping[str, Checkpoint],
    passages: Collection[Passage],
) -> str:
    """One row a stage: what the folder says of it, its sizes, and estimates of time and disk.

    Args:
        stages: of the run.
        states: of those that would be looked at, by name.
        speed: of the networks.
        models: the networks as they start, by name.
        passages: the corpus, which `best/` indexes.
    """
    sizes = {name: 4 * parameters(model) for name, model in models.items()}
    rows = [("stage", "", "state", "steps", "trained", "encoded", "scored", "time", "disk")]
    total_seconds, total_bytes = 0.0, 0
    for stage in stages:
        work, state = stage.work, states.get(stage.name)
        seconds = speed.seconds(work)
        size = _BYTES_A_HIT * work.hits + sum(sizes[model] for model in work.models)
        if state:
            total_seconds += speed.seconds(_remaining(work, state))
            total_bytes += size if state.status in ("new", "changed") else 0
        numbers = (work.steps, work.trained_texts + work.trained_pairs, work.encoded, work.scored)
        status = state.status if state else "left out"
        cells = (stage.name, stage.title, status, *(f"{number:,}" for number in numbers))
        rows.append((*cells, _duration(seconds), _bytes(size)))
    best = sum(sizes.values()) + _index_bytes(models["retriever"], passages)
    rows.append(("best", "the search engine", *[""] * 6, _bytes(best)))
    text = (
        f"{align(rows)}\n\nto do: about {_duration(total_seconds)} and {_bytes(total_bytes + best)}; "
        f"while it runs, at most {_bytes(_passing(stages, sizes))} more, and the index once more"
    )
    changes = [
        f"{stage.name} would be {AGAIN[states[stage.name].status]}: {change}"
        for stage in stages
        if stage.name in states
        for change in states[stage.name].changes.values()
    ]
    return "\n".join([text, *changes])


def _remaining(work: Work, state: State) -> Work:
    """What a stage has still to do; of one that is begun, all of it at the most."""
    if state.status == "finished" or state.changes.keys() == {RERANK_DEPTH}:
        return Work()
    return Work(encoded=work.encoded) if state.status == "search again" else work


def _passing(stages: Sequence[Stage], sizes: Mapping[str, int]) -> int:
    """Bytes of optimizers that wait for the next stage, two moments a parameter, and of unfinished work.

    That holds a stage's models, too, is written anew before the old is removed, and is the most where they
    train together.
    """
    waiting = [sum(2 * sizes[model] for model in stage.work.optimizers) for stage in stages]
    both = max(before + after for before, after in zip([0, *waiting], [*waiting, 0], strict=True))
    unfinished = max(sum(3 * sizes[model] for model in stage.work.models) for stage in stages)
    return 2 * unfinished + both


def _index_bytes(retriever: Checkpoint, passages: Collection[Passage]) -> int:
    """Of vectors and texts."""
    hidden = retriever.network.config.hidden_size
    return sum(4 * hidden + len(p.id) + len(p.title) + len(p.text) for p in passages)


def parameters(model: Checkpoint) -> int:
    """How many numbers a model is."""
    return sum(tensor.size for tensor in named_tensors(model.network).values())


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
