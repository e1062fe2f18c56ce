"""`leitstand doctor`: looks at this installation and says how to mend what is wrong."""

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import typer

from leitstand.errors import LeitstandError
from leitstand.settings import Settings, apply_environment, load_settings
from leitstand.usecase import find, load, names

app = typer.Typer(add_completion=False)

NEEDED_DISK_GB = 5
PACKAGES = ("torch", "transformers", "prefect", "bentoml", "wandb", "mlflow-skinny", "openvino", "great_expectations",
    "evidently", "boto3", "supervisor")  # fmt: skip


class Finding(NamedTuple):
    """One line of the report. `status` is ok, note or wrong; only `wrong` fails the command."""

    status: str
    what: str
    fix: str = ""


@app.command("doctor")
def doctor(as_json: bool = typer.Option(False, "--json", help="Print JSON")) -> None:
    """Check this installation and say how to mend what is wrong."""
    settings = load_settings()
    apply_environment(settings)
    findings = [finding for check in CHECKS for finding in check(settings)]
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for finding in findings:
            color = {"ok": "green", "note": "yellow", "wrong": "red"}[finding.status]
            typer.echo(typer.style(f"{finding.status:<6}", fg=color) + finding.what)
            if finding.fix:
                typer.echo(f"      {finding.fix}")
    if any(finding.status == "wrong" for finding in findings):
        raise typer.Exit(1)


def _python(_: Settings) -> Iterator[Finding]:
    yield Finding("ok", f"Python {platform.python_version()} in {sys.prefix}")


def _packages(_: Settings) -> Iterator[Finding]:
    pins = _pins()
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("wrong", f"{package} is not installed", "run `make install`")
            continue
        pinned = pins.get(package.lower().replace("_", "-"))
        if pinned and version.split("+")[0] != pinned:
            yield Finding("note", f"{package} {version}; tested with {pinned}", "run `make install` for the tested set")
        else:
            yield Finding("ok", f"{package} {version}")


def _pins() -> dict[str, str]:
    file = Path("constraints.txt")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): version.split()[0] for name, version in pairs}


def _home(settings: Settings) -> Iterator[Finding]:
    home = settings.root
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        yield Finding("wrong", f"{home} is not writable: {error.strerror}", "set LEITSTAND_HOME to a folder that is")
        return
    free = shutil.disk_usage(home).free / 1e9
    if free < NEEDED_DISK_GB:
        yield Finding("wrong", f"{free:.1f} GB free for {home}", f"make room: runs need about {NEEDED_DISK_GB} GB")
    else:
        yield Finding("ok", f"{home} is writable, {free:.0f} GB free")


def _use_cases(settings: Settings) -> Iterator[Finding]:
    found = names(settings.usecases)
    if not found:
        fix = "run in the project's root, or write one with `leitstand init NAME`"
        yield Finding("wrong", f"no use case in {settings.usecases}", fix)
    for name in found:
        try:
            use_case = load(find(name, settings.usecases))
        except LeitstandError as error:
            yield Finding("wrong", f"use case {name}: {error.message}", error.hint or "")
            continue
        yield Finding("ok", f"use case {name}")
        yield _weights(name, use_case.model.base)


def _weights(name: str, base: str) -> Finding:
    kind, _, package = base.partition(":")
    if kind != "package":
        return Finding("note", f"base model of {name} is {base}; it is fetched when training starts")
    if importlib.util.find_spec(package):
        return Finding("ok", f"base model of {name}: {base}")
    return Finding("wrong", f"base model of {name}: package {package} is not installed", "run `make install`")


def _registry(settings: Settings) -> Iterator[Finding]:
    from models.ledger import open_ledger
    from models.registry.opening import open_registry

    try:
        registry = open_registry(settings)
        count = sum(len(registry.versions(name)) for name in registry.names())
        yield Finding("ok", f"registry ({settings.registry.kind}): {count} versions")
        yield Finding("ok", f"promotion ledger: {open_ledger(settings).verify()} entries, chain intact")
    except LeitstandError as error:
        yield Finding("wrong", f"registry or ledger: {error.message}", error.hint or "")


def _services(settings: Settings) -> Iterator[Finding]:
    from flows.deploying import LocalDeployer, is_ready

    deployer = LocalDeployer(settings)
    if not deployer.supervisor.is_running():
        yield Finding("note", "nothing is started", "start with `leitstand up`")
        return
    for state in deployer.supervisor.states():
        endpoint = deployer.endpoint_of(state.name)
        if state.state != "running" or (endpoint and not is_ready(endpoint.url)):
            yield Finding("wrong", f"{state.name} is {state.state}, not ready", f"see {state.log}")
        else:
            yield Finding("ok", f"{state.name} runs" + (f" at {endpoint.url}" if endpoint else ""))


def _tracking(settings: Settings) -> Iterator[Finding]:
    if settings.tracking.api_key:
        yield Finding("ok", "W&B key is set: runs go online")
    else:
        yield Finding("note", "W&B is offline: no key", "set LEITSTAND_TRACKING__API_KEY, then `leitstand runs sync`")


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _python, _packages, _home, _use_cases, _registry, _tracking, _services,
)  # fmt: skip
