"""`leitstand token`: tokens of the built-in issuer, for trying a protected gateway on one machine."""

import json
from datetime import timedelta

import typer

from governance.access.dev_issuer import AUDIENCE, ISSUER, issue
from leitstand.settings import load_settings

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    help="Issue tokens for this machine; only in environment=local.",
)  # fmt: skip


@app.callback()
def root() -> None:
    """Issue tokens for this machine; only in environment=local."""


@app.command("issue")
def issue_token(
    subject: str = typer.Option(..., help="For whom: a user or a program"),
    tenant: str = typer.Option("default", help="Whose budget and policies apply"),
    scope: list[str] = typer.Option([], help="What it may do, like support:predict; once per scope"),
    ttl: int = typer.Option(3600, min=1, help="Seconds until it ends, 30 days at most"),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Print a signed token. The issuer's key lies below `home`; the first token makes it."""
    token = issue(load_settings(), subject=subject, tenant=tenant, scopes=scope, ttl=timedelta(seconds=ttl))
    if as_json:
        typer.echo(json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": ttl,
            "issuer": ISSUER, "audience": AUDIENCE, "scope": " ".join(scope)}, indent=1))  # fmt: skip
        return
    typer.echo(token)
