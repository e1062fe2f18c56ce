"""Raw texts, kept encrypted for labelling and retraining; off unless ``monitoring.keep_texts_days`` says otherwise.

SQLite (WAL). Each text is a Fernet token (AES-128-CBC and HMAC-SHA256) of its own; the key comes from
``monitoring.texts_key`` or a file below `home` that only its owner can read. Request ids and pseudonyms of
subjects stay readable, because retention and erasure must work without the key. What is erased is overwritten
with zeros (`secure_delete`) and leaves the write-ahead log; copies in backups end with their retention.

Calls wait for a disk: make them on a thread. Safe with threads and processes.
"""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from leitstand.errors import ConfigurationError, IntegrityError, MissingExtraError
from leitstand.settings import Settings
from leitstand.state_file import StateFile, micros

__all__ = ["InputStore", "KeptTexts", "open_input_store"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS texts (
    use_case TEXT NOT NULL, request_id TEXT NOT NULL, position INTEGER NOT NULL, subject TEXT NOT NULL,
    at_us INTEGER NOT NULL, token BLOB NOT NULL, PRIMARY KEY (use_case, request_id, position)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS texts_by_time ON texts (at_us);
CREATE INDEX IF NOT EXISTS texts_by_subject ON texts (subject);
"""


def open_input_store(settings: Settings) -> "InputStore":
    """The store below `home`; one that is off takes nothing, and `expire` empties it.

    Raises:
        MissingExtraError: cryptography is not installed.
        ConfigurationError: The key is none.
    """
    folder = settings.root / "texts"
    days = settings.monitoring.keep_texts_days
    secret = settings.monitoring.texts_key
    return InputStore(folder, days, key=secret.get_secret_value().encode() if secret else None)


@dataclass(frozen=True, slots=True)
class KeptTexts:
    """The texts of one request; `subject` is a pseudonym or empty."""

    use_case: str
    request_id: str
    texts: Sequence[str]
    at: datetime
    subject: str = ""


class InputStore:
    """Texts by request id, for `keep_days` days.

    Args:
        folder: Holds the database and, unless `key` is given, the key.
        keep_days: 0 keeps nothing.
        key: A Fernet key; None: the one in `folder`, made when it is first needed.
    """

    def __init__(self, folder: Path, keep_days: int, *, key: bytes | None = None) -> None:
        self._folder = folder
        self._path = folder / "texts.db"
        self._keep = timedelta(days=keep_days)
        self._file = StateFile(self._path, SCHEMA, private=True)
        self._cipher = _cipher(key or _own_key(folder)) if keep_days else None

    @property
    def enabled(self) -> bool:
        """Whether texts are kept."""
        return self._cipher is not None

    def put(self, use_case: str, request_id: str, texts: Sequence[str], at: datetime, subject: str = "") -> None:
        """Keeps the texts of one request, durably; the same request again replaces them. Nothing when off."""
        self.put_many([KeptTexts(use_case, request_id, texts, at, subject)])

    def put_many(self, requests: Sequence["KeptTexts"]) -> None:
        """Keeps the texts of several requests, all or none."""
        if self._cipher is None or not requests:
            return
        rows = [
            (
                each.use_case,
                each.request_id,
                position,
                each.subject,
                micros(each.at),
                self._cipher.encrypt(text.encode()),
            )
            for each in requests
            for position, text in enumerate(each.texts)
        ]
        keys = [(each.use_case, each.request_id) for each in requests]
        with self._file.transaction() as connection:
            connection.executemany("DELETE FROM texts WHERE use_case = ? AND request_id = ?", keys)
            connection.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?, ?, ?, ?, ?)", rows)

    def get(self, use_case: str, request_id: str) -> list[str]:
        """The texts of one request in their order; empty when they are not kept, expired or erased.

        Raises:
            IntegrityError: They were encrypted with another key, or changed.
        """
        if self._cipher is None or not self._path.exists():
            return []
        query = "SELECT token FROM texts WHERE use_case = ? AND request_id = ? ORDER BY position"
        with self._file.reading() as connection:
            tokens = connection.execute(query, (use_case, request_id)).fetchall()
        return [self._decrypt(self._cipher, token, request_id) for (token,) in tokens]

    def expire(self, now: datetime) -> int:
        """Erases what is older than the retention (everything when off) and returns the number of texts."""
        if not self._path.exists():
            return 0
        limit = micros(now - self._keep) if self._keep else 2**63 - 1
        return self._erase("at_us < ?", limit)

    def erase(self, subject: str) -> int:
        """Erases every text of a subject (its pseudonym) and returns their number."""
        if not subject or not self._path.exists():
            return 0
        return self._erase("subject = ?", subject)

    def close(self) -> None:
        """Closes this thread's connection; the next call opens another."""
        self._file.close()

    def _erase(self, condition: str, value: Any) -> int:
        with self._file.transaction() as connection:
            count = connection.execute(f"DELETE FROM texts WHERE {condition}", (value,)).rowcount  # noqa: S608
        with self._file.reading() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return count

    def _decrypt(self, cipher: Any, token: bytes, request_id: str) -> str:
        from cryptography.fernet import InvalidToken  # noqa: PLC0415

        try:
            return cipher.decrypt(token).decode()
        except InvalidToken as error:
            raise IntegrityError(
                f"The texts of request '{request_id}' cannot be decrypted",
                hint=f"set the key they were written with: monitoring.texts_key, or {self._folder / 'key'}",
            ) from error


def _cipher(key: bytes) -> Any:
    fernet = _fernet()
    try:
        return fernet(key)
    except ValueError as error:
        raise ConfigurationError(
            "The key of the kept texts is no Fernet key",
            hint="32 bytes in URL-safe base64: python -c 'from cryptography.fernet import Fernet as F;"
            " print(F.generate_key().decode())'",
        ) from error


def _fernet() -> Any:
    try:
        from cryptography.fernet import Fernet  # noqa: PLC0415  -- only those who keep texts need it
    except ImportError as error:
        raise MissingExtraError(
            "Keeping texts needs cryptography", hint="pip install 'leitstand[governance]'"
        ) from error
    return Fernet


def _own_key(folder: Path) -> bytes:
    """The key in `folder`; of several processes that make one at once, the first one's counts."""
    path = folder / "key"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = folder / f".key.{os.getpid()}.{threading.get_ident()}"
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_fernet().generate_key())
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(draft, path)  # fails when another process was quicker, unlike a rename
        finally:
            draft.unlink()
    return path.read_bytes()
