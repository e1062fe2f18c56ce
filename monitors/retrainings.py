"""Every retraining that was started, by whom, and how it ended; one SQLite file below `home`.

A retraining is *claimed* by what triggered it, so that one event starts one retraining, however often it arrives.
A started one counts for the week's budget whatever becomes of it. Safe with threads and processes.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from leitstand.errors import IntegrityError
from leitstand.settings import Settings
from leitstand.state_file import StateFile

__all__ = ["Outcome", "Retraining", "RetrainingLog", "open_retraining_log"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS retrainings (
    id INTEGER PRIMARY KEY AUTOINCREMENT, use_case TEXT NOT NULL, trigger TEXT NOT NULL, started_at TEXT NOT NULL,
    record TEXT NOT NULL, UNIQUE (use_case, trigger)
);
"""
Outcome = Literal["running", "rollout started", "gates failed", "too little feedback", "failed", "crashed"]


class Retraining(BaseModel):
    """One retraining."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    id: int = 0
    use_case: str
    trigger: str = Field(description="what asked for it: the digest of a drift report, or a person's request")
    reason: str
    started_at: AwareDatetime
    finished_at: AwareDatetime | None = None
    outcome: Outcome = "running"
    detail: str = ""
    version: int | None = Field(default=None, description="the version that it registered")
    rollout: str = Field(default="", description="the rollout that it started")


def open_retraining_log(settings: Settings) -> "RetrainingLog":
    """The log below `home`."""
    return RetrainingLog(StateFile(settings.root / "monitors" / "retrainings.db", SCHEMA))


class RetrainingLog:
    """Retrainings of all use cases in one file."""

    def __init__(self, file: StateFile) -> None:
        self._file = file

    def claim(self, use_case: str, trigger: str, reason: str, *, now: datetime) -> Retraining | None:
        """Records the start; None when this trigger has started one already."""
        with self._file.transaction() as connection:
            begun = Retraining(use_case=use_case, trigger=trigger, reason=reason[:500], started_at=now)
            cursor = connection.execute(
                "INSERT OR IGNORE INTO retrainings (use_case, trigger, started_at, record) VALUES (?, ?, ?, ?)",
                (use_case, trigger, _text(now), begun.model_dump_json()),
            )
            return begun.model_copy(update={"id": cursor.lastrowid}) if cursor.rowcount else None

    def close_crashed(self, use_case: str, *, now: datetime) -> Sequence[Retraining]:
        """Ends what is still *running*, and returns it; only for who holds the lock of the use case's retraining."""
        with self._file.transaction() as connection:
            left = [each for each in self._all(connection.execute, use_case) if each.outcome == "running"]
            closed = {"outcome": "crashed", "finished_at": now, "detail": "its process ended without a word"}
            ended = [each.model_copy(update=closed) for each in left]
            for each in ended:
                self._put(connection.execute, each)
        return ended

    def finish(self, retraining: Retraining) -> None:
        """Records how it ended."""
        with self._file.transaction() as connection:
            self._put(connection.execute, retraining)

    def recent(self, use_case: str, *, limit: int = 20) -> Sequence[Retraining]:
        """The last ones, oldest first."""
        with self._file.reading() as connection:
            return self._all(connection.execute, use_case)[-limit:]

    def started_since(self, use_case: str, moment: datetime) -> int:
        """How many were started since, whatever became of them; refusals for want of feedback are none."""
        found = self.recent(use_case, limit=1000)
        return sum(each.started_at >= moment and each.outcome != "too little feedback" for each in found)

    def close(self) -> None:
        """Closes this thread's connection; the next call opens another."""
        self._file.close()

    def _put(self, execute: Callable[..., Any], retraining: Retraining) -> None:
        execute("UPDATE retrainings SET record = ? WHERE id = ?", (retraining.model_dump_json(), retraining.id))

    def _all(self, execute: Callable[..., Any], use_case: str) -> list[Retraining]:
        query = "SELECT id, record FROM retrainings WHERE use_case = ? ORDER BY id"
        rows = execute(query, (use_case,)).fetchall()
        try:
            return [Retraining.model_validate_json(record).model_copy(update={"id": key}) for key, record in rows]
        except ValueError as error:
            raise IntegrityError(
                f"{self._file.path} holds a retraining that is not readable", hint="restore it from a backup"
            ) from error


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
