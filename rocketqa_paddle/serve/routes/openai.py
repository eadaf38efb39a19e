"""OpenAI's endpoints: /v1/embeddings and /v1/models."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from rocketqa_paddle.serve.answers import Served, json_answer
from rocketqa_paddle.serve.errors import Refused
from rocketqa_paddle.serve.inputs import Side
from rocketqa_paddle.serve.routes.embed import Inputs, as_list, check_dimensions, shaped_vectors
from rocketqa_paddle.serve.service import Service


class ErrorContent(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIError(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorContent


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenAIError} for status in (400, 401, 404, 413, 424, 429)
}
router = APIRouter(tags=["OpenAI"], responses=ERRORS)
_STARTED = int(time.time())


class EmbeddingsRequest(BaseModel):
    """Texts to encode, or their token ids."""

    input: Inputs
    model: str | None = None
    """NAME-query or NAME-passage, as /v1/models lists them."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


class Embedding(BaseModel):
    """A vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    embedding: list[float] | str
    index: int


class EmbeddingsAnswer(BaseModel):
    """The vectors in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: dict[str, int]


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All models that are served."""

    object: Literal["list"]
    data: list[Model]


@router.post("/v1/embeddings", responses={200: {"model": EmbeddingsAnswer}})
@router.post("/embeddings", responses={200: {"model": EmbeddingsAnswer}})
async def embeddings(request: Request, service: Served, asked: EmbeddingsRequest) -> Response:
    """Encode texts as vectors whose inner product is the score."""
    side = _side_of(service, asked.model)
    check_dimensions(service, asked.dimensions)
    method = "batch" if isinstance(asked.input, list) else "single"
    encoded = await service.answer(request, method, lambda: service.encode(side, as_list(asked.input)))
    vectors = shaped_vectors(encoded.values, False, asked.dimensions)
    data = [
        {"object": "embedding", "embedding": _encoded(vector, asked.encoding_format), "index": place}
        for place, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": encoded.tokens, "total_tokens": encoded.tokens}
    return json_answer({"object": "list", "data": data, "model": asked.model, "usage": usage})


@router.get("/v1/models", responses={200: {"model": ModelList}})
async def models(service: Served) -> Response:
    """List the models: the two towers of a retriever, and a re-ranker."""
    return json_answer({"object": "list", "data": [_described(name) for name in _names(service)]})


@router.get("/v1/models/{name}", responses={200: {"model": Model}})
async def model(service: Served, name: str) -> Response:
    """Describe one of the models."""
    if name not in (names := _names(service)):
        raise _unknown(name, names)
    return json_answer(_described(name))


def _names(service: Service) -> list[str]:
    return [*_towers(service), *([f"{service.models.name}-reranker"] if service.models.reranker else [])]


def _described(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": "rocketqa_paddle"}


def _towers(service: Service) -> dict[str, Side]:
    name = service.models.name
    return {f"{name}-query": "query", f"{name}-passage": "passage"} if service.models.retriever else {}


def _side_of(service: Service, model: str | None) -> Side:
    towers = _towers(service)
    if towers and model not in towers:
        raise _unknown(model, towers)
    return towers.get(model, "passage")  # without a retriever, the service says so


def _unknown(model: str | None, served: Iterable[str]) -> Refused:
    names = " and ".join(served)
    message = f"model {(model or '')[:80]!r} is not served here: choose from {names}"
    return Refused("Validation", message, status=404, reason="model_type", code="model_not_found")


def _encoded(vector: np.ndarray, form: str) -> np.ndarray | str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector
