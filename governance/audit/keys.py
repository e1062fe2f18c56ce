"""Data keys per subject, wrapped by a master key: what makes erasure possible in a trail that never changes.

A subject is known to the trail by a random name. The table that leads from a person to that name, and the wrapped
data key, is one row in SQLite; deleting it leaves ciphertexts, keyed hashes and a name that belongs to nobody, even for
the holder of the master key. Requests that name no subject share a key per tenant and day.

Backups of this file outlive an erasure: keep them no longer than you promise to erase within.
"""

import base64
import hmac
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from governance.audit.signing import own_secret
from leitstand.errors import ConfigurationError, IntegrityError
from leitstand.state_file import StateFile
from leitstand.types import utc_now

__all__ = ["KeyStore", "Scope", "SubjectKey", "open_keys"]

NONCE = 12
KEY = 32
CACHED = 5_000
SCHEMA = """
CREATE TABLE IF NOT EXISTS subjects (
    lookup BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, wrapped BLOB NOT NULL, created_at TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erasures (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, at TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose key: a tenant's subject, or with an empty subject everybody unnamed of the tenant on one day."""

    tenant: str
    subject: str
    day: date | None = None


class SubjectKey:
    """Encrypts (AES-256-GCM) and hashes (HMAC-SHA256) with keys derived from one data key."""

    __slots__ = ("_cipher", "_hash_key", "name")

    def __init__(self, name: str, secret: bytes) -> None:
        self.name = name
        self._cipher = AESGCM(_derive(secret, b"encryption"))
        self._hash_key = _derive(secret, b"hash")

    def seal(self, plain: bytes, bound_to: bytes) -> bytes:
        """Nonce and ciphertext; it opens only with the same `bound_to`."""
        nonce = os.urandom(NONCE)
        return nonce + self._cipher.encrypt(nonce, plain, bound_to)

    def open(self, sealed: bytes, bound_to: bytes) -> bytes:
        """The plaintext.

        Raises:
            IntegrityError: It was sealed with another key, for another place, or changed.
        """
        try:
            return self._cipher.decrypt(sealed[:NONCE], sealed[NONCE:], bound_to)
        except (InvalidTag, ValueError) as error:
            raise IntegrityError(
                f"A ciphertext of subject {self.name} cannot be opened", hint="`leitstand audit verify` says more"
            ) from error

    def hash(self, plain: bytes) -> str:
        """A keyed hash, in hex: nobody without the key can guess the text back, or compare texts."""
        return hmac.digest(self._hash_key, plain, "sha256").hex()


class KeyStore:
    """The data keys of one trail. Safe with threads and processes; one instance caches for one thread.

    Args:
        path: The SQLite file.
        master: 32 bytes that wrap the data keys.
    """

    def __init__(self, path: Path, master: bytes) -> None:
        self._file = StateFile(path, SCHEMA)
        self._lookup_key = _derive(master, b"lookup")
        self._wrap = AESGCM(_derive(master, b"wrap"))
        self._cache: OrderedDict[Scope, SubjectKey] = OrderedDict()
        self._seen_change: int | None = None
        self._seen_erasures = 0

    def keys(self, scopes: Collection[Scope]) -> dict[Scope, SubjectKey]:
        """The key of each scope; new ones are durable when this returns. Erased subjects get another name and key."""
        self._forget_erased()
        found = {scope: self._cache[scope] for scope in scopes if scope in self._cache}
        missing = [scope for scope in scopes if scope not in found]
        if missing:
            found |= self._fetch(missing)
            for scope in missing:
                self._cache[scope] = found[scope]
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        return found

    def by_name(self, name: str) -> SubjectKey | None:
        """The key behind a name in a record; None once it is erased."""
        with self._file.reading() as connection:
            row = connection.execute("SELECT wrapped FROM subjects WHERE name = ?", (name,)).fetchone()
        return self._unwrap(name, row[0]) if row else None

    def name_of(self, scope: Scope) -> str | None:
        """The name that a subject has in records, or None."""
        with self._file.reading() as connection:
            query = "SELECT name FROM subjects WHERE lookup = ?"
            row = connection.execute(query, (self._lookup(scope),)).fetchone()
        return row[0] if row else None

    def erase(self, scope: Scope, *, now: datetime | None = None) -> str | None:
        """Destroys a subject's key and returns the name it had; None when there is none."""
        with self._file.reading() as connection:
            connection.execute("PRAGMA secure_delete = ON")  # overwrites the row, instead of only unlinking it
        with self._file.transaction() as connection:
            lookup = self._lookup(scope)
            row = connection.execute("SELECT name FROM subjects WHERE lookup = ?", (lookup,)).fetchone()
            if row is None:
                return None
            connection.execute("DELETE FROM subjects WHERE lookup = ?", (lookup,))
            at = (now or utc_now()).isoformat()
            connection.execute("INSERT INTO erasures (name, at) VALUES (?, ?)", (row[0], at))
        with self._file.reading() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the write-ahead log held the row, too
        self._cache.pop(scope, None)
        return row[0]

    def drop_shared(self, before: datetime) -> int:
        """Destroys the keys of unnamed requests that were made before that time; returns their number."""
        with self._file.transaction() as connection:
            query = "DELETE FROM subjects WHERE name LIKE 't-%' AND created_at < ?"
            return connection.execute(query, (before.isoformat(),)).rowcount

    def close(self) -> None:
        """Closes this thread's connection."""
        self._file.close()

    def _fetch(self, scopes: Collection[Scope]) -> dict[Scope, SubjectKey]:
        lookups = {scope: self._lookup(scope) for scope in scopes}
        with self._file.reading() as connection:
            found = self._known(connection, lookups)
        if len(found) < len(lookups):
            with self._file.transaction() as connection:
                missing = {scope: lookup for scope, lookup in lookups.items() if scope not in found}
                found |= self._known(connection, missing)  # another process may have been quicker
                for scope, lookup in missing.items():
                    if scope not in found:
                        found[scope] = self._make(connection, scope, lookup)
        return found

    def _known(self, connection: sqlite3.Connection, lookups: Mapping[Scope, bytes]) -> dict[Scope, SubjectKey]:
        query = "SELECT name, wrapped FROM subjects WHERE lookup = ?"
        rows = ((scope, connection.execute(query, (lookup,)).fetchone()) for scope, lookup in lookups.items())
        return {scope: self._unwrap(*row) for scope, row in rows if row is not None}

    def _make(self, connection: sqlite3.Connection, scope: Scope, lookup: bytes) -> SubjectKey:
        name, secret, nonce = (
            f"{'s' if scope.subject else 't'}-{os.urandom(16).hex()}",
            os.urandom(KEY),
            os.urandom(NONCE),
        )
        wrapped = nonce + self._wrap.encrypt(nonce, secret, name.encode())
        row = (lookup, name, wrapped, utc_now().isoformat())
        connection.execute("INSERT INTO subjects VALUES (?, ?, ?, ?)", row)
        return SubjectKey(name, secret)

    def _forget_erased(self) -> None:
        """Empties the cache when another process erased something; costs microseconds when nothing was written."""
        with self._file.reading() as connection:
            (change,) = connection.execute("PRAGMA data_version").fetchone()
            if change == self._seen_change:
                return
            self._seen_change = change
            (erasures,) = connection.execute("SELECT COALESCE(MAX(id), 0) FROM erasures").fetchone()
        if erasures != self._seen_erasures:
            self._seen_erasures = erasures
            self._cache.clear()

    def _lookup(self, scope: Scope) -> bytes:
        parts = (scope.tenant, scope.subject, scope.day.isoformat() if scope.day else "")
        joined = b"".join(len(raw).to_bytes(4, "big") + raw for raw in (p.encode("utf-8", "replace") for p in parts))
        return hmac.digest(self._lookup_key, joined, "sha256")

    def _unwrap(self, name: str, wrapped: bytes) -> SubjectKey:
        try:
            return SubjectKey(name, self._wrap.decrypt(wrapped[:NONCE], wrapped[NONCE:], name.encode()))
        except (InvalidTag, ValueError) as error:
            raise IntegrityError(
                f"The key of subject {name} cannot be unwrapped",
                hint="set the master key that it was written with: LEITSTAND_AUDIT__MASTER_KEY, or audit/master.key",
            ) from error


def open_keys(folder: Path, master: str = "") -> KeyStore:
    """The keys of the trail in `folder`; without `master`, its key file there is made when it is first needed.

    Raises:
        ConfigurationError: The master key is not 32 bytes in base64.
        PermanentBackendError: The key file cannot be read or made.
    """
    text = master.encode() if master else own_secret(folder / "master.key", lambda: base64.b64encode(os.urandom(KEY)))
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY:
        raise ConfigurationError(
            "The master key of the audit trail is not 32 bytes in base64", hint="openssl rand -base64 32"
        )
    return KeyStore(folder / "keys.db", key)


def _derive(secret: bytes, purpose: bytes) -> bytes:
    return hmac.digest(secret, b"leitstand audit v1 " + purpose, "sha256")
