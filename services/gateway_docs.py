"""The OpenAPI description of the gateway: FastAPI's own, and the hot paths that do not pass through FastAPI."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from services.schemas import PredictRequest, PredictResponse, Problem

__all__ = ["describe"]

SCHEMAS = "#/components/schemas/"
USE_CASE = {"name": "use_case", "in": "path", "required": True, "schema": {"type": "string"}}
HEADERS = {
    "x-request-id": "names the answer in logs and for feedback",
    "x-leitstand-version": "model version that answered",
    "x-leitstand-route": "stable or canary",
    "x-leitstand-overhead-ms": "time spent in the gateway itself",
}
ASKED = [
    USE_CASE,
    {"name": "x-request-id", "in": "header", "schema": {"type": "string"}, "description": "an id of your own"},
    {"name": "x-subject", "in": "header", "schema": {"type": "string"}, "description": "whom the route is sticky to"},
]


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole document."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in (PredictRequest, PredictResponse, Problem):
        schema = model.model_json_schema(ref_template=SCHEMAS + "{model}")
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    document["paths"] |= _predict() | _protocol()
    return document


def _predict() -> dict[str, Any]:
    answers = {"200": _answer("Predictions in the order of the texts", PredictResponse)}
    for status, meaning in {
        "404": "No routes for this use case", "413": "The body is too large", "422": "The body is not valid",
        "503": "No capacity; see Retry-After", "504": "The model did not answer in time",
    }.items():  # fmt: skip
        answers[status] = _answer(meaning, Problem, "application/problem+json")
    operation = {
        "summary": "Classify texts", "operationId": "predict", "parameters": ASKED, "responses": answers,
        "requestBody": {"required": True, "content": _content(PredictRequest, "application/json")},
    }  # fmt: skip
    return {"/v1/{use_case}/predict": {"post": operation}}


def _protocol() -> dict[str, Any]:
    any_json = {"application/json": {"schema": {"type": "object"}}}
    passed = {"200": {"description": "The model's answer, unchanged", "headers": _headers(), "content": any_json}}
    infer = {
        "summary": "Open Inference Protocol, passed through", "operationId": "infer", "parameters": ASKED,
        "requestBody": {"required": True, "content": any_json}, "responses": passed,
    }  # fmt: skip
    metadata = {
        "summary": "The model's metadata, passed through", "operationId": "metadata", "parameters": [USE_CASE],
        "responses": passed,
    }  # fmt: skip
    return {"/v2/models/{use_case}/infer": {"post": infer}, "/v2/models/{use_case}": {"get": metadata}}


def _answer(meaning: str, model: type[BaseModel], kind: str = "application/json") -> dict[str, Any]:
    return {"description": meaning, "headers": _headers(), "content": _content(model, kind)}


def _content(model: type[BaseModel], kind: str) -> dict[str, Any]:
    return {kind: {"schema": {"$ref": SCHEMAS + model.__name__}}}


def _headers() -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()}
