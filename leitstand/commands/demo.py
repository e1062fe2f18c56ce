"""`leitstand demo`: the closed loop on real data with real processes, in a home of its own."""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from leitstand.errors import LeitstandError
from leitstand.events import configure_logging
from leitstand.files import write_text
from leitstand.settings import load_settings

if TYPE_CHECKING:
    from flows.demo.run import Demo

__all__ = ["app"]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("demo")
def demo(
    home: Path | None = typer.Option(None, help="Folder of the demo, made afresh; default: `demo` below the home"),
    seed: int = typer.Option(17, help="Chooses the withheld queues, the rows, and the agents' mistakes"),
    bad_by: Literal["gate", "canary", "both", "none"] = typer.Option(
        "both", help="What catches the bad candidate; for `canary` the gates are bypassed on purpose"
    ),
    fast: bool = typer.Option(False, "--fast", help="Few queues and rows: shows the mechanics, not the numbers"),
    prefect: bool = typer.Option(
        False, "--prefect", help="Let Prefect's server, automation and worker start the retraining; a minute more"
    ),
    keep: bool = typer.Option(False, "--keep", help="Leave gateway and Bentos running at the end"),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON; the story goes to stderr"),
) -> None:
    """Show the whole loop: drift seen, model retrained, canary judged, promoted or rolled back. About ten minutes."""
    from leitstand.usecase import find, load

    settings = load_settings()
    source = load(find("support", settings.usecases.resolve()))
    chosen = home or settings.root / "demo"

    def say(text: str) -> None:
        typer.echo(text, err=as_json)

    say(f"Starting in {chosen}; nothing outside it is touched. Ctrl-C stops everything.")
    from flows.demo.place import open_place
    from flows.demo.run import Demo, run_demo
    from flows.demo.scenario import FAST, FULL

    place = open_place(chosen, prefect_server=prefect)
    (place.home / "logs").mkdir()
    with _stopping(place, keep=keep), (place.home / "logs" / "leitstand.jsonl").open("a", encoding="utf-8") as log:
        configure_logging(place.settings.log_level, log)
        ways = {"both": ("gate", "canary"), "none": (), "gate": ("gate",), "canary": ("canary",)}[bad_by]
        story = Demo(place, source, FAST if fast else FULL, seed, ways, say, prefect)
        try:
            run_demo(story)
        except LeitstandError:
            with contextlib.suppress(Exception):  # whatever it is, the step that failed matters more
                _finish(story, as_json=as_json)
            raise
        _finish(story, as_json=as_json)
    if keep:
        _tell_what_runs(place)


def _finish(story: "Demo", *, as_json: bool) -> None:
    """The page, the summary and the result, also of a demo that broke off."""
    from flows.demo.page import summary_rows, write_timeline

    timeline = story.timeline
    timeline.numbers["failed_requests"] = sum(answer.failed for answer in timeline.answers)
    page = write_timeline(story.machinery, timeline, story.place.home / "demo.html")
    result: dict[str, Any] = timeline.as_json() | {"page": str(page), "scenario": story.scenario.name}
    write_text(story.place.home / "demo.json", json.dumps(result, indent=1))
    story.say("")
    for name, value in summary_rows(timeline):
        story.say(f"  {value:>8}  {name}")
    story.say("\nOpen:")
    for link in timeline.links:
        story.say(f"  {link.title:<40}{link.url}")
    story.say(f"  {'Timeline':<40}{page.as_uri()}")
    if as_json:
        typer.echo(json.dumps(result, indent=1))


@contextlib.contextmanager
def _stopping(place: Any, *, keep: bool) -> Iterator[None]:
    """Stops every process of the demo at the end, however it comes; with `keep` only a failure does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except BaseException:
        _stop(place)
        raise
    if not keep:
        _stop(place)


def _stop(place: Any) -> None:
    """A second Ctrl-C must not leave processes behind."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    typer.echo("Stopping its processes ...", err=True)
    place.stop()


def _tell_what_runs(place: Any) -> None:
    typer.echo("\nStill running; in this shell every command of Leitstand works on it after:")
    for name, value in place.variables.items():
        typer.echo(f"  export {name}={value}")
    typer.echo(f'Ask it:   curl -s {place.gateway}/v1/support/predict -d \'{{"text": "Where is my card?"}}\'')
    typer.echo("Stop it:  leitstand down   (with these variables), or start another demo")
