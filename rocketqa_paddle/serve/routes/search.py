"""Our own endpoint: /search, and the page that uses it."""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import HTMLResponse, Response

from rocketqa_paddle.data.places import NO_TITLE
from rocketqa_paddle.records import Result
from rocketqa_paddle.serve.answers import TEI_ERRORS, Served, Texts, json_answer

router = APIRouter(tags=["search"], responses=TEI_ERRORS)
_LARGEST_K = 1000


class SearchRequest(BaseModel):
    """Queries to search for."""

    queries: Texts
    k: int = Field(5, ge=1, le=_LARGEST_K)
    """Passages a query."""
    depth: int | None = Field(None, ge=0, le=_LARGEST_K)
    """Passages that the re-ranker reads; 0 leaves the order of what was found."""
    fuse: Literal["rrf", "weighted"] | None = None
    """Search with BM25 as well, where the index has it."""
    weight: float | None = Field(None, ge=0, le=1)
    """The weight of BM25 in a weighted fusion."""


class FoundPassage(BaseModel):
    """A passage, best first."""

    rank: int
    id: str
    title: str
    text: str
    score: float
    """The score that orders the passages."""
    found_rank: int
    """The rank before the re-ranker read the passage."""
    retriever_score: float
    reranker_score: float | None


class SearchAnswer(BaseModel):
    """For every query, the passages that were found."""

    results: list[list[FoundPassage]]


@router.post("/search", responses={200: {"model": SearchAnswer}})
async def search(request: Request, service: Served, asked: SearchRequest) -> Response:
    """Find passages for queries."""
    method = "single" if len(asked.queries) == 1 else "batch"
    results = await service.answer(
        request,
        method,
        lambda: service.search(asked.queries, asked.k, asked.depth, asked.fuse, asked.weight),
    )
    return json_answer({"results": [[_shown(result) for result in found] for found in results]})


def _shown(result: Result) -> dict[str, object]:
    passage = result.passage
    return {
        "rank": result.rank,
        "id": passage.id,
        "title": "" if passage.title == NO_TITLE else passage.title,
        "text": passage.text,
        "score": result.score,
        "retriever_score": result.retriever_score,
        "found_rank": result.found_rank,
        "reranker_score": result.reranker_score,
    }


@router.get("/", include_in_schema=False)
@router.head("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """The search page."""
    html, headers = _page()
    return HTMLResponse(html, headers=headers)


@cache
def _page() -> tuple[str, dict[str, str]]:
    """The page, and headers by which a browser runs its script alone and makes no HTML of data."""
    html = files("rocketqa_paddle.serve").joinpath("page.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_source(html, 'script')}; style-src {_source(html, 'style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return html, headers


def _source(html: str, tag: str) -> str:
    """What allows one inline element in a policy: the hash of its content."""
    content = html.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
