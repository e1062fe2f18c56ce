"""One SQLite file (WAL) with a schema: what the stores of this installation share. Safe with threads and processes."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from leitstand.errors import IntegrityError, PermanentBackendError, TransientBackendError

__all__ = ["StateFile", "micros"]

BUSY_TIMEOUT_S = 30.0
_HINT = "check disk space and rights"


class StateFile:
    """Opens one connection per thread when first used.

    Args:
        path: Of the file; its folder is created.
        schema: Statements that create what is missing.
        private: The folder is for its owner only, and what is deleted is overwritten with zeros.
        damaged_text: Text that is not UTF-8 is read with replacement characters instead of being an error, for a
            store that recognises damage itself and can say where.
        timeout_s: How long a call waits for another process that writes.
    """

    def __init__(
        self, path: Path, schema: str, *, private: bool = False, damaged_text: bool = False,
        timeout_s: float = BUSY_TIMEOUT_S,
    ) -> None:  # fmt: skip
        self.path = path
        self._schema = schema
        self._private = private
        self._damaged_text = damaged_text
        self._timeout_s = timeout_s
        self._local = threading.local()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection whose statements see what was committed.

        Raises:
            TransientBackendError: Another process holds the file for longer than the time allowed.
            PermanentBackendError: The file cannot be opened or written (rights, full disk).
            IntegrityError: It is no database any more.
        """
        with self._translated():
            yield self._connection()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; holds the write lock from the start, so what was read stays true until the end.

        Raises:
            TransientBackendError, PermanentBackendError, IntegrityError: As `reading`.
        """
        with self._translated():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Closes this thread's connection; the next call opens another."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def _connection(self) -> sqlite3.Connection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            try:
                self.path.parent.mkdir(mode=0o700 if self._private else 0o777, parents=True, exist_ok=True)
            except OSError as error:
                raise PermanentBackendError(f"{self.path} cannot be used: {error}", hint=_HINT) from error
            connection = sqlite3.connect(self.path, timeout=self._timeout_s, isolation_level=None)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._local.connection = connection
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        _enter_wal(connection, self._timeout_s)
        connection.execute("PRAGMA synchronous = FULL")
        if self._private:
            connection.execute("PRAGMA secure_delete = ON")
        if self._damaged_text:
            connection.text_factory = lambda raw: raw.decode(errors="replace")
        connection.executescript(self._schema)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise TransientBackendError(f"{self.path} is busy: {error}") from error
            raise PermanentBackendError(f"{self.path} cannot be used: {error}", hint=_HINT) from error
        except sqlite3.DatabaseError as error:
            raise IntegrityError(f"{self.path} is damaged: {error}", hint="restore it from a backup") from error


def _enter_wal(connection: sqlite3.Connection, timeout_s: float) -> None:
    """Of processes that open a new file at once, SQLite refuses all but one at once, without its busy timeout."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def micros(at: datetime) -> int:
    """Microseconds since 1970, UTC: how stores keep moments that they compare."""
    return round(at.timestamp() * 1_000_000)
