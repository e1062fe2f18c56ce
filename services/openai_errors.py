"""Refusals and failures in OpenAI's shape, for clients that know no other.

Statuses, ``Retry-After`` and texts are those of `services.problems`; only the body is another:
``{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}``, with the request's id beside.
"""

from typing import Any

import orjson

from leitstand.errors import ContentBlocked
from services.chat_payload import BadChatRequest
from services.errors import JSON, Response
from services.problems import problem_for

__all__ = ["openai_error", "openai_refusal", "stream_error"]

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "invalid_request_error", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
CODES = {
    401: "invalid_api_key", 404: "model_not_found", 413: "request_too_large", 429: "rate_limit_exceeded",
    503: "service_unavailable", 504: "upstream_timeout",
}  # fmt: skip
SERVER_ERROR = 500


def openai_error(error: BaseException, request_id: str) -> Response:
    """The response for any exception."""
    status, headers, body = problem_for(error, request_id)
    problem = orjson.loads(body)
    hint = problem.get("hint") if status < SERVER_ERROR else None  # others are for operators, who have the log
    document = _error(status, f"{problem['detail']}; {hint}" if hint else problem["detail"], request_id)
    if isinstance(error, BadChatRequest):
        document |= {"param": error.param or None, "code": error.code}
    elif isinstance(error, ContentBlocked):
        document |= {"code": "content_filter", "reasons": list(error.reasons)}
    kept = [(name, value) for name, value in headers if name != b"content-type"]
    return status, [JSON, *kept], orjson.dumps({"error": document})


def openai_refusal(status: int, message: str, request_id: str) -> Response:
    """The response for a request that the upstream refused for what it says."""
    return status, [JSON], orjson.dumps({"error": _error(status, message, request_id)})


def stream_error(error: BaseException, request_id: str) -> dict[str, Any]:
    """What the last event of a stream says that cannot go on."""
    return orjson.loads(openai_error(error, request_id)[2])["error"]


def _error(status: int, message: str, request_id: str) -> dict[str, Any]:
    kind = TYPES.get(status, "server_error" if status >= SERVER_ERROR else "invalid_request_error")
    return {
        "message": message,
        "type": kind,
        "param": None,
        "code": CODES.get(status, "upstream_error" if status > SERVER_ERROR else None),
        "request_id": request_id,
    }
