"""The id of the trace that a request belongs to (W3C Trace Context, level 1), also where nothing is traced here."""

import re
from collections.abc import Iterable
from contextvars import ContextVar

__all__ = ["TRACE_ID", "trace_id_of"]

TRACE_ID: ContextVar[str] = ContextVar("trace_id", default="")
"""32 hexadecimal digits of the request that is being answered, or empty."""

TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


def trace_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's trace id; empty without one, or with one that is not valid."""
    for name, value in headers:
        if name == b"traceparent":
            found = TRACEPARENT.fullmatch(value)
            return found[1].decode() if found else ""
    return ""
