"""Alerts for Prometheus Alertmanager (API v2), which groups, silences and routes them with all others.

Alertmanager ends an alert by itself unless it hears of it again; so each carries an end that lies beyond the next
repetition. Severity is a label there, and labels are identity: with each alert, its other severities are
ended, so that an escalation leaves no twin behind. An end of something that never began notifies nobody.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from leitstand.files import canonical_json
from leitstand.types import Alert, Severity, utc_now
from monitors.sinks.http import checked_url, post

__all__ = ["AlertmanagerSink"]


class AlertmanagerSink:
    """Posts to ``api/v2/alerts``.

    Args:
        url: Base URL of the Alertmanager.
        hold: Until an alert that is not told again ends by itself; longer than the time between repetitions.
        timeout_s: For one attempt.
        attempts: Per delivery.
        clock: The present moment.
    """

    name = "alertmanager"

    def __init__(
        self, url: str, *, hold: timedelta = timedelta(hours=18), timeout_s: float = 5.0, attempts: int = 3,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:  # fmt: skip
        self._url = checked_url(url, "alerts.alertmanager_url").rstrip("/") + "/api/v2/alerts"
        self._hold = hold
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._clock = clock

    def send(self, alert: Alert) -> None:
        """Fires or ends the alert."""
        now = self._clock()
        ended = max((alert.resolved_at if alert.resolved else None) or now, alert.starts_at)
        posted = [_entry(alert, alert.severity, ended if alert.resolved else now + self._hold)]
        posted += [_entry(alert, other, max(now, alert.starts_at)) for other in Severity if other != alert.severity]
        post(
            self._url, canonical_json(posted).encode(), name=self.name, headers={"content-type": "application/json"},
            timeout_s=self._timeout_s, attempts=self._attempts,
        )  # fmt: skip


def _entry(alert: Alert, severity: Severity, ends_at: datetime) -> dict[str, Any]:
    return {
        "labels": {
            "alertname": alert.key.rpartition("/")[2],
            "service": "leitstand",
            "use_case": alert.use_case,
            "key": alert.key,
            "severity": severity.value,
        },
        "annotations": {"summary": alert.title, "description": alert.body, "runbook_url": alert.runbook},
        "startsAt": alert.starts_at.isoformat(),
        "endsAt": ends_at.isoformat(),
    }
