"""`leitstand rollout`: bring a version into traffic step by step, watch it, and step in.

The state is in the store below `home`: any of these commands may be interrupted, on any terminal. Exit
codes: 0 promoted, 3 rolled back or aborted, 4 held or waiting for a person.
"""

import getpass
import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from leitstand.commands.output import print_table
from leitstand.errors import InsufficientEvidence, NotFoundError, PolicyDenied
from leitstand.events import configure_logging
from leitstand.settings import Settings, apply_environment, load_settings
from leitstand.types import utc_now

if TYPE_CHECKING:
    from flows.rollout import Controller
    from monitors.rollout_rules import Rollout

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Bring a version into traffic: shadow, canary steps, promotion or rollback.",
)

USE_CASE = typer.Argument(help="Name of the use case")
REASON = typer.Option("", help="Why; it stands in the record")
ACTOR = typer.Option("", help="Who does it; the user's name without it")
JSON = typer.Option(False, "--json", help="Print JSON.")
WATCH_S = 2.0


@app.command()
def start(
    use_case: str = USE_CASE,
    version: int = typer.Option(..., help="The candidate; its gates must have passed"),
    reason: str = REASON,
    actor: str = ACTOR,
    wait: bool = typer.Option(True, help="Drive it here until it is finished or needs a person"),
) -> None:
    """Start a rollout. Without --wait it is driven by the watcher that `leitstand up` starts."""
    from flows.rollout import start as begin
    from flows.wiring import wire

    control = _controller(load_settings())
    rollout = begin(wire(), control, use_case, version, actor=actor or getpass.getuser(), reason=reason)
    typer.echo(rollout.rollout_id)
    if wait:
        _follow(control, rollout)


@app.command()
def resume(use_case: str = USE_CASE) -> None:
    """Drive the unfinished rollout here, from where it stands, until it is finished or needs a person."""
    control = _controller(load_settings())
    _follow(control, _unfinished(control, use_case))


@app.command()
def status(
    use_case: str = typer.Argument("", help="Only this use case"), as_json: bool = JSON
) -> None:  # fmt: skip
    """Show where rollouts stand: phase, weights, evidence so far, what is missing, deadline, and every step."""
    from flows.rollout_view import status as describe

    control = _controller(load_settings())
    names = [use_case] if use_case else control.store.use_cases()
    found = [rollout for name in names if (rollout := control.store.latest(name))]
    if as_json:
        typer.echo(json.dumps([describe(control, rollout) for rollout in found], indent=1))
        return
    if not found:
        typer.echo("No rollouts yet. Start one with `leitstand rollout start USE_CASE --version N`.", err=True)
    for rollout in found:
        _print(control, rollout)


@app.command()
def approve(use_case: str = USE_CASE, reason: str = REASON, actor: str = ACTOR) -> None:
    """Let a rollout go on that waits for approval or is held."""
    _ask(use_case, "approve", actor, reason)


@app.command()
def hold(use_case: str = USE_CASE, reason: str = REASON, actor: str = ACTOR) -> None:
    """Freeze the weights until `approve` or `abort`, whatever the evidence says."""
    _ask(use_case, "hold", actor, reason)


@app.command()
def abort(
    use_case: str = USE_CASE,
    reason: str = typer.Option(..., help="Why; it stands in the record"),
    actor: str = ACTOR,
) -> None:
    """Take the candidate out of traffic at once, and stop it."""
    _ask(use_case, "abort", actor, reason)


@app.command()
def watch() -> None:
    """Drive every unfinished rollout, and those to come, until stopped. `leitstand up` runs this."""
    settings = load_settings()
    _controller(settings, log_to_stderr=True)
    from flows.rollout import controller, drive
    from flows.wiring import wire

    threads: dict[str, threading.Thread] = {}
    store = controller(wire()).store
    while True:
        for rollout in store.unfinished():
            driver = threads.get(rollout.rollout_id)
            if driver is None or not driver.is_alive():
                arguments = (controller(wire()), rollout.rollout_id)
                threads[rollout.rollout_id] = threading.Thread(target=drive, args=arguments, daemon=True)
                threads[rollout.rollout_id].start()
        time.sleep(WATCH_S)


def _ask(use_case: str, command: str, actor: str, reason: str) -> None:
    from flows.rollout import drive
    from monitors.rollout_rules import Command, Request, obey

    control = _controller(load_settings())
    rollout = _unfinished(control, use_case)
    who, wanted = actor or getpass.getuser(), Command(command)
    obey(rollout, Request(0, wanted, who, reason, utc_now()), utc_now())  # says at once when it makes no sense
    request = control.store.ask(rollout.rollout_id, wanted, actor=who, reason=reason, at=utc_now())
    ending = wanted is Command.ABORT
    after = drive(
        control,
        rollout.rollout_id,
        until=lambda state: state.finished or (not ending and state.requests_seen >= request.number),
    )
    typer.echo(_line(after))


def _follow(control: "Controller", rollout: "Rollout") -> None:
    from flows.rollout import drive
    from monitors.rollout_rules import Phase

    waiting = (Phase.HELD, Phase.AWAITING_APPROVAL)
    final = drive(
        control,
        rollout.rollout_id,
        watch=lambda state: typer.echo(f"{utc_now():%H:%M:%S}  {_line(state)}", err=True),
        until=lambda state: state.finished or (state.phase in waiting and not control.store.requests(state)),
    )
    hint = f"see `leitstand rollout status {final.use_case}`"
    if final.phase in waiting:
        raise InsufficientEvidence(
            f"{final.rollout_id} is {final.phase.replace('_', ' ')}: {final.reason}",
            hint=f"`leitstand rollout approve {final.use_case}`, then `resume`; or `abort`",
        )
    if final.phase is not Phase.PROMOTED:
        raise PolicyDenied(f"{final.rollout_id} was {final.phase.replace('_', ' ')}: {final.reason}", hint=hint)


def _print(control: "Controller", rollout: "Rollout") -> None:
    from flows.rollout_view import evidence_rows, history_rows
    from monitors.gateway_counts import Tally
    from monitors.rollout_evidence import arms, judge
    from monitors.rollout_rules import deadline

    typer.echo(_line(rollout))
    table = control.routes.read(rollout.use_case)
    if table:
        canary = f", version {table.canary.version} {table.canary_percent:g} %" if table.canary else ""
        shadow = f", shadow version {table.shadow.version}" if table.shadow else ""
        share = 100 - table.canary_percent if table.canary else 100
        typer.echo(f"  routes     version {table.stable.version} {share:g} %{canary}{shadow}")
    kept = control.store.evidence(rollout.rollout_id)
    tally = Tally.model_validate_json(kept) if kept else Tally()
    verdict = judge(rollout, tally)
    if until := deadline(rollout):
        typer.echo(f"  deadline   {until:%Y-%m-%d %H:%M:%S} UTC")
        needed = f"; about {verdict.needed} more requests of the candidate" if verdict.needed else ""
        typer.echo(f"  verdict    {verdict.outcome}{needed}")
        for reason in verdict.reasons:
            typer.echo(f"             {reason}")
        print_table(["  evidence", "stable", "candidate"], _indented(evidence_rows(rollout, *arms(rollout, tally))))
    print_table(["  when (UTC)", "phase", "weight", "by", "why"], _indented(history_rows(_history(control, rollout))))


def _history(control: "Controller", rollout: "Rollout") -> list["Rollout"]:
    return list(control.store.history(rollout.rollout_id))


def _indented(rows: list[list[str]]) -> list[list[str]]:
    return [["  " + row[0], *(cell.replace("\n", " ") for cell in row[1:])] for row in rows]


def _line(rollout: "Rollout") -> str:
    return (
        f"{rollout.rollout_id}: version {rollout.previous} → {rollout.version}, "
        f"{rollout.phase.replace('_', ' ')}, {rollout.percent:g} %: {rollout.reason}"
    )


def _unfinished(control: "Controller", use_case: str) -> "Rollout":
    rollout = control.store.running(use_case)
    if rollout is None:
        raise NotFoundError(
            f"No rollout of '{use_case}' is going on", hint=f"see `leitstand rollout status {use_case}`"
        )
    return rollout


def _controller(settings: Settings, *, log_to_stderr: bool = False) -> "Controller":
    apply_environment(settings)
    if log_to_stderr:
        configure_logging(settings.log_level)
    else:
        folder: Path = settings.root / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        configure_logging(settings.log_level, (folder / "leitstand.jsonl").open("a", encoding="utf-8"))
    from flows.rollout import controller
    from flows.wiring import wire

    return controller(wire())
