"""Texts, answers and callers in the queue are sealed: AES-256-GCM, bound to the job and the part they belong to.

Whoever reads Redis learns no text; whoever writes to it cannot forge a caller or move a part to another job.
The key comes from ``jobs.key`` or a file below `home` that only its owner can read. Ids, tenants, times and
counts stay readable, because limits and retention must work without the key.
"""

import base64
import binascii
import hashlib
import hmac
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from leitstand.errors import ConfigurationError, IntegrityError, MissingExtraError
from leitstand.files import canonical_json

__all__ = ["Seal", "key_from_file"]

NONCE_BYTES = 12
KEY_BYTES = 32


class Seal:
    """Seals and opens. Safe with threads.

    Args:
        keys: 32 bytes each, in URL-safe base64. The first one seals; all of them open.

    Raises:
        ConfigurationError: One is not such a key, or there is none.
        MissingExtraError: cryptography is not installed.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        cipher = _cipher()
        raw = [_decoded(key) for key in keys]
        if not raw:
            raise ConfigurationError("A seal needs a key", hint="set LEITSTAND_JOBS__KEY")
        self._ciphers = [cipher(key) for key in raw]
        # digests of different keys differ, so an idempotency key does not survive a change of the key
        self._digest_key = hmac.digest(raw[0], b"leitstand jobs: idempotency", "sha256")

    def seal(self, data: bytes, bound_to: str) -> bytes:
        """The nonce and the sealed bytes; they open only with the same `bound_to`."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._ciphers[0].encrypt(nonce, data, bound_to.encode())

    def open(self, sealed: bytes, bound_to: str) -> bytes:
        """What was sealed.

        Raises:
            IntegrityError: With another key or for another place, or it was changed.
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 -- an extra, looked for in `__init__`

        for cipher in self._ciphers:
            with suppress(InvalidTag):
                return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound_to.encode())
        raise IntegrityError(
            f"{bound_to} cannot be opened",
            hint="gateway and workers need the same LEITSTAND_JOBS__KEY; an old one goes to LEITSTAND_JOBS__OLD_KEYS",
        )

    def digest(self, value: Any) -> str:
        """A keyed hash (HMAC-SHA256, hex) of a JSON value, from which short texts cannot be guessed back."""
        return hmac.new(self._digest_key, canonical_json(value).encode("utf-8", "surrogatepass"),
            hashlib.sha256).hexdigest()  # fmt: skip


def key_from_file(path: Path) -> bytes:
    """The key in the file, which is made when it is missing; of several makers at once, the first one's counts."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(base64.urlsafe_b64encode(os.urandom(KEY_BYTES)))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(draft, path)  # fails when another process was quicker, unlike a rename
        finally:
            draft.unlink()
    return path.read_bytes()


def _decoded(key: bytes) -> bytes:
    try:
        raw = base64.urlsafe_b64decode(key)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != KEY_BYTES:
        raise ConfigurationError(
            "The key of the job queue is no key",
            hint="32 bytes in URL-safe base64: python -c 'import base64, os;"
            " print(base64.urlsafe_b64encode(os.urandom(32)).decode())'",
        )
    return raw


def _cipher() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise MissingExtraError("The job queue needs cryptography", hint="pip install 'leitstand[gateway]'") from error
    return AESGCM
