"""What `load_model()` returns: the RocketQA toolkit's two models, for use in programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit

from rocketqa_paddle import checkpoints, device, retrieval
from rocketqa_paddle.checkpoints import Checkpoint
from rocketqa_paddle.encoders import CrossEncoder


class DualModel:
    """A retriever: texts to vectors whose inner product is the relevance.

    The toolkit's `encode_query` and the like were generators of vectors; these return arrays, and
    iterating over an array gives the vectors one by one, as before.
    """

    def __init__(self, checkpoint: Checkpoint, batch_size: int = 1, place: str = "cpu") -> None:
        self.checkpoint, self.batch_size, self.place = checkpoint, batch_size, place

    def encode_query(self, query: Sequence[str]) -> np.ndarray:
        """Vectors of queries, float32 `[n, hidden]`."""
        queries = _texts("query", query)
        with device.using(self.place):
            return retrieval.encode_queries(self.checkpoint, queries, batch_size=self.batch_size)

    def encode_para(self, para: Sequence[str], title: Sequence[str] | None = ()) -> np.ndarray:
        """Vectors of passages, float32 `[n, hidden]`. Without `title`, titles are empty."""
        texts = _texts("para", para)
        titles = _titles(title, len(texts))
        with device.using(self.place):
            return retrieval.encode_passages(self.checkpoint, titles, texts, batch_size=self.batch_size)

    def matching(
        self, query: Sequence[str], para: Sequence[str], title: Sequence[str] | None = ()
    ) -> np.ndarray:
        """Inner products of query i and passage i, float32 `[n]`."""
        queries, texts = _texts("query", query), _texts("para", para)
        _same_length("para", len(texts), "query", len(queries))
        return (self.encode_query(queries) * self.encode_para(texts, title)).sum(axis=-1)


class CrossModel:
    """A re-ranker: the relevance of a passage to a query."""

    def __init__(self, checkpoint: Checkpoint, batch_size: int = 1, place: str = "cpu") -> None:
        self.checkpoint, self.batch_size, self.place = checkpoint, batch_size, place

    def matching(
        self, query: Sequence[str], para: Sequence[str], title: Sequence[str] | None = ()
    ) -> np.ndarray:
        """Scores of query i and passage i, float32 `[n]`.

        A probability for RocketQA v1 models (head `classes`), a logit for joint models.
        """
        queries, texts = _texts("query", query), _texts("para", para)
        _same_length("para", len(texts), "query", len(queries))
        titles = _titles(title, len(texts))
        if not queries:
            return np.zeros(0, dtype=np.float32)
        with device.using(self.place):
            scores = retrieval.score_pairs(
                self.checkpoint, queries, titles, texts, batch_size=self.batch_size
            )
        if self.checkpoint.network.head == "classes":
            scores = expit(scores)
        return scores


def load_model(
    model: str, use_cuda: bool = False, device_id: int = 0, batch_size: int = 1
) -> DualModel | CrossModel:
    """Load a checkpoint folder for inference.

    Args:
        model: a checkpoint folder, as `rocketqa train` saves it (`runs/…/best/retriever`).
        use_cuda: compute on a GPU.
        device_id: which one.
        batch_size: rows computed together; more is faster.

    Returns:
        A `DualModel` or a `CrossModel`.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: the folder is not a whole checkpoint, or the device is not there.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}, expected at least 1")
    place = device.select_device(use_cuda, device_id)
    checkpoint = checkpoints.load(Path(model))
    kind = CrossModel if isinstance(checkpoint.network, CrossEncoder) else DualModel
    return kind(checkpoint, batch_size, place)


def _texts(name: str, values: Sequence[str]) -> list[str]:
    if isinstance(values, str):
        raise ValueError(f"{name} is one string, expected a list of strings: write [{values[:30]!r}]")
    values = list(values)
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"{name}[{i}] is {type(value).__name__}, expected a string")
    return values


def _titles(title: Sequence[str] | None, count: int) -> list[str]:
    titles = _texts("title", [] if title is None else title)
    if not titles:
        return [""] * count
    _same_length("title", len(titles), "para", count)
    return titles


def _same_length(name: str, given: int, other: str, expected: int) -> None:
    if given != expected:
        raise ValueError(f"{given} {name} for {expected} {other}: give one {name} a {other}")
