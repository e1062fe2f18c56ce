"""Route tables in one SQLite file (WAL): for gateways and controllers of one machine.

Every revision stays as a row, so the history is the table itself. A read sees a commit of any process at once.
Safe with threads and processes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from governance.routes.tables import conflict, read_table, stored
from leitstand.state_file import StateFile
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
        self._file = StateFile(path, SCHEMA, timeout_s=BUSY_TIMEOUT_S)

    def read(self, use_case: str) -> RouteTable | None:
        query = "SELECT record FROM routes WHERE use_case = ? ORDER BY revision DESC LIMIT 1"
        rows = self._rows(query, use_case)
        return read_table(rows[0][0], use_case) if rows else None

    def write(self, table: RouteTable, *, expected: int) -> RouteTable:
        new = stored(table, expected)
        with self._file.transaction() as connection:
            query = "SELECT COALESCE(MAX(revision), 0) FROM routes WHERE use_case = ?"
            (revision,) = connection.execute(query, (new.use_case,)).fetchone()
            if revision != expected:
                raise conflict(new.use_case, expected, revision)
            row = (new.use_case, new.revision, new.model_dump_json())
            connection.execute("INSERT INTO routes VALUES (?, ?, ?)", row)
        return new

    def names(self) -> Sequence[str]:
        return sorted(self.revisions())

    def revisions(self) -> Mapping[str, int]:
        return dict(self._rows("SELECT use_case, MAX(revision) FROM routes GROUP BY use_case"))

    def history(self, use_case: str) -> Sequence[RouteTable]:
        rows = self._rows("SELECT record FROM routes WHERE use_case = ? ORDER BY revision", use_case)
        return [read_table(record, use_case) for (record,) in rows]

    def close(self) -> None:
        """Closes this thread's connection; the next call opens another."""
        self._file.close()

    def _rows(self, query: str, *values: str) -> list[tuple]:
        with self._file.reading() as connection:
            return connection.execute(query, values).fetchall()
