"""When people are told of trouble, when again, and when that it is over. Pure rules over one `Trouble` per key.

A trouble is told when it begins, when it gets more severe, and again after `repeat_after` while it lasts. It ends
after `steady` observations in a row without it, and is told to have ended. When it is back within `cool_down`
of its end (flapping), it is told only after `steady` observations in a row, unless it is critical. `monitors.alerting`
keeps the troubles and delivers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from leitstand.settings import AlertSettings
from leitstand.types import Action, Alert, Decision, Finding, Severity

__all__ = ["KINDS", "AlertChange", "AlertRules", "Trouble", "change_of", "cleared", "make_alert", "raised"]

KINDS = (
    "drift-detected",
    "quality-loss",
    "service-failing",
    "monitoring-blind",
    "canary-rolled-back",
    "retraining-failed",
    "sanity-check-failed",
    "inference-log-dropping",
)
"""What an alert may be about; each has a page of its name in ``docs/runbooks``."""
_WEIGHT = {Severity.INFO: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}


@dataclass(frozen=True)
class AlertRules:
    """How often the same trouble is told; see `AlertSettings`."""

    repeat_after: timedelta = timedelta(hours=12)
    cool_down: timedelta = timedelta(hours=1)
    steady: int = 2

    @classmethod
    def of(cls, settings: AlertSettings) -> "AlertRules":
        """The rules that the settings state."""
        return cls(settings.repeat_after, settings.cool_down, settings.steady)


class Trouble(BaseModel):
    """What is known of one key between observations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    alert: Alert = Field(description="as last observed; `notification` counts what was told")
    worst: Severity = Field(description="worst severity that was told since it began")
    told_at: datetime | None = Field(default=None, description="None: held back so far")
    seen: int = Field(default=1, description="observations in a row with it")
    calm: int = Field(default=0, description="observations in a row without it")
    ended_at: datetime | None = Field(default=None, description="None: it lasts")


def raised(known: Trouble | None, alert: Alert, rules: AlertRules, now: datetime) -> tuple[Trouble, Alert | None]:
    """The trouble after an observation with it, and the alert to tell, if any.

    Args:
        known: What is known of the key; None: nothing.
        alert: What was observed.
        rules: How often to tell.
        now: The present moment. A moment before the last notification tells again.
    """
    if known is None or known.ended_at is not None:
        back = (
            known is not None and known.ended_at is not None and timedelta() <= now - known.ended_at < rules.cool_down
        )
        begun = Trouble(alert=alert.model_copy(update={"notification": 1}), worst=alert.severity)
        hold = back and alert.severity is not Severity.CRITICAL and rules.steady > 1
        return (begun, None) if hold else _told(begun, now)
    lasting = known.alert.model_copy(
        update={"severity": alert.severity, "title": alert.title, "body": alert.body, "runbook": alert.runbook}
    )
    trouble = known.model_copy(update={"alert": lasting, "seen": known.seen + 1, "calm": 0})
    if known.told_at is None:
        due = trouble.seen >= rules.steady or alert.severity is Severity.CRITICAL
        return _told(trouble, now) if due else (trouble, None)
    worse = _WEIGHT[alert.severity] > _WEIGHT[known.worst]
    if not worse and timedelta() <= now - known.told_at < rules.repeat_after:
        return trouble, None
    told = lasting.model_copy(update={"notification": lasting.notification + 1})
    return _told(trouble.model_copy(update={"alert": told}), now)


def cleared(known: Trouble | None, rules: AlertRules, now: datetime) -> tuple[Trouble | None, Alert | None]:
    """The trouble after an observation without it, and the alert that tells its end, if any."""
    if known is None or known.ended_at is not None:
        return known, None
    calm = known.calm + 1
    if calm < rules.steady:
        return known.model_copy(update={"calm": calm, "seen": 0}), None
    ended = known.model_copy(update={"calm": calm, "seen": 0, "ended_at": now})
    if known.told_at is None:
        return ended, None
    alert = known.alert
    told = alert.model_copy(
        update={"resolved": True, "resolved_at": now, "notification": alert.notification + 1, "severity": known.worst}
    )
    return ended, told


def _told(trouble: Trouble, now: datetime) -> tuple[Trouble, Alert]:
    worst = max(trouble.worst, trouble.alert.severity, key=_WEIGHT.__getitem__)
    return trouble.model_copy(update={"told_at": now, "worst": worst}), trouble.alert


def make_alert(
    kind: str,
    use_case: str,
    severity: Severity,
    title: str,
    body: str,
    *,
    now: datetime,
    runbooks: str = "docs/runbooks",
) -> Alert:
    """An alert with the key ``USE_CASE/KIND`` and a link to the runbook of its kind.

    Raises:
        ValueError: `kind` is not one of `KINDS`.
    """
    if kind not in KINDS:
        raise ValueError(f"no alert is called '{kind}'; there are {', '.join(KINDS)}")
    return Alert(
        key=f"{use_case}/{kind}", severity=severity, title=title, body=body, use_case=use_case, starts_at=now,
        runbook=f"{runbooks.rstrip('/')}/{kind}.md",
    )  # fmt: skip


@dataclass(frozen=True)
class AlertChange:
    """What one observation says: these troubles are there, those keys are free of it, of others it says nothing."""

    raised: tuple[Alert, ...] = ()
    cleared: tuple[str, ...] = ()


_ABOUT = {
    Finding.HARMLESS: "drift-detected",
    Finding.UNCERTAIN: "drift-detected",
    Finding.LOSS: "quality-loss",
    Finding.FAILING: "service-failing",
    Finding.UNJUDGED: "monitoring-blind",
    Finding.HEALTHY: "monitoring-blind",  # a warning without a finding is about missing traffic
}
_DISPROVED: dict[Finding, Sequence[str]] = {
    Finding.HEALTHY: ("drift-detected", "quality-loss", "service-failing", "monitoring-blind"),
    Finding.HARMLESS: ("quality-loss", "service-failing", "monitoring-blind"),
    Finding.UNCERTAIN: ("service-failing", "monitoring-blind"),
    Finding.LOSS: ("monitoring-blind",),
    Finding.FAILING: ("monitoring-blind",),
    Finding.UNJUDGED: (),
}


def change_of(decision: Decision, *, runbooks: str = "docs/runbooks") -> AlertChange:
    """What a decision says about trouble. A window that could not be judged clears nothing."""
    if decision.finding is None:
        return AlertChange()
    kind = _ABOUT[decision.finding]
    alerts: tuple[Alert, ...] = ()
    if decision.action is not Action.NOTHING:
        title = f"{decision.finding.value}: {decision.action.value}"
        body = f"Version {decision.version}. " + "; ".join(decision.reasons)
        alerts = (
            make_alert(
                kind, decision.use_case, _severity(decision), title, body, now=decision.at, runbooks=runbooks
            ),
        )  # fmt: skip
    free = (name for name in _DISPROVED[decision.finding] if not alerts or name != kind)
    return AlertChange(alerts, tuple(f"{decision.use_case}/{name}" for name in free))


def _severity(decision: Decision) -> Severity:
    if decision.action is Action.ROLL_BACK or decision.finding is Finding.FAILING:
        return Severity.CRITICAL
    if decision.action is Action.ASK and decision.finding is Finding.LOSS:
        return Severity.CRITICAL
    harmless = decision.action is Action.WARN and decision.finding in (Finding.HARMLESS, Finding.HEALTHY)
    return Severity.INFO if harmless else Severity.WARNING
