"""Drift checks and reports: window in, verdict, decision, alerts and events out. Plain functions.

A check never fails for what a window is like: without rows, with too few, of another schema, or without a
reference it gives a report that says why it could not judge, and the decision rules do the rest. The same window
is decided once, however often it is checked; the report that was decided upon stays as it was.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import structlog

from flows.loop import Loop, loop_state, serving_version
from flows.loop_events import LoopEvent, events_of
from flows.reference import Reference, reference_of
from flows.retraining import notice_crashes
from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError, ValidationFailed
from leitstand.files import short_digest, write_text
from leitstand.types import Alert, Decision, DriftReport, Finding, Severity
from leitstand.usecase import UseCase
from monitors.alerts import AlertChange, change_of, make_alert
from monitors.decision import decide, report_digest
from monitors.health import look
from monitors.report_record import file_stem
from monitors.retrainings import Retraining
from monitors.windows import DUPLICATES_KEY, FUTURE_KEY, WINDOW_SCHEMA, iterate_window, read_window

__all__ = ["DriftCheck", "Window", "check_drift", "due_window", "kept_reports", "report_window"]

logger = structlog.get_logger()


@dataclass(frozen=True)
class Window:
    """From `start` on and before `end`, both with a time zone."""

    start: datetime
    end: datetime

    @property
    def length(self) -> timedelta:
        """From start to end."""
        return self.end - self.start


@dataclass(frozen=True, kw_only=True)
class DriftCheck:
    """What a check found.

    Attributes:
        report: The verdict.
        decision: What follows.
        new: Whether it was decided now; a window that is checked again is answered with its old decision.
        events: What to tell other systems; empty unless the decision is new.
        told: Alerts that went out.
        notes: What was odd, in sentences.
        file: The report on disk.
    """

    report: DriftReport
    decision: Decision
    new: bool
    events: tuple[LoopEvent, ...]
    told: tuple[Alert, ...]
    notes: tuple[str, ...]
    file: Path


def due_window(length: timedelta, now: datetime) -> Window:
    """The last whole window of this length: windows follow each other without gap or overlap from a fixed moment.

    However late a check comes, and however often, its window is the same.
    """
    epoch = datetime(2020, 1, 1, tzinfo=now.tzinfo)
    end = epoch + (now - epoch) // length * length
    return Window(end - length, end)


def check_drift(loop: Loop, use_case: UseCase, window: Window, *, now: datetime) -> DriftCheck:
    """Judges one window of what the serving version answered as stable, decides, and tells people.

    Args:
        loop: The stores.
        use_case: Its `drift` section is the policy.
        window: Which answers; see `due_window`.
        now: The present moment.

    Raises:
        NotFoundError: Nothing serves the use case.
        BackendError: The log, the registry or a store cannot be read.
    """
    name, settings = use_case.name, loop.adapters.settings
    crashed = notice_crashes(loop, name, now=now)
    version = serving_version(loop.adapters, name)
    health_file = loop.home / "monitors" / "health" / name / f"{window.length.total_seconds():.0f}s.json"
    health = look(health_file, loop.counts, name, version, window.length, now=now)
    report, notes = _judge(loop, use_case, version, window, now)
    report = report.model_copy(update={"error_rate": health.error_rate})
    state = loop_state(loop, name, health, now=now)
    file = _keep(loop, report)
    decision, new = loop.decisions.settle(
        name, lambda history: decide(report, history, use_case.drift, state, now=now), now=now
    )
    if not new:
        file = _decided(file, decision)
        loop.alerts.deliver()
    told = loop.alerts.report(_alerts(loop, decision, crashed, now)) if new else []
    notes += [health.note] if health.note else []
    events = events_of(decision, report, state.previous_version) if new else ()
    logger.info(
        "A window was judged", use_case=name, version=version, rows=report.rows, drifted=report.drifted,
        action=decision.action.value, new=new, environment=settings.environment,
    )  # fmt: skip
    return DriftCheck(
        report=report, decision=decision, new=new, events=events, told=tuple(told), notes=tuple(notes), file=file
    )


def report_window(
    loop: Loop, use_case: UseCase, window: Window, *, now: datetime, sample_rows: int = 10_000
) -> Path:  # fmt: skip
    """Builds the Evidently page of a window, with the index, retention, and the copy in the bucket; returns the page.

    Decides nothing. The verdict on the page is the one that a check kept, or else one of now.

    Raises:
        NotFoundError: Nothing serves the use case, or its reference cannot be made.
        ValidationFailed: Likewise.
    """
    from models.blobs.opening import open_blobs
    from monitors.report_index import Retention, retain, write_index
    from monitors.report_store import publish, publishes, withdraw
    from monitors.reports import Subject, build_report

    adapters, name = loop.adapters, use_case.name
    version = serving_version(adapters, name)
    reference = reference_of(adapters, use_case, version)
    rows, whole = _sampled(loop, name, version, window, now, sample_rows)
    verdict = _kept_report(loop, name, version, window) or _verdict(
        reference, _batches(loop, name, version, window, now, []), version, window
    )
    folder, workspace = adapters.home / "reports" / name, adapters.home / "reports" / "evidently"
    subject = Subject(use_case=name, title=use_case.title, version=version, start=window.start, end=window.end)
    built = build_report(
        reference.rows(), rows, subject=subject, out=folder, drift=verdict, workspace=workspace,
        sample_rows=sample_rows, whole=whole,
    )  # fmt: skip
    gone = retain(folder, Retention(), now=now, workspace=workspace)
    write_index(folder, name, title=use_case.title, now=now)
    if publishes(adapters.settings):
        blobs = open_blobs(adapters.settings)
        publish(blobs, folder, name, [built.record.stem])
        withdraw(blobs, name, gone)
    return built.html


def _sampled(
    loop: Loop, name: str, version: int, window: Window, now: datetime, rows: int
) -> tuple[pa.Table, pa.Table]:
    """The rows that a report is drawn from, and the labels of all rows. Two passes: only labels are held whole."""
    from monitors.report_data import draw

    scope: dict[str, Any] = {
        "version": version, "route": "stable", "feedback": loop.feedback.entries(name), "now": now
    }  # fmt: skip
    whole = read_window(loop.log, name, window.start, window.end, columns=["label", "feedback_label"], **scope)
    wanted = draw(whole["label"], rows, np.random.default_rng(0))
    parts, begin = [], 0
    for batch in iterate_window(loop.log, name, window.start, window.end, **scope):
        end = begin + batch.num_rows
        mine = wanted[np.searchsorted(wanted, begin) : np.searchsorted(wanted, end)] - begin
        parts.append(batch.take(pa.array(mine)).replace_schema_metadata(None))
        begin = end
    return pa.Table.from_batches(parts, WINDOW_SCHEMA) if parts else WINDOW_SCHEMA.empty_table(), whole


def kept_reports(loop: Loop, name: str, *, limit: int = 20) -> list[DriftReport]:
    """The reports that decisions were made on, the newest window first."""
    found = []
    for path in sorted(_folder(loop, name).glob("*.json"), reverse=True)[:limit]:
        with contextlib.suppress(ValueError):
            found.append(DriftReport.model_validate_json(path.read_bytes()))
    return found


def _judge(
    loop: Loop, use_case: UseCase, version: int, window: Window, now: datetime
) -> tuple[DriftReport, list[str]]:  # fmt: skip
    """The report, and what was odd. What cannot be judged is insufficient, with the reason."""
    name = use_case.name
    notes: list[str] = []
    try:
        reference = reference_of(loop.adapters, use_case, version)
    except (NotFoundError, ValidationFailed, IntegrityError, ConfigurationError) as error:
        rows = sum(batch.num_rows for batch in _batches(loop, name, version, window, now, notes, ["request_id"]))
        return _unjudged(name, version, window, f"no reference: {error.message}", rows=rows), notes
    try:
        batches = _batches(loop, name, version, window, now, notes)
        return _verdict(reference, batches, version, window), notes
    except ValidationFailed as error:
        rows = sum(batch.num_rows for batch in _batches(loop, name, version, window, now, [], ["request_id"]))
        text = f"the window does not fit the reference: {error.message}"
        return _unjudged(name, version, window, text, rows=rows, reference=reference), notes


def _verdict(
    reference: Reference, batches: Iterable[pa.RecordBatch], version: int, window: Window
) -> DriftReport:  # fmt: skip
    return reference.detectors.judge(batches, start=window.start, end=window.end, version=version)


def _batches(
    loop: Loop, name: str, version: int, window: Window, now: datetime, notes: list[str],
    columns: list[str] | None = None,
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    """The window's rows; when they are read, `notes` get what was odd about them."""
    feedback = loop.feedback.entries(name) if columns is None else ()
    counts = {DUPLICATES_KEY: 0, FUTURE_KEY: 0}
    for batch in iterate_window(
        loop.log, name, window.start, window.end, version=version, route="stable", feedback=feedback, columns=columns,
        now=now,
    ):  # fmt: skip
        for key in counts:
            counts[key] += int((batch.schema.metadata or {}).get(key, b"0"))
        yield batch
    if counts[DUPLICATES_KEY]:
        notes.append(f"{counts[DUPLICATES_KEY]} rows stood in the log twice and count once")
    if counts[FUTURE_KEY]:
        notes.append(f"{counts[FUTURE_KEY]} rows carry a time in the future: a clock is ahead")


def _unjudged(
    name: str, version: int, window: Window, why: str, *, rows: int, reference: Reference | None = None
) -> DriftReport:  # fmt: skip
    detectors = reference.detectors if reference else None
    return DriftReport(
        use_case=name, version=version, window_start=window.start, window_end=window.end, rows=rows,
        reference_rows=detectors.reference_rows if detectors else 0,
        reference_digest=detectors.reference_digest if detectors else "", scores=(), drifted=False, insufficient=why,
        reference_accuracy=detectors.quality.accuracy if detectors else None,
    )  # fmt: skip


def _alerts(loop: Loop, decision: Decision, crashed: list[Retraining], now: datetime) -> AlertChange:
    """What the decision says, and what became of the last retraining."""
    name, runbooks = decision.use_case, loop.adapters.settings.alerts.runbooks
    change = change_of(decision, runbooks=runbooks)
    if decision.finding is Finding.UNJUDGED and any("reference" in reason for reason in decision.reasons):
        said = make_alert(
            "monitoring-blind", name, Severity.WARNING, "Windows cannot be judged",
            "; ".join(decision.reasons), now=now, runbooks=runbooks,
        )  # fmt: skip
        change = AlertChange((*(a for a in change.raised if a.key != said.key), said), change.cleared)
    last = loop.retrainings.recent(name, limit=1)
    if not crashed and last and last[0].outcome == "rollout started":
        change = AlertChange(change.raised, (*change.cleared, f"{name}/retraining-failed"))
    return change


def _folder(loop: Loop, name: str) -> Path:
    return loop.home / "monitors" / "drift" / name


def _keep(loop: Loop, report: DriftReport) -> Path:
    """Writes the report under its window and digest: one that was decided upon is never replaced."""
    stem = file_stem(report.window_start, report.window_end, report.version)
    file = _folder(loop, report.use_case) / f"{stem}-{short_digest(report_digest(report))}.json"
    return write_text(file, report.model_dump_json(indent=1))


def _decided(file: Path, decision: Decision) -> Path:
    """The file of the report that the decision was made on; `file`, if it is another, goes."""
    before = file.with_name(f"{file.stem.rpartition('-')[0]}-{short_digest(decision.report_digest)}.json")
    if before != file and before.is_file():
        file.unlink()
        return before
    return file


def _kept_report(loop: Loop, name: str, version: int, window: Window) -> DriftReport | None:
    stem = file_stem(window.start, window.end, version)
    for path in sorted(_folder(loop, name).glob(f"{stem}-*.json")):
        with contextlib.suppress(ValueError):
            return DriftReport.model_validate_json(path.read_bytes())
    return None
