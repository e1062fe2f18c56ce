"""Route tables in PostgreSQL: for gateways on several machines that share a database anyway.

Every revision stays as a row of ``leitstand_routes``, which is made when it is missing. Safe with threads and
processes; one connection per store, opened again after it broke. A call is given up after two seconds.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import conninfo, errors

from governance.routes.tables import conflict, read_table, stored
from leitstand.errors import ConfigurationError, PermanentBackendError, TransientBackendError
from leitstand.types import RouteTable

__all__ = ["PostgresRouteStore"]

TIMEOUT_S = 2
SCHEMA = """
CREATE TABLE IF NOT EXISTS leitstand_routes (
    use_case TEXT NOT NULL, revision INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (use_case, revision)
)
"""
# Two writers that both find `expected` meet at the primary key: one of them wins.
WRITE = """
INSERT INTO leitstand_routes SELECT %(use_case)s, %(revision)s, %(record)s
WHERE (SELECT COALESCE(MAX(revision), 0) FROM leitstand_routes WHERE use_case = %(use_case)s) = %(expected)s
"""


class PostgresRouteStore:
    """`RouteStore` in a PostgreSQL database.

    Args:
        uri: ``postgresql://[user[:password]@]host[:port]/database[?sslmode=verify-full]``.

    Raises:
        ConfigurationError: `uri` is not understood.
    """

    def __init__(self, uri: str) -> None:
        try:
            given = conninfo.conninfo_to_dict(uri)
        except psycopg.ProgrammingError:  # its text holds the URI, and with it the password
            raise ConfigurationError(
                "The URI of the route store is no PostgreSQL URI",
                hint="set LEITSTAND_GATEWAY__ROUTES_URI=postgresql://user@host:5432/database",
            ) from None
        defaults = {
            "connect_timeout": TIMEOUT_S, "tcp_user_timeout": TIMEOUT_S * 1000,
            "options": f"-c statement_timeout={TIMEOUT_S * 1000}", "application_name": "leitstand-routes",
        }  # fmt: skip
        self._parameters: dict[str, Any] = defaults | given
        self._where = f"postgresql at {given.get('host', 'the local socket')}:{given.get('port', 5432)}"
        self._lock = threading.Lock()
        self._opened: psycopg.Connection[tuple[Any, ...]] | None = None

    def read(self, use_case: str) -> RouteTable | None:
        query = "SELECT record FROM leitstand_routes WHERE use_case = %s ORDER BY revision DESC LIMIT 1"
        rows = self._rows(query, use_case)
        return read_table(rows[0][0], use_case) if rows else None

    def write(self, table: RouteTable, *, expected: int) -> RouteTable:
        new = stored(table, expected)
        row = {"use_case": new.use_case, "revision": new.revision, "record": new.model_dump_json()}
        with self._connection() as connection:
            try:
                written = connection.execute(WRITE, row | {"expected": expected}).rowcount
            except errors.UniqueViolation:
                written = 0
        if not written:
            raise conflict(new.use_case, expected, self.revisions().get(new.use_case, 0))
        return new

    def names(self) -> Sequence[str]:
        return sorted(self.revisions())

    def revisions(self) -> Mapping[str, int]:
        return dict(self._rows("SELECT use_case, MAX(revision) FROM leitstand_routes GROUP BY use_case"))

    def history(self, use_case: str) -> Sequence[RouteTable]:
        query = "SELECT record FROM leitstand_routes WHERE use_case = %s ORDER BY revision"
        return [read_table(record, use_case) for (record,) in self._rows(query, use_case)]

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        with self._lock:
            self._forget()

    def _rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with self._connection() as connection:
            return connection.execute(query, values).fetchall()  # pyright: ignore[reportArgumentType]

    @contextmanager
    def _connection(self) -> Iterator["psycopg.Connection[tuple[Any, ...]]"]:
        with self._lock, self._translated():
            try:
                if self._opened is None:
                    self._opened = psycopg.connect(**self._parameters, autocommit=True)
                    _ensure_table(self._opened)
                yield self._opened
            except psycopg.OperationalError:
                self._forget()
                raise

    def _forget(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (
            errors.InvalidPassword,
            errors.InvalidAuthorizationSpecification,
            errors.InsufficientPrivilege,
        ) as error:
            raise PermanentBackendError(f"{self._where} refuses us: {error}", hint="check user and password") from error
        except errors.ReadOnlySqlTransaction as error:
            raise TransientBackendError(f"{self._where} is a replica: {error}", hint="wait for the failover") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise TransientBackendError(f"{self._where} does not answer: {error}", hint="is it running?") from error
        except psycopg.Error as error:
            raise PermanentBackendError(f"{self._where} cannot do it: {error}", hint="see the server's log") from error


def _ensure_table(connection: "psycopg.Connection[tuple[Any, ...]]") -> None:
    """Makes the table once; a gateway whose role may only read does not try."""
    row = connection.execute("SELECT to_regclass('leitstand_routes')").fetchone()
    if row is None or row[0] is None:
        with suppress(errors.UniqueViolation, errors.DuplicateTable):  # another process makes it at the same moment
            connection.execute(SCHEMA)
