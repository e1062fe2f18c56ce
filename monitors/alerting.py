"""The alert centre: keeps troubles and undelivered alerts in SQLite, tells the log, and feeds every sink.

`report` never raises: an alert must not break the flow that noticed the trouble. Sinks are fed side by side;
a dead one costs its own time-outs and nothing else, and what it missed waits in the outbox for the next `report` or
`deliver`, with growing pauses, until it is taken or `keep_for` has passed. Of one key only the newest word waits, so
that an old alarm never follows its end. Delivery is at least once. When even the state cannot be written (a full
disk), the alert is sent without it. Safe with threads and processes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from leitstand.errors import LeitstandError, TransientBackendError
from leitstand.events import AlertTold, announce
from leitstand.ports import AlertSink
from leitstand.settings import Settings
from leitstand.state_file import StateFile
from leitstand.types import Alert, Severity, utc_now
from monitors.alerts import AlertChange, AlertRules, Trouble, cleared, raised
from monitors.sinks.opening import open_sinks

__all__ = ["AlertCentre", "open_alert_centre"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS troubles (key TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, sink TEXT NOT NULL, key TEXT NOT NULL, alert TEXT NOT NULL,
    queued_at REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due_at REAL NOT NULL, UNIQUE (sink, key)
);
"""
FIRST_PAUSE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(hours=1)
LEASE = timedelta(minutes=2)
"""While one process delivers an alert, others leave it alone for this long."""
BATCH = 100


@dataclass(frozen=True)
class _Parcel:
    """One alert on its way to one sink."""

    id: int
    alert: Alert
    attempts: int


@dataclass(frozen=True)
class _Delivery:
    parcel: _Parcel
    taken: bool


def open_alert_centre(settings: Settings) -> "AlertCentre":
    """The centre below `home`, with the sinks that the settings name.

    Raises:
        ConfigurationError: The address of a sink is none.
    """
    alerts = settings.alerts
    path = settings.root / "monitors" / "alerts.db"
    return AlertCentre(path, open_sinks(alerts), AlertRules.of(alerts), keep_for=alerts.keep_for)


class AlertCentre:
    """Applies the rules and delivers.

    Args:
        path: The state file.
        sinks: Each with a name of its own.
        rules: How often the same trouble is told.
        keep_for: Until an undelivered alert is given up.
        clock: The present moment.
    """

    def __init__(
        self, path: Path, sinks: Sequence[AlertSink], rules: AlertRules, *,
        keep_for: timedelta = timedelta(days=7), clock: Callable[[], datetime] = utc_now,
    ) -> None:  # fmt: skip
        self._file = StateFile(path, SCHEMA)
        self._sinks = {sink.name: sink for sink in sinks}
        self._rules = rules
        self._keep_for = keep_for
        self._clock = clock

    def report(self, change: AlertChange) -> Sequence[Alert]:
        """Takes an observation, tells what is due, and returns what was told. Never raises."""
        try:
            told = self._observe(change)
        except (LeitstandError, ValueError) as error:
            _log("alert state cannot be written; alerts are sent without it", "leitstand.alert.stateless", error)
            for alert in change.raised:
                self._tell_log(alert)
                self._feed({name: [_Parcel(0, alert, 0)] for name in self._sinks})
            return change.raised
        for alert in told:
            self._tell_log(alert)
        self.deliver()
        return told

    def deliver(self) -> int:
        """Tries what waits and is due; returns how many alerts still wait. Never raises."""
        try:
            outcomes = self._feed(self._claim())
            self._settle(outcomes)
            return self.waiting()
        except (LeitstandError, ValueError) as error:
            _log("undelivered alerts cannot be read; they stay where they are", "leitstand.alert.stuck", error)
            return 0

    def waiting(self) -> int:
        """How many alerts wait in the outbox, over all sinks."""
        with self._file.reading() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM outbox").fetchone()[0])

    def troubles(self) -> Sequence[Alert]:
        """What lasts at the moment, the worst and oldest first."""
        with self._file.reading() as connection:
            rows = connection.execute("SELECT record FROM troubles").fetchall()
        known = [Trouble.model_validate_json(record) for (record,) in rows]
        lasting = [trouble.alert for trouble in known if trouble.ended_at is None]
        order = list(Severity)[::-1]
        return sorted(lasting, key=lambda alert: (order.index(alert.severity), alert.starts_at))

    def close(self) -> None:
        """Closes this thread's connection; the next call opens another."""
        self._file.close()

    def _observe(self, change: AlertChange) -> list[Alert]:
        now, told = self._clock(), []
        with self._file.transaction() as connection:

            def known(key: str) -> Trouble | None:
                row = connection.execute("SELECT record FROM troubles WHERE key = ?", (key,)).fetchone()
                return Trouble.model_validate_json(row[0]) if row else None

            steps = [(a.key, raised(known(a.key), a, self._rules, now)) for a in change.raised]
            steps += [(key, cleared(known(key), self._rules, now)) for key in change.cleared]
            for key, (trouble, alert) in steps:
                if trouble is not None:
                    record = trouble.model_dump_json()
                    connection.execute("INSERT OR REPLACE INTO troubles VALUES (?, ?)", (key, record))
                if alert is None:
                    continue
                told.append(alert)
                row = (alert.key, alert.model_dump_json(), now.timestamp(), now.timestamp())
                insert = "INSERT OR REPLACE INTO outbox (sink, key, alert, queued_at, due_at) VALUES (?, ?, ?, ?, ?)"
                connection.executemany(insert, [(name, *row) for name in self._sinks])
        return told

    def _claim(self) -> dict[str, list[_Parcel]]:
        """What is due, per sink in the order of queueing; leased, so that no other process takes it too."""
        now = self._clock().timestamp()
        claimed: dict[str, list[_Parcel]] = {}
        with self._file.transaction() as connection:
            self._give_up(connection.execute, now)
            for name in self._sinks:
                query = "SELECT id, alert, attempts FROM outbox WHERE sink = ? AND due_at <= ? ORDER BY id LIMIT ?"
                rows = connection.execute(query, (name, now, BATCH)).fetchall()
                claimed[name] = [_Parcel(i, Alert.model_validate_json(alert), tries) for i, alert, tries in rows]
                lease = now + LEASE.total_seconds()
                connection.executemany("UPDATE outbox SET due_at = ? WHERE id = ?", [(lease, row[0]) for row in rows])
        return {name: parcels for name, parcels in claimed.items() if parcels}

    def _give_up(self, execute: Callable[..., object], now: float) -> None:
        """Forgets what is too old, or was queued for a sink that is not configured any more."""
        execute("DELETE FROM outbox WHERE queued_at < ?", (now - self._keep_for.total_seconds(),))
        marks = ", ".join("?" for _ in self._sinks)
        execute(f"DELETE FROM outbox WHERE sink NOT IN ({marks})", tuple(self._sinks))  # noqa: S608 -- only marks

    def _feed(self, claimed: dict[str, list[_Parcel]]) -> list[_Delivery]:
        """One thread per sink, so that a dead one delays no other."""
        if not claimed:
            return []
        with ThreadPoolExecutor(len(claimed), thread_name_prefix="alerts") as pool:
            per_sink = pool.map(lambda item: _deliver(self._sinks[item[0]], item[1]), claimed.items())
            return [delivery for deliveries in per_sink for delivery in deliveries]

    def _settle(self, outcomes: Sequence[_Delivery]) -> None:
        now = self._clock().timestamp()
        with self._file.transaction() as connection:
            for outcome in outcomes:
                parcel = outcome.parcel
                if outcome.taken:
                    connection.execute("DELETE FROM outbox WHERE id = ?", (parcel.id,))
                else:
                    pause = min(FIRST_PAUSE * 2 ** min(parcel.attempts, 10), LONGEST_PAUSE).total_seconds()
                    update = "UPDATE outbox SET attempts = attempts + 1, due_at = ? WHERE id = ?"
                    connection.execute(update, (now + pause, parcel.id))

    def _tell_log(self, alert: Alert) -> None:
        announce(
            AlertTold(
                use_case=alert.use_case, key=alert.key, severity=alert.severity.value, title=alert.title,
                resolved=alert.resolved, notification=alert.notification, runbook=alert.runbook,
            )
        )  # fmt: skip


def _deliver(sink: AlertSink, parcels: Sequence[_Parcel]) -> list[_Delivery]:
    """In order. After no answer the rest waits too; an alert that is refused does not hold up the others."""
    deliveries: list[_Delivery] = []
    for position, parcel in enumerate(parcels):
        try:
            sink.send(parcel.alert)
            deliveries.append(_Delivery(parcel, taken=True))
        except Exception as error:
            _log(f"{sink.name} did not take an alert; it is kept", "leitstand.alert.undelivered", error)
            if not isinstance(error, TransientBackendError):
                deliveries.append(_Delivery(parcel, taken=False))
                continue
            deliveries += [_Delivery(rest, taken=False) for rest in parcels[position:]]
            break
    return deliveries


def _log(message: str, action: str, error: Exception) -> None:
    said = error.message if isinstance(error, LeitstandError) else f"{type(error).__name__}: {error}"
    structlog.get_logger().warning(message, **{"event.action": action, "leitstand": {"error": said}})
