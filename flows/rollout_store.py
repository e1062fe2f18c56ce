"""The rollouts of this installation: append-only revisions, what people asked for, and the evidence so far.

SQLite (WAL) below `home`. A revision is written by compare-and-set, so two controllers cannot both decide,
and a use case has one unfinished rollout at most. A controller that was killed goes on from the last
revision. Safe with threads and processes.
"""

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from leitstand.errors import ConflictError, NotFoundError
from leitstand.settings import Settings
from leitstand.state_file import StateFile
from monitors.rollout_rules import Command, Request, Rollout

__all__ = ["RolloutStore", "open_rollout_store"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS revisions (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, rollout_id TEXT NOT NULL, use_case TEXT NOT NULL,
    revision INTEGER NOT NULL, finished INTEGER NOT NULL, record TEXT NOT NULL, UNIQUE (rollout_id, revision)
);
CREATE INDEX IF NOT EXISTS revisions_by_use_case ON revisions (use_case, sequence);
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT, rollout_id TEXT NOT NULL, command TEXT NOT NULL,
    actor TEXT NOT NULL, reason TEXT NOT NULL, at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS evidence (rollout_id TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS revisions_are_never_changed BEFORE UPDATE ON revisions
    BEGIN SELECT RAISE(ABORT, 'revisions are append-only'); END;
CREATE TRIGGER IF NOT EXISTS revisions_are_never_removed BEFORE DELETE ON revisions
    BEGIN SELECT RAISE(ABORT, 'revisions are append-only'); END;
"""
LATEST = "SELECT record FROM revisions WHERE {} ORDER BY sequence DESC LIMIT 1"


def open_rollout_store(settings: Settings) -> "RolloutStore":
    """The store below `home`."""
    return RolloutStore(settings.root / "rollouts" / "rollouts.db")


class RolloutStore:
    """Rollouts in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path, SCHEMA)

    def begin(self, draft: Rollout) -> Rollout:
        """Stores a new rollout under the next number of its use case; its `rollout_id` is given here.

        Raises:
            ConflictError: Another rollout of the use case is not finished; the message names it.
        """
        with self._file.transaction() as connection:
            last = self._one(connection, "use_case = ?", draft.use_case)
            _refuse_unfinished(last)
            number = int(last.rollout_id.rsplit("-r", 1)[1]) + 1 if last else 1
            return self._insert(connection, draft.model_copy(update={"rollout_id": f"{draft.use_case}-r{number}"}))

    def save(self, after: Rollout) -> Rollout:
        """Appends the state that follows revision ``after.revision``.

        Raises:
            ConflictError: Somebody else wrote a revision meanwhile; nothing was stored.
        """
        with self._file.transaction() as connection:
            return self._insert(connection, after)

    def get(self, rollout_id: str) -> Rollout:
        """The present state.

        Raises:
            NotFoundError: There is no such rollout.
        """
        with self._file.reading() as connection:
            found = self._one(connection, "rollout_id = ?", rollout_id)
        if found is None:
            raise NotFoundError(f"There is no rollout '{rollout_id}'", hint="see `leitstand rollout status`")
        return found

    def latest(self, use_case: str) -> Rollout | None:
        """The present state of the use case's newest rollout, finished or not."""
        with self._file.reading() as connection:
            return self._one(connection, "use_case = ?", use_case)

    def running(self, use_case: str) -> Rollout | None:
        """The rollout of the use case that is not finished, or None."""
        found = self.latest(use_case)
        return found if found and not found.finished else None

    def refuse_while_running(self, use_case: str) -> None:
        """Raises ConflictError when the use case has an unfinished rollout; the message names it."""
        _refuse_unfinished(self.latest(use_case))

    def use_cases(self) -> Sequence[str]:
        """Use cases that ever had a rollout, sorted."""
        with self._file.reading() as connection:
            rows = connection.execute("SELECT DISTINCT use_case FROM revisions ORDER BY use_case").fetchall()
        return [name for (name,) in rows]

    def unfinished(self) -> Sequence[Rollout]:
        """Every rollout that is not finished."""
        return [found for found in map(self.running, self.use_cases()) if found]

    def history(self, rollout_id: str) -> Sequence[Rollout]:
        """Every revision, oldest first."""
        with self._file.reading() as connection:
            rows = connection.execute(
                "SELECT record FROM revisions WHERE rollout_id = ? ORDER BY revision", (rollout_id,)
            ).fetchall()
        return [Rollout.model_validate_json(record) for (record,) in rows]

    def ask(self, rollout_id: str, command: Command, *, actor: str, reason: str, at: datetime) -> Request:
        """Records what a person wants; the controller obeys at its next look."""
        with self._file.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO requests (rollout_id, command, actor, reason, at) VALUES (?, ?, ?, ?, ?)",
                (rollout_id, command, actor, reason, at.isoformat()),
            )
            return Request(cursor.lastrowid or 0, command, actor, reason, at)

    def requests(self, rollout: Rollout) -> Sequence[Request]:
        """What was asked and not looked at yet, oldest first."""
        with self._file.reading() as connection:
            rows = connection.execute(
                "SELECT number, command, actor, reason, at FROM requests WHERE rollout_id = ? AND number > ? "
                "ORDER BY number",
                (rollout.rollout_id, rollout.requests_seen),
            ).fetchall()
        return [Request(n, Command(c), actor, reason, datetime.fromisoformat(at)) for n, c, actor, reason, at in rows]

    def keep_evidence(self, rollout_id: str, record: str) -> None:
        """Replaces the evidence gathered so far (JSON)."""
        with self._file.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO evidence VALUES (?, ?)", (rollout_id, record))

    def evidence(self, rollout_id: str) -> str | None:
        """The evidence gathered so far, or None."""
        with self._file.reading() as connection:
            row = connection.execute("SELECT record FROM evidence WHERE rollout_id = ?", (rollout_id,)).fetchone()
        return row[0] if row else None

    def _insert(self, connection: sqlite3.Connection, after: Rollout) -> Rollout:
        stored = after.model_copy(update={"revision": after.revision + 1})
        try:
            connection.execute(
                "INSERT INTO revisions (rollout_id, use_case, revision, finished, record) VALUES (?, ?, ?, ?, ?)",
                (stored.rollout_id, stored.use_case, stored.revision, stored.finished, stored.model_dump_json()),
            )
        except sqlite3.IntegrityError as error:
            raise ConflictError(
                f"Rollout {after.rollout_id} has a revision {stored.revision} already",
                hint="another controller drives it; read its state again",
            ) from error
        return stored

    def _one(self, connection: sqlite3.Connection, where: str, value: str) -> Rollout | None:
        row = connection.execute(LATEST.format(where), (value,)).fetchone()
        return Rollout.model_validate_json(row[0]) if row else None


def _refuse_unfinished(last: Rollout | None) -> None:
    if last and not last.finished:
        raise ConflictError(
            f"Rollout {last.rollout_id} of '{last.use_case}' to version {last.version} is still "
            f"{last.phase.replace('_', ' ')}",
            hint=f"wait for it, or end it with `leitstand rollout abort {last.use_case} --reason ...`",
        )
