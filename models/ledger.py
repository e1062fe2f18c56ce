"""The promotion ledger: who moved which alias where, when, why, and on what evidence.

SQLite (WAL). Triggers refuse UPDATE and DELETE; each entry carries the hash of the one before, so a change
made around the triggers shows. The highest sequence ever given is kept apart, so a cut-off tail shows too,
unless both places are forged; `models.registry.moves` anchors the head in the registry as a third.

A move of an alias is written ahead as a *pending* intent before the registry is touched, and becomes an
entry afterwards; `models.registry.moves` drives that. Safe with threads and processes.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from leitstand.errors import IntegrityError, PermanentBackendError, TransientBackendError
from leitstand.files import digest_json
from leitstand.settings import Settings
from leitstand.types import LedgerEntry, utc_now

__all__ = ["SqliteLedger", "entry_hash", "open_ledger"]

GENESIS = "sha256:" + "0" * 64
BUSY_TIMEOUT_S = 30.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, alias TEXT NOT NULL, record TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_by_alias ON entries (name, alias, sequence);
CREATE TABLE IF NOT EXISTS pending (name TEXT NOT NULL, alias TEXT NOT NULL, record TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS entries_are_never_changed BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS entries_are_never_removed BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


def open_ledger(settings: Settings) -> "SqliteLedger":
    """The ledger below `home`."""
    return SqliteLedger(settings.root / "registry" / "ledger.db")


def entry_hash(entry: LedgerEntry) -> str:
    """sha256 over the canonical JSON of the entry without its own `hash`."""
    return digest_json(entry.model_dump(mode="json", exclude={"hash"}))


class SqliteLedger:
    """`PromotionLedger` in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    def append(
        self, *, name: str, alias: str, version: int | None, previous: int | None, actor: str, reason: str,
        evidence: str = "", at: datetime | None = None,
    ) -> LedgerEntry:  # fmt: skip
        with self._transaction() as connection:
            last = self._last(connection)
            draft = LedgerEntry(
                sequence=last.sequence + 1 if last else 1, at=at or utc_now(), name=name, alias=alias,
                version=version, previous=previous, actor=actor, reason=reason, evidence=evidence,
                previous_hash=last.hash if last else GENESIS, hash="",
            )  # fmt: skip
            entry = draft.model_copy(update={"hash": entry_hash(draft)})
            connection.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?)", (entry.sequence, name, alias, entry.model_dump_json())
            )
            connection.execute("DELETE FROM pending WHERE name = ? AND alias = ?", (name, alias))
        return entry

    def note(self, name: str, version: int, *, actor: str, reason: str, evidence: str = "") -> LedgerEntry:
        """Enters an observation about a version; no alias moves."""
        return self.append(
            name=name, alias="", version=version, previous=version, actor=actor, reason=reason, evidence=evidence
        )  # fmt: skip

    def entries(self, name: str | None = None) -> Sequence[LedgerEntry]:
        query = "SELECT record FROM entries WHERE ?1 IS NULL OR name = ?1 ORDER BY sequence"
        with self._reading() as connection:
            rows = connection.execute(query, (name,)).fetchall()
        return [LedgerEntry.model_validate_json(record) for (record,) in rows]

    def holder(self, name: str, alias: str, at: datetime) -> int | None:
        moves = [entry for entry in self.entries(name) if entry.alias == alias and entry.at <= at]
        return moves[-1].version if moves else None

    def verify(self) -> int:
        with self._reading() as connection:
            rows = connection.execute("SELECT sequence, name, alias, record FROM entries ORDER BY sequence").fetchall()
            given = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entries'").fetchone()
        previous = GENESIS
        for position, (sequence, name, alias, record) in enumerate(rows, start=1):
            if sequence != position:
                raise _broken(position, "it was removed")
            entry = _read(record, position)
            if (entry.sequence, entry.name, entry.alias) != (sequence, name, alias):
                raise _broken(position, "it was reordered or changed")
            if entry.previous_hash != previous:
                raise _broken(position, "it does not follow the entry before it")
            if entry.hash != entry_hash(entry):
                raise _broken(position, "it was changed after it was written")
            previous = entry.hash
        if given and given[0] > len(rows):
            raise _broken(len(rows) + 1, f"{given[0]} entries were written, {len(rows)} are left")
        return len(rows)

    def intend(self, entry: LedgerEntry) -> None:
        """Records a move before it is made; `append` for the same alias, or `forget`, clears it."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM pending WHERE name = ? AND alias = ?", (entry.name, entry.alias))
            connection.execute(
                "INSERT INTO pending VALUES (?, ?, ?)", (entry.name, entry.alias, entry.model_dump_json())
            )

    def pending(self) -> Sequence[LedgerEntry]:
        """Moves that were begun and not finished; `sequence` and `hash` of these mean nothing."""
        with self._reading() as connection:
            rows = connection.execute("SELECT record FROM pending").fetchall()
        return [LedgerEntry.model_validate_json(record) for (record,) in rows]

    def forget(self, name: str, alias: str) -> None:
        """Drops the intent to move `alias`."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM pending WHERE name = ? AND alias = ?", (name, alias))

    def _last(self, connection: sqlite3.Connection) -> LedgerEntry | None:
        row = connection.execute("SELECT record FROM entries ORDER BY sequence DESC LIMIT 1").fetchone()
        return LedgerEntry.model_validate_json(row[0]) if row else None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with _translated(self._path):
            yield self._connection()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Holds the write lock from the first read on, so that two processes cannot extend the same head."""
        with _translated(self._path):
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _connection(self) -> sqlite3.Connection:
        """One connection per thread, opened when first used."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            connection.text_factory = lambda raw: raw.decode(errors="replace")  # damage shows as a wrong hash
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(SCHEMA)
            self._local.connection = connection
        return connection

    def close(self) -> None:
        """Closes this thread's connection; the next call opens another."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None


def _read(record: str, position: int) -> LedgerEntry:
    try:
        return LedgerEntry.model_validate_json(record)
    except ValueError as error:
        raise _broken(position, "it is not readable") from error


def _broken(sequence: int, what: str) -> IntegrityError:
    return IntegrityError(
        f"Promotion ledger: entry {sequence} is the first that does not hold: {what}",
        hint="restore the ledger from a backup, and find out who wrote to the file",
    )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise TransientBackendError(f"{path} is busy: {error}") from error
        raise PermanentBackendError(f"{path} cannot be used: {error}", hint="check disk space and rights") from error
    except sqlite3.DatabaseError as error:
        raise IntegrityError(f"{path} is damaged: {error}", hint="restore the ledger from a backup") from error
