"""What `load_model()` returns: the RocketQA toolkit's two models, for use in programs."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.encoders import CROSS, Checkpoint
from rocketqa_paddle.networks.forward import text_list
from rocketqa_paddle.runtime import device
from rocketqa_paddle.training.finetune import FinetuneSettings, finetune

Texts = Sequence[str]


class Scores(np.ndarray):
    """Scores, float32 `[n]`. Iterating over them gives Python numbers, as the toolkit's generators did."""

    def __iter__(self) -> Iterator[float]:
        return iter(self.tolist()) if self.ndim == 1 else super().__iter__()

    def __array_wrap__(self, array: np.ndarray, context: object = None, return_scalar: bool = False) -> Any:
        """Return plain arrays and numbers from computations with scores."""
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
    """A retriever, which encodes texts as vectors. The inner product of two vectors is their relevance.

    The toolkit's methods were generators of vectors. These return arrays; iterating over an array gives the
    vectors one by one, as before.
    """

    def encode_query(self, query: Texts) -> np.ndarray:
        """Encode queries as vectors, float32 `[n, hidden]`. As in the toolkit, a tab ends a query."""
        queries = _queries(query)
        with device.using(self.place):
            return forward.encode_queries(self.checkpoint, queries, batch_size=self.batch_size)

    def encode_para(self, para: Texts, title: Texts | None = ()) -> np.ndarray:
        """Encode passages as vectors, float32 `[n, hidden]`. Without `title`, titles are empty."""
        texts, titles = _passages(para, title)
        with device.using(self.place):
            return forward.encode_passages(self.checkpoint, titles, texts, batch_size=self.batch_size)

    def matching(self, query: Texts, para: Texts, title: Texts | None = ()) -> np.ndarray:
        """Return the inner product of every query i and passage i, float32 `[n]`."""
        queries = _queries(query)
        texts, titles = _passages(para, title, queries)
        # One checkpoint for both: `train` in another thread may replace that of this model in between.
        model = DualModel(self.checkpoint, self.batch_size, self.place)
        products = (model.encode_query(queries) * model.encode_para(texts, titles)).sum(axis=-1)
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
        warmup_ratio: float = 0.0,
        dropout: float = 0.1,
        drop_false_negatives: bool = True,
        seed: int = 1,
    ) -> None:
        """Fine-tune this model on in-batch negatives and one hard negative a query.

        Saves checkpoint folders `save_model_path/step_N`; `load_model` takes such a folder, `save_model_path`
        itself (its last one), or its `config.json`. A call that was stopped goes on when it is made again
        with the same settings. Until training ends, the model answers as before.

        Args:
            train_set: TSV file of 6 columns: query, positive title and text, negative title and text, 0.
            epoch: number of passes over the file.
            save_model_path: folder for the checkpoints.
            save_steps: steps between checkpoints; 0 saves half-way and at the end.
            learning_rate: peak learning rate of AdamW; it decays linearly to 0.
            batch_size: rows a step; by default that of `load_model`.
            log_folder: folder for `log.train`, which gets one JSON line every ten seconds.
            warmup_ratio: share of the steps, 0 to 1, in which the learning rate grows from 0 to its peak.
            dropout: probability of dropout in training.
            drop_false_negatives: never contrast a query with a positive that the batch has for it, or with
                itself; a line whose negative is the positive is left out. The toolkit did contrast them.
            seed: seed of the order of examples and of dropout.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a setting or a line of the file is wrong.
            trainer.Stopped: on Ctrl-C or SIGTERM, after saving.
        """
        self._train(
            (train_set, save_model_path, log_folder),
            batch_size,
            epoch=epoch,
            save_steps=save_steps,
            learning_rate=learning_rate,
            warmup_ratio=warmup_ratio,
            dropout=dropout,
            drop_false_negatives=drop_false_negatives,
            seed=seed,
        )


class CrossModel(_Model):
    """A re-ranker, which reads a query and a passage together and scores how relevant the passage is."""

    def matching(self, query: Texts, para: Texts, title: Texts | None = ()) -> np.ndarray:
        """Score query i with passage i, float32 `[n]`: probabilities for RocketQA v1 models, else logits."""
        queries = _queries(query)
        texts, titles = _passages(para, title, queries)
        if not queries:
            return np.zeros(0, dtype=np.float32).view(Scores)
        with device.using(self.place):
            scores = forward.score_pairs(self.checkpoint, queries, titles, texts, batch_size=self.batch_size)
        return (expit(scores) if self.checkpoint.network.head == "classes" else scores).view(Scores)

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
        warmup_ratio: float = 0.0,
        dropout: float = 0.1,
        adversarial: float = 0.01,
        drop_false_negatives: bool = True,
        seed: int = 1,
    ) -> None:
        """Fine-tune this model on single pairs by binary cross entropy; see `DualModel.train`.

        Args:
            train_set: TSV file of 4 columns: query, title, text, label (0 or 1).
            adversarial: length of the step by which the word embeddings move in the direction that raises the
                loss most, as in the toolkit. It costs a second pass; 0 leaves it out.
            drop_false_negatives: leave out lines with label 0 whose passage has label 1 on another line of
                the query. The toolkit took them.
        """
        self._train(
            (train_set, save_model_path, log_folder),
            batch_size,
            epoch=epoch,
            save_steps=save_steps,
            learning_rate=learning_rate,
            warmup_ratio=warmup_ratio,
            dropout=dropout,
            adversarial=adversarial,
            drop_false_negatives=drop_false_negatives,
            seed=seed,
        )


def load_model(
    model: str | Path, use_cuda: bool = False, device_id: int = 0, batch_size: int = 1
) -> DualModel | CrossModel:
    """Load a model of any kind and format.

    Args:
        model: a published name (`available_models()`), the toolkit's JSON, a checkpoint folder of this
            project, or a folder of PaddleNLP, Hugging Face or sentence-transformers; see `convert.read`.
        use_cuda: compute on a GPU, which has the number `device_id`.
        batch_size: rows computed together; more is faster.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the model does not fit its own description, or there is no such device.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}, expected at least 1, a whole number")
    place = device.find_device(use_cuda, device_id)
    with device.using(place):
        checkpoint = convert.read(model)
    return (CrossModel if checkpoint.kind == CROSS else DualModel)(checkpoint, batch_size, place)


def _queries(query: Texts) -> list[str]:
    """Cut queries at their first tab; the toolkit's query files have other columns after it."""
    queries = text_list("query", query)
    if cut := sum("\t" in text for text in queries):
        warnings.warn(f"{cut} queries hold a tab; what follows it is not read", stacklevel=3)
    return [text.partition("\t")[0] for text in queries]


def _passages(
    para: Texts, title: Texts | None, queries: list[str] | None = None
) -> tuple[list[str], list[str]]:
    """Return texts and titles, of which there must be as many as queries."""
    texts, titles = text_list("para", para), text_list("title", () if title is None else title)
    if queries is not None:
        _check_same_length("para", texts, "query", queries)
    if titles:
        _check_same_length("title", titles, "para", texts)
    return texts, titles or [""] * len(texts)


def _check_same_length(name: str, given: list[str], other: str, expected: list[str]) -> None:
    if len(given) != len(expected):
        raise ValueError(f"{len(given)} {name} for {len(expected)} {other}: give as many of each")
