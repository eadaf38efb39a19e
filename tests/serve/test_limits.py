"""Keys, bounds of bodies and of requests that wait, and clients that go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import orjson
import pytest
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient

from rocketqa_paddle.serve.app import make_app
from rocketqa_paddle.serve.guard import read_keys
from rocketqa_paddle.serve.limits import Limits
from rocketqa_paddle.serve.models import Compute, Models
from rocketqa_paddle.serve.routes import embed
from rocketqa_paddle.serve.routes.embed import EmbedRequest, SimilarityRequest, TokenizeRequest
from rocketqa_paddle.serve.routes.openai import EmbeddingsRequest
from rocketqa_paddle.serve.routes.rerank import CohereRequest, PredictRequest, RerankRequest
from rocketqa_paddle.serve.routes.search import SearchRequest
from rocketqa_paddle.serve.service import TOKENIZERS, Service


@pytest.fixture
def narrow(best: Path) -> Iterator[Service]:
    """A service in which two requests may wait."""
    made = Service(Models.open(best / "retriever"), Limits(max_concurrent_requests=2, payload_limit=1000))
    yield made
    made.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The networks compute once this is set."""
    opened, compute = threading.Event(), Compute.compute

    def wait(self: Compute, rows: list[Any]) -> np.ndarray:
        assert opened.wait(20)
        return compute(self, rows)

    monkeypatch.setattr(Compute, "compute", wait)
    return opened


class Client:
    """Sends requests to an application of ASGI, and may go before they are answered."""

    def __init__(self, service: Service, *keys: bytes) -> None:
        self._app, self.gone = make_app(service, keys), asyncio.Event()

    async def post(
        self, path: str, *parts: bytes, headers: dict[str, str] | None = None, query: bytes = b""
    ) -> tuple[int, Any]:
        waiting = [
            {"type": "http.request", "body": part, "more_body": place < len(parts)}
            for place, part in enumerate(parts, 1)
        ]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if not waiting:
                await self.gone.wait()
                return {"type": "http.disconnect"}
            return waiting.pop(0)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        named = {"content-type": "application/json"} | (headers or {})
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "headers": [(key.encode(), value.encode()) for key, value in named.items()],
        }
        await self._app(scope, receive, send)
        if not sent:
            return 0, None
        return sent[0]["status"], orjson.loads(sent[-1]["body"] or b"null")


ASKED = {"inputs": "blue cat"}
EMBED = orjson.dumps(ASKED)


def test_more_requests_than_may_wait_are_refused_and_the_service_recovers(
    narrow: Service, gate: threading.Event
) -> None:
    async def crowd() -> list[tuple[int, Any]]:
        client = Client(narrow)
        tasks = [asyncio.create_task(client.post("/embed", EMBED)) for _ in range(5)]
        refused, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        while len(refused) < 3:
            refused, _ = await asyncio.wait(tasks, timeout=0.01)
        assert {task.result()[0] for task in refused} == {429}
        assert all(task.result()[1]["error_type"] == "Overloaded" for task in refused)
        gate.set()
        answers = await asyncio.gather(*tasks)
        return [*answers, await client.post("/embed", EMBED)]

    statuses = [status for status, _ in asyncio.run(crowd())]
    assert sorted(statuses) == [200, 200, 200, 429, 429, 429]
    assert b'te_request_failure{err="overloaded"} 3.0' in narrow.metrics.exposition()


def test_a_request_whose_client_goes_is_dropped(narrow: Service, gate: threading.Event) -> None:
    async def leave() -> list[int]:
        stays, leaves = Client(narrow), Client(narrow)
        first = asyncio.create_task(stays.post("/embed", EMBED))
        while not first.done() and not narrow.metrics.exposition().count(b"te_batch_next_size_count 1.0"):
            await asyncio.sleep(0.01)  # until the first is being computed
        second = asyncio.create_task(leaves.post("/embed", EMBED))
        await asyncio.sleep(0.05)
        leaves.gone.set()
        status, _ = await second
        gate.set()
        return [status, (await first)[0], (await stays.post("/embed", EMBED))[0]]

    assert asyncio.run(leave()) == [499, 200, 200]
    assert b'te_request_failure{err="dropped"} 1.0' in narrow.metrics.exposition()


def test_a_client_that_goes_within_its_body_gets_nothing(narrow: Service) -> None:
    async def leave() -> tuple[int, Any]:
        client = Client(narrow)
        client.gone.set()
        return await client.post("/embed")

    assert asyncio.run(leave()) == (0, None)


def test_a_body_is_bounded_however_it_is_sent(narrow: Service) -> None:
    async def send(*parts: bytes, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return (await Client(narrow).post("/embed", *parts, headers=named))[0]

    pieces = [b'{"inputs": "', *[b"a " * 100] * 6, b'"}']
    assert asyncio.run(send(*[b"a"] * 1001)) == 413
    assert asyncio.run(send(*pieces)) == 413
    assert asyncio.run(send(*pieces[:3], pieces[-1])) == 200
    assert asyncio.run(send(content_length="1001")) == 413
    assert asyncio.run(send(EMBED, content_length="many")) == 200
    assert asyncio.run(send(EMBED, content_length="21", transfer_encoding="chunked")) == 400


def test_a_query_string_that_is_no_text_breaks_no_refusal(narrow: Service) -> None:
    assert asyncio.run(Client(narrow).post("/embed", b"{}", query=b"\xff"))[0] == 422


WRONG = [None] * 1000


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        (EmbedRequest, {"inputs": WRONG}),
        (EmbedRequest, {"inputs": [WRONG]}),
        (EmbeddingsRequest, {"input": WRONG}),
        (SimilarityRequest, {"inputs": {"source_sentence": "a", "sentences": WRONG}}),
        (TokenizeRequest, {"inputs": WRONG}),
        (RerankRequest, {"query": "a", "texts": WRONG}),
        (CohereRequest, {"query": "a", "documents": WRONG}),
        (PredictRequest, {"inputs": [["a"]] * 1000}),
        (SearchRequest, {"queries": WRONG}),
    ],
)
def test_one_wrong_item_of_many_is_told(model: type[BaseModel], asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        model.model_validate(asked)
    assert refused.value.error_count() <= 5  # one for each type that it might have been


def test_requests_whose_clients_have_gone_take_no_more_threads(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, begun = threading.Event(), []

    def wait(*arguments: Any) -> None:
        begun.append(arguments)
        assert opened.wait(20)

    monkeypatch.setattr(embed, "_tokens", wait)

    async def leave() -> tuple[int, Any]:
        leaves = [Client(service) for _ in range(3 * TOKENIZERS)]
        tasks = [asyncio.create_task(client.post("/tokenize", EMBED)) for client in leaves]
        while len(begun) < TOKENIZERS:
            await asyncio.sleep(0.01)
        for client in leaves:
            client.gone.set()
        assert {status for status, _ in await asyncio.gather(*tasks)} == {499}
        last = asyncio.create_task(Client(service).post("/tokenize", EMBED))
        await asyncio.sleep(0.1)
        assert len(begun) == TOKENIZERS
        opened.set()
        return await last

    try:
        assert asyncio.run(leave()) == (200, [None])
    finally:
        opened.set()
    assert len(begun) == TOKENIZERS + 1  # nothing was done for those who had gone


def test_short_requests_need_no_thread(service: Service) -> None:
    async def ask() -> tuple[int, Any]:
        threads = anyio.to_thread.current_default_thread_limiter()
        for _ in range(int(threads.total_tokens)):
            threads.acquire_on_behalf_of_nowait(object())
        return await asyncio.wait_for(Client(service).post("/embed", EMBED), 20)

    assert asyncio.run(ask())[0] == 200


def test_requests_need_a_key_but_for_what_machines_look_at(narrow: Service, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first\n\nsecond\n")
    client = TestClient(make_app(narrow, read_keys(file)))
    for path in ("/embed", "/v1/embeddings", "/v2/rerank", "/search", "/nothing"):
        for given in ("", "Bearer", "Bearer wrong", "Bearer first second", "Basic first", "first"):
            answer = client.post(path, json=ASKED, headers={"authorization": given})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer KEY" in answer.text
    assert client.get("/info").status_code == client.get("/openapi.json").status_code == 401
    for key in ("Bearer first", "bearer second"):
        assert client.post("/embed", json=ASKED, headers={"authorization": key}).status_code == 200
    unsaid = client.post("/embed", content=EMBED, headers={"authorization": "Bearer first"})
    assert "Content-Type: application/json" in unsaid.json()["error"]
    for path in ("/health", "/ping", "/metrics", "/"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("content", "told"), [("\n \n", "no key in it"), ("a b", "spaces"), ("ü", "ASCII"), ("a\0b", "visible")]
)
def test_a_file_without_usable_keys_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(ValueError, match=told):
        read_keys(tmp_path / "keys")
    with pytest.raises(FileNotFoundError, match="no such file; the folder has keys"):
        read_keys(tmp_path / "key")


@pytest.mark.parametrize(
    "wrong", [{"max_concurrent_requests": 0}, {"max_batch_tokens": 0}, {"payload_limit": -1}]
)
def test_bounds_out_of_their_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        Limits(**wrong)


def test_a_service_that_has_ended_is_not_healthy(best: Path) -> None:
    service = Service(Models.open(best / "retriever"), Limits())
    service.close()
    client = TestClient(make_app(service))
    for answer in (client.get("/health"), client.post("/embed", json=ASKED)):
        assert (answer.status_code, answer.json()["error_type"]) == (503, "Unhealthy")


def test_a_model_that_computes_nan_is_told_and_harms_nobody_else(
    narrow: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = TestClient(make_app(narrow))
    with monkeypatch.context() as patch:
        patch.setattr(Compute, "compute", lambda self, rows: 1 / 0)
        broken = TestClient(make_app(narrow), raise_server_exceptions=False).post("/embed", json=ASKED)
        assert broken.status_code == 500
        assert "ZeroDivisionError" in broken.json()["error"]

        def nan(self: Compute, rows: list[Any]) -> np.ndarray:
            raise ValueError("the model computes NaN")

        patch.setattr(Compute, "compute", nan)
        broken = client.post("/embed", json=ASKED)
        assert (broken.status_code, broken.json()["error_type"]) == (424, "Backend")
    assert b'te_request_failure{err="inference"} 2.0' in narrow.metrics.exposition()
    assert client.post("/embed", json=ASKED).status_code == 200
