"""Named events and the JSON log: one line per event, Elastic Common Schema field names.

`announce` sends an event to the log. Payloads (texts) never go there; digests and sizes do.
"""

import dataclasses
import logging
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, TextIO

import structlog

from leitstand import __version__

__all__ = [
    "AlertTold",
    "AliasMoved",
    "BentoBuilt",
    "DataIngested",
    "DataRejected",
    "Event",
    "GatesDecided",
    "ModelRegistered",
    "RolloutMoved",
    "RunFinished",
    "ServiceDeployed",
    "announce",
    "bind",
    "configure_logging",
]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events; `action` is the name that logs, alerts and automations use."""

    action = "leitstand.event"
    use_case: str


@dataclass(frozen=True, kw_only=True)
class DataIngested(Event):
    """A snapshot passed its expectations."""

    action = "leitstand.data.ingested"
    digest: str
    rows: int
    quarantined: int


@dataclass(frozen=True, kw_only=True)
class DataRejected(Event):
    """A data set broke its expectations; `failures` names them."""

    action = "leitstand.data.rejected"
    failures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """A training run ended with a model."""

    action = "leitstand.run.finished"
    run_id: str
    profile: str
    weights_digest: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class GatesDecided(Event):
    """The gates gave their verdict."""

    action = "leitstand.gates.decided"
    weights_digest: str
    outcome: str


@dataclass(frozen=True, kw_only=True)
class ModelRegistered(Event):
    """A version became visible in the registry."""

    action = "leitstand.model.registered"
    version: int
    weights_digest: str


@dataclass(frozen=True, kw_only=True)
class AliasMoved(Event):
    """An alias points at another version."""

    action = "leitstand.model.promoted"
    alias: str
    version: int | None
    previous: int | None
    actor: str


@dataclass(frozen=True, kw_only=True)
class BentoBuilt(Event):
    """A version was packaged."""

    action = "leitstand.bento.built"
    version: int
    tag: str


@dataclass(frozen=True, kw_only=True)
class ServiceDeployed(Event):
    """A Bento answers as the use case's service."""

    action = "leitstand.service.deployed"
    version: int
    tag: str
    url: str


@dataclass(frozen=True, kw_only=True)
class RolloutMoved(Event):
    """A rollout took a step; `percent` is the candidate's share of requests."""

    action = "leitstand.rollout.moved"
    rollout_id: str
    version: int
    phase: str
    percent: float
    actor: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class AlertTold(Event):
    """People were told of trouble, or of its end."""

    action = "leitstand.alert.told"
    key: str
    severity: str
    title: str
    resolved: bool
    notification: int
    runbook: str


def _to_ecs(_: Any, __: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    return {
        "@timestamp": event.pop("timestamp"),
        "log.level": event.pop("level"),
        "message": event.pop("event"),
        "ecs.version": "8.11.0",
        "service.name": "leitstand",
        "service.version": __version__,
        **event,
    }


def configure_logging(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Sends structlog to `stream` (stderr by default) as JSON lines. Call once, at the entry point."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _to_ecs,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(stream or sys.stderr),
    )


def bind(**context: Any) -> None:
    """Adds fields (``run_id``, ``model``, ``version``) to every later log line of this context."""
    structlog.contextvars.bind_contextvars(**context)


def announce(event: Event) -> None:
    """Writes the event to the log; its fields stand below ``leitstand``."""
    structlog.get_logger().info(
        type(event).__doc__ or event.action,
        **{"event.action": event.action, "leitstand": dataclasses.asdict(event)},
    )
