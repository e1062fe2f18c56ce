"""API keys: ``lsk_ID_SECRET``. The id tells which key it is; only a hash of the whole is ever stored.

The secret has 256 random bits, so nobody can find it by trying: a slow hash, made for passwords that people
choose, would only cost milliseconds per request. BLAKE2b with a personalisation, so that a hash of ours is no
other program's. Whoever reads the store learns who has keys, and can use none of them.
"""

import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Literal, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from leitstand.errors import ConfigurationError, NotFoundError
from leitstand.types import Caller

__all__ = ["PREFIX", "ApiKey", "ApiKeyStore", "ended", "find_key", "key_id", "mint", "unknown_key"]

PREFIX = "lsk_"
FORM = re.compile(r"lsk_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
NAME = r"^[^\s\x00-\x1f]{1,256}$"
SCOPE = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+")  # RFC 6749, section 3.3


class ApiKey(BaseModel):
    """What is stored about one key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    key_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    digest: str = Field(description="BLAKE2b of the key, hexadecimal", repr=False)
    subject: str = Field(pattern=NAME, description="who uses it")
    tenant: str = Field(pattern=NAME)
    scopes: tuple[str, ...] = ()
    created_at: AwareDatetime
    ends_at: AwareDatetime | None = Field(default=None, description="from then on it opens nothing; None: never")
    ended: Literal["", "rotated", "revoked"] = ""
    replaces: str = Field(default="", description="id of the key that it was made to replace")

    def valid_at(self, now: datetime) -> bool:
        """Whether it opens anything."""
        return self.ends_at is None or now < self.ends_at

    @property
    def caller(self) -> Caller:
        """Who asks with it."""
        return Caller(self.subject, self.tenant, frozenset(self.scopes), "api-key", self.key_id)


class ApiKeyStore(Protocol):
    """Keeps records of keys. Safe with threads and processes; a change is seen by all at once."""

    def add(self, key: ApiKey) -> None:
        """Stores a new key.

        Raises:
            ConflictError: Its id is taken.
        """
        ...

    def end(self, key_id: str, at: datetime, why: Literal["rotated", "revoked"]) -> ApiKey:
        """Lets a key end at `at`, or earlier when it does already.

        Raises:
            NotFoundError: There is no such key.
        """
        ...

    def all(self) -> Sequence[ApiKey]:
        """Every key, ended ones too, oldest first."""
        ...

    def revision(self) -> int:
        """Rises with every change."""
        ...


def mint(
    subject: str, tenant: str, scopes: Sequence[str], *, now: datetime, ends_at: datetime | None, replaces: str = ""
) -> tuple[str, ApiKey]:
    """A new key and its record; the key itself is shown once and kept nowhere.

    Raises:
        ConfigurationError: A name or scope has characters that it may not have, or the end lies in the past.
    """
    wrong = [scope for scope in scopes if not SCOPE.fullmatch(scope)]
    if wrong or not re.match(NAME, subject) or not re.match(NAME, tenant):
        raise ConfigurationError(
            "Scopes, subject and tenant of a key are words without spaces", hint="write scopes like support:predict"
        )
    if ends_at is not None and ends_at <= now:
        raise ConfigurationError("The key would have ended already", hint="give a time to live above 0")
    text = f"{PREFIX}{secrets.token_hex(8)}_{secrets.token_urlsafe(32)}"
    record = ApiKey(
        key_id=key_id(text), digest=_digest(text), subject=subject, tenant=tenant, scopes=tuple(dict.fromkeys(scopes)),
        created_at=now, ends_at=ends_at, replaces=replaces,
    )  # fmt: skip
    return text, record


def key_id(text: str) -> str:
    """The id in a key, or empty when it has not the form of one."""
    found = FORM.fullmatch(text)
    return found.group(1) if found else ""


def find_key(text: str, record: ApiKey | None) -> bool:
    """Whether `text` is the key of `record`; takes as long for a wrong one as for the right one."""
    return hmac.compare_digest(_digest(text), record.digest if record else "0" * 64)


def ended(key: ApiKey, at: datetime, why: Literal["rotated", "revoked"]) -> ApiKey:
    """`key` with an end at `at`, or at its earlier one."""
    ends_at = at if key.ends_at is None else min(at, key.ends_at)
    return key.model_copy(update={"ends_at": ends_at, "ended": "revoked" if key.ended == "revoked" else why})


def unknown_key(key_id: str) -> NotFoundError:
    """The error for an id that no key has."""
    return NotFoundError(f"There is no API key with the id '{key_id}'", hint="see them with `leitstand keys list`")


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=32, person=b"leitstand-apikey").hexdigest()
