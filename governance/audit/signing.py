"""The Ed25519 key that signs heads and checkpoints, and the statements it signs.

The key comes from the settings or from a file below the trail that only its owner can read. Whoever has it can
rewrite the trail; anchors kept elsewhere show that.
"""

import base64
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from governance.audit.verify_standalone import canonical, key_id
from leitstand.errors import ConfigurationError, PermanentBackendError
from leitstand.files import write_text
from leitstand.types import utc_now

__all__ = ["Signer", "open_signer", "own_secret"]

PUBLIC = "public_keys"


class Signer:
    """Signs statements about chains. Safe with threads and processes."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = key_id(key.public_key())

    def statement(
        self, kind: str, chain: str, sequence: int, own_hash: str, *, at: datetime | None = None, **more: Any
    ) -> bytes:
        """One line that vouches for record `sequence` of `chain` and all before it."""
        body = {
            "schema_version": 1, "kind": kind, "chain": chain, "sequence": sequence, "hash": own_hash,
            "at": (at or utc_now()).isoformat(timespec="milliseconds"), **more,
        }  # fmt: skip
        signature = base64.b64encode(self._key.sign(canonical(body))).decode()
        return canonical({"body": body, "key": self.key_id, "signature": signature}) + b"\n"

    def publish(self, folder: Path) -> Path:
        """Writes the public key below the trail, where the verifier looks for it."""
        target = folder / PUBLIC / f"{self.key_id}.pem"
        if not target.exists():
            pem = self._key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            write_text(target, pem.decode())
        return target


def open_signer(folder: Path, pem: str = "") -> Signer:
    """The signer of the trail in `folder`; without `pem`, its key file there is made when it is first needed.

    Raises:
        ConfigurationError: The key is not an Ed25519 private key in PEM.
        PermanentBackendError: The key file cannot be read or made.
    """
    content = pem.encode() if pem else own_secret(folder / "signing.key", _new_key)
    try:
        key = serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            "The signing key of the audit trail is not readable", hint="openssl genpkey -algorithm ed25519"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            "The signing key of the audit trail is not an Ed25519 key", hint="openssl genpkey -algorithm ed25519"
        )
    return Signer(key)


def own_secret(path: Path, make: Any) -> bytes:
    """The bytes of a secret file (0600), made when it is missing; of several makers at once, the first counts.

    Raises:
        PermanentBackendError: It cannot be read or made.
    """
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(make())
                    file.flush()
                    os.fsync(file.fileno())
                _link(draft, path)
            finally:
                draft.unlink()
        return path.read_bytes()
    except OSError as error:
        raise PermanentBackendError(
            f"The key {path} cannot be read or made: {error}", hint="check disk space and rights"
        ) from error


def _link(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)  # fails when another process was quicker, unlike a rename
    except FileExistsError:
        return


def _new_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
