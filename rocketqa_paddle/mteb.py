"""Models as the Massive Text Embedding Benchmark takes them (package `mteb`).

The interfaces are mteb's `EncoderProtocol` and `CrossEncoderProtocol` (mteb/models/models_protocols.py). Only
`mteb_model_meta` imports the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rocketqa_paddle.networks import forward
from rocketqa_paddle.runtime import device
from rocketqa_paddle.toolkit import CrossModel, DualModel

if TYPE_CHECKING:
    from mteb.models import ModelMeta

Batch = Mapping[str, Sequence[Any]]
"""Columns of texts: `text`, and of passages also `title` and `body`, of which `text` is made."""
Inputs = Iterable[Batch | str | Mapping[str, str]]
"""Batches, as mteb 2 gives them; or texts, or rows with `title` and `text`, as older versions do."""
_QUERY, _PASSAGE = ("query",), ("document", "passage", None)


class MTEBRetriever:
    """A retriever for `mteb.evaluate`.

    Queries go through the query tower. All other texts are passages, those of tasks without queries as well.

    Args:
        model: a retriever that `load_model` returned.
        name: `ORGANISATION/NAME` of the model in the results.

    Raises:
        ValueError: the model is a re-ranker.
    """

    def __init__(self, model: DualModel, name: str = "rocketqa_paddle/retriever") -> None:
        if not isinstance(model, DualModel):
            raise ValueError(f"{type(model).__name__} is no retriever: give MTEBReranker a re-ranker")
        self.model, self.name = model, name

    def encode(
        self, inputs: Inputs, *, prompt_type: str | None = None, prompt_name: str | None = None, **kwargs: Any
    ) -> np.ndarray:
        """Encode texts as vectors, float32 `[texts, hidden]`.

        Args:
            inputs: what to encode; of a passage, its title and its body.
            prompt_type: `query`, or `document` (in older versions `passage`) or None.
            prompt_name: the same, if there is no `prompt_type`.
            **kwargs: `batch_size` and `show_progress_bar` are used, such as `task_metadata` are not.

        Raises:
            ValueError: an input has no text, or the type is another.
        """
        side = prompt_type or prompt_name
        if side not in (*_QUERY, *_PASSAGE):
            raise ValueError(f"prompt_type={side!r}, expected 'query', 'document' or None")
        titles, texts = _titles_and_texts(inputs)
        checkpoint, how = self.model.checkpoint, _computing(kwargs)
        with device.using(self.model.place):
            if side in _QUERY:
                return forward.encode_queries(checkpoint, _joined(titles, texts), **how)
            return forward.encode_passages(checkpoint, titles, texts, **how)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return all inner products of vectors `[n, hidden]` and `[m, hidden]` as `[n, m]`.

        They are an array of NumPy or a tensor of PyTorch, as the vectors are.
        """
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the inner products of vectors i and i as `[n]`, see `similarity`."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb writes about the model into its results. Its revision is the digest of the model."""
        return _meta(self, ["dense"], embed_dim=self.model.checkpoint.network.config.hidden_size)


class MTEBReranker:
    """A re-ranker for `mteb.evaluate`, which gives it what another model found.

    Args:
        model: a re-ranker that `load_model` returned.
        name: `ORGANISATION/NAME` of the model in the results.

    Raises:
        ValueError: the model is a retriever.
    """

    def __init__(self, model: CrossModel, name: str = "rocketqa_paddle/reranker") -> None:
        if not isinstance(model, CrossModel):
            raise ValueError(f"{type(model).__name__} is no re-ranker: give MTEBRetriever a retriever")
        self.model, self.name = model, name

    def predict(self, inputs1: Inputs, inputs2: Inputs, **kwargs: Any) -> np.ndarray:
        """Score query i of `inputs1` with passage i of `inputs2`: logits, float32 `[pairs]`.

        Raises:
            ValueError: an input has no text, or there are not as many of both.
        """
        queries, (titles, texts) = _joined(*_titles_and_texts(inputs1)), _titles_and_texts(inputs2)
        if len(queries) != len(texts):
            raise ValueError(f"{len(queries)} queries and {len(texts)} passages: give as many of each")
        if not queries:
            return np.zeros(0, np.float32)
        with device.using(self.model.place):
            return forward.score_pairs(self.model.checkpoint, queries, titles, texts, **_computing(kwargs))

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb writes about the model into its results. Its revision is the digest of the model."""
        return _meta(self, ["cross-encoder"])


def _titles_and_texts(inputs: Inputs) -> tuple[list[str], list[str]]:
    titles: list[str] = []
    texts: list[str] = []
    for given in inputs:
        batch = {"text": given} if isinstance(given, str) else given
        if "text" not in batch:
            raise ValueError(f"an input with {', '.join(batch)}, but without text, which is all that is read")
        body = _column(batch["body" if "title" in batch and "body" in batch else "text"])
        texts += body
        titles += _column(batch["title"]) if "title" in batch else [""] * len(body)
    return titles, texts


def _column(values: str | Sequence[str | None]) -> list[str]:
    return [values] if isinstance(values, str) else [value or "" for value in values]


def _joined(titles: Sequence[str], texts: Sequence[str]) -> list[str]:
    return [f"{title} {text}".strip() for title, text in zip(titles, texts, strict=True)]


def _computing(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What mteb says of how to compute, in our words."""
    return {
        "batch_size": kwargs.get("batch_size", 32),
        "progress": "encoding" if kwargs.get("show_progress_bar") else "",
    }


def _rows(vectors: Any) -> Any:
    """Vectors `[n, hidden]`, also for a single one."""
    return vectors.reshape(-1, vectors.shape[-1])


def _meta(adapter: MTEBRetriever | MTEBReranker, types: list[str], embed_dim: int | None = None) -> ModelMeta:
    from mteb.models import ModelMeta
    from mteb.models.model_meta import ScoringFunction

    checkpoint = adapter.model.checkpoint
    return ModelMeta.create_empty(
        {
            "name": adapter.name,
            "revision": checkpoint.digest(),
            "n_parameters": sum(int(parameter.size) for parameter in checkpoint.network.parameters()),
            "max_tokens": max(checkpoint.lengths.values()),
            "embed_dim": embed_dim,
            "similarity_fn_name": ScoringFunction.DOT_PRODUCT if embed_dim else None,
            "model_type": types,
        }
    )
