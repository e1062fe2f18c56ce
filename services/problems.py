"""Errors of the gateway as HTTP: problem bodies of RFC 9457, or the V2 protocol's error body below ``/v2``."""

import orjson

from leitstand.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConflictError,
    ContentBlocked,
    LeitstandError,
    NotFoundError,
    PolicyDenied,
    QuotaExceeded,
    ScopeMissing,
    TransientBackendError,
)  # fmt: skip
from services.deadlines import DeadlineExceeded
from services.errors import JSON, HttpError, Response
from services.scheduling import Overloaded
from services.trace_context import TRACE_ID
from services.upstreams import UpstreamFailed

__all__ = ["PROBLEM", "problem", "problem_for", "protocol_error"]

PROBLEM = (b"content-type", b"application/problem+json")
TITLES = {
    400: "Bad request", 401: "Not authenticated", 403: "Refused by policy", 404: "Not found",
    405: "Method not allowed", 409: "Conflict", 413: "Too large", 415: "Unsupported body", 422: "Not valid",
    429: "Limit reached", 431: "Headers too large", 500: "Internal error", 502: "Upstream failed", 503: "No capacity",
    504: "Upstream too slow",
}  # fmt: skip
STATUS = {"timeout": 504, "error": 502, "garbled": 502}  # of `UpstreamFailed`; the other reasons may pass: 503


def problem(status: int, detail: str, *, request_id: str = "", hint: str | None = None, **more: object) -> Response:
    """A problem body; `type` is about:blank because the status says it all, `hint` says what to do next."""
    body = {"type": "about:blank", "title": TITLES.get(status, "Error"), "status": status, "detail": detail}
    body |= {"hint": hint} if hint else {}
    body |= {"request_id": request_id} if request_id else {}
    body |= {"trace_id": trace} if (trace := TRACE_ID.get()) else {}
    return status, [PROBLEM], orjson.dumps(body | more)


def problem_for(error: BaseException, request_id: str = "") -> Response:
    """The problem of any exception. Faults that are not ours to explain stay in the log."""
    status, detail, hint, retry_after_s = _explained(error)
    more: dict[str, object] = {"reasons": error.reasons} if isinstance(error, ContentBlocked) else {}
    more |= {"limit": error.limit} if isinstance(error, QuotaExceeded) else {}
    response = problem(status, detail, request_id=request_id, hint=hint, **more)
    return _with_headers(response, error, retry_after_s)


def protocol_error(error: BaseException) -> Response:
    """The same as ``{"error": "..."}``, which clients of the protocol expect."""
    status, detail, hint, retry_after_s = _explained(error)
    text = f"{detail}; {hint}" if hint and status < 500 else detail  # noqa: PLR2004
    return _with_headers((status, [JSON], orjson.dumps({"error": text})), error, retry_after_s)


def _with_headers(response: Response, error: BaseException, retry_after_s: float | None) -> Response:
    challenge = _challenge(error)
    if challenge:
        response[1].append((b"www-authenticate", challenge.encode("ascii", "replace")))
    if retry_after_s is not None:
        response[1].append((b"retry-after", str(max(1, round(retry_after_s))).encode()))
    return response


def _challenge(error: BaseException) -> str:
    """The header `WWW-Authenticate` of RFC 6750, section 3; only a request with a credential learns what is wrong."""
    if isinstance(error, ScopeMissing):
        return f'Bearer realm="leitstand", error="insufficient_scope", scope="{error.scope}"'
    if isinstance(error, AuthenticationFailed):
        said = error.message.replace("\\", "").replace('"', "'")
        reason = f', error="{error.code}", error_description="{said}"' if error.code else ""
        return f'Bearer realm="leitstand"{reason}'
    return ""


def _explained(error: BaseException) -> tuple[int, str, str | None, float | None]:
    if isinstance(error, HttpError):
        return error.status, error.message, None, None
    if isinstance(error, Overloaded):
        return 503, f"overloaded: {error.reason}", None, error.retry_after_s
    if isinstance(error, UpstreamFailed):
        status = STATUS.get(error.reason, 503)
        return status, error.message, error.hint, error.retry_after_s if status == 503 else None  # noqa: PLR2004
    if isinstance(error, QuotaExceeded):
        return 429, error.message, error.hint, error.retry_after_s
    kinds = (
        (AuthenticationFailed, 401),
        (NotFoundError, 404), (ConflictError, 409), (PolicyDenied, 403), (ConfigurationError, 400),
        (DeadlineExceeded, 504), (TransientBackendError, 503), (LeitstandError, 500),
    )  # fmt: skip
    for kind, status in kinds:
        if isinstance(error, kind):
            return status, error.message, error.hint, 1.0 if status == 503 else None  # noqa: PLR2004
    return 500, "internal error; the gateway's log has the details", None, None
