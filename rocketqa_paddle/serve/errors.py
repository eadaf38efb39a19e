"""Refusals, and the shapes in which each family of clients expects them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

Kind = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty", "Unauthorized"]
"""What went wrong, in the words of text-embeddings-inference; it knows nobody who is unauthorized."""
Family = Literal["tei", "openai", "cohere"]
"""Clients that agree on a shape of errors; Jina's are served with Cohere's."""

STATUS: dict[Kind, int] = {
    "Empty": 400,
    "Unauthorized": 401,
    "Validation": 422,
    "Tokenizer": 422,
    "Backend": 424,
    "Overloaded": 429,
    "Unhealthy": 503,
}
"""The HTTP status of each kind, unless a refusal has another one."""
_FAMILIES: dict[str, Family] = {
    "/v1/rerank": "cohere",
    "/v2/": "cohere",
    "/v1/": "openai",
    "/embeddings": "openai",
}
"""Whose endpoints begin like this; the first that fits counts."""
_OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request that is not answered.

    Args:
        kind: what went wrong.
        message: what was given, what is allowed, and what to do.
        status: the HTTP status, if it is not the usual one of this kind.
        reason: the label in the metrics; by default the kind in lower case.
        code: OpenAI's code of the error, such as `model_not_found`.
    """

    def __init__(
        self, kind: Kind, message: str, status: int | None = None, reason: str = "", code: str | None = None
    ) -> None:
        super().__init__(message)
        self.kind, self.message, self.code = kind, message, code
        self.status, self.reason = status or STATUS[kind], reason or kind.lower()


def family_of(path: str, body: Any = None) -> Family:
    """Tell which clients send requests like this one."""
    if path == "/rerank" and isinstance(body, Mapping) and "documents" in body:
        return "cohere"
    return next((family for start, family in _FAMILIES.items() if path.startswith(start)), "tei")


def shaped(family: Family, refused: Refused) -> tuple[int, dict[str, Any]]:
    """The status and the body of an answer that refuses."""
    return _SHAPES[family](refused)


def _tei(refused: Refused) -> tuple[int, dict[str, Any]]:
    return refused.status, {"error": refused.message, "error_type": refused.kind}


def _openai(refused: Refused) -> tuple[int, dict[str, Any]]:
    status = 400 if refused.status == 422 else refused.status
    type = "server_error" if status >= 500 else _OPENAI_TYPES.get(status, "invalid_request_error")
    error = {"message": refused.message, "type": type, "param": None, "code": refused.code}
    return status, {"error": error}


def _cohere(refused: Refused) -> tuple[int, dict[str, Any]]:
    status = 400 if refused.status == 422 else refused.status
    return status, {"message": refused.message, "detail": refused.message}


_SHAPES: dict[Family, Callable[[Refused], tuple[int, dict[str, Any]]]] = {
    "tei": _tei,
    "openai": _openai,
    "cohere": _cohere,
}
