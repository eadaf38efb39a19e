"""The endpoints of text-embeddings-inference for retrievers: /embed, /similarity and /tokenize."""

from __future__ import annotations

from itertools import chain, islice
from typing import Annotated, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field
from starlette.responses import Response

from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.serve.answers import FIRST, TEI_ERRORS, Served, Text, Texts, json_answer
from rocketqa_paddle.serve.errors import Refused
from rocketqa_paddle.serve.inputs import Input, Side, Truncation
from rocketqa_paddle.serve.service import Service

router = APIRouter(tags=["text-embeddings-inference"], responses=TEI_ERRORS)
SIDES: dict[str | None, Side] = {
    "query": "query",
    "document": "passage",
    "passage": "passage",
    None: "passage",
}
"""The towers by the names of prompts. Without one, texts are passages, of which there are more."""
Direction = Annotated[
    Literal["left", "right"],
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
]
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31, strict=True)]], FIRST]
Inputs = Text | Annotated[list[Text | Ids], FIRST] | Ids
"""A text or its token ids, or a list of such."""
_TOKENS_A_PART = 10_000


class Cutting(BaseModel):
    """What to do with a text that is longer than the model reads."""

    truncate: bool | None = None
    """Cut it, which is the default; false refuses it."""
    truncation_direction: Direction = "right"
    """The end that is cut off."""

    def truncation(self) -> Truncation:
        """The same in our words."""
        return Truncation(self.truncate is not False, self.truncation_direction == "left")


class EmbedRequest(Cutting):
    """Texts to encode, or their token ids."""

    inputs: Inputs
    prompt_name: str | None = None
    """`query` or `document`: the tower that encodes."""
    normalize: bool | None = None
    """Scale the vectors to unit length. When empty, they are those whose inner product is the score."""
    dimensions: int | None = Field(None, ge=1)
    """Keep the first numbers of every vector."""


class SimilarityInput(BaseModel):
    """A text and others to compare it with."""

    source_sentence: Text
    sentences: Texts


class SimilarityParameters(Cutting):
    """How to encode them."""

    prompt_name: str | None = None
    """The tower for all of them. When empty, the source is a query and the others are documents."""


class SimilarityRequest(BaseModel):
    """Texts to compare."""

    inputs: SimilarityInput
    parameters: SimilarityParameters | None = None


class TokenizeRequest(BaseModel):
    """Texts to tokenise."""

    inputs: Text | Texts
    add_special_tokens: bool = True
    prompt_name: str | None = None


class Token(BaseModel):
    """A token of a text; where it stands is not known."""

    id: int
    text: str
    special: bool
    start: int | None = None
    stop: int | None = None


def as_list(inputs: str | list[str | list[int]] | list[int]) -> list[Input]:
    """One text, the ids of one text, or many of them, as a list."""
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
        return [inputs]
    return inputs


def side_of(prompt_name: str | None) -> Side:
    """The tower of a prompt's name.

    Raises:
        Refused: there is none.
    """
    if prompt_name not in SIDES:
        message = f"prompt_name {prompt_name[:40]!r}, expected 'query' or 'document'"
        raise Refused("Validation", message)
    return SIDES[prompt_name]


def check_dimensions(service: Service, dimensions: int | None) -> None:
    """Refuse more dimensions than there are, before anything is computed.

    Raises:
        Refused: there are fewer dimensions.
    """
    retriever = service.models.retriever  # without one, the service says so
    if dimensions and retriever and dimensions > (hidden := retriever.network.config.hidden_size):
        raise Refused("Validation", f"dimensions={dimensions}, but the model has {hidden}")


def shaped_vectors(vectors: np.ndarray, normalize: bool, dimensions: int | None) -> np.ndarray:
    """Keep the first dimensions of vectors `[rows, hidden]`, and scale them to unit length if asked to."""
    vectors = np.ascontiguousarray(vectors[:, :dimensions])
    return (
        vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) if normalize else vectors
    )


@router.post("/embed", responses={200: {"model": list[list[float]]}})
async def embed(request: Request, service: Served, asked: EmbedRequest) -> Response:
    """Encode texts as vectors: a list of lists, also for one text."""
    side, inputs = side_of(asked.prompt_name), as_list(asked.inputs)
    check_dimensions(service, asked.dimensions)
    method = "batch" if isinstance(asked.inputs, list) else "single"
    encoded = await service.answer(request, method, lambda: service.encode(side, inputs, asked.truncation()))
    return json_answer(shaped_vectors(encoded.values, bool(asked.normalize), asked.dimensions))


@router.post("/similarity", responses={200: {"model": list[float]}})
async def similarity(request: Request, service: Served, asked: SimilarityRequest) -> Response:
    """Compare a text with others by the cosine of their vectors."""
    parameters = asked.parameters or SimilarityParameters()
    named, how = parameters.prompt_name, parameters.truncation()
    source = side_of(named) if named else "query"

    async def compare() -> np.ndarray:
        others = (await service.encode(side_of(named), asked.inputs.sentences, how)).values
        one = (await service.encode(source, [asked.inputs.source_sentence], how)).values
        return shaped_vectors(others, True, None) @ shaped_vectors(one, True, None)[0]

    return json_answer(await service.answer(request, "batch", compare))


@router.post("/", responses={200: {"model": list[list[float]] | list[float]}})
async def infer(request: Request, service: Served, asked: EmbedRequest | SimilarityRequest) -> Response:
    """Answer as /embed or /similarity, for clients that know the address of a service alone."""
    if isinstance(asked, SimilarityRequest):
        return await similarity(request, service, asked)
    return await embed(request, service, asked)


@router.post("/tokenize", responses={200: {"model": list[list[Token]]}})
async def tokenize(request: Request, service: Served, asked: TokenizeRequest) -> Response:
    """Return the tokens of texts as the model reads them, before they are cut."""
    texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    side_of(asked.prompt_name)
    model = service.models.retriever or service.models.reranker

    async def tokens() -> list[orjson.Fragment]:
        return await service.apart(
            texts, lambda: [_tokens(model, t, asked.add_special_tokens) for t in texts]
        )

    return json_answer(await service.answer(request, "batch", tokens))


def _tokens(model: Checkpoint, text: str, special: bool) -> orjson.Fragment:
    """The tokens of a text as JSON, made part by part: as objects they would take five times the memory."""
    tokenizer = model.tokenizer
    (ids,), pieces = tokenizer.encode([text]), tokenizer.tokenize(text)
    named = ((i, piece, False) for i, piece in zip(ids, pieces, strict=True))
    if special:
        named = chain([(tokenizer.cls_id, "[CLS]", True)], named, [(tokenizer.sep_id, "[SEP]", True)])
    tokens = ({"id": i, "text": t, "special": s, "start": None, "stop": None} for i, t, s in named)
    parts = []
    while part := list(islice(tokens, _TOKENS_A_PART)):
        parts.append(orjson.dumps(part)[1:-1])
    return orjson.Fragment(b"[" + b",".join(parts) + b"]")
