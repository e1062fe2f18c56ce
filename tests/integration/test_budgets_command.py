"""`leitstand budgets` on a store that a gateway counted in."""

import asyncio
import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from governance.budgets.limits import charges_of
from governance.budgets.opening import open_budget_store
from governance.budgets.plans import Plans
from leitstand.commands.budgets import app
from leitstand.errors import ConfigurationError, NotFoundError
from leitstand.settings import load_settings
from leitstand.types import Caller, Usage
from tests.servers import RedisServer

BUDGETS = {
    "time_zone": "Europe/Berlin", "tenant": {"cost_per_day": 2.5, "requests_per_s": 5}, "use_case": {"concurrent": 9},
    "user": {"tokens_per_day": 100}, "key": {"requests_per_day": 7},
}  # fmt: skip


@pytest.fixture(params=["sqlite", "redis"])
def installed(
    request: pytest.FixtureRequest, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    document = yaml.safe_load((project / "usecases" / "support" / "usecase.yaml").read_text())
    folder = tmp_path / "usecases" / "support"
    folder.mkdir(parents=True)
    (folder / "usecase.yaml").write_text(yaml.safe_dump(document | {"budgets": BUDGETS}))
    (tmp_path / "tenants.yaml").write_text("tenants: {beta: {requests_per_day: 3}}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEITSTAND_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LEITSTAND_BUDGETS__TENANTS", str(tmp_path / "tenants.yaml"))
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        monkeypatch.setenv("LEITSTAND_BUDGETS__URI", server.database())


def use(caller: Caller) -> None:
    """One request of the caller: settled with 40 tokens and half a unit of money, another one in flight."""
    settings = load_settings()
    plans = Plans(settings)

    async def run() -> None:
        store = open_budget_store(settings)
        plan = plans.of("support", caller.tenant)
        assert plan is not None
        charges = charges_of(plan.limits, caller, Usage(20, 20, 500_000), plans.days, await store.now_ms(), b"")
        for hold in ("a", "b"):
            assert (await store.hold(hold, [charge for _, charge in charges], 30_000)).state == "held"
        await store.settle("a", [charge.amount if charge.kind == "d" else 0 for _, charge in charges])
        await store.close()

    asyncio.run(run())


def shown(*options: str) -> dict[tuple[str, str, str], dict[str, str]]:
    rows = json.loads(run("show", "--json", *options))
    return {(row["scope"], row["who"], row["limit"]): row for row in rows}


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.usefixtures("installed")
def test_what_is_used_is_shown_raised_forgotten_and_on_record() -> None:
    use(Caller("ann", "acme", method="api-key", key_id="k-1"))
    rows = shown("--user", "ann", "--key", "k-1", "--tenant", "acme")
    cost = rows["tenant", "acme", "cost_per_day"]
    assert (cost["most"], cost["used"], cost["reserved"], cost["left"]) == ("2.5", "0.5", "0.5", "1.5")
    assert rows["use_case", "", "concurrent"]["reserved"] == 1
    assert (rows["user", "ann", "tokens_per_day"]["used"], rows["user", "ann", "tokens_per_day"]["left"]) == (40, 20)
    assert rows["key", "k-1", "requests_per_day"]["left"] == 5
    assert rows["tenant", "acme", "requests_per_s"]["left"] == "–"
    assert {who for _, who, _ in shown()} == {"acme", "beta", ""}  # seen today, and named in a file
    run("grant", "10.25", "--limit", "cost", "--tenant", "acme", "--use-case", "support", "--reason", "a launch")
    run("grant", "2", "--limit", "requests", "--tenant", "beta", "--reason", "a test", "--actor", "ops")
    run(
        "reset", "--limit", "tokens", "--tenant", "acme", "--user", "ann", "--use-case", "support", "--reason", "a loop"
    )
    rows = shown("--user", "ann", "--tenant", "acme")
    assert rows["tenant", "acme", "cost_per_day"]["left"] == "11.75"
    assert (rows["user", "ann", "tokens_per_day"]["used"], rows["user", "ann", "tokens_per_day"]["reserved"]) == (0, 40)
    assert shown("--tenant", "beta")["total", "beta", "requests_per_day"]["left"] == 5
    log = json.loads(run("log", "--json"))
    assert [(entry["action"], entry["amount"], entry["reason"]) for entry in log] == [
        ("grant", 10_250_000, "a launch"), ("grant", 2, "a test"), ("reset", 40, "a loop"),
    ]  # fmt: skip
    assert log[1]["actor"] == "ops" and "beta" in run("log")
    assert "Europe" not in run("show") and "tenant" in run("show")


@pytest.mark.usefixtures("installed")
def test_a_limit_that_there_is_not_and_an_amount_that_is_none_are_named() -> None:
    for amount in ("0", "-1", "ten", "1.5"):
        with pytest.raises(ConfigurationError, match="no amount"):
            run("grant", "--limit", "requests", "--tenant", "beta", "--reason", "x", "--", amount)
    with pytest.raises(NotFoundError, match=r"no limit total\.tokens_per_day"):
        run("grant", "5", "--limit", "tokens", "--tenant", "beta", "--reason", "x")
