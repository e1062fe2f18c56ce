"""`leitstand models`: list, show, promote, roll back and verify registered versions.

A version is named ``NAME:VERSION`` or ``NAME@ALIAS``. What changes something takes ``--dry-run``.
"""

import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import typer

from leitstand.commands.arguments import current_user, moment_of
from leitstand.commands.output import print_table
from leitstand.errors import ConfigurationError, NotFoundError
from leitstand.events import AliasMoved, announce, configure_logging
from leitstand.ports import ModelRegistry
from leitstand.settings import Settings, apply_environment, load_settings
from leitstand.types import LedgerEntry, ModelRef, ModelVersion

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="List, show, promote and verify model versions.",
)

REF = typer.Argument(help="NAME:VERSION or NAME@ALIAS, like support@champion")
NAME = typer.Argument(help="Name of the model; it is the use case's")
ALIAS = typer.Option("champion", help="The alias")
ACTOR = typer.Option("", help="Who does it, for the ledger; the user's name without it")
JSON = typer.Option(False, "--json", help="Print JSON.")
DRY_RUN = typer.Option(False, "--dry-run", help="Say what would happen, and change nothing.")


@app.command("list")
def list_versions(
    name: str = typer.Argument("", help="Only versions of this model"), as_json: bool = JSON
) -> None:  # fmt: skip
    """List versions, newest first."""
    registry = _open(load_settings())
    found = [version for each in ([name] if name else registry.names()) for version in registry.versions(each)]
    if as_json:
        typer.echo(json.dumps([version.model_dump(mode="json") for version in found], indent=1))
        return
    if not found:
        typer.echo("No versions yet. Register one with `leitstand run USE_CASE`.", err=True)
    rows = [
        [
            str(version.ref), ", ".join(version.aliases) or "–", version.profile,
            f"{version.metrics['accuracy']:.4f}" if "accuracy" in version.metrics else "–",
            version.weights_digest[7:19], version.data_digest[7:19], f"{version.created_at:%Y-%m-%d %H:%M}",
        ]
        for version in found
    ]  # fmt: skip
    print_table(["version", "aliases", "profile", "accuracy", "weights", "data", "created (UTC)"], rows)


@app.command()
def show(ref: str = REF, as_json: bool = JSON) -> None:
    """Show everything the registry knows about a version."""
    version = _open(load_settings()).get(ModelRef.parse(ref))
    if as_json:
        typer.echo(version.model_dump_json(indent=1))
        return
    facts = version.model_dump(mode="json", exclude={"schema_version", "metrics"})
    for name, value in facts.items():
        typer.echo(f"{name:<15}{', '.join(value) if isinstance(value, list) else '–' if value is None else value}")
    for name, value in sorted(version.metrics.items()):
        typer.echo(f"  {name:<24}{value:g}")


@app.command()
def promote(
    ref: str = REF,
    alias: str = ALIAS,
    reason: str = typer.Option(..., help="Why; it stands in the ledger"),
    actor: str = ACTOR,
    force: bool = typer.Option(False, help="Move it against the gates; the ledger says so"),
    dry_run: bool = DRY_RUN,
) -> None:
    """Point an alias at a version whose gates passed."""
    from models.promotion import attached_gate_report, check
    from models.promotion import promote as move

    settings = load_settings()
    registry = _open(settings)
    version = registry.get(ModelRef.parse(ref))
    if dry_run:
        if not force:
            check(version, attached_gate_report(registry, version))
        typer.echo(f"would point {version.name}@{alias} at {version.ref}", err=True)
        return
    entry = move(registry, version.ref, alias, actor=actor or current_user(), reason=reason, force=force)
    _announce(settings, entry)


@app.command()
def rollback(
    name: str = NAME,
    alias: str = ALIAS,
    reason: str = typer.Option(..., help="Why; it stands in the ledger"),
    actor: str = ACTOR,
    dry_run: bool = DRY_RUN,
) -> None:
    """Point an alias back at the version that held it before."""
    from models.ledger import open_ledger
    from models.promotion import previous_holder, roll_back

    settings = load_settings()
    registry = _open(settings)
    entries = open_ledger(settings).entries(name)
    if dry_run and (target := previous_holder(entries, name, alias)) is not None:
        typer.echo(f"would point {name}@{alias} at {name}:{target}", err=True)
        return
    entry = roll_back(registry, entries, name, alias, actor=actor or current_user(), reason=reason)
    _announce(settings, entry)


@app.command()
def history(name: str = NAME, as_json: bool = JSON) -> None:
    """List every move of the model's aliases and what was noted about versions, oldest first."""
    from models.ledger import open_ledger

    entries = open_ledger(load_settings()).entries(name)
    if as_json:
        typer.echo(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=1))
        return
    rows = [
        [
            str(entry.sequence), f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.alias or "(note)",
            f"{_number(entry.previous)} → {_number(entry.version)}", entry.actor, entry.reason, entry.evidence[7:19],
        ]
        for entry in entries
    ]  # fmt: skip
    print_table(["#", "at (UTC)", "alias", "version", "by", "why", "evidence"], rows)


@app.command()
def who(
    name: str = NAME,
    at: str = typer.Option("", help="Moment, like 2026-11-24T14:03; UTC unless it says otherwise. Now without it"),
    alias: str = ALIAS,
    as_json: bool = JSON,
) -> None:
    """Say which version held an alias at a moment."""
    from models.ledger import open_ledger

    moment = _moment(at)
    version = open_ledger(load_settings()).holder(name, alias, moment)
    if version is None:
        raise NotFoundError(
            f"No version held '{name}@{alias}' at {moment:%Y-%m-%d %H:%M:%S} UTC",
            hint=f"see `leitstand models history {name}`",
        )
    answer = {"name": name, "alias": alias, "at": moment.isoformat(), "version": version}
    typer.echo(json.dumps(answer) if as_json else f"{name}:{version}")


@app.command()
def verify(ref: str = typer.Argument("", help="One version; all of them without it")) -> None:
    """Check files against their digests, and the ledger against itself and the registry."""
    from models.ledger import open_ledger

    settings = load_settings()
    registry = _open(settings)
    if ref:
        versions: Sequence[ModelVersion] = [registry.get(ModelRef.parse(ref))]
    else:
        versions = [version for name in registry.names() for version in registry.versions(name)]
    for version in versions:
        _check_files(registry, version)
        typer.echo(f"{version.ref}: every file matches its digest")
    count = open_ledger(settings).verify()
    for name in sorted({version.name for version in versions}):
        registry.verify_moves(name)
    typer.echo(f"promotion ledger: {count} entries, chain intact, aliases where it put them")


@app.command()
def card(
    ref: str = REF, out: Path = typer.Option(Path(), "--out", "-o", help="Folder for the card")
) -> None:  # fmt: skip
    """Copy the model card (HTML and Markdown) of a version, and print the paths."""
    registry = _open(load_settings())
    version = registry.get(ModelRef.parse(ref))
    for name in ("model_card.html", "model_card.md"):
        typer.echo(registry.attachment(version.ref, name, out))


@app.command()
def fetch(ref: str = REF, target: Path = typer.Argument(help="Folder; it is replaced")) -> None:
    """Copy the model directory of a version and verify every file."""
    if target.exists() and any(target.iterdir()) and not (target / "manifest.json").is_file():
        raise ConfigurationError(f"{target} holds something else than a model", hint="name a new or empty folder")
    version = _open(load_settings()).fetch(ModelRef.parse(ref), target.resolve())
    typer.echo(f"{version.ref} → {target} ({version.weights_digest})", err=True)


def _open(settings: Settings) -> ModelRegistry:
    from models.registry.opening import open_registry

    apply_environment(settings)
    return open_registry(settings)


def _check_files(registry: ModelRegistry, version: ModelVersion) -> None:
    with tempfile.TemporaryDirectory() as folder:
        registry.fetch(version.ref, Path(folder) / "model")
        for name in version.attachments:
            registry.attachment(version.ref, name, Path(folder))


def _announce(settings: Settings, entry: LedgerEntry) -> None:
    """Says what moved: one line for the person, one event in the log file."""
    typer.echo(f"{entry.name}@{entry.alias}: {_number(entry.previous)} → {_number(entry.version)}", err=True)
    (settings.root / "logs").mkdir(parents=True, exist_ok=True)
    with (settings.root / "logs" / "leitstand.jsonl").open("a", encoding="utf-8") as log:
        configure_logging(settings.log_level, log)
        announce(
            AliasMoved(
                use_case=entry.name, alias=entry.alias, version=entry.version, previous=entry.previous,
                actor=entry.actor,
            )
        )  # fmt: skip


def _moment(text: str) -> datetime:
    return moment_of(text, "--at") if text else datetime.now(UTC)


def _number(version: int | None) -> str:
    return "none" if version is None else str(version)
