"""Errors as HTTP: a status, the V2 protocol's error body, and headers.

The protocol asks for ``{"error": "..."}``. Refusals for capacity carry ``Retry-After``.
"""

import orjson

from leitstand.errors import ConfigurationError, LeitstandError, NotFoundError
from services.scheduling import Overloaded, TooLate

__all__ = ["HttpError", "Response", "bad_request", "error_response", "not_found", "too_large"]

Response = tuple[int, list[tuple[bytes, bytes]], bytes]

JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")


class HttpError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def bad_request(message: str) -> HttpError:
    """The request breaks the protocol or the model's input."""
    return HttpError(400, message)


def not_found(message: str) -> HttpError:
    """Unknown model, version or path."""
    return HttpError(404, message)


def too_large(message: str) -> HttpError:
    """A text or the body exceeds its bound."""
    return HttpError(413, message)


def error_response(error: BaseException) -> Response:
    """The answer for any exception. Faults that are not ours to explain stay in the server's log."""
    headers = [JSON]
    if isinstance(error, TooLate):
        status, message = 504, error.reason
    elif isinstance(error, Overloaded):
        headers.append((b"retry-after", str(round(error.retry_after_s)).encode()))
        status, message = 503, f"overloaded: {error.reason}"
    elif isinstance(error, HttpError):
        status, message = error.status, error.message
    elif isinstance(error, NotFoundError):
        status, message = 404, error.message
    elif isinstance(error, ConfigurationError):
        status, message = 400, error.message
    elif isinstance(error, LeitstandError):
        status, message = 500, error.message
    else:
        status, message = 500, "internal error; the server's log has the details"
    return status, headers, orjson.dumps({"error": message})
