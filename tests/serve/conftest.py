"""A service of the toy search engine, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from rocketqa_paddle.checkpoints import load
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.serve.app import make_app
from rocketqa_paddle.serve.limits import Limits
from rocketqa_paddle.serve.models import Models
from rocketqa_paddle.serve.service import Service


@pytest.fixture(scope="module")
def service(best: Path) -> Iterator[Service]:
    made = Service(Models.open(best, name="toy"), Limits(max_client_batch_size=100, payload_limit=20_000))
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service), raise_server_exceptions=False) as made:
        yield made


@pytest.fixture(scope="module")
def retriever(best: Path) -> Checkpoint:
    return load(best / "retriever")


@pytest.fixture(scope="module")
def reranker(best: Path) -> Checkpoint:
    return load(best / "reranker")
