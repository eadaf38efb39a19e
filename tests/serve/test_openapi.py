"""Requests that schemathesis makes of the OpenAPI document: the answers are those that it announces."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from rocketqa_paddle.serve.app import make_app
from rocketqa_paddle.serve.limits import Limits
from rocketqa_paddle.serve.models import Models
from rocketqa_paddle.serve.service import Service

CHECKS = [
    *(not_a_server_error, status_code_conformance),
    *(content_type_conformance, response_schema_conformance),
]


@pytest.fixture(scope="module")
def operations(best: Path):
    service = Service(Models.open(best, name="toy"), Limits(max_client_batch_size=50))
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(service))
    yield [result.ok() for result in schema.get_all_operations()]
    service.close()


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.fuzz)])
def test_no_request_breaks_the_service(
    operations: list[schemathesis.schemas.APIOperation], count: int
) -> None:
    assert {operation.path for operation in operations} >= {"/search", "/embed", "/v2/rerank", "/health"}
    for operation in operations:

        @hypothesis.settings(max_examples=count, suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(case=operation.as_strategy())
        def send(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS)

        send()
