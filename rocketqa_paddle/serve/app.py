"""The application: routes, the guard before them, and errors in the shape of each family of clients."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rocketqa_paddle import __version__
from rocketqa_paddle.serve.answers import json_answer
from rocketqa_paddle.serve.errors import Kind, Refused, family_of, shaped
from rocketqa_paddle.serve.guard import Guard
from rocketqa_paddle.serve.routes import embed, openai, rerank, search, status
from rocketqa_paddle.serve.service import Gone, Service

_CLOSED = 499  # nginx's status for a client that has gone; nobody reads it


def make_app(service: Service, keys: Sequence[bytes] = ()) -> FastAPI:
    """Make the application of a service; with `keys`, clients have to send one of them."""
    app = FastAPI(
        title="rocketqa_paddle",
        version=__version__,
        description="Dense retrieval and re-ranking.",
        docs_url=None,  # FastAPI's page of documentation is made of files from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirection would name the scheme of this side of a proxy
    )
    app.state.service = service
    for routes in (search, embed, rerank, openai, status):
        app.include_router(routes.router)
    app.add_middleware(Guard, keys=list(keys), limit=service.limits.payload_limit)
    app.add_exception_handler(Refused, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_invalid)
    app.add_exception_handler(HTTPException, _refuse_other)
    app.add_exception_handler(Gone, _leave)
    app.add_exception_handler(Exception, _fail)
    return app


def _answer(request: Request, refused: Refused, body: object = None) -> Response:
    family = "cohere" if getattr(request.state, "cohere", False) else family_of(request.scope["path"], body)
    status, content = shaped(family, refused)
    return json_answer(content, status)


def _count(request: Request, reason: str) -> None:
    request.app.state.service.metrics.failed(reason)


async def _refuse(request: Request, refused: Refused) -> Response:
    _count(request, refused.reason)
    return _answer(request, refused)


async def _refuse_invalid(request: Request, error: RequestValidationError) -> Response:
    """Tell what is wrong with a body, without what it holds."""
    told = dict.fromkeys(f"{_place(problem['loc'])}: {problem['msg']}" for problem in error.errors()[:3])
    if "json" not in request.headers.get("content-type", ""):
        told = ["the body is not said to be JSON: send the header Content-Type: application/json"]
    _count(request, "validation")
    return _answer(request, Refused("Validation", "; ".join(told)[:1000]), error.body)


def _place(location: Sequence[object]) -> str:
    """Where a value stands, without the types that might have been there."""
    return ".".join(str(part)[:40] for part in location if str(part).isidentifier() or isinstance(part, int))


async def _refuse_other(request: Request, error: HTTPException) -> Response:
    """Tell of a path or a method that there is not, or of a body that cannot be read."""
    kind: Kind = "Validation"
    response = _answer(request, Refused(kind, str(error.detail), status=error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _leave(request: Request, gone: Gone) -> Response:
    _count(request, "dropped")
    return Response(status_code=_CLOSED)


async def _fail(request: Request, error: Exception) -> Response:
    """Tell of a fault of our own; the traceback is in the log."""
    _count(request, "inference")
    message = f"an error of the service itself, {type(error).__name__}: its log says more"
    return _answer(request, Refused("Backend", message, status=500))
