"""Deadlines that travel: how long a caller will wait, and how long an upstream may take.

``x-deadline-ms: 800`` says how many milliseconds are left when the request is sent. It is a length of time and not a
point in time, so clocks need not agree; what the network takes is not counted. It can only shorten the
gateway's own deadline. The gateway sends what is left on to the upstream in the same header.
"""

from collections.abc import Mapping
from time import perf_counter

from leitstand.errors import TransientBackendError
from services.errors import bad_request
from services.exchange import Exchange
from services.upstreams import DEADLINE

__all__ = ["DeadlineExceeded", "milliseconds", "shorten", "time_left"]

_DEADLINE = DEADLINE.encode()
MAX_DIGITS = 9


class DeadlineExceeded(TransientBackendError):
    """The time that the caller, or the gateway, gave the request is over."""

    def __init__(self) -> None:
        super().__init__("The deadline passed before the request was answered", hint=f"give more time in `{DEADLINE}`")


def milliseconds(headers: Mapping[bytes, bytes]) -> int | None:
    """The time that the caller gives, or None when it does not say.

    Raises:
        HttpError: 400, it is no number of milliseconds.
    """
    given = headers.get(_DEADLINE)
    if given is None:
        return None
    if not given.isdigit() or len(given) > MAX_DIGITS:
        raise bad_request(f"{DEADLINE} is not a number of milliseconds")
    return int(given)


def shorten(exchange: Exchange) -> None:
    """Brings the exchange's deadline forward to the caller's.

    Raises:
        HttpError: As `milliseconds`.
    """
    given = milliseconds(exchange.headers)
    if given is not None:
        exchange.deadline = min(exchange.deadline, exchange.arrived + given / 1000)


def time_left(exchange: Exchange) -> float:
    """Seconds, more than 0.

    Raises:
        DeadlineExceeded: There are none.
    """
    left = exchange.deadline - perf_counter()
    if left <= 0:
        raise DeadlineExceeded
    return left
