"""What other systems are told of a new decision: Prefect events that automations act on, and CloudEvents by webhook.

| event | when |
|---|---|
| `leitstand.drift.detected` | the window drifted, or a retraining was decided |
| `leitstand.quality.lost` | accuracy is proven below the reference |
| `leitstand.rollback.advised` | the loss followed a promotion: the version before should answer again |

Each names its use case as resource, ``leitstand.use-case.NAME``, with the label ``leitstand.action``: what was decided.
The automation that retrains matches the label ``retrain``, so harmless drift retrains nothing. An event's id follows
from its decision: sending it again is the same event.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from leitstand.errors import LeitstandError
from leitstand.settings import AlertSettings
from leitstand.types import Action, Decision, DriftReport, Finding
from monitors.sinks.webhook import WebhookSink, cloud_event

__all__ = ["ACTION_LABEL", "DRIFT", "QUALITY", "ROLLBACK", "LoopEvent", "emit", "events_of", "resource_id", "send"]

DRIFT = "leitstand.drift.detected"
QUALITY = "leitstand.quality.lost"
ROLLBACK = "leitstand.rollback.advised"
ACTION_LABEL = "leitstand.action"
_NAMESPACE = uuid.UUID("1f1d4bb6-93d5-5c57-8f0c-6d6a4a4e7f55")

logger = structlog.get_logger()


@dataclass(frozen=True)
class LoopEvent:
    """One event about one decision."""

    name: str
    decision: Decision
    payload: Mapping[str, Any]

    @property
    def id(self) -> uuid.UUID:
        """The same for the same decision."""
        return uuid.uuid5(_NAMESPACE, f"{self.name} {self.decision.model_dump_json()}")


def resource_id(use_case: str) -> str:
    """How events name a use case."""
    return f"leitstand.use-case.{use_case}"


def events_of(decision: Decision, report: DriftReport, previous_version: int | None) -> tuple[LoopEvent, ...]:
    """The events that a new decision gives rise to; none when nothing happened."""
    names = []
    if report.drifted or decision.action is Action.RETRAIN:
        names.append(DRIFT)
    if decision.finding is Finding.LOSS:
        names.append(QUALITY)
    if decision.action is Action.ROLL_BACK and previous_version is not None:
        names.append(ROLLBACK)
    payload = {
        "use_case": decision.use_case, "version": decision.version, "action": decision.action.value,
        "finding": decision.finding.value if decision.finding else "", "reasons": list(decision.reasons),
        "trigger": decision.report_digest, "reason": "; ".join(decision.reasons)[:500],
        "window_start": report.window_start.isoformat(), "window_end": report.window_end.isoformat(),
        "rows": report.rows, "previous_version": previous_version,
    }  # fmt: skip
    return tuple(LoopEvent(name, decision, payload) for name in names)


def emit(events: Sequence[LoopEvent]) -> None:
    """Sends them to the Prefect server that this process is configured for."""
    from prefect.events import emit_event

    for event in events:
        decision = event.decision
        resource = {
            "prefect.resource.id": resource_id(decision.use_case),
            "prefect.resource.name": decision.use_case,
            ACTION_LABEL: decision.action.value,
        }
        emit_event(event.name, resource=resource, payload=dict(event.payload), occurred=decision.at, id=event.id)


def send(events: Sequence[LoopEvent], settings: AlertSettings) -> None:
    """Posts them as CloudEvents to ``alerts.webhook_url``, if it is set. A receiver that is down is logged."""
    if not settings.webhook_url or not events:
        return
    secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""
    sink = WebhookSink(
        settings.webhook_url, secret=secret, timeout_s=settings.timeout_s, attempts=settings.attempts
    )  # fmt: skip
    for event in events:
        decision = event.decision
        subject = f"{decision.use_case}:{decision.version}"
        told = cloud_event(
            event.name, use_case=decision.use_case, subject=subject, at=decision.at, data=event.payload
        )  # fmt: skip
        try:
            sink.send_event(told)
        except LeitstandError as error:
            logger.warning("The webhook did not take an event", event_type=event.name, cause=error.message)
