"""What is served and how it is: /info, /health, /ping and /metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from rocketqa_paddle import __version__
from rocketqa_paddle.networks.encoders import CROSS, Checkpoint
from rocketqa_paddle.serve.answers import TEI_ERRORS, Served, json_answer
from rocketqa_paddle.serve.errors import Refused
from rocketqa_paddle.serve.service import TOKENIZERS, Service

router = APIRouter(tags=["status"], responses={status: TEI_ERRORS[status] for status in (401, 503)})


@router.get("/info")
async def info(service: Served) -> Response:
    """Describe the models and the bounds, in the words of text-embeddings-inference and with some more."""
    models, limits = service.models, service.limits
    model = models.retriever or models.reranker
    described: dict[str, Any] = {
        "model_id": models.name,
        "model_sha": service.digest,
        "model_dtype": service.dtype,
        "served_model_name": models.name,
        "model_type": _type_of(model),
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_input_length": max(model.lengths.values()),
        "max_batch_tokens": service.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": limits.max_client_batch_size,
        "auto_truncate": True,
        "tokenization_workers": TOKENIZERS,
        "version": __version__,
        "sha": None,
        "docker_label": None,
        "search": _search_of(service),
        "lengths": {
            kind: length
            for m in (models.retriever, models.reranker)
            if m
            for kind, length in m.lengths.items()
        },
    }
    return json_answer(described)


def _type_of(model: Checkpoint) -> dict[str, Any]:
    if model.kind == CROSS:
        return {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    return {"embedding": {"pooling": model.network.pooling}}


def _search_of(service: Service) -> dict[str, Any] | None:
    engine = service.models.engine
    if not engine:
        return None
    return {
        "passages": len(engine),
        "reranker": engine.reranker is not None,
        "depth": engine.depth_of(None),
        "bm25": engine.has_bm25,
    }


@router.get("/health", response_class=Response)
@router.get("/ping", response_class=Response)
@router.head("/health", include_in_schema=False)
@router.head("/ping", include_in_schema=False)
async def health(service: Served) -> Response:
    """Answer 200 while requests can be computed."""
    if not service.is_healthy():
        raise Refused("Unhealthy", "the thread that computes has ended: start the service again")
    return Response()


@router.get("/metrics", include_in_schema=False)
async def metrics(service: Served) -> Response:
    """The metrics in the text format of Prometheus."""
    return Response(service.metrics.exposition(), media_type="text/plain; version=0.0.4")
