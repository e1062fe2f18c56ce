"""`leitstand package`: build the Bento of a registered version."""

import tempfile
from pathlib import Path

import typer

from leitstand.errors import ConfigurationError
from leitstand.settings import apply_environment, load_settings
from leitstand.types import ModelRef
from leitstand.usecase import find, load

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)


@app.command()
def package(
    name: str = typer.Argument(help="Use case."),
    version: int = typer.Option(0, help="Number of the version; default: the one that the alias names."),
    alias: str = typer.Option("champion", help="Alias of the version."),
    engine: str = typer.Option("", help="openvino or torch; default: as the use case says."),
    precision: str = typer.Option("", help="fp32, bf16, int8 or auto; default: as the use case says."),
    as_json: bool = typer.Option(False, "--json", help="Print the record as JSON."),
) -> None:
    """Build a Bento from a registered version, or find the one that is there, and make it NAME:latest."""
    settings = load_settings()
    apply_environment(settings)
    if engine not in ("", "auto", "openvino", "torch"):
        raise ConfigurationError(f"There is no engine '{engine}'", hint="use auto, openvino or torch")
    if precision not in ("", "auto", "fp32", "bf16", "int8"):
        raise ConfigurationError(f"There is no precision '{precision}'", hint="use auto, fp32, bf16 or int8")
    use_case = load(find(name, settings.usecases))
    from models.packaging import package as build
    from models.registry.opening import open_registry

    ref = ModelRef(name=name, version=version) if version else ModelRef(name=name, alias=alias)
    typer.echo(f"Packaging {ref} ...", err=True)
    with tempfile.TemporaryDirectory(prefix="leitstand-package-") as folder:
        model_dir = Path(folder) / "model"
        found = open_registry(settings).fetch(ref, model_dir)
        record = build(
            found, model_dir, use_case, home=settings.root,
            engine=engine or settings.serving.engine or None, precision=precision or None,
        )  # fmt: skip
    if as_json:
        typer.echo(record.model_dump_json(indent=2))
        return
    typer.echo(f"{record.tag}  ({record.engine} {record.precision})  {record.path}")
    typer.echo(f"Serve it:  BENTOML_HOME={settings.root / 'bentoml'} bentoml serve {name}:latest", err=True)
