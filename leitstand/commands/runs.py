"""`leitstand runs`: list, show, compare and push training runs.

A run is named by its id, the start of its id, ``latest``, or ``latest~1`` for the one before.
"""

import json
from pathlib import Path
from typing import Any

import typer

from leitstand.commands.output import print_table
from leitstand.settings import Settings, load_settings

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, compare and sync training runs.")

HEADLINE = ("test/accuracy", "validation_accuracy", "test/ece", "validation_ece", "training_seconds")


@app.command("list")
def list_runs(
    use_case: str = typer.Argument("", help="Only runs of this use case."),
    limit: int = typer.Option(30, "--limit", "-n", min=1, help="How many, newest first."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List runs, newest first."""
    runs = _read(load_settings(), use_case)[:limit]
    if as_json:
        typer.echo(json.dumps([_facts(run) for run in runs], indent=2))
        return
    if not runs:
        typer.echo("No runs yet. Train one with `leitstand run USE_CASE`.", err=True)
        return
    _print_table(runs)


@app.command()
def show(
    run: str = typer.Argument(help="Run id, its start, `latest` or `latest~N`."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show what one run was given and what it measured."""
    from models.tracking.reading import find_run

    found = find_run(_read(load_settings()), run)
    facts = _facts(found) | {
        "config": found.config,
        "summary": found.summary,
        "curves": {name: {"points": len(points), "last": points[-1]} for name, points in found.history.items()},
        "tables": {name: len(table.rows) for name, table in found.tables.items()},
        "artifacts": [f"{item.kind} {item.name} ({item.size_bytes:,} bytes)" for item in found.artifacts],
        "folders": [str(folder) for folder in found.folders],
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2, default=str))
        return
    for name, value in facts.items():
        _print_fact(name, value)


@app.command()
def compare(
    runs: list[str] = typer.Argument(help="Two to eight runs: ids, their starts, `latest`, `latest~N`."),
    out: Path | None = typer.Option(None, "--out", "-o", help="HTML file; default: below the reports folder."),
) -> None:
    """Write one HTML page with runs side by side, and print its path."""
    from models.tracking.compare import compare as write_comparison
    from models.tracking.reading import find_run

    settings = load_settings()
    known = _read(settings)
    chosen = [find_run(known, reference) for reference in runs]
    name = "-".join(run.run_id for run in chosen)[:100]
    typer.echo(write_comparison(chosen, out or settings.root / "reports" / f"compare-{name}.html"))


@app.command()
def sync(
    runs: list[str] = typer.Argument(None, help="Runs to push; default: all."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be pushed."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Push offline runs to W&B; what is there already is not pushed again."""
    from models.tracking.reading import find_run
    from models.tracking.syncing import sync_runs

    settings = load_settings()
    known = _read(settings)
    chosen = [find_run(known, reference) for reference in runs] if runs else known
    report = sync_runs(settings, chosen, dry_run=dry_run)
    if as_json:
        lists = {name: [str(folder) for folder in folders] for name, folders in vars(report).items()}
        typer.echo(json.dumps(lists | {"dry_run": dry_run}, indent=2))
        return
    for folder in report.pushed:
        typer.echo(folder)
    typer.echo(
        f"{len(report.pushed)} {'to push' if dry_run else 'pushed'}, {len(report.already_there)} there already, "
        f"{len(report.still_running)} still running",
        err=True,
    )


def _read(settings: Settings, use_case: str = "") -> list[Any]:
    from models.tracking.reading import read_runs

    return read_runs(settings.root, use_case=use_case or None)


def _facts(run: Any) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "use_case": run.use_case,
        "job": run.job,
        "profile": run.config.get("profile", ""),
        "state": run.state,
        "started": run.started.isoformat(timespec="seconds"),
        "duration_s": round(run.duration_s, 1),
        "tags": list(run.tags),
        "metrics": {name: run.summary[name] for name in HEADLINE if isinstance(run.summary.get(name), int | float)},
    }


def _print_table(runs: list[Any]) -> None:
    facts = [_facts(run) for run in runs]
    metrics = [name for name in HEADLINE if any(name in row["metrics"] for row in facts)]
    head = ["run", "use case", "job", "profile", "state", "started (UTC)", "duration", *metrics]
    rows = [
        [
            row["run_id"], row["use_case"], row["job"], str(row["profile"]), row["state"],
            row["started"][:16].replace("T", " "), f"{row['duration_s']:,.0f} s",
            *(f"{row['metrics'][name]:.4f}" if name in row["metrics"] else "" for name in metrics),
        ]
        for row in facts
    ]  # fmt: skip
    print_table(head, rows)


def _print_fact(name: str, value: Any) -> None:
    if isinstance(value, dict):
        typer.echo(f"{name}:")
        for key, inner in value.items():
            typer.echo(f"  {key}: {json.dumps(inner, default=str)}")
    elif isinstance(value, list):
        typer.echo(f"{name}: {', '.join(map(str, value))}")
    else:
        typer.echo(f"{name}: {value}")
