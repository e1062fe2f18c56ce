"""`leitstand reports`: list drift reports, find their pages, and look at their history in Evidently's own UI.

Reports are named by the start of their file name, like ``20261124T08``, or ``latest``.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from leitstand.commands.output import print_table
from leitstand.errors import NotFoundError
from leitstand.settings import Settings, load_settings, quiet_environment
from leitstand.usecase import find

if TYPE_CHECKING:
    from monitors.report_record import WindowReport

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="List drift reports, find their pages, show their history.",
)

USE_CASE = typer.Argument(help="Name of the use case")


@app.command("list")
def list_reports(
    use_case: str = USE_CASE,
    limit: int = typer.Option(30, "--limit", "-n", min=1, help="How many, newest first."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List reports, newest window first."""
    reports = _read(load_settings(), use_case)[:limit]
    if as_json:
        facts = [
            report.model_dump(mode="json", exclude={"metrics"}) | {"verdict": report.verdict} for report in reports
        ]
        typer.echo(json.dumps(facts, indent=1))
        return
    if not reports:
        typer.echo(f"No reports of '{use_case}' yet.", err=True)
    head = ["report", "version", "rows", "verdict", "estimated accuracy", "measured accuracy", "feedback labels"]
    print_table(head, [_row(report) for report in reports])


@app.command()
def path(
    use_case: str = USE_CASE,
    report: str = typer.Argument("", help="Start of a report's name, or `latest`; the index page without it"),
) -> None:
    """Print the path of the index page or of one report, to open in a browser."""
    settings = load_settings()
    folder = _folder(settings, use_case)
    page = folder / "index.html"
    if report:
        page = folder / _find(_read(settings, use_case), use_case, report).html
    if not page.is_file():
        raise NotFoundError(
            f"There is no {page}", hint=f"see `leitstand reports list {use_case}`; old pages are removed by retention"
        )
    typer.echo(page)


@app.command()
def ui(
    port: int = typer.Option(8001, min=1, max=65535, help="Port on this machine."),
) -> None:
    """Show the history of all use cases in Evidently's UI; stop it with Ctrl-C."""
    settings = load_settings()
    workspace = settings.root / "reports" / "evidently"
    if not workspace.is_dir():
        raise NotFoundError(f"There is no Evidently workspace {workspace} yet", hint="build a report first")
    program = str(Path(sys.executable).with_name("evidently"))
    command = [program, "ui", "--host", "127.0.0.1", "--port", str(port), "--workspace", str(workspace)]
    typer.echo(f"http://127.0.0.1:{port}", err=True)
    try:
        os.execve(program, command, quiet_environment(settings))  # noqa: S606 -- the list is built here
    except FileNotFoundError as error:
        raise NotFoundError(f"{program} is not installed", hint="pip install 'leitstand[monitoring]'") from error


def _folder(settings: Settings, use_case: str) -> Path:
    return settings.root / "reports" / find(use_case, settings.usecases).parent.name


def _read(settings: Settings, use_case: str) -> "list[WindowReport]":
    from monitors.report_index import read_records

    reports, problems = read_records(_folder(settings, use_case))
    for name, why in problems:
        typer.echo(f"{name}: {why}", err=True)
    return reports


def _find(reports: "list[WindowReport]", use_case: str, name: str) -> "WindowReport":
    found = reports if name == "latest" else [report for report in reports if report.stem.startswith(name)]
    if not found:
        raise NotFoundError(
            f"No report of '{use_case}' is called '{name}'", hint=f"see `leitstand reports list {use_case}`"
        )
    return found[0]


def _row(report: "WindowReport") -> list[str]:
    drift = report.drift
    estimated, measured = (drift.estimated_accuracy, drift.measured_accuracy) if drift else (None, None)
    shown = ["–" if m is None or m.value is None else f"{m.value:.4f}" for m in (estimated, measured)]
    return [report.stem, str(report.version), f"{report.rows:,}", report.verdict, *shown, f"{report.labelled_rows:,}"]
