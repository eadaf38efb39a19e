"""What `load_model()` returns: the RocketQA toolkit's two models, for use in programs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.networks.encoders import CROSS, Checkpoint
from rocketqa_paddle.runtime import device
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.training.finetune import FinetuneSettings, finetune


class Scores(np.ndarray):
    """Scores, float32 `[n]`. Iterating gives Python numbers, as the toolkit's generators did."""

    def __iter__(self) -> Iterator[float]:
        return iter(self.tolist()) if self.ndim == 1 else super().__iter__()

    def __array_wrap__(self, array: np.ndarray, context: object = None, return_scalar: bool = False) -> Any:
        """What is computed from scores is plain again."""
        return np.asarray(array)[()] if array.ndim == 0 else np.asarray(array)


class _Model:
    def __init__(self, checkpoint: Checkpoint, batch_size: int = 1, place: str = "cpu") -> None:
        self.checkpoint, self.batch_size, self.place = checkpoint, batch_size, place

    def _train(self, paths: Sequence[str | Path], batch_size: int | None, **settings: Any) -> None:
        batch_size = self.batch_size if batch_size is None else batch_size
        with device.using(self.place):
            self.checkpoint = finetune(
                self.checkpoint, *paths, FinetuneSettings(batch_size=batch_size, **settings)
            )


class DualModel(_Model):
    """A retriever: texts to vectors whose inner product is the relevance.

    The toolkit's `encode_query` and the like were generators of vectors; these return arrays, and
    iterating over an array gives the vectors one by one, as before.
    """

    def encode_query(self, query: Sequence[str]) -> np.ndarray:
        """Vectors of queries, float32 `[n, hidden]`. A query ends at its first tab, as in the toolkit."""
        queries = _queries(query)
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
        queries, texts = _queries(query), _texts("para", para)
        _same_length("para", len(texts), "query", len(queries))
        model = DualModel(self.checkpoint, self.batch_size, self.place)  # a training's end may replace ours
        products = (model.encode_query(queries) * model.encode_para(texts, title)).sum(axis=-1)
        return products.view(Scores)

    def train(
        self,
        train_set: str | Path,
        epoch: int,
        save_model_path: str | Path,
        *,
        save_steps: int = 0,
        learning_rate: float = 2e-5,
        batch_size: int | None = None,
        log_folder: str | Path = "log",
        warmup_share: float = 0.0,
        dropout: float = 0.1,
        seed: int = 1,
    ) -> None:
        """Fine-tune on in-batch negatives and one hard negative a query. The model is the trained one then.

        Saves a checkpoint folder `save_model_path/step_N` every `save_steps` steps and at the end;
        `load_model` takes such a folder, `save_model_path` itself (its last one), or its `config.json`.
        A call that was stopped goes on when it is made again with the same settings.

        Args:
            train_set: TSV of 6 columns: query, positive title and text, negative title and text, 0.
            epoch: passes over it.
            save_model_path: folder for the checkpoints.
            save_steps: 0 saves half-way and at the end.
            learning_rate: of AdamW at the start; it decays linearly to 0.
            batch_size: queries a step; by default that of `load_model`.
            log_folder: gets `log.train`, one JSON line every ten seconds.
            warmup_share: share of the steps in which the rate grows from 0.
            dropout: in training.
            seed: of order and dropout.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a setting or a line of the file is wrong.
            trainer.Stopped: on Ctrl-C or SIGTERM, after saving.
        """
        self._train(
            (train_set, save_model_path, log_folder),
            batch_size,
            epoch=epoch,
            save_steps=save_steps,
            learning_rate=learning_rate,
            warmup_share=warmup_share,
            dropout=dropout,
            seed=seed,
        )


class CrossModel(_Model):
    """A re-ranker: the relevance of a passage to a query."""

    def matching(
        self, query: Sequence[str], para: Sequence[str], title: Sequence[str] | None = ()
    ) -> np.ndarray:
        """Scores of query i and passage i, float32 `[n]`.

        A probability for RocketQA v1 models (head `classes`), a logit for joint models.
        """
        queries, texts = _queries(query), _texts("para", para)
        _same_length("para", len(texts), "query", len(queries))
        titles = _titles(title, len(texts))
        if not queries:
            return np.zeros(0, dtype=np.float32).view(Scores)
        with device.using(self.place):
            scores = retrieval.score_pairs(
                self.checkpoint, queries, titles, texts, batch_size=self.batch_size
            )
        if self.checkpoint.network.head == "classes":
            scores = expit(scores)
        return scores.view(Scores)

    def train(
        self,
        train_set: str | Path,
        epoch: int,
        save_model_path: str | Path,
        *,
        save_steps: int = 0,
        learning_rate: float = 2e-5,
        batch_size: int | None = None,
        log_folder: str | Path = "log",
        warmup_share: float = 0.0,
        dropout: float = 0.1,
        adversarial: float = 0.01,
        seed: int = 1,
    ) -> None:
        """Fine-tune on single pairs by binary cross entropy. The model is the trained one then.

        Args:
            train_set: TSV of 4 columns: query, title, text, label (0 or 1).
            epoch: passes over it.
            save_model_path: folder for the checkpoints; see `DualModel.train`.
            save_steps: 0 saves half-way and at the end.
            learning_rate: of AdamW at the start; it decays linearly to 0.
            batch_size: pairs a step; by default that of `load_model`.
            log_folder: gets `log.train`, one JSON line every ten seconds.
            warmup_share: share of the steps in which the rate grows from 0.
            dropout: in training.
            adversarial: length of the step by which the word embeddings are moved against the model, as
                in the toolkit; it takes a second pass. 0 leaves it out.
            seed: of order and dropout.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a setting or a line of the file is wrong.
            trainer.Stopped: on Ctrl-C or SIGTERM, after saving.
        """
        self._train(
            (train_set, save_model_path, log_folder),
            batch_size,
            epoch=epoch,
            save_steps=save_steps,
            learning_rate=learning_rate,
            warmup_share=warmup_share,
            dropout=dropout,
            adversarial=adversarial,
            seed=seed,
        )


def load_model(
    model: str | Path, use_cuda: bool = False, device_id: int = 0, batch_size: int = 1
) -> DualModel | CrossModel:
    """Load a model of any kind and format.

    Args:
        model: a published name (`available_models()`), the toolkit's JSON, a checkpoint folder of this
            project, or a folder of PaddleNLP, Hugging Face or sentence-transformers; see `convert.read`.
        use_cuda: compute on a GPU.
        device_id: which one.
        batch_size: rows computed together; more is faster.

    Returns:
        A `DualModel` or a `CrossModel`.

    Raises:
        FileNotFoundError: no model there.
        ValueError: the model does not fit its own description, or the device is not there.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}, expected at least 1, a whole number")
    place = device.find_device(use_cuda, device_id)
    with device.using(place):
        checkpoint = convert.read(model)
    return (CrossModel if checkpoint.kind == CROSS else DualModel)(checkpoint, batch_size, place)


def _queries(query: Sequence[str]) -> list[str]:
    """What stands before the first tab, the rest being other columns of the toolkit's query files."""
    queries = _texts("query", query)
    if cut := sum("\t" in text for text in queries):
        warnings.warn(f"{cut} queries hold a tab; what follows it is not read", stacklevel=3)
    return [text.partition("\t")[0] for text in queries]


def _texts(name: str, values: Sequence[str]) -> list[str]:
    if isinstance(values, str):
        raise ValueError(f"{name} is one string, expected a list of strings: write [{values[:30]!r}]")
    if not isinstance(values, Iterable) or isinstance(values, bytes | Mapping | set | frozenset):
        raise ValueError(f"{name} is {type(values).__name__}, expected a list of strings")
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
        raise ValueError(f"{given} {name} for {expected} {other}: give as many of each")
