"""The key `budgets` of the use-case file: what callers may use, and what that costs.

Money is a decimal in the unit of `currency` with at most six digits after the point; inside, it is counted in
whole millionths. A limit that is not written is no limit.
"""

import zoneinfo
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from leitstand.specs.base import Fraction, Spec

__all__ = ["BudgetsSpec", "LimitsSpec", "PricesSpec", "TenantsSpec"]

MOST = 10**14  # stays exact in every store and in JSON; a hundred million in millionths
MOST_MONEY = Decimal(MOST) / 10**6


def _known(zone: str) -> str:
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"'{zone}' is no time zone; write one like Europe/Berlin or UTC") from error
    return zone


Zone = Annotated[str, AfterValidator(_known)]


class LimitsSpec(Spec):
    """Limits of one caller or group; each stands for itself, and all must admit a request."""

    requests_per_s: float | None = Field(default=None, gt=0, le=100_000, description="mean rate; null: not limited")
    burst: int | None = Field(
        default=None, ge=1, le=1_000_000, description="requests at once after a pause; null: one second's worth"
    )
    concurrent: int | None = Field(default=None, ge=1, le=100_000, description="requests being answered at once")
    requests_per_day: int | None = Field(default=None, ge=0, le=MOST, description="requests that were answered")
    tokens_per_day: int | None = Field(default=None, ge=0, le=MOST, description="tokens read and written together")
    cost_per_day: Decimal | None = Field(
        default=None, ge=0, le=MOST_MONEY, decimal_places=6, description="in the unit of `currency`"
    )

    def changed(self, other: "LimitsSpec") -> "LimitsSpec":
        """These limits, with those that `other` writes in their place."""
        return self.model_copy(update={name: getattr(other, name) for name in other.model_fields_set})


class PricesSpec(Spec):
    """What a request costs. Zero where the model is one's own and its machine is paid anyway."""

    per_million_tokens_in: Decimal = Field(
        default=Decimal(0), ge=0, le=MOST_MONEY, decimal_places=6, description="of a million tokens read"
    )
    per_million_tokens_out: Decimal = Field(
        default=Decimal(0), ge=0, le=MOST_MONEY, decimal_places=6, description="of a million tokens written"
    )
    per_request: Decimal = Field(
        default=Decimal(0), ge=0, le=MOST_MONEY, decimal_places=6, description="of each answered request"
    )


class BudgetsSpec(Spec):
    """Rates, concurrency, and what may be used per day, by who asks."""

    time_zone: Zone = Field(default="UTC", description="IANA name of the zone whose midnight starts a day")
    currency: str = Field(default="EUR", pattern=r"^[A-Z]{3}$", description="ISO 4217 code; a label, never converted")
    prices: PricesSpec = PricesSpec()
    use_case: LimitsSpec = Field(default=LimitsSpec(), description="of all callers of this use case together")
    tenant: LimitsSpec = Field(default=LimitsSpec(), description="of each tenant, within this use case")
    key: LimitsSpec = Field(default=LimitsSpec(), description="of each API key, within this use case")
    user: LimitsSpec = Field(default=LimitsSpec(), description="of each authenticated user, within this use case")
    tenants: dict[str, LimitsSpec] = Field(
        default_factory=dict, description="tenant to the limits that replace single ones of `tenant`"
    )
    warn_at: Fraction = Field(
        default=0.8, description="share of a day's limit from which answers carry a warning (the soft limit)"
    )
    on_exhausted: Literal["refuse", "fallback"] = Field(
        default="refuse",
        description="at a day's limit: answer 429, or let the fallback of `resilience` answer at no cost",
    )
    when_unavailable: Literal["refuse", "admit"] = Field(
        default="refuse", description="while the store of the counts is down: answer 503, or admit and count later"
    )
    max_tokens_out: int = Field(
        default=1024, ge=0, le=10**7, description="tokens reserved for a written answer that names no maximum"
    )


class TenantsSpec(Spec):
    """The file `LEITSTAND_BUDGETS__TENANTS`: limits of tenants over all use cases together."""

    time_zone: Zone = "UTC"
    default: LimitsSpec = Field(default=LimitsSpec(), description="of each tenant")
    tenants: dict[str, LimitsSpec] = Field(default_factory=dict, description="tenant to what replaces `default`")
