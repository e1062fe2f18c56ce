"""How many requests of a version failed since the last look at the gateways' counters.

Counters only rise, so a window's share of failures needs the counts at its start. They are kept in a small file per
use case; a first look, a look after a long pause, or gateways that do not answer tell nothing, and say so.
"""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from leitstand.errors import BackendError
from leitstand.files import write_text
from monitors.gateway_counts import CountSource, Tally, accumulate, arm

__all__ = ["Health", "look"]

LATE = 2.0
"""A look this many windows after the last one covers another time than the window."""
NEW_SHARE = 0.1
"""Weight of the newest look in the usual rate of requests (an exponential mean)."""


class Health(BaseModel):
    """What the gateways counted of one version since the last look."""

    model_config = ConfigDict(frozen=True)

    requests: int | None = None
    error_rate: float | None = None
    usual_requests: float | None = Field(default=None, description="requests that such a window usually brings")
    note: str = Field(default="", description="why there are no numbers; empty when there are")


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    at: AwareDatetime
    tally: Tally
    usual_per_s: float | None = None


def look(file: Path, source: CountSource, use_case: str, version: int, window: timedelta, *, now: datetime) -> Health:
    """Reads the counters, compares them with the last look, and keeps them for the next one. Never raises for them.

    Args:
        file: Where the last look is kept.
        source: The gateways.
        use_case: Name of the use case.
        version: Whose requests.
        window: Length of the window that the caller judges.
        now: The present moment.
    """
    try:
        read = source.read(use_case)
    except BackendError as error:
        return Health(note=f"no counts of failed requests: {error.message}")
    before = _kept(file)
    fresh = Tally(begun=now.isoformat(), last=dict(read))
    pause = now - before.at if before else timedelta()
    if before is None or pause <= timedelta() or pause > LATE * window:
        usual = before.usual_per_s if before else None
        write_text(file, _Kept(at=now, tally=fresh, usual_per_s=usual).model_dump_json())
        return Health(note="no counts of failed requests yet: they begin with this look")
    counted = arm(accumulate(before.tally, read, begun=before.tally.begun), version, slow_ms=1.0)
    rate = counted.requests / pause.total_seconds()
    usual = rate if before.usual_per_s is None else (1 - NEW_SHARE) * before.usual_per_s + NEW_SHARE * rate
    write_text(file, _Kept(at=now, tally=fresh, usual_per_s=usual).model_dump_json())
    expected = None if before.usual_per_s is None else before.usual_per_s * pause.total_seconds()
    share = counted.failed / counted.requests if counted.requests else None
    return Health(requests=round(counted.requests), error_rate=share, usual_requests=expected)


def _kept(file: Path) -> _Kept | None:
    try:
        return _Kept.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
