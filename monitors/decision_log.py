"""Every decision that was made, append-only, in one SQLite file below `home`.

`settle` is the way to decide: it reads the history, decides and records under one lock, so that two
processes that judge at the same moment never both act. Safe with threads and processes.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from leitstand.errors import IntegrityError
from leitstand.settings import Settings
from leitstand.state_file import StateFile
from leitstand.types import Decision

__all__ = ["DecisionLog", "open_decision_log"]

REACH = timedelta(days=14)
"""How far back `settle` shows history: twice the budget's week."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS decisions (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, use_case TEXT NOT NULL, at TEXT NOT NULL, record TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS decisions_by_use_case ON decisions (use_case, at);
CREATE TRIGGER IF NOT EXISTS decisions_are_never_changed BEFORE UPDATE ON decisions
    BEGIN SELECT RAISE(ABORT, 'the decision log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS decisions_are_never_removed BEFORE DELETE ON decisions
    BEGIN SELECT RAISE(ABORT, 'the decision log is append-only'); END;
"""


def open_decision_log(settings: Settings) -> "DecisionLog":
    """The log below `home`."""
    return DecisionLog(settings.root / "monitors" / "decisions.db")


class DecisionLog:
    """Decisions of all use cases in one file."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path, SCHEMA)

    def settle(
        self, use_case: str, decide: Callable[[Sequence[Decision]], Decision], *, now: datetime
    ) -> tuple[Decision, bool]:
        """Decides and records in one transaction.

        Args:
            use_case: Whose history `decide` is shown.
            decide: Maps the decisions of the last two weeks, oldest first, to the decision; must be pure.
            now: The present moment.

        Returns:
            The decision, and whether it is new. One that `decide` took from the history is not recorded again,
            and must not be acted upon again.
        """
        with self._file.transaction() as connection:
            query = "SELECT record FROM decisions WHERE use_case = ? AND at >= ? ORDER BY sequence"
            rows = connection.execute(query, (use_case, _text(now - REACH))).fetchall()
            history = [self._read(record) for (record,) in rows]
            found = decide(history)
            if found in history:
                return found, False
            insert = "INSERT INTO decisions (use_case, at, record) VALUES (?, ?, ?)"
            connection.execute(insert, (found.use_case, _text(found.at), found.model_dump_json()))
        return found, True

    def recent(self, use_case: str | None = None, *, limit: int = 100) -> Sequence[Decision]:
        """The last decisions, oldest first; of one use case, or of all."""
        query = "SELECT record FROM decisions WHERE ?1 IS NULL OR use_case = ?1 ORDER BY sequence DESC LIMIT ?2"
        with self._file.reading() as connection:
            rows = connection.execute(query, (use_case, limit)).fetchall()
        return [self._read(record) for (record,) in reversed(rows)]

    def close(self) -> None:
        """Closes this thread's connection; the next call opens another."""
        self._file.close()

    def _read(self, record: str) -> Decision:
        try:
            return Decision.model_validate_json(record)
        except ValidationError as error:
            raise IntegrityError(
                f"{self._file.path} holds a decision that is not readable", hint="restore it from a backup"
            ) from error


def _text(moment: datetime) -> str:
    """UTC with a fixed number of digits, so that text sorts like time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
