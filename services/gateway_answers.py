"""What the operations of the OpenAPI document share: response headers, errors by status, schemas and examples."""

from http import HTTPStatus
from typing import Any

from services.chat_schemas import ChatRequest
from services.problems import TITLES
from services.schemas import PredictRequest, PredictResponse, Problem

__all__ = ["EXAMPLES", "HEADERS", "SCHEMAS", "SECURITY", "answer", "chat_errors", "passed_errors", "problem_responses",
    "problems", "shared_schemas"]  # fmt: skip

SCHEMAS = "#/components/schemas/"
ID = "0193590c-8a3b-7cc2-9f1e-3b8a2c5d7e90"
TOO_LARGE = 431


def _header(description: str, kind: str, example: object) -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}, "example": example}


HEADERS = {
    "x-request-id": _header("names the answer in logs, for feedback and for the audit trail", "string", ID),
    "x-leitstand-version": _header("model version that answered", "string", "3"),
    "x-leitstand-route": _header("stable, canary, fallback or pinned", "string", "stable"),
    "x-leitstand-overhead-ms": _header("time spent in the gateway itself, in milliseconds", "string", "0.412"),
    "x-leitstand-cost": _header("what the request cost, in the unit of the budgets", "string", "0.000120"),
    "x-leitstand-fallback": _header("why the fallback answered; only there when it did", "string", "timeout"),
    "ratelimit": _header("what is left of the limits, and until when (draft-ietf-httpapi-ratelimit-headers)", "string",
        '"requests";r=9;t=1'),
    "ratelimit-policy": _header("the limits that apply", "string", '"requests";q=10;w=1'),
    "retry-after": _header("seconds after which it makes sense to ask again", "string", "1"),
    "www-authenticate": _header("how to authenticate, what was wrong (RFC 6750)", "string", 'Bearer realm="leitstand"'),
    "traceparent": _header("the trace of this request, where traces are on", "string",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
}  # fmt: skip
OF_ANSWERS = (
    "x-request-id", "x-leitstand-version", "x-leitstand-route", "x-leitstand-overhead-ms", "x-leitstand-cost",
    "x-leitstand-fallback", "ratelimit", "ratelimit-policy", "traceparent",
)  # fmt: skip
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT",
        "description": "a token of the identity provider, with a scope like `support:predict`"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}  # fmt: skip
DETAILS: dict[int, tuple[str, str | None]] = {
    400: ("the model answered 400", None),
    401: ("No credentials", "send a bearer token or an API key"),
    403: ("The text was refused: injection", "see `reasons`; each is a code of a guard rule"),
    404: ("No routes for use case 'suport'", "there are: support"),
    409: ("The id was used before for something else", "choose another id"),
    413: ("the body has 3000000 bytes, at most 2097152 are accepted", None),
    415: ("unsupported content encoding", None),
    422: ("texts: List should have at least 1 item after validation, not 0", None),
    429: ("The limit 'requests' of the tenant is reached", "ask again after Retry-After"),
    431: ("the headers have 40000 bytes, at most 32768 are accepted", None),
    502: ("http://127.0.0.1:3000 answered 500", "see `leitstand status` and the log of the Bento"),
    503: ("overloaded: 512 requests are being answered", None),
    504: ("http://127.0.0.1:3000 did not answer within 5.00 s", "see `leitstand status` and the log of the Bento"),
}
MORE = {403: {"reasons": ["injection"]}, 429: {"limit": "requests"}}
PREDICTION = {
    "label": "card_arrival", "score": 0.97, "abstain": False,
    "top": [{"label": "card_arrival", "score": 0.97}, {"label": "card_delivery_estimate", "score": 0.02}],
}  # fmt: skip
TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["My new card still has not arrived"]}
JOB = "/v1/support/jobs/" + ID
STATUS = {
    "id": ID, "use_case": "support", "state": "queued", "cancelling": False, "priority": "normal", "texts": 1,
    "texts_done": 0, "texts_refused": 0, "attempts": 0, "error": None, "created_at": "2026-11-24T12:00:00Z",
    "started_at": None, "finished_at": None, "retry_at": None, "expires_at": None,
    "links": {"self": JOB, "result": JOB + "/result", "events": JOB + "/events"},
}  # fmt: skip
EXAMPLES: dict[tuple[str, str], tuple[Any, Any]] = {
    ("post", "/v1/{use_case}/predict"): (
        {"texts": ["My new card still has not arrived"], "top_k": 2},
        {"request_id": ID, "use_case": "support", "version": 3, "route": "stable", "predictions": [PREDICTION]},
    ),
    ("post", "/v1/{use_case}/feedback"): (
        {"request_id": ID, "index": 0, "label": "card_arrival", "source": "agent-7f3a"},
        {"feedback_id": ID, "recorded": True, "known": True, "new_label": False, "at": "2026-11-24T12:00:00Z"},
    ),
    ("post", "/v1/{use_case}/jobs"): ({"texts": ["My new card still has not arrived"]}, STATUS),
    ("get", "/v1/{use_case}/jobs/{job_id}"): (None, STATUS),
    ("delete", "/v1/{use_case}/jobs/{job_id}"): (None, STATUS | {"state": "cancelled"}),
    ("get", "/v1/{use_case}/jobs/{job_id}/result"): (
        None, {"id": ID, "use_case": "support", "predictions": [PREDICTION | {"version": 3, "route": "stable"}]},
    ),
    ("get", "/livez"): (None, {"live": True}),
    ("get", "/readyz"): (
        None, {"ready": True, "draining": False, "route_store": "ok", "audit": "ok", "routes": {"support": 7},
            "breakers": {}},
    ),
    ("post", "/v2/models/{use_case}/infer"): (
        {"inputs": [TENSOR]},
        {"model_name": "support", "model_version": "3", "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["card_arrival"]},
            {"name": "score", "datatype": "FP32", "shape": [1], "data": [0.97]},
        ]},
    ),
    ("get", "/v2/models/{use_case}"): (
        None, {"name": "support", "versions": ["3"], "platform": "leitstand_openvino", "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [-1]}], "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]}]},
    ),
    ("post", "/v1/chat/completions"): (
        {"model": "finance", "messages": [{"role": "user", "content": "What does diversification mean?"}]},
        {"id": ID, "object": "chat.completion", "model": "finance", "created": 1795521600, "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Not all eggs in one basket."},
             "finish_reason": "stop"}], "usage": {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17}},
    ),
}  # fmt: skip


def answer(meaning: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    """A JSON answer of the pipeline, with its headers."""
    content = {"schema": schema} | ({"example": example} if example is not None else {})
    return {"description": meaning, "headers": _headers(*OF_ANSWERS), "content": {"application/json": content}}


def problems(*statuses: int) -> dict[str, Any]:
    """References to the problems of some statuses."""
    return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in statuses}


def problem_responses() -> dict[str, Any]:
    """Every problem as a response of RFC 9457, with an example."""
    return {
        f"Problem{status}": _error(status, "application/problem+json", "Problem", _problem(status))
        for status in DETAILS
    }


def passed_errors() -> dict[str, Any]:
    """Errors below ``/v2``; what the model itself refuses comes through as it is."""
    made = {
        str(status): _error(status, "application/json", "ProtocolError", {"error": DETAILS[status][0]})
        for status in DETAILS
    }
    return made | problems(TOO_LARGE)


def chat_errors(*statuses: int) -> dict[str, Any]:
    """Errors in OpenAI's shape."""
    made = {}
    for status in statuses:
        error = {"message": DETAILS[status][0], "type": "invalid_request_error", "param": None, "code": None}
        made[str(status)] = _error(status, "application/json", "ChatError", {"error": error | {"request_id": ID}})
    return made | (problems(TOO_LARGE) if TOO_LARGE in statuses else {})


def shared_schemas() -> dict[str, Any]:
    """The schemas of the hot paths."""
    schemas: dict[str, Any] = {}
    for model in (PredictRequest, PredictResponse, Problem, ChatRequest):
        schema = model.model_json_schema(ref_template=SCHEMAS + "{model}")
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    # What pydantic cannot say: exactly one of the two.
    schemas["PredictRequest"]["oneOf"] = [
        {"required": ["text"], "properties": {"text": {"type": "string"}, "texts": {"type": "null"}}},
        {"required": ["texts"], "properties": {"texts": {"type": "array"}, "text": {"type": "null"}}},
    ]
    text = {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}
    tensor = {
        "type": "object", "required": ["name", "datatype", "shape"],
        "properties": {"name": {"type": "string"}, "datatype": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}}, "data": {"type": "array"}},
    }  # fmt: skip
    return schemas | {
        "ProtocolError": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
        "ChatError": {"type": "object", "required": ["error"], "properties": {"error": text}},
        "InferRequest": {
            "type": "object", "required": ["inputs"],
            "properties": {"inputs": {"type": "array", "minItems": 1, "items": tensor}},
        },
    }  # fmt: skip


def _problem(status: int) -> dict[str, Any]:
    detail, hint = DETAILS[status]
    body: dict[str, Any] = {"type": "about:blank", "title": TITLES[status], "status": status, "detail": detail}
    return body | ({"hint": hint} if hint else {}) | {"request_id": ID} | MORE.get(status, {})


def _error(status: int, kind: str, schema: str, example: dict[str, Any]) -> dict[str, Any]:
    names = ["x-request-id", "traceparent"]
    names += ["www-authenticate"] if status in (401, 403) else []
    names += ["retry-after"] if status in (429, 503) else []
    content = {kind: {"schema": {"$ref": SCHEMAS + schema}, "example": example}}
    return {"description": HTTPStatus(status).phrase, "headers": _headers(*names), "content": content}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
