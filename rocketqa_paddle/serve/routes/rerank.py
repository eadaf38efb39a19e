"""For re-rankers: /rerank and /predict of text-embeddings-inference, and the rerank of Cohere and Jina."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from scipy.special import expit
from starlette.responses import Response

from rocketqa_paddle.serve.answers import (
    COHERE_ERRORS,
    FIRST,
    RERANK_ERRORS,
    TEI_ERRORS,
    Served,
    Text,
    Texts,
    json_answer,
)
from rocketqa_paddle.serve.errors import Refused
from rocketqa_paddle.serve.inputs import Pair
from rocketqa_paddle.serve.routes.embed import Cutting

router = APIRouter(tags=["re-ranking"])


class TextDocument(BaseModel):
    """A document with a title."""

    text: Text
    title: Text = ""


Documents = Annotated[list[Text | TextDocument], FIRST]


class Ranking(BaseModel):
    """What is to be ordered by its relevance to a query, and what Cohere's answers have of it."""

    query: Text
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False


class RerankRequest(Ranking, Cutting):
    """Texts to order by their relevance; `documents` instead of `texts` asks for Cohere's shape."""

    texts: Texts | None = None
    raw_scores: bool = False
    """Give logits instead of probabilities."""
    return_text: bool = False
    documents: Documents | None = None


class CohereRequest(Ranking):
    """Documents to order by their relevance."""

    documents: Documents
    model: str | None = None


class Rank(BaseModel):
    """A text's place in the request, and its score."""

    index: int
    score: float
    text: str | None = None


class CohereResult(BaseModel):
    """A document's place in the request, and its probability of relevance."""

    index: int
    relevance_score: float
    document: TextDocument | None = None


class CohereAnswer(BaseModel):
    """The best documents, best first."""

    id: str
    model: str
    results: list[CohereResult]
    meta: dict[str, Any]
    usage: dict[str, int]


TextPair = Annotated[list[Text], Field(min_length=2, max_length=2, fail_fast=True)]


class PredictRequest(Cutting):
    """One pair, or a list of pairs, each a query and a text."""

    inputs: TextPair | Annotated[list[TextPair], FIRST]
    raw_scores: bool = False


class Prediction(BaseModel):
    """The score of the only label."""

    score: float
    label: Literal["LABEL_0"]


@router.post("/rerank", responses=RERANK_ERRORS | {200: {"model": list[Rank] | CohereAnswer}})
async def rerank(request: Request, service: Served, asked: RerankRequest) -> Response:
    """Order texts by their relevance to a query."""
    if asked.documents is not None:
        request.state.cohere = True  # for errors from here on
        given = asked.model_dump(include={"query", "documents", "top_n", "return_documents"})
        return await cohere_rerank(request, service, CohereRequest(**given))
    if asked.texts is None:
        raise Refused("Validation", "no texts: give texts, or documents for the answer in Cohere's shape")
    pairs = _pairs(asked.query, [TextDocument(text=text) for text in asked.texts])
    scored = await service.answer(request, "batch", lambda: service.score(pairs, asked.truncation()))
    scores = scored.values if asked.raw_scores else expit(scored.values)
    ranks = [
        {"index": place, "score": scores[place]} | ({"text": asked.texts[place]} if asked.return_text else {})
        for place in _best_first(scored.values)
    ]
    return json_answer(ranks)


@router.post("/v1/rerank", responses=COHERE_ERRORS | {200: {"model": CohereAnswer}})
@router.post("/v2/rerank", responses=COHERE_ERRORS | {200: {"model": CohereAnswer}})
async def cohere_rerank(request: Request, service: Served, asked: CohereRequest) -> Response:
    """Order documents by their relevance to a query, in the shape of Cohere and Jina."""
    documents = [TextDocument(text=d) if isinstance(d, str) else d for d in asked.documents]
    pairs = _pairs(asked.query, documents)
    scored = await service.answer(request, "batch", lambda: service.score(pairs))
    probabilities = expit(scored.values)
    results = [
        {"index": place, "relevance_score": probabilities[place]}
        | ({"document": documents[place].model_dump(exclude_defaults=True)} if asked.return_documents else {})
        for place in _best_first(scored.values)[: asked.top_n]
    ]
    version = {"version": "1" if request.scope["path"] == "/v1/rerank" else "2"}
    answer = {
        "id": str(uuid.uuid4()),
        "model": service.models.name,
        "results": results,
        "meta": {"api_version": version, "billed_units": {"search_units": 1}},
        "usage": {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens},
    }
    return json_answer(answer)


@router.post("/predict", responses=TEI_ERRORS | {200: {"model": list[Prediction] | list[list[Prediction]]}})
async def predict(request: Request, service: Served, asked: PredictRequest) -> Response:
    """Score pairs."""
    single = bool(asked.inputs) and isinstance(asked.inputs[0], str)
    given = [asked.inputs] if single else asked.inputs
    pairs = [(query, "", text) for query, text in given]
    method = "single" if single else "batch"
    scored = await service.answer(request, method, lambda: service.score(pairs, asked.truncation()))
    scores = scored.values if asked.raw_scores else expit(scored.values)
    predictions = [[{"score": score, "label": "LABEL_0"}] for score in scores]
    return json_answer(predictions[0] if single else predictions)


def _pairs(query: str, documents: list[TextDocument]) -> list[Pair]:
    if not query.strip():
        raise Refused("Validation", "the query is empty: give some words")
    return [(query, document.title, document.text) for document in documents]


def _best_first(logits: np.ndarray) -> list[int]:
    """The places of scores `[texts]` from the highest on, those of equal scores in their order."""
    return np.argsort(-logits, kind="stable").tolist()
