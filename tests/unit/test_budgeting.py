"""Budgets as stages of the pipeline: what is held, what is booked, and what callers are told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from governance.budgets.plans import Plans
from governance.budgets.port import Charge
from governance.budgets.sqlite import SqliteBudgetStore
from leitstand.errors import (
    ConfigurationError,
    ContentBlocked,
    PermanentBackendError,
    QuotaExceeded,
    TransientBackendError,
)
from leitstand.settings import BudgetSettings, Settings
from leitstand.types import Caller, Usage
from services.budgeting import Budgeting
from services.exchange import Exchange
from services.policies import Policies
from services.upstreams import Reply, UpstreamFailed
from tests.budgets_for_tests import Clock
from tests.gateway_for_tests import CANARY, STABLE, Bench, answer, bench

GOOD = {STABLE: answer(1, ["card"]), CANARY: answer(2, ["card"])}
ACME = Caller("ann@example.org", "acme", method="jwt", key_id="jti-1")


def use_case(folder: Path, project: Path, budgets: dict[str, Any], name: str = "support") -> Path:
    document = yaml.safe_load((project / "usecases" / "support" / "usecase.yaml").read_text())
    document |= {"name": name, "budgets": budgets}
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "usecase.yaml").write_text(yaml.safe_dump(document))
    return folder


@dataclass
class Parts:
    pipeline: Bench
    budgeting: Budgeting
    store: SqliteBudgetStore
    clock: Clock
    caller: Caller = ACME

    async def ask(self, *texts: str, **more: Any) -> Exchange:
        """Asks as the caller; the exchange, whether it was answered or not, with its error."""
        made: list[Exchange] = []
        raised: Exception | None = None
        run = self.pipeline.inference.run

        async def keep(exchange: Exchange) -> Reply:
            made.append(exchange)
            exchange.caller = self.caller
            return await run(exchange)

        self.pipeline.inference.run = keep  # type: ignore[method-assign]
        try:
            await self.pipeline.ask(*texts, **more)
        except Exception as error:
            raised = error
        finally:
            self.pipeline.inference.run = run  # type: ignore[method-assign]
        await self.booked()
        assert made[0].error is raised
        return made[0]

    async def booked(self) -> None:
        while self.budgeting._keeper._bookings:
            await asyncio.gather(*self.budgeting._keeper._bookings)

    async def spent(self, key: str) -> tuple[int, int]:
        start = self.clock.ms // 86_400_000 * 86_400_000
        (level,) = await self.store.levels([Charge("d", key, 0, 0, start, start + 1)])
        return level.spent, level.reserved


@asynccontextmanager
async def budgeted(
    tmp_path: Path, project: Path, budgets: dict[str, Any], scripts: Any = GOOD, totals: str = "", **more: Any
) -> AsyncIterator[Parts]:
    clock, guard = Clock(), more.pop("guard", None)
    store = SqliteBudgetStore(tmp_path / "budgets.db", clock)
    chosen = BudgetSettings()
    if totals:
        (tmp_path / "tenants.yaml").write_text(totals)
        chosen = BudgetSettings(tenants=tmp_path / "tenants.yaml")
    settings = Settings(home=tmp_path, usecases=use_case(tmp_path / "u", project, budgets), budgets=chosen)
    plans = Plans(settings)
    budgeting = Budgeting(store, plans, named=plans.tenants())
    policies = Policies(admit=budgeting.admit, settle=budgeting.settle, **({"guard_input": guard} if guard else {}))
    async with bench(scripts, policies=policies, **more) as pipeline:
        yield Parts(pipeline, budgeting, store, clock)
        await budgeting.close()


def header(exchange: Exchange, name: str) -> str:
    return next((value.decode() for key, value in exchange.response_headers if key == name.encode()), "")


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_without_limits_and_prices_nothing_is_done(tmp_path: Path, project: Path) -> None:
    async with budgeted(tmp_path, project, {}) as parts:
        exchange = await parts.ask()
        assert exchange.error is None and exchange.response_headers == [] and exchange.usage == Usage()
    assert not (tmp_path / "budgets.db").exists()


async def test_a_price_without_a_limit_is_told_and_counted_nowhere(tmp_path: Path, project: Path) -> None:
    prices = {"per_request": 0.000002, "per_million_tokens_in": 1}
    async with budgeted(tmp_path, project, {"prices": prices}) as parts:
        exchange = await parts.ask("123456")
        assert exchange.usage == Usage(4, 0, 6)
        assert header(exchange, "x-leitstand-cost") == "0.000006"
    assert not (tmp_path / "budgets.db").exists()


async def test_an_answer_is_booked_with_requests_tokens_and_cost(tmp_path: Path, project: Path) -> None:
    limits = {"requests_per_day": 10, "tokens_per_day": 100, "cost_per_day": 0.01}
    budgets = {"prices": {"per_million_tokens_in": 100}, "tenant": limits}
    async with budgeted(tmp_path, project, budgets) as parts:
        exchange = await parts.ask("123456", "123")
        assert exchange.usage == Usage(7, 0, 700)
        assert await parts.spent("tenant|support|acme|requests_per_day") == (1, 0)
        assert await parts.spent("tenant|support|acme|tokens_per_day") == (7, 0)
        assert await parts.spent("tenant|support|acme|cost_per_day") == (700, 0)
        assert (
            header(exchange, "ratelimit-policy").split(", ")[1] == '"tenant-tokens-per-day";q=100;qu="tokens";w=86400'
        )
        assert header(exchange, "ratelimit").split(", ")[1] == '"tenant-tokens-per-day";r=93;t=43200'


async def test_a_day_that_is_used_up_refuses_until_midnight(tmp_path: Path, project: Path) -> None:
    budgets = {"tenant": {"requests_per_day": 2, "tokens_per_day": 1000}}
    async with budgeted(tmp_path, project, budgets) as parts:
        assert (await parts.ask()).error is None
        warned = await parts.ask()
        assert header(warned, "x-leitstand-budget-warning") == '"tenant-requests-per-day";r=0;q=2;t=43200'
        refused = await parts.ask()
        assert isinstance(refused.error, QuotaExceeded)
        assert (refused.error.limit, refused.error.retry_after_s) == ("tenant.requests_per_day", 43_200)
        assert refused.usage == Usage() and "x-leitstand-cost" not in dict(refused.response_headers)
        assert parts.pipeline.upstreams.asked == [STABLE] * 2
        assert (await parts.spent("tenant|support|acme|tokens_per_day"))[1] == 0
        parts.clock.move(43_200)
        assert (await parts.ask()).error is None


async def test_a_rate_says_when_the_next_request_may_come(tmp_path: Path, project: Path) -> None:
    async with budgeted(tmp_path, project, {"use_case": {"requests_per_s": 0.5}}) as parts:
        first = await parts.ask()
        assert first.error is None and not header(first, "ratelimit")  # what all share is nobody's business
        refused = await parts.ask()
        assert isinstance(refused.error, QuotaExceeded) and refused.error.retry_after_s == 2
        assert header(refused, "ratelimit") == '"use-case-requests-per-s";r=0;t=2'
        parts.clock.move(2)
        assert (await parts.ask()).error is None


async def test_a_place_is_free_again_when_the_answer_is_there(tmp_path: Path, project: Path) -> None:
    async with budgeted(tmp_path, project, {"user": {"concurrent": 1}}) as parts:
        parts.pipeline.upstreams.gate = asyncio.Event()
        waiting = asyncio.create_task(parts.pipeline.ask(caller=ACME))
        while not parts.pipeline.upstreams.asked:
            await asyncio.sleep(0.001)
        assert isinstance((await parts.ask()).error, QuotaExceeded)
        parts.caller = Caller("bob", "acme", method="jwt")
        parts.pipeline.upstreams.gate.set()
        assert (await parts.ask()).error is None
        await waiting
        assert (await parts.pipeline.ask(caller=ACME)).error is None  # at once: its predecessor's booking was awaited


@pytest.mark.parametrize(
    ("failure", "tokens", "requests"),
    [
        (UpstreamFailed("nobody listens", "refused"), 0, 0),
        (answer(1, [], status=500), 0, 0),
        (Reply(400, b'{"error": "empty"}', "application/json"), 0, 0),
        (UpstreamFailed("too slow", "timeout"), 5, 1),
        (Reply(200, b"no json", "text/html"), 5, 1),
    ],
)
async def test_a_failure_is_free_unless_the_work_may_have_been_done(
    tmp_path: Path, project: Path, failure: Reply | UpstreamFailed, tokens: int, requests: int
) -> None:
    budgets = {"tenant": {"requests_per_day": 10, "tokens_per_day": 100}}
    async with budgeted(tmp_path, project, budgets, {STABLE: failure}) as parts:
        exchange = await parts.ask("123456789")
        assert exchange.usage.tokens_in == tokens
        assert await parts.spent("tenant|support|acme|tokens_per_day") == (tokens, 0)
        assert await parts.spent("tenant|support|acme|requests_per_day") == (requests, 0)


async def test_a_text_that_a_guard_blocks_costs_nothing(tmp_path: Path, project: Path) -> None:
    async def block(exchange: Exchange) -> None:
        raise ContentBlocked("no", reasons=["test"])

    budgets = {"tenant": {"requests_per_day": 1}}
    async with budgeted(tmp_path, project, budgets, guard=block) as parts:
        for _ in range(3):
            exchange = await parts.ask()
            assert isinstance(exchange.error, ContentBlocked) and exchange.usage == Usage()
        assert await parts.spent("tenant|support|acme|requests_per_day") == (0, 0)


async def test_canary_and_stable_together_are_one_request(tmp_path: Path, project: Path) -> None:
    scripts = GOOD | {CANARY: UpstreamFailed("nobody listens", "refused")}
    budgets = {"tenant": {"requests_per_day": 1}}
    async with budgeted(tmp_path, project, budgets, scripts, canary=CANARY, canary_percent=100) as parts:
        assert (await parts.ask()).route == "stable"
        assert parts.pipeline.upstreams.asked == [CANARY, STABLE]
        assert await parts.spent("tenant|support|acme|requests_per_day") == (1, 0)


async def test_a_used_up_day_falls_back_at_no_cost_and_rates_still_hold(tmp_path: Path, project: Path) -> None:
    budgets = {
        "on_exhausted": "fallback", "prices": {"per_request": 1},
        "tenant": {"cost_per_day": 1, "concurrent": 5}, "use_case": {"requests_per_s": 0.001, "burst": 2},
    }  # fmt: skip
    async with budgeted(tmp_path, project, budgets, fallback=CANARY) as parts:
        assert header(await parts.ask(), "x-leitstand-cost") == "1.000000"
        fallen = await parts.ask()
        assert (fallen.route, fallen.notes["fallback"], fallen.error) == ("fallback", "budget", None)
        assert header(fallen, "x-leitstand-cost") == "0.000000"
        assert header(fallen, "x-leitstand-budget-warning") == '"tenant-cost-per-day";r=0'
        assert await parts.spent("tenant|support|acme|cost_per_day") == (1_000_000, 0)
        refused = await parts.ask()
        assert isinstance(refused.error, QuotaExceeded) and refused.error.limit == "use_case.requests_per_s"


async def test_without_a_fallback_the_used_up_day_refuses(tmp_path: Path, project: Path) -> None:
    budgets = {"on_exhausted": "fallback", "tenant": {"requests_per_day": 0}}
    async with budgeted(tmp_path, project, budgets) as parts:
        exchange = await parts.ask()
        assert isinstance(exchange.error, QuotaExceeded) and exchange.error.retry_after_s == 43_200


async def test_limits_are_each_callers_own(tmp_path: Path, project: Path) -> None:
    budgets = {
        "user": {"requests_per_day": 1}, "key": {"requests_per_day": 2},
        "tenant": {"requests_per_day": 3}, "tenants": {"big": {"requests_per_day": 100}},
    }  # fmt: skip

    async with budgeted(tmp_path, project, budgets) as parts:

        async def outcome(subject: str, tenant: str, method: str = "jwt", key: str = "") -> str:
            parts.caller = Caller(subject, tenant, method=method, key_id=key)
            error = (await parts.ask()).error
            return error.limit if isinstance(error, QuotaExceeded) else "ok"

        assert await outcome("ann", "a") == "ok"
        assert await outcome("ann", "a", key="another-token") == "user.requests_per_day"
        assert await outcome("ann", "b") == "ok"  # the same name in another tenant is another person
        assert [await outcome(f"s{n}", "c", "api-key", "k1") for n in range(3)] == ["ok", "ok", "key.requests_per_day"]
        assert [await outcome(f"s{n}", "c", "api-key", "k2") for n in "xy"] == ["ok", "tenant.requests_per_day"]
        assert [await outcome("nobody", "d", "anonymous") for _ in range(4)] == ["ok"] * 3 + ["tenant.requests_per_day"]
        assert [await outcome(f"s{n}", "big") for n in range(5)] == ["ok"] * 5
        assert counted(
            "gateway_budget_left", use_case="support", scope="tenant", limit="requests_per_day", tenant="big"
        ) == 95.0  # fmt: skip
        keys = await parts.store.keys(parts.clock.ms // 86_400_000 * 86_400_000)
        assert not any("ann" in key for key in keys)


async def test_a_tenants_total_covers_all_use_cases(tmp_path: Path, project: Path) -> None:
    totals = "default: {requests_per_day: 5}\ntenants: {acme: {requests_per_day: 1}}\n"
    async with budgeted(tmp_path, project, {}, totals=totals) as parts:
        assert (await parts.ask()).error is None
        error = (await parts.ask()).error
        assert isinstance(error, QuotaExceeded) and error.limit == "total.requests_per_day"
        assert await parts.spent("total|*|acme|requests_per_day") == (1, 0)
        plans = parts.budgeting._plans
        names = {plan.use_case for n in range(50) if (plan := plans.of(f"made-up-{n}", "acme"))}
        assert names == {""} and plans.use_cases == ["support"]  # neither memory nor metrics grow with made-up names


async def test_what_the_model_says_it_used_counts(tmp_path: Path, project: Path) -> None:
    budgets = {"prices": {"per_million_tokens_out": 1_000_000}, "tenant": {"tokens_per_day": 100}}
    async with budgeted(tmp_path, project, budgets) as parts:
        told = parts.pipeline.upstreams.call

        async def call(*arguments: Any) -> Reply:
            made.usage = Usage(3, 4)
            return await told(*arguments)

        parts.pipeline.upstreams.call = call  # type: ignore[method-assign]
        policies = parts.pipeline.inference._policies
        made = Exchange("support", "r", "", GOOD, "/", 0)  # type: ignore[arg-type]
        seen = policies.admit

        async def admit(exchange: Exchange) -> None:
            nonlocal made
            made = exchange
            exchange.usage = Usage(20, 50)
            await seen(exchange)
            assert exchange.usage == Usage(20, 50, 50_000_000)

        object.__setattr__(policies, "admit", admit)
        exchange = await parts.ask("abc")
        assert exchange.usage == Usage(3, 4, 4_000_000)
        assert await parts.spent("tenant|support|acme|tokens_per_day") == (7, 0)


@pytest.mark.parametrize("policy", ["refuse", "admit"])
async def test_without_a_store_the_policy_decides_and_nothing_that_was_used_is_lost(
    tmp_path: Path, project: Path, policy: str
) -> None:
    budgets = {"when_unavailable": policy, "tenant": {"requests_per_day": 10}}
    async with budgeted(tmp_path, project, budgets) as parts:
        working, broken = parts.store._transact, TransientBackendError("gone")

        def fail(calls: Any) -> Any:
            raise broken

        parts.store._transact = fail  # type: ignore[method-assign]
        exchange = await parts.ask()
        assert counted("gateway_budget_store_up") == 0
        if policy == "refuse":
            assert isinstance(exchange.error, TransientBackendError) and "gone" not in str(exchange.error)
        else:
            assert exchange.error is None
        parts.store._transact = working  # type: ignore[method-assign]
        await parts.budgeting._keeper._catch_up()
        assert await parts.spent("tenant|support|acme|requests_per_day") == (int(policy == "admit"), 0)
        assert (await parts.ask()).error is None


async def test_a_caller_who_gives_up_leaves_nothing_reserved(tmp_path: Path, project: Path) -> None:
    async with budgeted(tmp_path, project, {"tenant": {"requests_per_day": 10, "concurrent": 5}}) as parts:
        task = asyncio.create_task(parts.pipeline.ask(caller=ACME))
        while not parts.store._batches._working:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await parts.booked()
        assert await parts.spent("tenant|support|acme|requests_per_day") == (0, 0)


async def test_a_gateway_whose_clock_is_days_off_counts_on_the_stores_day(tmp_path: Path, project: Path) -> None:
    async with budgeted(tmp_path, project, {"tenant": {"requests_per_day": 1}}) as parts:
        parts.clock.move(5 * 86_400)
        assert (await parts.ask()).error is None
        assert await parts.spent("tenant|support|acme|requests_per_day") == (1, 0)
        assert isinstance((await parts.ask()).error, QuotaExceeded)


def test_a_use_case_that_cannot_be_read_stops_the_start_and_a_later_one_its_requests(
    tmp_path: Path, project: Path
) -> None:
    settings = Settings(usecases=use_case(tmp_path, project, {}))
    plans = Plans(settings)
    assert plans.of("support", "acme") is None and plans.of("unknown", "acme") is None
    use_case(tmp_path, project, {"time_zone": "Mars/Olympus"}, name="later")
    with pytest.raises(PermanentBackendError):
        plans.of("later", "acme")
    with pytest.raises(ConfigurationError, match="no time zone"):
        Plans(settings)


@pytest.mark.parametrize("text", ["defaults: {}", "tenants: [a]", "{", "default: {requests_per_s: 0}"])
def test_a_wrong_file_of_totals_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tenants.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"tenants\.yaml"):
        Plans(Settings(usecases=tmp_path, budgets=BudgetSettings(tenants=tmp_path / "tenants.yaml")))


def test_the_files_of_the_how_to_are_read(tmp_path: Path, project: Path) -> None:
    page = (project / "docs" / "how-to" / "set-budgets.md").read_text()
    written, totals = (part.split("```")[0] for part in page.split("```yaml\n")[1:])
    (tmp_path / "tenants.yaml").write_text(totals)
    usecases = use_case(tmp_path / "u", project, yaml.safe_load(written)["budgets"])
    plan = Plans(Settings(usecases=usecases, budgets=BudgetSettings(tenants=tmp_path / "tenants.yaml"))).of(
        "support", "acme"
    )
    assert plan is not None
    most = {limit.name: limit.most for limit in plan.limits}
    assert most["tenant.cost_per_day"] == 80_000_000 and most["tenant.tokens_per_day"] == 2_000_000
    assert most["total.cost_per_day"] == 300_000_000 and most["total.requests_per_s"] == 500
