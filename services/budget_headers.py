"""What an answer says about limits: `RateLimit`, `RateLimit-Policy`, `x-leitstand-budget-warning`.

The first two follow draft-ietf-httpapi-ratelimit-headers-10: lists of structured fields (RFC 9651), one member per
limit that meets the caller. What all callers share is told only to the one whom it refuses.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from governance.budgets.limits import Limit
from governance.budgets.port import Answer, Charge

__all__ = ["WARNING", "rate_headers", "warning_header"]

WARNING = b"x-leitstand-budget-warning"
UNITS = {
    "requests_per_s": "requests", "concurrent": "concurrent-requests", "requests_per_day": "requests",
    "tokens_per_day": "tokens", "cost_per_day": "cost-micros",
}  # fmt: skip
SECOND_US, SECOND_MS = 1_000_000, 1000


def rate_headers(charges: Sequence[tuple[Limit, Charge]], answer: Answer) -> Iterable[tuple[bytes, bytes]]:
    """Both headers, or none when there is nothing to tell."""
    policies, states = [], []
    for index, (limit, charge) in enumerate(charges):
        if limit.scope == "use_case" and index != answer.refused:
            continue
        policies.append(_policy(limit, charge.end_ms - charge.start_ms))
        states.append(f"{_name(limit)};r={answer.left[index]}{_reset(charge, answer, index)}")
    if policies:
        yield b"ratelimit-policy", ", ".join(policies).encode()
        yield b"ratelimit", ", ".join(states).encode()


def warning_header(limit: Limit, charge: Charge, answer: Answer, left: int) -> bytes:
    """One limit that is nearly used up, in the form of a `RateLimit` member with its quota."""
    return f"{_name(limit)};r={left};q={charge.limit};t={_seconds(charge.end_ms - answer.now_ms)}".encode()


@lru_cache(4096)
def _name(limit: Limit) -> str:
    return f'"{limit.scope}-{limit.unit}"'.replace("_", "-")


@lru_cache(4096)
def _policy(limit: Limit, day_ms: int) -> str:
    window = ""
    if limit.kind == "d":
        window = f";w={_seconds(day_ms)}"
    elif limit.kind == "t":
        window = f";w={-(-limit.most * limit.interval_us // SECOND_US)}"
    return f'{_name(limit)};q={limit.most};qu="{UNITS[limit.unit]}"{window}'


def _reset(charge: Charge, answer: Answer, index: int) -> str:
    if charge.kind == "d":
        return f";t={_seconds(charge.end_ms - answer.now_ms)}"
    if charge.kind == "t":
        return f";t={-(-(charge.limit - answer.left[index]) * charge.amount // SECOND_US)}"
    return ""


def _seconds(ms: int) -> int:
    return -(-ms // SECOND_MS)
