"""The trace that a request belongs to (W3C Trace Context, level 1), also where nothing is traced here."""

import re
from collections.abc import Iterable
from contextvars import ContextVar

__all__ = ["TRACEPARENT", "TRACE_ID", "traceparent_of"]

TRACE_ID: ContextVar[str] = ContextVar("trace_id", default="")
"""32 hexadecimal digits of the request that is being answered, or empty."""

TRACEPARENT: ContextVar[str] = ContextVar("traceparent", default="")
"""The header as the caller sent it, for calls on its behalf; empty without a valid one."""

VALID = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


def traceparent_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's `traceparent`, with the trace id from 3 to 35; empty without one, or when it is not valid."""
    for name, value in headers:
        if name == b"traceparent":
            return value.decode("ascii", "replace") if VALID.fullmatch(value) else ""
    return ""
