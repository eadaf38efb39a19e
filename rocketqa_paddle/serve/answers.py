"""Answers as JSON, and how routes reach the service."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import Depends, Request
from pydantic import AfterValidator, BaseModel, Field
from starlette.responses import Response

from rocketqa_paddle.serve.service import Service


def json_answer(content: Any, status: int = 200) -> Response:
    """Return content that may hold NumPy arrays as a response."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json")


async def _service(request: Request) -> Service:
    return request.app.state.service


Served = Annotated[Service, Depends(_service)]
"""The service, as a parameter of a route. It needs no thread, of which a busy service may have none left."""


def _unicode(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]
"""A text of a request."""
FIRST = Field(fail_fast=True)
"""Marks a list of which the first wrong item is told alone: a body may have a million of them."""
Texts = Annotated[list[Text], FIRST]
"""Texts of a request."""


class TEIError(BaseModel):
    """An error of text-embeddings-inference's endpoints, and of ours."""

    error: str
    error_type: str


class CohereError(BaseModel):
    """An error of the endpoints of Cohere and Jina."""

    message: str
    detail: str


TEI_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": TEIError, "description": told}
    for status, told in {
        400: "No inputs",
        401: "No valid key",
        413: "A body or a batch that is too large",
        422: "A request that is not as described",
        424: "Not for this kind of model, or it failed",
        429: "Too many requests at once",
        503: "Not healthy",
    }.items()
}
"""What the OpenAPI document says of errors."""
COHERE_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": CohereError} for status in (400, 401, 413, 424, 429)
}
RERANK_ERRORS: dict[int | str, dict[str, Any]] = {
    status: described | {"model": TEIError | CohereError} for status, described in TEI_ERRORS.items()
}
"""Those of /rerank, whose shape depends on the request."""
