"""From the limits as they are written to the charges of one request."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from urllib.parse import quote

from governance.budgets.days import Days
from governance.budgets.port import Charge
from governance.budgets.pricing import micros
from leitstand.specs.budgets import BudgetsSpec, LimitsSpec, TenantsSpec
from leitstand.types import Caller, Usage

__all__ = ["Limit", "Scope", "amount_of", "charges_of", "key_of", "limits_of", "user_name"]

Scope = Literal["use_case", "tenant", "key", "user", "total"]
Unit = Literal["requests_per_s", "concurrent", "requests_per_day", "tokens_per_day", "cost_per_day"]
KINDS: Mapping[Unit, Literal["d", "t", "c"]] = {
    "requests_per_s": "t", "concurrent": "c", "requests_per_day": "d", "tokens_per_day": "d", "cost_per_day": "d",
}  # fmt: skip
SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of one scope.

    Attributes:
        scope: Whom it limits; ``total`` is a tenant over all use cases.
        unit: What it counts.
        kind: As `Charge.kind`.
        most: As `Charge.limit`.
        interval_us: Of a rate: microseconds between two requests; else 0.
        use_case: Whose limit it is; ``*`` for totals.
        zone: Whose midnight starts its day.
    """

    scope: Scope
    unit: Unit
    kind: Literal["d", "t", "c"]
    most: int
    interval_us: int
    use_case: str
    zone: str

    @property
    def name(self) -> str:
        """``tenant.tokens_per_day``."""
        return f"{self.scope}.{self.unit}"


def limits_of(use_case: str, spec: BudgetsSpec, totals: TenantsSpec, tenant: str) -> tuple[Limit, ...]:
    """Every limit that requests of `tenant` to `use_case` may meet."""
    own = spec.tenant.changed(spec.tenants[tenant]) if tenant in spec.tenants else spec.tenant
    total = totals.default.changed(totals.tenants[tenant]) if tenant in totals.tenants else totals.default
    groups: tuple[tuple[Scope, str, LimitsSpec, str], ...] = (
        ("use_case", use_case, spec.use_case, spec.time_zone), ("tenant", use_case, own, spec.time_zone),
        ("key", use_case, spec.key, spec.time_zone), ("user", use_case, spec.user, spec.time_zone),
        ("total", "*", total, totals.time_zone),
    )  # fmt: skip
    return tuple(limit for group in groups for limit in _limits(*group))


def _limits(scope: Scope, use_case: str, written: LimitsSpec, zone: str) -> Iterator[Limit]:
    for unit, kind in KINDS.items():
        value = getattr(written, unit)
        if value is None:
            continue
        most, interval = value, 0
        if unit == "cost_per_day":
            most = micros(value)
        elif unit == "requests_per_s":
            most = written.burst or math.ceil(value)
            interval = math.ceil(SECOND_US / value)
        yield Limit(scope, unit, kind, most, interval, use_case, zone)


@lru_cache(16_384)
def key_of(limit: Limit, who: str) -> str:
    """The key under which `who` is counted."""
    return f"{limit.scope}|{limit.use_case}|{quote(who, safe='@')}|{limit.unit}"


def charges_of(
    limits: Sequence[Limit], caller: Caller, most: Usage, days: Mapping[str, Days], now_ms: int, pepper: bytes
) -> list[tuple[Limit, Charge]]:
    """The charges of one request; a limit for API keys or users does not meet a caller who is none.

    Args:
        limits: Of the use case and tenant.
        caller: Who asks, proven.
        most: What the request may use.
        days: Time zone to its days.
        now_ms: The store's clock, as far as it is known.
        pepper: Keeps users' names out of the store (BLAKE2b with this key).
    """
    charges = []
    for limit in limits:
        who = _who(limit.scope, caller, pepper)
        if who is None:
            continue
        key = key_of(limit, who)
        if limit.kind != "d":
            charges.append((limit, Charge(limit.kind, key, limit.most, limit.interval_us or 1)))
            continue
        start, end = days[limit.zone].span(now_ms)
        charges.append((limit, Charge("d", key, limit.most, amount_of(limit.unit, 1, most), start, end)))
    return charges


def amount_of(unit: str, requests: int, usage: Usage) -> int:
    """What of a usage the limit counts."""
    if unit == "tokens_per_day":
        return usage.tokens_in + usage.tokens_out
    return usage.cost_micros if unit == "cost_per_day" else requests


def _who(scope: Scope, caller: Caller, pepper: bytes) -> str | None:
    match scope:
        case "use_case":
            return ""
        case "tenant" | "total":
            return caller.tenant
        case "key":  # a token's id is no key: whoever may ask for tokens would get a fresh budget with each
            return caller.key_id if caller.method == "api-key" else None
        case "user":
            if caller.method == "anonymous":
                return None
            return user_name(caller.tenant, caller.subject, pepper)


@lru_cache(16_384)
def user_name(tenant: str, subject: str, pepper: bytes) -> str:
    """The pseudonym under which a user is counted."""
    text = f"{tenant}\0{subject}".encode()
    return hashlib.blake2b(text, key=pepper[:64], digest_size=16).hexdigest()
