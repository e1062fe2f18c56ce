"""The OpenAPI document against a real gateway in front of real models: requests made from it, answers checked by it."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway_processes import Gateway, Upstream, gateway_running
from tests.servers import RedisServer, free_ports

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
OPERATIONS = {
    ("POST", "/v1/{use_case}/predict"), ("POST", "/v1/{use_case}/feedback"), ("POST", "/v1/{use_case}/jobs"),
    ("GET", "/v1/{use_case}/jobs/{job_id}"), ("GET", "/v1/{use_case}/jobs/{job_id}/result"),
    ("GET", "/v1/{use_case}/jobs/{job_id}/events"), ("DELETE", "/v1/{use_case}/jobs/{job_id}"),
    ("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v2"), ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"), ("GET", "/v2/models/{use_case}"), ("POST", "/v2/models/{use_case}/infer"),
    ("POST", "/v2/models/{use_case}/versions/{version}/infer"), ("GET", "/livez"), ("GET", "/readyz"),
    ("GET", "/metrics"),
}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("openapi")
    upstream = Upstream(1, free_ports(1)[0], folder)
    upstream.start()
    with (
        upstream.stack,
        gateway_running(folder / "home", LEITSTAND_JOBS__REDIS_URI=redis_server.database()) as running_gateway,
    ):
        running_gateway.route(upstream)
        yield running_gateway


@pytest.fixture(scope="module")
def document(gateway: Gateway) -> dict[str, Any]:
    return httpx.get(f"{gateway.url}/openapi.json").json()


@pytest.fixture(scope="module")
def api(gateway: Gateway) -> Any:
    return schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
@pytest.mark.parametrize(("method", "path"), sorted(OPERATIONS))
def test_no_request_made_from_the_document_breaks_the_gateway_or_the_documents_word(
    api: Any, method: str, path: str, mode: GenerationMode
) -> None:
    operation = api[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=20, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck))  # fmt: skip
    def ask(case: Any) -> None:
        case.validate_response(case.call(timeout=10), checks=CHECKS)

    with suppress(Unsatisfiable):  # an operation without parameters cannot be asked in a wrong way
        ask()


def test_every_operation_is_described_with_examples_that_keep_to_their_schema(document: dict[str, Any]) -> None:
    found = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert found == OPERATIONS
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["summary"] and operation["tags"], path
            said = next(iter(operation["responses"].values())).get("content", {})
            if "application/json" in said and path not in ("/v2", "/v1/models"):
                assert "example" in said["application/json"], (method, path)
            if "requestBody" in operation:
                assert "example" in operation["requestBody"]["content"]["application/json"], (method, path)


def test_the_examples_work(gateway: Gateway, document: dict[str, Any]) -> None:
    for path in ("/v1/{use_case}/predict", "/v1/{use_case}/feedback", "/v1/{use_case}/jobs"):
        operation = document["paths"][path]["post"]
        body = operation["requestBody"]["content"]["application/json"]["example"]
        if path.endswith("feedback"):
            body |= {"label": "card"}
        response = httpx.post(gateway.url + path.format(use_case="support"), json=body)
        assert response.status_code == int(next(iter(operation["responses"]))), response.text


def test_every_status_of_a_prediction_is_described_as_a_problem(document: dict[str, Any]) -> None:
    responses = document["paths"]["/v1/{use_case}/predict"]["post"]["responses"]
    assert {"200", "401", "403", "404", "413", "415", "422", "429", "502", "503", "504"} <= responses.keys()
    for status, response in document["components"]["responses"].items():
        example = response["content"]["application/problem+json"]["example"]
        assert status == f"Problem{example['status']}" and example["detail"]
    headers = document["components"]["responses"]["Problem429"]["headers"]
    assert "retry-after" in headers
    assert set(document["components"]["securitySchemes"]) == {"bearer", "apiKey"}


def test_the_page_loads_nothing_from_elsewhere(gateway: Gateway) -> None:
    page = httpx.get(f"{gateway.url}/docs")
    assert page.status_code == 200 and "http" not in page.text.replace("http-equiv", "")
    policies = page.headers.get_list("content-security-policy")
    assert len(policies) == 1 and "default-src 'none'" in policies[0] and "'unsafe-inline'; img" in policies[0]
    for name in ("swagger-ui.css", "swagger-ui-bundle.js", "start.js", "favicon.png"):
        assert f"docs/{name}" in page.text
        assert httpx.get(f"{gateway.url}/docs/{name}").status_code == 200
    assert httpx.get(f"{gateway.url}/docs/../gateway.py").status_code == 404
