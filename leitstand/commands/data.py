"""`leitstand data`: ingest and validate the data of a use case, and show what was stored."""

import json
from pathlib import Path
from typing import Any

import typer

from leitstand.errors import ConflictError, ValidationFailed
from leitstand.settings import Settings, apply_environment, load_settings
from leitstand.types import Snapshot
from leitstand.usecase import UseCase, find, load

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Ingest and validate data sets.")


@app.command()
def validate(
    name: str = typer.Argument(help="Use case."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Read the sources, check every expectation and store the snapshot. Exit code 5: the data is not valid."""
    settings, use_case = _load(name)
    apply_environment(settings)
    from models.data import ingest

    typer.echo(f"Validating the data of '{name}' ...", err=True)
    try:
        snapshot = ingest(use_case, home=settings.root, s3=settings.s3)
    except ValidationFailed as error:
        if as_json:
            typer.echo(json.dumps({"passed": False, "failures": error.failures, "hint": error.hint}, indent=2))
        raise
    _print(snapshot, as_json)


@app.command()
def show(
    name: str = typer.Argument(help="Use case."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show the snapshot that the last valid ingestion stored."""
    settings, use_case = _load(name)
    from models.snapshots import latest

    _print(latest(use_case.name, settings.root), as_json)


@app.command()
def golden(
    name: str = typer.Argument(help="Use case."),
    per_label: int = typer.Option(10, min=1, help="Rows of each label."),
    seed: int = typer.Option(17, help="Of the draw."),
    out: Path | None = typer.Option(None, help="CSV to write; default: data/golden.csv beside usecase.yaml."),
) -> None:
    """Draw the golden set from the test split of the stored snapshot, and print the lines that pin it."""
    settings, use_case = _load(name)
    from models.golden import draw_golden, write_golden
    from models.snapshots import latest, load_split

    target = out or use_case.folder / "data" / "golden.csv"
    if target.exists():
        raise ConflictError(
            f"{target} exists already, and a golden set stays as it is",
            hint="name another file with --out; numbers before and after cannot be compared",
        )
    snapshot = latest(use_case.name, settings.root)
    drawn = draw_golden(load_split(snapshot, "test"), snapshot.labels, per_label=per_label, seed=seed)
    spec = use_case.data
    digest = write_golden(drawn, target, text_column=spec.text_column, label_column=spec.label_column)
    inside = target.resolve().is_relative_to(use_case.folder.resolve())
    typer.echo(f"golden:\n  file: {target.resolve().relative_to(use_case.folder.resolve()) if inside else target}")
    typer.echo(f"  digest: {digest}")
    typer.echo(f"{len(drawn.texts):,} rows of {len(set(drawn.labels))} labels; put these lines below `data:`", err=True)


def _load(name: str) -> tuple[Settings, UseCase]:
    settings = load_settings()
    return settings, load(find(name, settings.usecases))


def _print(snapshot: Snapshot, as_json: bool) -> None:
    facts = _facts(snapshot)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        typer.echo(f"{key.replace('_', ' '):<{width}}  {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    from governance.validation_report import ValidationReport

    facts: dict[str, Any] = {
        "use_case": snapshot.use_case,
        "digest": snapshot.digest,
        "rows": {split: info.rows for split, info in snapshot.splits.items()},
        "labels": len(snapshot.labels),
        "quarantined": snapshot.quarantined,
    }
    if snapshot.report_json and snapshot.report_json.is_file():
        report = ValidationReport.model_validate_json(snapshot.report_json.read_bytes())
        facts["leaked"] = sum(split.leaked for split in report.splits.values())
        facts["expectations"] = len(report.results)
    folder = next(iter(snapshot.splits.values())).path.parent
    return facts | {"folder": str(folder), "report": str(snapshot.report_html), "sources": snapshot.sources}
