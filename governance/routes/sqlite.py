"""Route tables in one SQLite file (WAL): for gateways and controllers of one machine.

Every revision stays as a row, so the history is the table itself. A read sees a commit of any process at once.
Safe with threads and processes.
"""

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from governance.routes.tables import conflict, read_table, stored
from leitstand.errors import IntegrityError, PermanentBackendError, TransientBackendError
from leitstand.types import RouteTable

__all__ = ["SqliteRouteStore"]

BUSY_TIMEOUT_S = 5.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS routes (
    use_case TEXT NOT NULL, revision INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (use_case, revision)
) WITHOUT ROWID
"""


class SqliteRouteStore:
    """`RouteStore` in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._opened: sqlite3.Connection | None = None

    def read(self, use_case: str) -> RouteTable | None:
        query = "SELECT record FROM routes WHERE use_case = ? ORDER BY revision DESC LIMIT 1"
        rows = self._rows(query, use_case)
        return read_table(rows[0][0], use_case) if rows else None

    def write(self, table: RouteTable, *, expected: int) -> RouteTable:
        new = stored(table, expected)
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                query = "SELECT COALESCE(MAX(revision), 0) FROM routes WHERE use_case = ?"
                (revision,) = connection.execute(query, (new.use_case,)).fetchone()
                if revision != expected:
                    raise conflict(new.use_case, expected, revision)
                row = (new.use_case, new.revision, new.model_dump_json())
                connection.execute("INSERT INTO routes VALUES (?, ?, ?)", row)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        return new

    def names(self) -> Sequence[str]:
        return sorted(self.revisions())

    def revisions(self) -> Mapping[str, int]:
        return dict(self._rows("SELECT use_case, MAX(revision) FROM routes GROUP BY use_case"))

    def history(self, use_case: str) -> Sequence[RouteTable]:
        rows = self._rows("SELECT record FROM routes WHERE use_case = ? ORDER BY revision", use_case)
        return [read_table(record, use_case) for (record,) in rows]

    def close(self) -> None:
        """Closes the file; the next call opens it again."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def _rows(self, query: str, *values: str) -> list[tuple]:
        with self._connection() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _translated(self._path):
            if self._opened is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                opened = sqlite3.connect(
                    self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
                )
                try:
                    opened.execute("PRAGMA journal_mode = WAL")
                    opened.execute(SCHEMA)
                except BaseException:
                    opened.close()
                    raise
                self._opened = opened
            yield self._opened


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise TransientBackendError(f"{path} is busy: {error}", hint="try again") from error
        raise PermanentBackendError(f"{path} cannot be used: {error}", hint="check disk space and rights") from error
    except sqlite3.DatabaseError as error:
        raise IntegrityError(f"{path} is damaged: {error}", hint="restore it from a backup") from error
    except OSError as error:
        raise PermanentBackendError(f"{path} cannot be used: {error}", hint="check disk space and rights") from error
