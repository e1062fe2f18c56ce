"""The key `resilience` of the use-case file: what happens when an upstream is slow, gone, or too busy."""

from typing import Literal, Self

from pydantic import Field, model_validator

from leitstand.specs.base import Fraction, Spec

__all__ = ["BreakerSpec", "HedgingSpec", "Priority", "PrioritySpec", "ResilienceSpec", "RetrySpec"]

Priority = Literal["low", "normal", "high"]


class BreakerSpec(Spec):
    """When an upstream is no longer asked, and how it is tried again. One breaker per upstream and gateway process."""

    enabled: bool = True
    window_s: float = Field(default=10.0, gt=0, description="calls that are this old no longer count")
    failure_share: Fraction = Field(default=0.5, description="share of failed calls in the window that opens it")
    min_calls: int = Field(default=20, ge=1, description="calls in the window before their share says anything")
    consecutive: int = Field(default=5, ge=1, description="failures in a row that open it at once")
    open_s: float = Field(default=1.0, gt=0, description="until it is tried again; doubled with every failed trial")
    max_open_s: float = Field(default=30.0, gt=0, description="the doubling ends here")
    probes: int = Field(default=2, ge=1, description="calls at once while it is tried, and successes that close it")
    patience_s: float = Field(
        default=1.0,
        gt=0,
        description="a time-out counts as a failure when the upstream had at least this long, or half of the gateway's "
        "deadline: shorter ones were the caller's wish",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_open_s < self.open_s:
            raise ValueError("max_open_s must not be less than open_s")
        return self


class RetrySpec(Spec):
    """Calls that are made again: never after the first byte of an answer, and only while the deadline is left."""

    attempts: int = Field(default=2, ge=1, le=5, description="calls per request and upstream at most; 1: none again")
    share: Fraction = Field(default=0.1, description="retries per request that the budget allows in the long run")
    reserve: int = Field(default=10, ge=0, description="retries that are allowed before the share counts")
    backoff_ms: float = Field(default=25.0, ge=0, description="longest pause before the first retry; doubled for each")


class HedgingSpec(Spec):
    """A second call when the first is slow; the first answer counts. Costs capacity, so it is off by default."""

    enabled: bool = False
    quantile: Fraction = Field(default=0.95, description="of the upstream's latency at which the second call starts")
    max_share: Fraction = Field(default=0.05, description="second calls per request at most, in the long run")


class PrioritySpec(Spec):
    """Who may ask for which priority (header `x-priority`). Near the gateway's limit, low is refused first."""

    default: Priority = Field(default="normal", description="of a request that asks for none")
    highest: Priority = Field(
        default="normal", description="that a caller may ask for without the scope `USE_CASE:priority`"
    )
    tenants: dict[str, Priority] = Field(
        default_factory=dict, description="tenant to the highest priority that it may ask for, whatever its scopes"
    )


class ResilienceSpec(Spec):
    """Breakers, retries, hedges, bulkheads, priorities, and how much time a fallback needs."""

    breaker: BreakerSpec = BreakerSpec()
    retries: RetrySpec = RetrySpec()
    hedging: HedgingSpec = HedgingSpec()
    priorities: PrioritySpec = PrioritySpec()
    max_concurrent: int = Field(
        default=0, ge=0, description="calls of one upstream at once per gateway process; 0: three quarters of its limit"
    )
    keep_for_fallback: Fraction = Field(
        default=0.25, description="share of the time left that is kept for a fallback, where there is one"
    )
