"""Ids of requests: UUIDs of version 7 (RFC 9562, section 5.7), which sort by time and tell when they were made.

A caller's own id is taken when it looks like one; anything else is replaced, so that ids are safe in logs.
"""

import os
import re
import time
from uuid import UUID

__all__ = ["made_at", "new_request_id", "request_id_from"]

ACCEPTED = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def new_request_id() -> str:
    """48 bits of milliseconds, then 74 random ones."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = milliseconds << 80 | 7 << 76 | (random >> 68) << 64 | 2 << 62 | (random & (1 << 62) - 1)
    return str(UUID(int=value))


def request_id_from(header: bytes | None) -> str:
    """The caller's id, or a new one."""
    if header and ACCEPTED.fullmatch(header):
        return header.decode()
    return new_request_id()


def made_at(request_id: str) -> float | None:
    """Seconds since the epoch at which an id of version 7 was made; None for any other id."""
    try:
        value = UUID(request_id)
    except ValueError:
        return None
    return (value.int >> 80) / 1000 if value.version == 7 else None  # noqa: PLR2004
