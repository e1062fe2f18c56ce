"""The policies *admit* and *settle*: what a request may cost is reserved before it is answered, then booked.

One hold covers a request whoever answers it, canary, stable or fallback. Where nothing is limited and nothing has a
price, both policies only look that up. A caller waits for the booking only where the next request could tell: when
places are limited, or hardly anything is left.
"""

import asyncio
import itertools
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from time import time

import structlog

from governance.budgets.limits import Limit, amount_of, charges_of
from governance.budgets.plans import Plan, Plans
from governance.budgets.port import Answer, BudgetStore, Charge
from governance.budgets.pricing import tokens_of
from leitstand.errors import QuotaExceeded, TransientBackendError
from leitstand.types import Usage
from services.budget_headers import WARNING, rate_headers, warning_header
from services.budget_keeper import UNAVAILABLE, Keeper
from services.exchange import Exchange
from services.gateway_metrics import BUDGET_HOLDS, BUDGET_LEFT, BUDGET_REFUSALS, BUDGET_WARNINGS
from services.upstreams import UpstreamFailed

__all__ = ["Budgeting"]

NOTE = "budgets"
OK = 200
NOTHING = Usage()
UNKNOWN_USE = ("timeout", "garbled")  # reasons of a failure after which the upstream may have done the work
TRIES = 3

logger = structlog.get_logger()
Charges = list[tuple[Limit, Charge]]


@dataclass(slots=True)
class _Held:
    """What `admit` leaves for `settle`."""

    plan: Plan
    most: Usage
    hold: str = ""
    charges: Sequence[Charge] = ()
    limits: Sequence[Limit] = ()
    late: bool = False
    wait: bool = False
    free: bool = False


class Budgeting:
    """Both policies, over one store.

    Args:
        store: Where the counts are.
        plans: What holds for whom.
        lease_s: After which a crashed gateway's holds are booked in full.
        pepper: Key of the pseudonyms under which users are counted; the same for all gateways.
        named: Tenants that metrics name.
    """

    def __init__(
        self, store: BudgetStore, plans: Plans, *, lease_s: float = 30.0, pepper: bytes = b"",
        named: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._store, self._plans, self._pepper = store, plans, pepper
        self._named = frozenset(named)
        self._keeper = Keeper(store, lease_s)
        self._ahead_ms = 0  # of the store's clock over ours
        self._ids = itertools.count()
        self._gateway = secrets.token_hex(8)
        self._warned: dict[str, int] = {}

    async def admit(self, exchange: Exchange) -> None:
        """Holds the most that the request may use.

        Raises:
            QuotaExceeded: A limit is reached.
            TransientBackendError: The store does not answer, and the use case admits nothing uncounted.
        """
        caller = exchange.caller
        plan = self._plans.of(exchange.use_case, caller.tenant)
        if plan is None:
            return
        most = _most(exchange, plan)
        held = exchange.notes[NOTE] = _Held(plan, most)
        exchange.usage = most
        if plan.limits:
            held.hold = f"{self._gateway}-{next(self._ids)}"
            try:
                await self._admit(exchange, held)
            except BaseException:
                del exchange.notes[NOTE]
                exchange.usage = NOTHING
                raise

    async def settle(self, exchange: Exchange) -> None:
        """Books what was used; says what it cost."""
        held = exchange.notes.pop(NOTE, None)
        if held is None:
            if not exchange.route:
                exchange.usage = NOTHING
            return
        used, requests = _used(exchange, held)
        exchange.usage = used
        if not held.plan.prices.free:
            exchange.response_headers.append((b"x-leitstand-cost", b"%d.%06d" % divmod(used.cost_micros, 10**6)))
        if held.charges:
            amounts = [amount_of(limit.unit, requests, used) for limit in held.limits]
            task = self._keeper.end(held.hold, amounts, held.charges if held.late else ())
            if held.wait:
                await asyncio.shield(task)

    async def close(self) -> None:
        """Books what is still to be booked, and closes the store."""
        await self._keeper.close()

    async def _admit(self, exchange: Exchange, held: _Held) -> None:
        spec = held.plan.spec
        try:
            charges, answer = await self._hold(exchange, held, held.plan.limits)
            if answer.state == "refused" and charges[answer.refused][1].kind == "d" and spec.on_exhausted == "fallback":
                charges, answer = await self._fall_back(exchange, held, charges, answer)
        except UNAVAILABLE as error:
            self._keeper.answered(error)
            BUDGET_HOLDS.labels(held.plan.use_case, "unavailable").inc()
            if spec.when_unavailable == "admit":
                held.late = True
                return
            # Whether it was held is not known: what may have been held is given back when the store answers.
            self._keeper.end(held.hold, [0] * len(held.charges))
            raise TransientBackendError("Limits cannot be checked right now", hint="try again in a moment") from error
        except asyncio.CancelledError:
            self._keeper.end(held.hold, [0] * len(held.charges))
            raise
        exchange.response_headers += rate_headers(charges, answer)
        if answer.state == "refused":
            limit, _ = charges[answer.refused]
            BUDGET_HOLDS.labels(held.plan.use_case, "refused").inc()
            BUDGET_REFUSALS.labels(held.plan.use_case, limit.scope, limit.unit).inc()
            raise _refusal(exchange.use_case, limit, answer)
        BUDGET_HOLDS.labels(held.plan.use_case, "fallback" if held.free else "held").inc()
        if charges:
            self._keeper.begin(held.hold)
        self._look_at(exchange, held, charges, answer)

    async def _hold(self, exchange: Exchange, held: _Held, limits: Sequence[Limit]) -> tuple[Charges, Answer]:
        now_ms = int(time() * 1000) + self._ahead_ms
        answer = Answer("held", now_ms, -1, 0, ())
        for _ in range(TRIES):
            charges = charges_of(limits, exchange.caller, held.most, self._plans.days, now_ms, self._pepper)
            held.limits, held.charges = [limit for limit, _ in charges], [charge for _, charge in charges]
            if not charges:
                return charges, answer
            if not self._keeper.may_ask():
                raise TransientBackendError("The store of budgets did not answer a moment ago")
            answer = await self._store.hold(held.hold, held.charges, self._keeper.lease_ms)
            self._keeper.answered()
            self._ahead_ms = answer.now_ms - int(time() * 1000)
            if answer.state != "other day":
                return charges, answer
            now_ms = answer.now_ms
        raise TransientBackendError("The store's clock moves from day to day", hint="mend its clock")

    async def _fall_back(
        self, exchange: Exchange, held: _Held, charges: Charges, answer: Answer
    ) -> tuple[Charges, Answer]:
        """Holds without the days' limits, which the fallback does not use; rates and places hold for it, too."""
        limit, _ = charges[answer.refused]
        free = [limit for limit in held.plan.limits if limit.kind != "d"]
        held.free = True
        charges, second = await self._hold(exchange, held, free)
        if second.state == "held":
            BUDGET_REFUSALS.labels(held.plan.use_case, limit.scope, limit.unit).inc()
            exchange.notes["fallback"] = "budget"
            exchange.notes["refusal"] = _refusal(exchange.use_case, limit, answer)
            exchange.response_headers.append((WARNING, f'"{limit.scope}-{limit.unit}";r=0'.replace("_", "-").encode()))
        return charges, second

    def _look_at(self, exchange: Exchange, held: _Held, charges: Charges, answer: Answer) -> None:
        """Warns, tells the metrics, and decides whether the booking must be waited for."""
        for (limit, charge), left in zip(charges, answer.left, strict=True):
            if charge.kind == "c":
                held.wait = True
            if charge.kind != "d":
                continue
            held.wait = held.wait or left < charge.amount
            self._measure(exchange, limit, left)
            if charge.limit - left >= held.plan.spec.warn_at * charge.limit:
                self._warn(held.plan.use_case, limit, charge)
                if limit.scope != "use_case":
                    exchange.response_headers.append((WARNING, warning_header(limit, charge, answer, left)))

    def _measure(self, exchange: Exchange, limit: Limit, left: int) -> None:
        tenant = exchange.caller.tenant
        if limit.scope == "use_case":
            BUDGET_LEFT.labels(exchange.use_case, limit.scope, limit.unit, "").set(left)
        elif limit.scope in ("tenant", "total") and tenant in self._named:
            use_case = exchange.use_case if limit.scope == "tenant" else ""
            BUDGET_LEFT.labels(use_case, limit.scope, limit.unit, tenant).set(left)

    def _warn(self, use_case: str, limit: Limit, charge: Charge) -> None:
        """Counts the warning, and writes one line per limit, caller and day."""
        BUDGET_WARNINGS.labels(use_case, limit.scope, limit.unit).inc()
        if self._warned.get(charge.key) != charge.start_ms:
            if len(self._warned) > 10_000:  # noqa: PLR2004
                self._warned.clear()
            self._warned[charge.key] = charge.start_ms
            logger.warning("A budget is nearly used up", use_case=use_case, limit=limit.name, key=charge.key)


def _most(exchange: Exchange, plan: Plan) -> Usage:
    """What the request may use at most; who made the exchange may have said how many tokens."""
    most = exchange.usage
    if plan.counts_tokens and not (most.tokens_in or most.tokens_out):
        return plan.prices.of(tokens_of(exchange.payload.texts(), plan.max_tokens or 10**9), 0)
    return plan.prices.of(most.tokens_in, most.tokens_out)


def _used(exchange: Exchange, held: _Held) -> tuple[Usage, int]:
    """What it used, and whether it counts as a request.

    Nobody tells how many tokens a classifier read: its estimate stands. What was not answered costs nothing, unless
    the upstream may have worked and be paid for it: then the most stands, because the use is not known.
    """
    reply, error = exchange.reply, exchange.error
    if reply is None:
        failed = not isinstance(error, UpstreamFailed) or error.reason in UNKNOWN_USE
        used, requests = (held.most, 1) if exchange.route and exchange.upstream_s and failed else (NOTHING, 0)
    elif reply.status != OK:
        used, requests = NOTHING, 0
    else:
        used, requests = exchange.usage, 1
    if held.free or not requests:
        return Usage(used.tokens_in, used.tokens_out), requests
    return held.plan.prices.of(used.tokens_in, used.tokens_out), requests


def _refusal(use_case: str, limit: Limit, answer: Answer) -> QuotaExceeded:
    left = answer.left[answer.refused]
    wait_s = max(1, math.ceil(answer.wait_ms / 1000))
    if limit.kind == "d":
        unit = "millionths" if limit.unit == "cost_per_day" else limit.unit.removesuffix("_per_day")
        said = f"{limit.most} {unit} per day ({limit.zone}), {left} left"
    else:
        said = f"{limit.most} at once" if limit.kind == "c" else f"{1e6 / limit.interval_us:g} requests per second"
    return QuotaExceeded(
        f"The limit {limit.name} of '{use_case}' is reached: {said}", limit=limit.name, retry_after_s=wait_s,
        hint=f"try again in {wait_s} s",
    )  # fmt: skip
