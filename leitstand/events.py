"""Named events and the log: one line per event, by default as JSON of the Elastic Common Schema.

`announce` sends an event to the log. Payloads (texts) never go there; digests and sizes do.
"""

import dataclasses
import logging
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal, Protocol

import ecs_logging
import structlog

from leitstand import __version__
from leitstand.log_redaction import RedactingFormatter, redact_line

__all__ = [
    "AlertTold",
    "AliasMoved",
    "BentoBuilt",
    "DataIngested",
    "DataRejected",
    "Event",
    "GatesDecided",
    "LogStream",
    "ModelRegistered",
    "RolloutMoved",
    "RotatingLog",
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


class LogStream(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


class RotatingLog:
    """A stream into a file that starts anew at `max_bytes`; earlier ones become ``NAME.1``, ``NAME.2`` and so on.

    Lines stay whole, also when several threads write. Several processes must not share a file.
    """

    def __init__(self, path: Path, *, max_bytes: int, backups: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = RotatingFileHandler(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")

    def write(self, text: str) -> None:
        """Appends whole lines."""
        self._handler.handle(logging.makeLogRecord({"msg": text.rstrip("\n")}))

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Closes the file."""
        self._handler.close()


def _about_us(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["@timestamp"] = event.pop("timestamp")
    event["log.level"] = event.pop("level")
    event.setdefault("service.name", "leitstand")
    event["service.version"] = __version__
    return event


def configure_logging(
    level: str = "INFO",
    stream: LogStream | None = None,
    *,
    style: Literal["ecs", "console"] = "ecs",
    libraries: bool = False,
) -> None:
    """Sends structlog to `stream` (stderr by default). Call once, at the entry point.

    Args:
        level: What is less important is left out.
        stream: Where lines go.
        style: JSON lines of the Elastic Common Schema, or lines for people.
        libraries: Whether warnings of libraries that use `logging` go there too, in the same style.
    """
    target = stream or sys.stderr
    # Never a traceback with local variables: texts and keys are among them.
    rendering: list[Any] = (
        [structlog.processors.format_exc_info, _about_us, ecs_logging.StructlogFormatter(ensure_ascii=False)]
        if style == "ecs"
        else [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *rendering,
            redact_line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(target),  # pyright: ignore[reportArgumentType]
    )
    if libraries:
        _take_over_libraries(target, style)


def _take_over_libraries(target: LogStream, style: str) -> None:
    handler = logging.StreamHandler(target)
    ours = {"service.name": "leitstand", "service.version": __version__}
    plain = logging.Formatter("%(asctime)s [%(levelname)s] %(name)s: %(message)s")
    handler.setFormatter(RedactingFormatter(ecs_logging.StdlibFormatter(extra=ours) if style == "ecs" else plain))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def bind(**context: Any) -> None:
    """Adds fields (``run_id``, ``model``, ``version``) to every later log line of this context."""
    structlog.contextvars.bind_contextvars(**context)


def announce(event: Event) -> None:
    """Writes the event to the log; its fields stand below ``leitstand``."""
    structlog.get_logger().info(
        type(event).__doc__ or event.action,
        **{"event.action": event.action, "leitstand": dataclasses.asdict(event)},
    )
