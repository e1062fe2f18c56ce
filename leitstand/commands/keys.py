"""`leitstand keys`: API keys of programs that ask the gateway. Gateways see a change within a second."""

import json
from datetime import datetime, timedelta

import typer

from governance.access.api_keys import ApiKey, mint, unknown_key
from governance.access.opening import open_api_keys
from leitstand.commands.output import print_table
from leitstand.errors import ConflictError
from leitstand.settings import load_settings
from leitstand.types import utc_now

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Create, list, rotate and revoke API keys."
)

JSON = typer.Option(False, "--json", help="Print JSON.")
HEAD = ["id", "subject", "tenant", "scopes", "created (UTC)", "ends (UTC)", "state"]


@app.command("create")
def create(
    subject: str = typer.Option(..., help="Who uses it: the name of a program"),
    tenant: str = typer.Option("default", help="Whose budget and policies apply"),
    scope: list[str] = typer.Option([], help="What it may do, like support:predict; once per scope"),
    days: int = typer.Option(90, min=0, help="Days until it ends; 0: never"),
    as_json: bool = JSON,
) -> None:
    """Make a key and print it: this once, only its hash is kept."""
    now = utc_now()
    text, key = mint(subject, tenant, scope, now=now, ends_at=now + timedelta(days=days) if days else None)
    open_api_keys(load_settings()).add(key)
    _show(text, key, as_json)


@app.command("list")
def list_keys(ended: bool = typer.Option(False, "--all", help="Also those that ended."), as_json: bool = JSON) -> None:
    """List the keys by id; the keys themselves are not known."""
    now = utc_now()
    keys = [key for key in open_api_keys(load_settings()).all() if ended or key.valid_at(now)]
    if as_json:
        typer.echo(json.dumps([_public(key, now) for key in keys], indent=1))
        return
    if not keys:
        typer.echo("No keys. Make one: leitstand keys create --subject NAME --scope USE_CASE:predict", err=True)
        return
    print_table(HEAD, [[str(value) for value in _row(key, now)] for key in keys])


@app.command("rotate")
def rotate(
    key_id: str = typer.Argument(help="Id of the key to replace"),
    overlap_hours: float = typer.Option(24.0, min=0, help="Hours that both keys count"),
    days: int = typer.Option(90, min=0, help="Days until the new one ends; 0: never"),
    as_json: bool = JSON,
) -> None:
    """Make a key with the same rights; the old one counts until the overlap is over."""
    store, now = open_api_keys(load_settings()), utc_now()
    old = next((key for key in store.all() if key.key_id == key_id), None)
    if old is None:
        raise unknown_key(key_id)
    if not old.valid_at(now):
        raise ConflictError(f"The key {key_id} has ended", hint="make a new one with `leitstand keys create`")
    ends_at = now + timedelta(days=days) if days else None
    text, key = mint(old.subject, old.tenant, old.scopes, now=now, ends_at=ends_at, replaces=key_id)
    store.add(key)
    store.end(key_id, now + timedelta(hours=overlap_hours), "rotated")
    _show(text, key, as_json)


@app.command("revoke")
def revoke(key_id: str = typer.Argument(help="Id of the key"), as_json: bool = JSON) -> None:
    """End a key now; running gateways refuse it within a second."""
    now = utc_now()
    key = open_api_keys(load_settings()).end(key_id, now, "revoked")
    if as_json:
        typer.echo(json.dumps(_public(key, now), indent=1))
        return
    typer.echo(f"Key {key_id} of {key.subject} is revoked", err=True)


def _show(text: str, key: ApiKey, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"key": text, **_public(key, key.created_at)}, indent=1))
        return
    typer.echo(text)
    until = f"until {key.ends_at:%Y-%m-%d %H:%M} UTC" if key.ends_at else "without an end"
    typer.echo(
        f"Key {key.key_id} of {key.subject} ({key.tenant}), {until}. It is not shown again: keep it in a secret store.",
        err=True,
    )


def _public(key: ApiKey, now: datetime) -> dict[str, object]:
    return {**key.model_dump(mode="json", exclude={"digest"}), "state": _state(key, now)}


def _row(key: ApiKey, now: datetime) -> list[object]:
    return [
        key.key_id, key.subject, key.tenant, " ".join(key.scopes) or "–", f"{key.created_at:%Y-%m-%d %H:%M}",
        f"{key.ends_at:%Y-%m-%d %H:%M}" if key.ends_at else "never", _state(key, now),
    ]  # fmt: skip


def _state(key: ApiKey, now: datetime) -> str:
    if key.valid_at(now):
        return f"{key.ended}, still counts" if key.ended else "active"
    return key.ended or "expired"
