"""Drift checks, drift reports and nightly checks as Prefect flows: ``prefect deployment run drift-check/support``.

Thin wrappers: the work is in `flows.monitoring` and `flows.nightly`. Times come in as text, so that the UI's form
and an automation can give them.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.loop import open_loop
from flows.loop_events import emit, send
from flows.loop_view import check_markdown, nightly_markdown
from flows.monitoring import DriftCheck, Window, check_drift, due_window, report_window
from flows.nightly import run_checks
from flows.wiring import wire
from leitstand.errors import LeitstandError, NotFoundError, PolicyDenied, ValidationFailed
from leitstand.types import Action, utc_now

__all__ = ["drift_check", "drift_report", "nightly"]

LENGTHS = {"hour": timedelta(hours=1), "day": timedelta(days=1)}


@flow(name="drift-check", flow_run_name="drift-check {use_case}", persist_result=False)
def drift_check(use_case: str, start: datetime | None = None, end: datetime | None = None) -> str:
    """Judges the last window, decides, alerts, and tells automations; returns the decided action.

    Args:
        use_case: Name of the use case.
        start: Start of the window; without it, the last whole `drift.check_every`.
        end: End of the window; the present without it.
    """
    log, found = get_run_logger(), _check_task(use_case, start, end)
    if found is None:
        log.info("Nothing serves '%s' yet: nothing to check", use_case)
        return Action.NOTHING.value
    for note in found.notes:
        log.info("%s", note)
    log.info("%s: %s", found.decision.action.value, "; ".join(found.decision.reasons))
    settings = wire().settings
    emit(found.events)
    send(found.events, settings.alerts)
    if found.new and found.decision.action is not Action.NOTHING and found.report.rows:
        window = Window(found.report.window_start, found.report.window_end)
        try:
            _report_task(use_case, window)
        except LeitstandError as error:
            log.warning("The window's report could not be built: %s", error.message)
    return found.decision.action.value


@flow(name="drift-report", flow_run_name="drift-report {use_case} ({period})", persist_result=False)
def drift_report(use_case: str, period: Literal["hour", "day"] = "hour") -> str:
    """Builds the Evidently page of the last whole hour or day (UTC); returns its path, or an empty text."""
    return _report_task(use_case, due_window(LENGTHS[period], utc_now()))


@flow(name="nightly", flow_run_name="nightly {use_case}", persist_result=False)
def nightly(use_case: str) -> str:
    """Runs the nightly checks and the housekeeping; fails when a check is degraded, after all were made.

    Raises:
        PolicyDenied: A check is degraded; the alert says which.
    """
    adapters = wire()
    record = run_checks(open_loop(adapters), adapters.use_case(use_case), now=utc_now())
    create_markdown_artifact(key=_key("nightly", use_case), markdown=nightly_markdown(record))
    if record.degraded:
        raise PolicyDenied(
            "Degraded: " + "; ".join(f"{check.name}: {check.text}" for check in record.degraded),
            hint="see docs/runbooks/sanity-check-failed.md",
        )
    return f"{len(record.checks)} checks"


@task(name="check drift", task_run_name="check {use_case}", cache_policy=NO_CACHE)
def _check_task(use_case: str, start: datetime | None, end: datetime | None) -> DriftCheck | None:
    adapters, now = wire(), utc_now()
    case = adapters.use_case(use_case)
    window = due_window(case.drift.check_every, now)
    if start is not None:
        window = Window(_aware(start), _aware(end) if end else now)
    try:
        found = check_drift(open_loop(adapters), case, window, now=now)
    except NotFoundError:
        if adapters.routes.read(use_case) is not None:
            raise
        return None
    create_markdown_artifact(key=_key("drift", use_case), markdown=check_markdown(found))
    return found


@task(name="drift report", task_run_name="report on {use_case}", cache_policy=NO_CACHE)
def _report_task(use_case: str, window: Window) -> str:
    """Path of the page; empty when there is nothing to report on or to compare with."""
    adapters = wire()
    try:
        page = report_window(open_loop(adapters), adapters.use_case(use_case), window, now=utc_now())
    except (NotFoundError, ValidationFailed) as error:
        get_run_logger().info("No report: %s", error.message)
        return ""
    create_link_artifact(key=_key("drift-report", use_case), link=page.resolve().as_uri(), link_text=page.stem)
    return str(page)


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _key(what: str, use_case: str) -> str:
    return f"{what}-{use_case}".replace("_", "-")
