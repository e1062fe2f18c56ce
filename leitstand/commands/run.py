"""`leitstand run NAME`: the whole lifecycle in this process, recorded by Prefect."""

from pathlib import Path

import typer

from leitstand.commands.local import prefect_is_up
from leitstand.events import configure_logging
from leitstand.settings import apply_environment, load_settings
from leitstand.usecase import find, load

app = typer.Typer(add_completion=False)


@app.command("run")
def run(
    name: str = typer.Argument(help="Name of the use case"),
    profile: str | None = typer.Option(None, help="Training profile; the use case's default without it"),
    seed: int | None = typer.Option(None, help="Seed of the training run"),
    serve: bool = typer.Option(True, help="Package, serve and promote after the gates passed"),
    as_json: bool = typer.Option(False, "--json", help="Print the registered version as JSON"),
) -> None:
    """Run the lifecycle of a use case in this process: data, training, gates, registry, Bento."""
    settings = load_settings()
    use_case = load(find(name, settings.usecases))
    use_case.profile(profile)
    (settings.root / "logs").mkdir(parents=True, exist_ok=True)
    log = (settings.root / "logs" / "leitstand.jsonl").open("a", encoding="utf-8")
    configure_logging(settings.log_level, log)
    server = prefect_is_up(settings)
    apply_environment(settings, prefect_server=server)

    from flows.lifecycle import lifecycle
    from flows.wiring import wire

    version = lifecycle(use_case=name, profile=profile, seed=seed, serve=serve)
    if as_json:
        typer.echo(version.model_dump_json(indent=1))
        return
    accuracy = version.metrics.get("accuracy")
    typer.echo(f"\n{version.ref} is registered" + (f", accuracy {accuracy:.4f} on the test split" if accuracy else ""))
    typer.echo("Open next:")
    shown = pages(wire().home, name)
    if serve:
        shown.append(("Service", f"http://{settings.serving.host}:{use_case.serving.port}"))
    if server:
        shown.append(("Prefect", f"http://127.0.0.1:{settings.local.prefect_port}"))
    for label, target in shown:
        typer.echo(f"  {label:<14}{target}")


def pages(home: Path, name: str) -> list[tuple[str, str]]:
    """The pages that the last run left behind: label and address of each."""
    found = []
    for label, pattern in (
        ("Gate report", f"reports/{name}/*/gate_report.html"),
        ("Model card", f"reports/{name}/*/model_card.html"),
        ("Data report", f"data/{name}/*/report.html"),
    ):
        newest = max(home.glob(pattern), key=lambda path: path.stat().st_mtime, default=None)
        if newest:
            found.append((label, newest.as_uri()))
    return found
