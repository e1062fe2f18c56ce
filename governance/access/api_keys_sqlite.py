"""API keys in one SQLite file: for gateways of one machine."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from governance.access.api_keys import ApiKey, ended, unknown_key
from leitstand.errors import ConflictError, IntegrityError
from leitstand.state_file import StateFile

__all__ = ["SqliteApiKeys", "read_key"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS api_keys (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, key_id TEXT NOT NULL UNIQUE, record TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS revision (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL);
INSERT OR IGNORE INTO revision VALUES (1, 0);
"""
TOUCH = "UPDATE revision SET number = number + 1"


class SqliteApiKeys:
    """`ApiKeyStore` in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path, SCHEMA)

    def add(self, key: ApiKey) -> None:
        """See `ApiKeyStore.add`."""
        with self._file.transaction() as connection:
            row = (key.key_id, key.model_dump_json())
            if not connection.execute("INSERT OR IGNORE INTO api_keys (key_id, record) VALUES (?, ?)", row).rowcount:
                raise ConflictError(f"There is a key with the id '{key.key_id}' already")
            connection.execute(TOUCH)

    def end(self, key_id: str, at: datetime, why: Literal["rotated", "revoked"]) -> ApiKey:
        """See `ApiKeyStore.end`."""
        with self._file.transaction() as connection:
            found = connection.execute("SELECT record FROM api_keys WHERE key_id = ?", (key_id,)).fetchone()
            if found is None:
                raise unknown_key(key_id)
            key = ended(read_key(found[0]), at, why)
            connection.execute("UPDATE api_keys SET record = ? WHERE key_id = ?", (key.model_dump_json(), key_id))
            connection.execute(TOUCH)
        return key

    def all(self) -> Sequence[ApiKey]:
        """See `ApiKeyStore.all`."""
        with self._file.reading() as connection:
            rows = connection.execute("SELECT record FROM api_keys ORDER BY sequence").fetchall()
        return [read_key(record) for (record,) in rows]

    def revision(self) -> int:
        """See `ApiKeyStore.revision`."""
        with self._file.reading() as connection:
            return connection.execute("SELECT number FROM revision").fetchone()[0]

    def close(self) -> None:
        """Closes this thread's connection."""
        self._file.close()


def read_key(record: str) -> ApiKey:
    """One stored record.

    Raises:
        IntegrityError: It is none.
    """
    try:
        return ApiKey.model_validate_json(record)
    except ValidationError as error:
        raise IntegrityError(
            f"A stored API key is not readable: {error.errors()[0]['msg']}", hint="restore the store from a backup"
        ) from None
