"""`leitstand bundle`: move Bentos and registered versions through S3 or a folder.

Killed in the middle, the same command goes on where it stopped.
"""

from pathlib import Path

import typer

from leitstand.errors import ConfigurationError
from leitstand.settings import Settings, apply_environment, load_settings
from leitstand.types import ModelRef

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Move Bentos and versions through S3 or a folder.",
)

PLACE = typer.Argument(help="s3://BUCKET/PREFIX, or a folder")
BENTO = typer.Option(False, "--bento", help="WHAT is the tag of a Bento")
DRY_RUN = typer.Option(False, "--dry-run", help="Say what would happen, and change nothing.")


@app.command()
def push(
    what: str = typer.Argument(help="NAME:VERSION or NAME@ALIAS; with --bento, the tag of a Bento"),
    place: str = PLACE,
    bento: bool = BENTO,
    dry_run: bool = DRY_RUN,
) -> None:
    """Store a version, or a Bento, with its checksums."""
    from models.blobs.opening import open_location
    from models.bundle import push_bento, push_version
    from models.registry.opening import open_registry

    settings = _settings()
    if dry_run:
        typer.echo(f"would push {'Bento' if bento else 'version'} {what} to {place}", err=True)
        return
    store = open_location(place, settings.s3)
    if bento:
        bundle = push_bento(what, store, _cache(settings), _say)
    else:
        bundle = push_version(open_registry(settings), ModelRef.parse(what), store, _say)
    typer.echo(f"{place.rstrip('/')}/{bundle.key}")


@app.command()
def pull(
    place: str = PLACE,
    what: str = typer.Argument(help="NAME:VERSION as it was pushed; with --bento, the tag of a Bento"),
    bento: bool = BENTO,
    dry_run: bool = DRY_RUN,
) -> None:
    """Check a pushed version, or Bento, and import it here."""
    from models.blobs.opening import open_location
    from models.bundle import pull_bento, pull_version
    from models.registry.opening import open_registry

    settings = _settings()
    if dry_run:
        typer.echo(f"would pull {'Bento' if bento else 'version'} {what} from {place}", err=True)
        return
    store = open_location(place, settings.s3)
    if bento:
        typer.echo(pull_bento(what, store, _cache(settings), _say))
        return
    ref = ModelRef.parse(what)
    if ref.version is None:
        raise ConfigurationError(f"'{what}' names no number; aliases do not travel", hint="write NAME:VERSION")
    typer.echo(str(pull_version(open_registry(settings), ref, store, _cache(settings), _say).ref))


def _settings() -> Settings:
    settings = load_settings()
    apply_environment(settings)
    return settings


def _cache(settings: Settings) -> Path:
    return settings.root / "cache" / "bundles"


def _say(message: str) -> None:
    typer.echo(message, err=True)
