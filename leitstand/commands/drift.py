"""`leitstand drift`: judge a window now, and see what was judged and decided.

`check` exits with 0 when nothing or a warning follows, 3 when a retraining, a roll back or a person is asked for, and 4
when the window could not be judged.
"""

import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING

import typer

from leitstand.commands.local import prefect_is_up
from leitstand.commands.output import print_table
from leitstand.errors import ConfigurationError, InsufficientEvidence, PolicyDenied
from leitstand.events import configure_logging
from leitstand.settings import Settings, apply_environment, load_settings
from leitstand.types import Action, utc_now

if TYPE_CHECKING:
    from flows.loop import Loop

__all__ = ["app", "opened_loop"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Judge windows of traffic, and see what was judged and decided.",
)

USE_CASE = typer.Argument(help="Name of the use case")
JSON = typer.Option(False, "--json", help="Print JSON.")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@app.command()
def check(
    use_case: str = USE_CASE,
    since: str = typer.Option("", help="Length of the window that ends now, like 30m, 1h or 2d; without it, the "
        "last whole `drift.check_every`"),
    page: bool = typer.Option(False, help="Also build the window's Evidently page."),
    as_json: bool = JSON,
) -> None:  # fmt: skip
    """Judge a window of what the serving version answered, decide, alert, and tell automations."""
    settings = load_settings()
    length = _length(since) if since else None
    loop = opened_loop(settings)
    from flows.loop_events import emit, send
    from flows.loop_view import metric, score_rows
    from flows.monitoring import Window, check_drift, due_window, report_window

    case, now = loop.adapters.use_case(use_case), utc_now()
    window = Window(now - length, now) if length else due_window(case.drift.check_every, now)
    found = check_drift(loop, case, window, now=now)
    send(found.events, settings.alerts)
    if found.events and prefect_is_up(settings):
        emit(found.events)
    elif found.events:
        typer.echo("Prefect does not run, so no automation was told; start it with `leitstand up`", err=True)
    report, decision = found.report, found.decision
    if as_json:
        facts = {"report": report, "decision": decision}
        typer.echo(json.dumps({n: r.model_dump(mode="json") for n, r in facts.items()} | {"new": found.new}, indent=1))
    else:
        state = report.insufficient or ("drifted" if report.drifted else "no drift")
        typer.echo(f"{report.window_start:%Y-%m-%d %H:%M:%S} to {report.window_end:%Y-%m-%d %H:%M:%S} UTC, "
            f"version {report.version}: {state}, {report.rows:,} rows")  # fmt: skip
        known = [metric(report.estimated_accuracy), metric(report.measured_accuracy)]
        reference = "–" if report.reference_accuracy is None else f"{report.reference_accuracy:.4f}"
        typer.echo(f"accuracy: estimated {known[0]}, measured {known[1]}, reference {reference}")
        print_table(["detector", "column", "value", "threshold", "p", ""], score_rows(report))
        typer.echo(f"decision: {decision.action.value}" + ("" if found.new else " (decided before)"))
        for reason in (*decision.reasons, *found.notes):
            typer.echo(f"  {reason}")
    if page and report.rows:
        typer.echo(report_window(loop, case, window, now=now))
    if decision.action in (Action.RETRAIN, Action.ROLL_BACK, Action.ASK):
        raise PolicyDenied(
            f"{decision.action.value}: {'; '.join(decision.reasons)}", hint=_hint(use_case, decision.action)
        )
    if report.insufficient:
        raise InsufficientEvidence(f"The window was not judged: {report.insufficient}")


@app.command()
def status(
    use_case: str = USE_CASE,
    limit: int = typer.Option(10, "--limit", "-n", min=1, help="How many of each, newest first."),
    as_json: bool = JSON,
) -> None:
    """Show the last windows with their accuracy, the decisions, the retrainings, and what troubles now."""
    loop = opened_loop(load_settings())
    from flows.loop_view import decision_rows, retraining_rows, window_rows
    from flows.monitoring import kept_reports

    loop.adapters.use_case(use_case)
    reports = kept_reports(loop, use_case, limit=limit)
    decisions = list(loop.decisions.recent(use_case, limit=limit))[::-1]
    retrainings = list(loop.retrainings.recent(use_case, limit=limit))[::-1]
    troubles = [alert for alert in loop.alerts.troubles() if alert.use_case == use_case]
    if as_json:
        groups = {"windows": reports, "decisions": decisions, "retrainings": retrainings, "troubles": troubles}
        dumped = {name: [each.model_dump(mode="json") for each in found] for name, found in groups.items()}
        typer.echo(json.dumps(dumped, indent=1))
        return
    if not reports:
        typer.echo(f"No window of '{use_case}' was judged yet; `leitstand drift check {use_case}`", err=True)
    head = ["window (UTC)", "version", "rows", "verdict", "estimated", "measured", "reference", "failed"]
    print_table(head, window_rows(reports))
    print_table(["decided at", "version", "finding", "action", "why"], decision_rows(decisions))
    print_table(["retraining", "outcome", "version", "rollout", "detail"], retraining_rows(retrainings))
    print_table(["trouble", "since", "severity"],
        [[alert.title, f"{alert.starts_at:%Y-%m-%d %H:%M}", alert.severity.value] for alert in troubles])  # fmt: skip


def opened_loop(settings: Settings) -> "Loop":
    """The stores, for a command: the log goes to a file, and Prefect is not needed."""
    apply_environment(settings, prefect_server=prefect_is_up(settings))
    folder = settings.root / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    configure_logging(settings.log_level, (folder / "leitstand.jsonl").open("a", encoding="utf-8"))
    from flows.loop import open_loop
    from flows.wiring import wire

    return open_loop(wire())


def _length(text: str) -> timedelta:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not found or not float(found[1]):
        raise ConfigurationError(f"'{text}' is no length of time", hint="write 90s, 30m, 1h or 2d")
    return timedelta(seconds=float(found[1]) * UNITS[found[2]])


def _hint(use_case: str, action: Action) -> str:
    if action is Action.RETRAIN:
        return f"the automation retrains; by hand: `leitstand retrain {use_case}`"
    if action is Action.ROLL_BACK:
        return "the automation lets the version before answer again; see `leitstand routes show`"
    return f"see `leitstand drift status {use_case}`, and label with `leitstand label {use_case}`"
