"""`leitstand checks`: the nightly checks by hand, and the backups that they make."""

import json
from pathlib import Path

import typer

from leitstand.commands.drift import opened_loop
from leitstand.commands.output import print_table
from leitstand.errors import PolicyDenied
from leitstand.settings import load_settings
from leitstand.types import utc_now

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Run the nightly checks by hand; list and restore backups of the state.",
)


@app.command()
def run(
    use_case: str = typer.Argument(help="Name of the use case"),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Run all nightly checks and the housekeeping now. Exit code 3: something degraded."""
    loop = opened_loop(load_settings())
    from flows.nightly import run_checks

    record = run_checks(loop, loop.adapters.use_case(use_case), now=utc_now())
    if as_json:
        typer.echo(record.model_dump_json(indent=1))
    else:
        print_table(["check", "outcome", ""], [[check.name, check.outcome, check.text] for check in record.checks])
    if record.degraded:
        names = ", ".join(check.name for check in record.degraded)
        raise PolicyDenied(f"Degraded: {names}", hint="see docs/runbooks/sanity-check-failed.md")


@app.command("backups")
def list_backups(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the backups of the state, newest last."""
    from flows.backup import backups

    found = [str(path) for path in backups(load_settings())]
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for path in found:
        typer.echo(path)


@app.command()
def restore(
    backup: Path = typer.Argument(help="One of `leitstand checks backups`"),
    into: Path = typer.Option(..., help="Folder that becomes `home`; no database of the state may be in it"),
) -> None:
    """Restore a backup of the state and verify it. Stop everything first (`leitstand down`)."""
    from flows.backup import restore as bring_back

    for file in bring_back(backup, into).files:
        typer.echo(f"{file.path}: {sum(file.rows.values()):,} rows in {len(file.rows)} tables")
