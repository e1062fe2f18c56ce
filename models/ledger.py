"""The promotion ledger: who moved which alias where, when, why, and on what evidence.

SQLite (WAL). Triggers refuse UPDATE and DELETE; each entry carries the hash of the one before, so a change
made around the triggers shows. The highest sequence ever given is kept apart, so a cut-off tail shows too,
unless both places are forged; `models.registry.moves` anchors the head in the registry as a third.

A move of an alias is written ahead as a *pending* intent before the registry is touched, and becomes an
entry afterwards; `models.registry.moves` drives that. Safe with threads and processes.
"""

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from leitstand.errors import IntegrityError
from leitstand.files import digest_json
from leitstand.settings import Settings
from leitstand.state_file import StateFile
from leitstand.types import LedgerEntry, utc_now

__all__ = ["SqliteLedger", "entry_hash", "open_ledger"]

GENESIS = "sha256:" + "0" * 64
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
        self._file = StateFile(path, SCHEMA, damaged_text=True)  # damage shows as a wrong hash, with its sequence

    def append(
        self, *, name: str, alias: str, version: int | None, previous: int | None, actor: str, reason: str,
        evidence: str = "", at: datetime | None = None,
    ) -> LedgerEntry:  # fmt: skip
        with self._file.transaction() as connection:
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
        with self._file.reading() as connection:
            rows = connection.execute(query, (name,)).fetchall()
        return [LedgerEntry.model_validate_json(record) for (record,) in rows]

    def holder(self, name: str, alias: str, at: datetime) -> int | None:
        moves = [entry for entry in self.entries(name) if entry.alias == alias and entry.at <= at]
        return moves[-1].version if moves else None

    def verify(self) -> int:
        with self._file.reading() as connection:
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
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM pending WHERE name = ? AND alias = ?", (entry.name, entry.alias))
            connection.execute(
                "INSERT INTO pending VALUES (?, ?, ?)", (entry.name, entry.alias, entry.model_dump_json())
            )

    def pending(self) -> Sequence[LedgerEntry]:
        """Moves that were begun and not finished; `sequence` and `hash` of these mean nothing."""
        with self._file.reading() as connection:
            rows = connection.execute("SELECT record FROM pending").fetchall()
        return [LedgerEntry.model_validate_json(record) for (record,) in rows]

    def forget(self, name: str, alias: str) -> None:
        """Drops the intent to move `alias`."""
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM pending WHERE name = ? AND alias = ?", (name, alias))

    def _last(self, connection: sqlite3.Connection) -> LedgerEntry | None:
        row = connection.execute("SELECT record FROM entries ORDER BY sequence DESC LIMIT 1").fetchone()
        return LedgerEntry.model_validate_json(row[0]) if row else None

    def close(self) -> None:
        """Closes this thread's connection; the next call opens another."""
        self._file.close()


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
