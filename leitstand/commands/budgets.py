"""`leitstand budgets`: what was used of each limit today, and exceptions for the rest of a day, with a reason."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

import typer

from governance.budgets.limits import Limit, key_of, user_name
from governance.budgets.opening import open_budget_store
from governance.budgets.plans import Plans
from governance.budgets.port import BudgetChange, BudgetStore, Charge, Level
from governance.budgets.pricing import micros
from leitstand.commands.arguments import current_user
from leitstand.commands.output import print_table
from leitstand.errors import ConfigurationError, NotFoundError
from leitstand.settings import Settings, load_settings
from leitstand.types import utc_now

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Show and change what is used of budgets."
)

USE_CASE = typer.Option("", "--use-case", help="Use case; without one, all of them")
ONE_USE_CASE = typer.Option("", "--use-case", help="Use case; without one, the tenant's total over all use cases")
TENANT = typer.Option("", help="Tenant; without one, those with limits of their own and those seen today")
KEY = typer.Option("", help="Id of an API key")
USER = typer.Option("", help="User of the tenant, as the token names him")
ONE_TENANT = typer.Option("", "--tenant", help="Whose budget it is; without one, the use case's own")
LIMIT = typer.Option(..., help="requests, tokens or cost")
REASON = typer.Option(..., help="Why; it stands in the log of changes")
ACTOR = typer.Option("", help="Who does it; the user's name without it")
JSON = typer.Option(False, "--json", help="Print JSON.")
HEAD = ["use case", "scope", "who", "limit", "most", "granted", "used", "reserved", "left", "until"]
MICROS = 10**6
T = TypeVar("T")


@app.command("show")
def show(
    tenant: str = TENANT, use_case: str = USE_CASE, key: str = KEY, user: str = USER, as_json: bool = JSON
) -> None:  # fmt: skip
    """Show every limit and what is used of it today, or being answered now."""
    settings = load_settings()
    plans = Plans(settings)

    async def read(store: BudgetStore) -> list[dict[str, Any]]:
        now = await store.now_ms()
        tenants = [tenant] if tenant else await _tenants(store, plans, now)
        rows = _places(settings, plans, use_case, tenants, key, user, now)
        levels = await store.levels([charge for _, _, charge in rows])
        return [_row(*row, level) for row, level in zip(rows, levels, strict=True)]

    found = _with_store(settings, read)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    if not found:
        typer.echo("No limits. The key `budgets` of a use case sets them.", err=True)
    print_table(HEAD, [[str(value) for value in row.values()] for row in found])


@app.command("grant")
def grant(
    amount: str = typer.Argument(help="Requests, tokens, or money in the currency's unit"),
    limit: str = LIMIT, tenant: str = ONE_TENANT, use_case: str = ONE_USE_CASE, key: str = KEY, user: str = USER,
    reason: str = REASON, actor: str = ACTOR,
) -> None:  # fmt: skip
    """Raise a day's limit until its end. Gateways admit by it at once."""
    units = micros(Decimal(amount)) if limit == "cost" and _is_number(amount) else amount
    if not str(units).isdigit() or int(units) < 1:
        raise ConfigurationError(f"'{amount}' is no amount of {limit}", hint="give a number above 0")
    _change("grant", limit, tenant, use_case, key, user, reason, actor, int(units))


@app.command("reset")
def reset(
    limit: str = LIMIT, tenant: str = ONE_TENANT, use_case: str = ONE_USE_CASE, key: str = KEY, user: str = USER,
    reason: str = REASON, actor: str = ACTOR,
) -> None:  # fmt: skip
    """Forget what was used of a limit today; requests that are being answered stay reserved."""
    _change("reset", limit, tenant, use_case, key, user, reason, actor, 0)


@app.command("log")
def log(as_json: bool = JSON) -> None:
    """List grants and resets, oldest first: who, when, how much, why."""
    changes = _with_store(load_settings(), lambda store: store.changes())
    if as_json:
        typer.echo(json.dumps([change.model_dump(mode="json") for change in changes], indent=1))
        return
    rows = [
        [f"{change.at:%Y-%m-%d %H:%M:%S}", change.action, change.key, str(change.amount), change.actor, change.reason]
        for change in changes
    ]
    print_table(["at (UTC)", "action", "key", "units", "by", "because"], rows)


def _change(
    action: Any, limit: str, tenant: str, use_case: str, key: str, user: str, reason: str, actor: str, amount: int
) -> None:  # fmt: skip
    settings = load_settings()
    plans = Plans(settings)
    scope = "key" if key else "user" if user else "tenant" if tenant and use_case else "total" if tenant else "use_case"

    async def change(store: BudgetStore) -> tuple[Charge, int]:
        rows = _places(settings, plans, use_case, [tenant], key, user, await store.now_ms())
        wanted = (scope, f"{limit}_per_day")
        fitting = [charge for found, _, charge in rows if (found.scope, found.unit) == wanted]
        if not fitting:
            names = sorted({found.name for found, _, charge in rows if charge.kind == "d"})
            raise NotFoundError(f"There is no limit {scope}.{limit}_per_day", hint=f"there are: {', '.join(names)}")
        record = BudgetChange(
            at=utc_now(), actor=actor or current_user(), action=action, key=fitting[0].key, amount=amount, reason=reason
        )
        if action == "grant":
            await store.grant(fitting[0], record)
            return fitting[0], amount
        return fitting[0], await store.reset(fitting[0], record)

    charge, units = _with_store(settings, change)
    typer.echo(f"{action} {charge.key}: {units} units", err=True)


def _with_store(settings: Settings, use: Callable[[BudgetStore], Awaitable[T]]) -> T:
    async def run() -> T:
        store = open_budget_store(settings)
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(run())


async def _tenants(store: BudgetStore, plans: Plans, now_ms: int) -> list[str]:
    """Those with limits of their own, and those with counts of today."""
    found = set(plans.tenants())
    for days in plans.days.values():
        for key in await store.keys(days.span(now_ms)[0]):
            scope, _, who, _ = key.split("|")
            if scope in ("tenant", "total"):
                found.add(who)
    return sorted(found) or ["default"]


def _places(
    settings: Settings, plans: Plans, use_case: str, tenants: list[str], key: str, user: str, now_ms: int
) -> list[tuple[Limit, str, Charge]]:
    """Every limit with whom it limits and where it is counted, each once."""
    secret = settings.gateway.subject_key
    pepper = secret.get_secret_value().encode() if secret else b""
    found: dict[str, tuple[Limit, str, Charge]] = {}
    for name in [use_case] if use_case else [*plans.use_cases, "*"]:
        for tenant in tenants:
            plan = plans.of(name, tenant)
            who = {"use_case": "", "tenant": tenant, "total": tenant, "key": key}
            who["user"] = user_name(tenant, user, pepper) if user else ""
            for limit in plan.limits if plan else ():
                if limit.scope != "use_case" and not who[limit.scope]:
                    continue
                place = key_of(limit, who[limit.scope])
                start, end = plans.days[limit.zone].span(now_ms) if limit.kind == "d" else (0, 0)
                charge = Charge(limit.kind, place, limit.most, limit.interval_us, start, end)
                found[place] = (limit, user if limit.scope == "user" else who[limit.scope], charge)
    return list(found.values())


def _row(limit: Limit, who: str, charge: Charge, level: Level) -> dict[str, Any]:
    """One row; money in the currency's unit."""
    used, reserved, most = level.spent, level.reserved, charge.limit
    left: Any = most + level.granted - used - reserved if limit.kind != "t" else "–"
    numbers: list[Any] = [most, level.granted, used, reserved, left]
    if limit.unit == "cost_per_day":
        numbers = [f"{Decimal(number) / MICROS:f}" for number in numbers]
    until = f"{datetime.fromtimestamp(charge.end_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}" if limit.kind == "d" else ""
    return dict(zip(HEAD, [limit.use_case, limit.scope, who, limit.unit, *numbers, until], strict=True))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
