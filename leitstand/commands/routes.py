"""`leitstand routes`: who answers a use case, and in which shares. Gateways see a change within a second."""

import json
from typing import Any

import typer

from governance.routes.opening import open_route_store
from governance.routes.targets import read_target, write_target
from leitstand.commands.arguments import current_user
from leitstand.commands.output import print_table
from leitstand.errors import ConfigurationError, NotFoundError
from leitstand.settings import load_settings
from leitstand.types import RouteTable, Target, TenantRoute, utc_now

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Show and change who answers a use case."
)

NAME = typer.Argument(help="Use case")
JSON = typer.Option(False, "--json", help="Print JSON.")
HEAD = [
    "use case", "revision", "stable", "canary", "share", "shadow", "share", "fallback", "tenants", "changed (UTC)",
    "by", "because",
]  # fmt: skip


@app.command("list")
def list_routes(as_json: bool = JSON) -> None:
    """List the routes of every use case."""
    store = open_route_store(load_settings())
    tables = [table for table in map(store.read, store.names()) if table]
    if not tables and not as_json:
        typer.echo("No routes yet. The first deployment writes them: `leitstand run USE_CASE`.", err=True)
    _print(tables, as_json)


@app.command("set")
def set_routes(
    name: str = NAME,
    stable: str = typer.Option(
        "",
        help="VERSION=URL that answers by default, like 7=http://127.0.0.1:3000; an OpenAI-compatible API is "
        "VERSION=openai+URL?model=NAME&key=NAME",
    ),
    canary: str = typer.Option("", help="VERSION=URL that answers a share; `none` takes it away"),
    percent: float = typer.Option(-1.0, min=-1, max=100, help="Share of the canary, 0 to 100"),
    shadow: str = typer.Option("", help="VERSION=URL that computes unseen; `none` takes it away"),
    shadow_percent: float = typer.Option(-1.0, min=-1, max=100, help="Share of requests that the shadow sees"),
    fallback: str = typer.Option("", help="VERSION=URL that steps in for stable; `none` takes it away"),
    tenant: list[str] = typer.Option([], help="NAME=VERSION=URL pins a tenant, NAME=none frees it; may be repeated"),
    tenant_fallback: list[str] = typer.Option(
        [], help="NAME=VERSION=URL steps in for a pinned tenant instead of --fallback; NAME=none; may be repeated"
    ),
    reason: str = typer.Option(..., help="Why; it stands in the history"),
    actor: str = typer.Option("", help="Who does it; the user's name without it"),
    as_json: bool = JSON,
) -> None:
    """Change the routes of a use case; what is not named stays as it is."""
    store = open_route_store(load_settings())
    before = store.read(name)
    changes: dict[str, Any] = {"changed_at": utc_now(), "actor": actor or current_user(), "reason": reason}
    if stable:
        changes["stable"] = read_target(stable)
    for key, value in (("canary", canary), ("shadow", shadow), ("fallback", fallback)):
        if value:
            changes[key] = None if value == "none" else read_target(value)
    for key, share in (("canary_percent", percent), ("shadow_percent", shadow_percent)):
        if share >= 0:
            changes[key] = share
    if canary == "none":
        changes["canary_percent"] = 0.0
    if tenant or tenant_fallback:
        changes["tenants"] = _tenants(before.tenants if before else {}, tenant, tenant_fallback)
    if before is None:
        if not stable:
            raise NotFoundError(f"'{name}' has no routes yet", hint="name its first target with --stable VERSION=URL")
        after = RouteTable(use_case=name, **changes)
    else:
        after = before.model_copy(update=changes)
    _print([store.write(after, expected=before.revision if before else 0)], as_json)


@app.command("history")
def history(name: str = NAME, as_json: bool = JSON) -> None:
    """List every revision of a use case's routes, oldest first."""
    tables = open_route_store(load_settings()).history(name)
    if not tables:
        raise NotFoundError(f"'{name}' has no routes", hint="see those there are with `leitstand routes list`")
    _print(list(tables), as_json)


def _tenants(before: dict[str, TenantRoute], pins: list[str], fallbacks: list[str]) -> dict[str, TenantRoute]:
    after = dict(before)
    for name, value in map(_named, pins):
        after.pop(name, None)
        if value != "none":
            kept = before[name].fallback if name in before else None
            after[name] = TenantRoute(target=read_target(value), fallback=kept)
    for name, value in map(_named, fallbacks):
        if name not in after:
            raise ConfigurationError(f"Tenant '{name}' is not pinned", hint=f"add --tenant {name}=VERSION=URL")
        after[name] = TenantRoute(target=after[name].target, fallback=None if value == "none" else read_target(value))
    return after


def _named(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise ConfigurationError(f"'{text}' names no tenant", hint="write NAME=VERSION=URL, or NAME=none")
    return name, value


def _print(tables: list[RouteTable], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([table.model_dump(mode="json") for table in tables], indent=1))
        return
    print_table(HEAD, [_row(table) for table in tables])


def _row(table: RouteTable) -> list[str]:
    def who(target: Target | None) -> str:
        return write_target(target) if target else "–"

    return [
        table.use_case, str(table.revision), who(table.stable), who(table.canary), f"{table.canary_percent:g} %",
        who(table.shadow), f"{table.shadow_percent:g} %" if table.shadow else "–",
        who(table.fallback), ", ".join(f"{name}: {who(route.target)}" for name, route in table.tenants.items()) or "–",
        f"{table.changed_at:%Y-%m-%d %H:%M:%S}", table.actor, table.reason,
    ]  # fmt: skip
