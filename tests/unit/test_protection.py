"""What the pipeline does when upstreams fail, hang or are full: breakers, retries, hedges, fallbacks, priorities."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest
from prometheus_client import REGISTRY

from leitstand.errors import NotFoundError, PolicyDenied, QuotaExceeded
from leitstand.specs.resilience import BreakerSpec, HedgingSpec, PrioritySpec, ResilienceSpec, RetrySpec
from leitstand.types import Caller, Target, TenantRoute
from services.deadlines import DeadlineExceeded
from services.errors import HttpError
from services.exchange import Exchange
from services.policies import Policies
from services.problems import problem_for
from services.scheduling import Overloaded
from services.shedding import priority_of
from services.upstreams import Reply, UpstreamFailed
from tests.gateway_for_tests import CANARY, SHADOW, STABLE, ScriptedUpstreams, answer, bench, exchange

SMALL = Target(version=9, url="http://upstream-9")
GOOD = {
    STABLE: answer(1, ["card"]),
    CANARY: answer(2, ["card"]),
    SHADOW: answer(3, ["pin"]),
    SMALL: answer(9, ["card"]),
}
REFUSED = UpstreamFailed("nobody listens", "refused", repeatable=True)
BROKEN = UpstreamFailed("broke", "disconnected", repeatable=True)
SLOW = UpstreamFailed("too slow", "timeout")
SHEDDING = Reply(503, b"{}", "application/json", retry_after="2")
ONCE = ResilienceSpec(retries=RetrySpec(attempts=1))


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def fallback_of(asked: Exchange) -> str:
    return dict(asked.response_headers).get(b"x-leitstand-fallback", b"").decode()


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (REFUSED, "refused"), (SLOW, "timeout"), (answer(1, [], status=500), "error"), (SHEDDING, "busy"),
        (answer(1, [], status=504), "timeout"), (Reply(200, b"no json", "text/html"), "garbled"),
    ],
)  # fmt: skip
async def test_the_fallback_answers_for_a_failing_stable_and_says_why(
    failure: Reply | UpstreamFailed, reason: str
) -> None:
    before = counted("gateway_fallback_answers_total", use_case="support", reason=reason)
    async with bench(GOOD | {STABLE: failure}, fallback=SMALL, shadow=SHADOW) as parts:
        asked = await parts.ask()
        await parts.settled()
        (row,) = parts.rows()
    assert (asked.version, asked.route, row.version, row.route) == (9, "fallback", 9, "fallback")
    assert fallback_of(asked) == reason
    assert counted("gateway_fallback_answers_total", use_case="support", reason=reason) == before + 1


async def test_the_chain_is_canary_stable_fallback_and_each_leaves_time_for_the_next() -> None:
    async with bench(GOOD | {CANARY: REFUSED, STABLE: REFUSED}, canary=CANARY, canary_percent=100, fallback=SMALL) as p:
        asked = await p.ask()
        assert p.upstreams.asked == [CANARY, STABLE, SMALL]
        first, second, third = p.upstreams.given_s
    assert (asked.route, fallback_of(asked)) == ("fallback", "refused")
    assert first <= 2.5 and 3.0 < second <= 3.75 and third > 4.5


async def test_when_the_fallback_fails_too_the_first_failure_is_told() -> None:
    async with bench(GOOD | {STABLE: SLOW, SMALL: REFUSED}, fallback=SMALL) as parts:
        with pytest.raises(UpstreamFailed, match="too slow"):
            await parts.ask()


async def test_a_client_error_needs_no_fallback() -> None:
    async with bench(GOOD | {STABLE: Reply(400, b"{}", "application/json")}, fallback=SMALL) as parts:
        asked = await parts.ask()
    assert (asked.route, asked.reply and asked.reply.status, fallback_of(asked)) == ("stable", 400, "")


async def test_an_open_breaker_fails_fast_and_the_fallback_answers() -> None:
    async with bench(GOOD | {STABLE: SLOW}, fallback=SMALL, resilience=ONCE) as parts:
        for _ in range(5):
            await parts.ask()
        asked = await parts.ask()
        assert parts.upstreams.asked.count(STABLE) == 5
        assert fallback_of(asked) == "open"
        assert parts.inference.gates.states()["support"]["1"] == "open"
        assert counted("gateway_breaker_state", use_case="support", version="1", upstream="upstream-1") == 2


async def test_without_a_fallback_an_open_breaker_is_a_503_that_says_when_to_come_back() -> None:
    async with bench({STABLE: SLOW}, resilience=ONCE) as parts:
        for _ in range(5):
            with pytest.raises(UpstreamFailed, match="too slow"):
                await parts.ask()
        with pytest.raises(UpstreamFailed, match="left alone") as caught:
            await parts.ask()
    status, headers, _ = problem_for(caught.value)
    assert status == 503 and dict(headers)[b"retry-after"] == b"1"


async def test_a_well_upstream_is_used_again_after_its_trial() -> None:
    spec = ResilienceSpec(breaker=BreakerSpec(open_s=0.01, max_open_s=0.01, probes=1), retries=RetrySpec(attempts=1))
    async with bench({STABLE: SLOW}, resilience=spec) as parts:
        for _ in range(5):
            with pytest.raises(UpstreamFailed):
                await parts.ask()
        parts.upstreams.scripts[STABLE] = answer(1, ["card"])
        async with asyncio.timeout(5):
            while (gate := parts.inference.gates.of("support", STABLE)).breaker.retry_after_s:
                await asyncio.sleep(0)
        await parts.ask()
        assert gate.breaker.state == "closed"


async def test_shed_load_client_errors_and_short_deadlines_open_no_breaker() -> None:
    failures = {"use_case": "support", "version": "1", "route": "stable", "reason": "timeout"}
    before = counted("gateway_upstream_failures_total", **failures)
    short = {"headers": {b"x-deadline-ms": b"200"}}
    for script, more in ((SHEDDING, {}), (Reply(422, b"{}", "application/json"), {}), (SLOW, short)):
        async with bench({STABLE: script}, resilience=ONCE) as parts:
            for _ in range(30):
                with suppress(UpstreamFailed):
                    await parts.ask(**more)
            assert len(parts.upstreams.asked) == 30
    assert counted("gateway_upstream_failures_total", **failures) == before, "the caller's haste harms no version"


async def test_a_broken_connection_is_tried_once_more_at_once_even_for_a_canary() -> None:
    script = failing_first(1, BROKEN, answer(2, ["card"]))
    async with bench(GOOD | {CANARY: script}, canary=CANARY, canary_percent=100) as parts:
        assert (await parts.ask()).route == "canary"
        assert parts.upstreams.asked == [CANARY, CANARY]


async def test_a_refused_connection_is_tried_again_only_when_nobody_steps_in() -> None:
    async with bench({STABLE: failing_first(1, REFUSED, answer(1, ["card"]))}) as parts:
        assert (await parts.ask()).route == "stable"
    async with bench(GOOD | {STABLE: REFUSED}, fallback=SMALL) as parts:
        await parts.ask()
        assert parts.upstreams.asked == [STABLE, SMALL]


@pytest.mark.parametrize("failure", [SLOW, SHEDDING, answer(1, [], status=500), UpstreamFailed("half", "disconnected")])
async def test_what_may_have_begun_or_would_do_harm_is_not_repeated(failure: Reply | UpstreamFailed) -> None:
    async with bench({STABLE: failure}) as parts:
        with pytest.raises(UpstreamFailed):
            await parts.ask()
        assert parts.upstreams.asked == [STABLE]


async def test_retries_stay_within_their_budget_whatever_fails() -> None:
    spec = ResilienceSpec(breaker=BreakerSpec(enabled=False), retries=RetrySpec(attempts=3, share=0.1, reserve=5))
    async with bench({STABLE: BROKEN}, resilience=spec) as parts:
        for _ in range(100):
            with pytest.raises(UpstreamFailed):
                await parts.ask()
        assert 100 < len(parts.upstreams.asked) <= 100 + 5 + 10


async def test_one_that_hangs_cannot_take_every_place() -> None:
    async with bench(GOOD, resilience=ResilienceSpec(max_concurrent=3), fallback=SMALL) as parts:
        gate = hanging(parts.upstreams, STABLE)
        waiting = [asyncio.create_task(parts.ask()) for _ in range(3)]
        while len(parts.upstreams.asked) < 3:
            await asyncio.sleep(0)
        asked = await parts.ask()
        assert (asked.route, fallback_of(asked)) == ("fallback", "crowded")
        gate.set()
        await asyncio.gather(*waiting)
        assert (await parts.ask()).route == "stable"


async def test_a_slow_call_is_hedged_when_that_is_switched_on_and_the_first_answer_counts() -> None:
    spec = ResilienceSpec(hedging=HedgingSpec(enabled=True, max_share=0.5))
    won = {"use_case": "support", "version": "1", "outcome": "won"}
    before = counted("gateway_hedges_total", **won)
    async with bench(GOOD, resilience=spec) as parts:
        for _ in range(32):
            await parts.ask()
        assert len(parts.upstreams.asked) == 32
        gate = hanging(parts.upstreams, STABLE, times=1)
        asked = await parts.ask()
        assert not gate.is_set() and asked.reply and asked.reply.status == 200
        assert parts.inference.gates.of("support", STABLE).in_flight == 0, "the slow call was given up"
        assert len(parts.rows()) == 33
    assert counted("gateway_hedges_total", **won) == before + 1


async def test_a_pinned_tenant_is_answered_by_its_target_and_its_own_fallback() -> None:
    pin = {"acme": TenantRoute(target=CANARY, fallback=SHADOW)}

    async def acme(asked: Exchange) -> None:
        asked.caller = Caller(tenant="acme")

    async with bench(GOOD, tenants=pin, fallback=SMALL, policies=Policies(authenticate=acme)) as parts:
        asked = await parts.ask()
        assert (asked.route, asked.version) == ("pinned", 2)
        parts.upstreams.scripts[CANARY] = SLOW
        asked = await parts.ask()
        assert (asked.route, asked.version, fallback_of(asked)) == ("fallback", 3, "timeout")
        with pytest.raises(NotFoundError):
            await parts.ask(wanted_version=1)


def used_up(refusal: Exception | None = None) -> Policies:
    async def admit(asked: Exchange) -> None:
        asked.notes["fallback"] = "budget"
        if refusal is not None:
            asked.notes["refusal"] = refusal

    return Policies(admit=admit)


async def test_a_policy_may_send_a_request_to_the_fallback_and_nowhere_else() -> None:
    async with bench(GOOD, fallback=SMALL, policies=used_up()) as parts:
        asked = await parts.ask()
        assert (asked.route, asked.version, fallback_of(asked)) == ("fallback", 9, "budget")
        assert parts.upstreams.asked == [SMALL]
        with pytest.raises(PolicyDenied):
            await parts.ask(wanted_version=1)
        assert (await parts.ask(wanted_version=9)).version == 9


async def test_without_a_fallback_the_policys_refusal_is_the_answer() -> None:
    refusal = QuotaExceeded("used up", limit="tenant:tokens_per_day", retry_after_s=60)
    async with bench(GOOD, policies=used_up(refusal)) as parts:
        with pytest.raises(QuotaExceeded):
            await parts.ask()
    async with bench(GOOD, policies=used_up()) as parts:
        with pytest.raises(PolicyDenied, match="has none"):
            await parts.ask()


async def test_a_callers_deadline_only_shortens_and_reaches_the_upstream() -> None:
    async with bench(GOOD) as parts:
        await parts.ask(headers={b"x-deadline-ms": b"300"})
        await parts.ask(headers={b"x-deadline-ms": b"999999999"})
        short, long = parts.upstreams.given_s
        assert short <= 0.3 and 4 < long <= 5
        for late in (b"0", b"00"):
            with pytest.raises(DeadlineExceeded) as caught:
                await parts.ask(headers={b"x-deadline-ms": late})
            assert problem_for(caught.value)[0] == 504
        for wrong in (b"", b"-1", b"1.5", b"1s", b"9" * 40):
            with pytest.raises(HttpError, match="milliseconds"):
                await parts.ask(headers={b"x-deadline-ms": wrong})
        assert len(parts.upstreams.asked) == 2


SCOPED = Caller(tenant="big", scopes=frozenset({"support:priority"}))
PRIORITIES = PrioritySpec(tenants={"gold": "high", "bulk": "low"})


@pytest.mark.parametrize(
    ("asked", "caller", "allowed"),
    [
        (None, Caller(), "normal"), (b"low", Caller(), "low"), (b"high", Caller(), "normal"), (b"HIGH", SCOPED, "high"),
        (None, SCOPED, "normal"), (b"high", Caller(tenant="gold"), "high"), (b"high", Caller(tenant="bulk"), "low"),
        (None, Caller(tenant="bulk"), "low"), (b"low", SCOPED, "low"),
    ],
)  # fmt: skip
def test_nobody_gets_more_priority_than_policy_and_scopes_allow(
    asked: bytes | None, caller: Caller, allowed: str
) -> None:  # fmt: skip
    given = exchange(headers={b"x-priority": asked} if asked else {}, caller=caller)
    assert priority_of(given, PRIORITIES) == allowed


@pytest.fixture
def shed() -> dict[str, float]:
    return {name: counted("gateway_shed_total", priority=name) for name in ("low", "normal", "high")}


async def test_low_is_refused_first_then_normal_then_high(shed: dict[str, float]) -> None:
    async def authenticate(asked: Exchange) -> None:
        asked.caller = SCOPED

    async with bench(GOOD, max_in_flight=10, policies=Policies(authenticate=authenticate)) as parts:
        parts.upstreams.gate = asyncio.Event()
        waiting: list[asyncio.Task[Exchange]] = []

        async def until_refused(priority: bytes) -> int:
            while True:
                count = len(parts.upstreams.asked)
                task = asyncio.create_task(parts.ask(headers={b"x-priority": priority}))
                while len(parts.upstreams.asked) == count and not task.done():
                    await asyncio.sleep(0)
                if task.done():
                    with pytest.raises(Overloaded):
                        task.result()
                    return len(waiting)
                waiting.append(task)

        parts.inference.gates.of("support", STABLE)._limit = 100
        assert [await until_refused(name) for name in (b"low", b"normal", b"high")] == [6, 9, 10]
        parts.upstreams.gate.set()
        await asyncio.gather(*waiting)
    after = {name: counted("gateway_shed_total", priority=name) - shed[name] for name in shed}
    assert after == {"low": 1, "normal": 1, "high": 0}, "the last one met the gateway's own limit"


async def test_gates_of_upstreams_that_left_the_table_are_forgotten() -> None:
    async with bench(GOOD, canary=CANARY, canary_percent=100) as parts:
        await parts.ask()
        before = parts.store.read("support")
        assert before is not None
        alone = {"canary": None, "canary_percent": 0.0}
        parts.store.write(before.model_copy(update=alone), expected=before.revision)
        await parts.watch.refresh()
        assert "2" not in parts.inference.gates.states().get("support", {})
    labels = {"use_case": "support", "version": "2", "upstream": "upstream-2"}
    assert REGISTRY.get_sample_value("gateway_breaker_state", labels) is None


def failing_first(times: int, failure: UpstreamFailed, then: Reply) -> Callable[[bytes], Reply]:
    """Fails so often, then answers."""
    left = iter(range(times))

    def script(_: bytes) -> Reply:
        if next(left, None) is not None:
            raise failure
        return then

    return script


def hanging(upstreams: ScriptedUpstreams, hung: Target, times: int = 10**6) -> asyncio.Event:
    """Calls of a target wait for the event, as many as said."""
    gate, quick, left = asyncio.Event(), upstreams.call, iter(range(times))

    async def call(target: Target, path: str, body: bytes | None, headers: object, timeout_s: float) -> Reply:
        reply = await quick(target, path, body, headers, timeout_s)
        if target == hung and next(left, None) is not None:
            await gate.wait()
        return reply

    upstreams.call = call  # type: ignore[method-assign]
    return gate
