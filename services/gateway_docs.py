"""The OpenAPI description of the gateway: FastAPI's own, and the hot paths that do not pass through FastAPI.

`services.gateway_answers` has what the operations share: headers, problems, examples. The document says nothing about
an installation: no use case, no model, no address.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from services.chat_schemas import ChatRequest
from services.gateway_answers import (
    EXAMPLES,
    HEADERS,
    SCHEMAS,
    SECURITY,
    answer,
    chat_errors,
    passed_errors,
    problem_responses,
    problems,
    shared_schemas,
)  # fmt: skip
from services.schemas import PredictRequest, PredictResponse

__all__ = ["describe"]

USE_CASE = {
    "name": "use_case", "in": "path", "required": True, "example": "support",
    "schema": {"type": "string", "minLength": 1, "pattern": "^[a-z0-9][a-z0-9_-]*$"},
}  # fmt: skip
VERSION = {
    "name": "version", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1, "maximum": 10**9},
    "example": 3,
}  # fmt: skip
ASKED = [
    {"name": "x-request-id", "in": "header",
     "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"},
     "description": "an id of your own; anything else is replaced"},
    {"name": "x-subject", "in": "header", "schema": {"type": "string", "maxLength": 256, "pattern": "^[ -~]*$"},
     "description": "whom the route is sticky to; from a pseudonym, never a name"},
    {"name": "x-deadline-ms", "in": "header", "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
     "description": "milliseconds that the caller waits; 504 when they are over", "example": 800},
    {"name": "x-priority", "in": "header", "schema": {"enum": ["low", "normal", "high"]},
     "description": "who is refused first when the gateway is nearly full; more than policy allows is cut to it"},
    {"name": "traceparent", "in": "header", "schema": {"type": "string", "maxLength": 256, "pattern": "^[ -~]*$"},
     "description": "W3C trace context, continued and handed on"},
]  # fmt: skip
FASTAPI = {
    "/v1/{use_case}/feedback": ("feedback", 400, 401, 403, 404, 409, 413, 422, 431, 503),
    "/v1/{use_case}/jobs": ("jobs", 400, 401, 403, 404, 409, 413, 422, 429, 431, 503),
    "/v1/{use_case}/jobs/{job_id}": ("jobs", 401, 403, 404, 409, 413, 431, 503),
    "/v1/{use_case}/jobs/{job_id}/result": ("jobs", 401, 403, 404, 409, 431, 503),
    "/v1/{use_case}/jobs/{job_id}/events": ("jobs", 401, 403, 404, 429, 431, 503),
    "/livez": ("operation", 431), "/readyz": ("operation", 431), "/metrics": ("operation", 401, 403, 404, 431),
}  # fmt: skip


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole document; made once and kept by `app`."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        document["security"] = [{"bearer": []}, {"apiKey": []}, {}]
        document["tags"] = [
            {"name": "predict", "description": "Texts in, predictions out"},
            {"name": "protocol", "description": "Open Inference Protocol (V2), passed through"},
            {"name": "chat", "description": "OpenAI-compatible"},
            {"name": "feedback", "description": "What was right, later"},
            {"name": "jobs", "description": "Long work that waits in a queue"},
            {"name": "operation", "description": "Health, metrics"},
        ]
        _complete(document["paths"])
        document["paths"] |= _predict() | _protocol() | _chat()
        parts = document.setdefault("components", {})
        schemas = parts.setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        schemas |= shared_schemas()
        parts |= {"headers": HEADERS, "responses": problem_responses(), "securitySchemes": SECURITY}
        app.openapi_schema = document
    return app.openapi_schema


def _complete(paths: dict[str, Any]) -> None:
    """Gives FastAPI's operations tags, parameters with their shape, problems instead of its own errors, examples."""
    for path, item in paths.items():
        tag, *statuses = FASTAPI.get(path, ("operation",))
        for operation in item.values():
            operation["tags"] = [tag]
            if path in ("/livez", "/readyz"):
                operation["security"] = [{}]
            said = {status: meaning for status, meaning in operation["responses"].items() if int(status) < 400}  # noqa: PLR2004
            operation["responses"] = said | problems(*statuses)
            parameters = [each for each in operation.get("parameters", []) if each["name"] != "use_case"]
            if "{use_case}" in path:
                operation["parameters"] = [USE_CASE, *parameters]
            _exemplify(operation, path)
            for response in said.values():
                response["headers"] = {}
    submit = paths.get("/v1/{use_case}/jobs", {}).get("post")
    if submit is not None:
        submit["parameters"].append(
            {"name": "idempotency-key", "in": "header", "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
             "description": "the same key returns the same job"}
        )  # fmt: skip
        submit["responses"]["202"]["headers"] = {"location": {"schema": {"type": "string"}, "description": "the job"}}
    ready = paths.get("/readyz", {}).get("get")
    if ready is not None:
        ready["responses"]["503"] = {"description": "Not ready", "content": ready["responses"]["200"]["content"]}


def _exemplify(operation: dict[str, Any], path: str) -> None:
    asked, said = EXAMPLES.get((operation["operationId"].rpartition("_")[2], path), (None, None))
    if asked is not None:
        operation["requestBody"]["content"]["application/json"]["example"] = asked
    if said is not None:
        status = next(iter(operation["responses"]))
        operation["responses"][status]["content"]["application/json"]["example"] = said


def _predict() -> dict[str, Any]:
    asked, said = EXAMPLES["post", "/v1/{use_case}/predict"]
    operation = {
        "tags": ["predict"], "summary": "Classify texts", "operationId": "predict", "parameters": [USE_CASE, *ASKED],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": SCHEMAS + PredictRequest.__name__}, "example": asked}},
        },
        "responses": {
            "200": answer("Predictions in the order of the texts", {"$ref": SCHEMAS + PredictResponse.__name__}, said),
            **problems(400, 401, 403, 404, 413, 415, 422, 429, 431, 502, 503, 504),
        },
    }  # fmt: skip
    return {"/v1/{use_case}/predict": {"post": operation}}


def _protocol() -> dict[str, Any]:
    asked, said = EXAMPLES["post", "/v2/models/{use_case}/infer"]
    _, about = EXAMPLES["get", "/v2/models/{use_case}"]
    body = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": SCHEMAS + "InferRequest"}, "example": asked}},
    }

    def infer(name: str, *path: dict[str, Any]) -> dict[str, Any]:
        return {"post": {
            "tags": ["protocol"], "summary": "Open Inference Protocol, passed through", "operationId": name,
            "parameters": [*path, *ASKED], "requestBody": body,
            "responses": {"200": answer("The model's answer, unchanged", {"type": "object"}, said), **passed_errors()},
        }}  # fmt: skip

    def metadata(name: str, *path: dict[str, Any]) -> dict[str, Any]:
        return {"get": {
            "tags": ["protocol"], "summary": "The model's metadata, passed through", "operationId": name,
            "parameters": [*path],
            "responses": {"200": answer("The model's answer, unchanged", {"type": "object"}, about), **passed_errors()},
        }}  # fmt: skip

    def probe(name: str, key: str) -> dict[str, Any]:
        schema = {"type": "object", "required": [key], "properties": {key: {"type": "boolean"}}}
        answers = {"200": answer("Yes", schema, {key: True}), "503": answer("No", schema, {key: False})}
        return {"get": {"tags": ["protocol"], "summary": f"Whether the server is {key}", "operationId": name,
            "security": [{}], "responses": answers}}  # fmt: skip

    about_us = {"type": "object", "required": ["name", "version"]}
    return {
        "/v2": {"get": {"tags": ["protocol"], "summary": "About this server", "operationId": "server_metadata",
            "responses": {"200": answer("Name, version, extensions", about_us, None), **passed_errors()}}},
        "/v2/health/live": probe("server_live", "live"),
        "/v2/health/ready": probe("server_ready", "ready"),
        "/v2/models/{use_case}": metadata("metadata", USE_CASE),
        "/v2/models/{use_case}/infer": infer("infer", USE_CASE),
        "/v2/models/{use_case}/versions/{version}/infer": infer("infer_version", USE_CASE, VERSION),
    }  # fmt: skip


def _chat() -> dict[str, Any]:
    asked, said = EXAMPLES["post", "/v1/chat/completions"]
    done = answer("The whole answer, or a stream of `chat.completion.chunk` events", {"type": "object"}, said)
    done["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    chat = {
        "tags": ["chat"], "summary": "Chat, with or without `stream`", "operationId": "chat", "parameters": ASKED,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": SCHEMAS + ChatRequest.__name__}, "example": asked}},
        },
        "responses": {"200": done, **chat_errors(400, 401, 403, 404, 413, 422, 429, 431, 502, 503, 504)},
    }  # fmt: skip
    models = {
        "tags": ["chat"], "summary": "The use cases that chat and that the caller may ask", "operationId": "models",
        "responses": {
            "200": answer("A list", {"type": "object"}, {"object": "list", "data": []}),
            **chat_errors(401, 403, 431, 503),
        },
    }  # fmt: skip
    return {"/v1/chat/completions": {"post": chat}, "/v1/models": {"get": models}}
