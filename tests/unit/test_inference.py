"""The gateway's pipeline: who is asked, what happens when they fail, what is logged."""

import asyncio
import dataclasses

import pytest
from prometheus_client import REGISTRY

from leitstand.errors import NotFoundError, PolicyDenied, TransientBackendError
from services.exchange import Exchange, RawPayload
from services.policies import Policies
from services.scheduling import Overloaded
from services.upstreams import Reply, UpstreamFailed
from tests.gateway_for_tests import CANARY, SHADOW, STABLE, answer, bench

REFUSED = UpstreamFailed("nobody listens", "refused")
GOOD = {STABLE: answer(1, ["card"]), CANARY: answer(2, ["card"]), SHADOW: answer(3, ["pin"])}


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_an_answer_names_its_version_and_route_and_leaves_a_row() -> None:
    async with bench(GOOD) as parts:
        exchange = await parts.ask("a lost card", subject="someone@example.org")
        assert (exchange.version, exchange.route) == (1, "stable")
        (row,) = parts.rows()
    assert (row.request_id, row.version, row.route, row.label, row.score) == ("r-1", 1, "stable", "card", 0.75)
    assert row.words == 3 and row.latency_ms > 0
    assert row.subject and "someone" not in row.subject


async def test_a_subject_on_the_canary_is_answered_by_it() -> None:
    async with bench(GOOD, canary=CANARY, canary_percent=100) as parts:
        exchange = await parts.ask(subject="anyone")
    assert (exchange.version, exchange.route) == (2, "canary")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (REFUSED, "refused"),
        (answer(2, [], status=503), "busy"),
        (answer(2, [], status=500), "error"),
        (Reply(200, b"no json", "text/html"), "garbled"),
        (answer(2, ["card", "pin"]), "garbled"),
        (UpstreamFailed("too slow", "timeout"), "timeout"),
    ],
)
async def test_stable_steps_in_for_a_failing_canary_and_the_canary_is_charged(
    failure: Reply | UpstreamFailed, reason: str
) -> None:
    charged = {"use_case": "support", "version": "2", "route": "canary", "reason": reason}
    before = counted("gateway_upstream_failures_total", **charged)
    async with bench(GOOD | {CANARY: failure}, canary=CANARY, canary_percent=100) as parts:
        exchange = await parts.ask()
        assert parts.upstreams.asked == [CANARY, STABLE]
        (row,) = parts.rows()
    assert (exchange.version, exchange.route, row.route) == (1, "stable", "stable")
    assert counted("gateway_upstream_failures_total", **charged) == before + 1


async def test_a_canary_gets_half_of_the_time_so_that_stable_can_still_answer() -> None:
    async with bench(GOOD | {CANARY: REFUSED}, canary=CANARY, canary_percent=100) as parts:
        await parts.ask()
    first, second = parts.upstreams.given_s
    assert first <= 2.5 and second > 2.5


async def test_a_wrong_request_is_not_sent_twice() -> None:
    bad = Reply(400, b'{"error": "text[0] is empty"}', "application/json")
    async with bench(GOOD | {CANARY: bad}, canary=CANARY, canary_percent=100) as parts:
        exchange = await parts.ask(" ")
        assert exchange.reply == bad
        assert parts.upstreams.asked == [CANARY]
        assert parts.rows() == []


async def test_nobody_steps_in_for_stable() -> None:
    async with bench({STABLE: REFUSED}) as parts:
        with pytest.raises(UpstreamFailed):
            await parts.ask()


async def test_a_shadow_is_compared_and_logged_and_never_returned() -> None:
    compared = {"use_case": "support", "version": "3", "outcome": "disagree"}
    before = counted("gateway_shadow_answers_total", **compared)
    async with bench(GOOD, shadow=SHADOW) as parts:
        exchange = await parts.ask()
        await parts.settled()
        assert (exchange.version, exchange.route, exchange.predictions().labels) == (1, "stable", ["card"])
        assert [(row.version, row.route, row.label) for row in parts.rows()] == [
            (1, "stable", "card"), (3, "shadow", "pin"),
        ]  # fmt: skip
    assert counted("gateway_shadow_answers_total", **compared) == before + 1


@pytest.mark.parametrize("failure", [REFUSED, answer(3, [], status=500), Reply(200, b"[]", "text/plain")])
async def test_a_failing_shadow_disturbs_nobody(failure: Reply | UpstreamFailed) -> None:
    failed = {"use_case": "support", "version": "3", "outcome": "failed"}
    before = counted("gateway_shadow_answers_total", **failed)
    async with bench(GOOD | {SHADOW: failure}, shadow=SHADOW) as parts:
        await parts.ask()
        await parts.settled()
        assert [row.route for row in parts.rows()] == ["stable"]
    assert counted("gateway_shadow_answers_total", **failed) == before + 1


async def test_an_answer_does_not_wait_for_its_shadow_and_too_many_shadows_are_skipped() -> None:
    skipped = {"use_case": "support", "version": "3", "outcome": "skipped"}
    before = counted("gateway_shadow_answers_total", **skipped)
    released = asyncio.Event()
    async with bench(GOOD, shadow=SHADOW, max_shadows=2) as parts:
        quick = parts.upstreams.call

        async def call(target, *rest):
            if target == SHADOW:
                await released.wait()
            return await quick(target, *rest)

        parts.upstreams.call = call  # type: ignore[method-assign]
        for number in range(5):
            await parts.ask(request_id=f"r-{number}")
        released.set()
        await parts.settled()
        assert [row.route for row in parts.rows()].count("shadow") == 2
    assert counted("gateway_shadow_answers_total", **skipped) == before + 3


async def test_an_unknown_use_case_is_told_which_there_are() -> None:
    async with bench(GOOD) as parts:
        with pytest.raises(NotFoundError, match="there are: support"):
            await parts.inference.pass_on("suport", "/v2/models/suport", 1)


async def test_a_version_can_be_asked_for_by_number_when_it_is_routed_to() -> None:
    async with bench(GOOD, canary=CANARY, canary_percent=1) as parts:
        assert (await parts.ask(wanted_version=2)).route == "canary"
        assert (await parts.ask(wanted_version=1)).route == "stable"
        with pytest.raises(NotFoundError, match="Version 9"):
            await parts.ask(wanted_version=9)


async def test_more_than_the_gateway_takes_on_is_refused_and_the_rest_answered() -> None:
    async with bench(GOOD, max_in_flight=2) as parts:
        parts.upstreams.gate = asyncio.Event()
        waiting = [asyncio.create_task(parts.ask()) for _ in range(2)]
        while len(parts.upstreams.asked) < 2:
            await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await parts.ask()
        parts.upstreams.gate.set()
        await asyncio.gather(*waiting)
        await parts.ask()


async def test_the_last_tables_stay_in_use_while_the_store_is_down() -> None:
    async with bench(GOOD) as parts:
        parts.store.down = TransientBackendError("redis does not answer")
        await parts.watch.refresh()
        assert parts.watch.down == "redis does not answer"
        assert counted("gateway_route_store_up") == 0
        assert (await parts.ask()).version == 1
        parts.store.down = None
        await parts.watch.refresh()
        assert parts.watch.down is None
        assert counted("gateway_route_store_up") == 1


async def test_a_changed_table_counts_from_the_next_request_on() -> None:
    async with bench(GOOD) as parts:
        assert (await parts.ask()).version == 1
        before = parts.store.read("support")
        assert before is not None
        parts.store.write(before.model_copy(update={"stable": CANARY}), expected=1)
        await parts.watch.refresh()
        assert (await parts.ask()).version == 2


STAGES = ("authenticate", "admit", "guard_input", "guard_output", "settle", "audit")


def recording(seen: list[str], *, refuse: str = "") -> Policies:
    def policy(name: str):
        async def decide(exchange: Exchange) -> None:
            seen.append(f"{name}!" if exchange.error else name)
            if name == refuse:
                raise PolicyDenied(f"{name} says no")

        return decide

    return Policies(**{name: policy(name) for name in STAGES})


async def test_policies_decide_in_the_documented_order() -> None:
    seen: list[str] = []
    assert [field.name for field in dataclasses.fields(Policies) if field.name != "guard_stream"] == list(STAGES)
    async with bench(GOOD, policies=recording(seen)) as parts:
        await parts.ask()
    assert seen == list(STAGES)


@pytest.mark.parametrize("stage", ["authenticate", "admit", "guard_input"])
async def test_a_refused_request_reaches_no_model_and_is_settled_and_audited(stage: str) -> None:
    seen: list[str] = []
    async with bench(GOOD, policies=recording(seen, refuse=stage)) as parts:
        with pytest.raises(PolicyDenied, match=stage):
            await parts.ask()
        assert parts.upstreams.asked == []
        assert parts.rows() == []
    assert seen[-2:] == ["settle!", "audit!"]


async def test_an_answer_that_cannot_be_audited_does_not_leave() -> None:
    async with bench(GOOD, policies=recording([], refuse="audit")) as parts:
        with pytest.raises(PolicyDenied, match="audit"):
            await parts.ask()
        assert parts.rows() == []


async def test_bytes_pass_through_unread_and_are_logged_all_the_same() -> None:
    body = b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hello"]}]}'
    sent: list[bytes] = []

    def keep(got: bytes) -> Reply:
        sent.append(got)
        return answer(1, ["card"])

    async with bench({STABLE: keep}) as parts:
        exchange = await parts.ask()
        exchange.payload = RawPayload(body, {}, None, 1000)
        reply = await parts.inference.run(exchange)
        assert sent[-1] is body and reply.body == answer(1, ["card"]).body
        assert [row.characters for row in parts.rows()] == [6, 5]
