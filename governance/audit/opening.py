"""The trail that the settings ask for, opened for writing or for reading."""

from pathlib import Path

from governance.audit.keys import KeyStore, open_keys
from governance.audit.signing import Signer, open_signer
from governance.audit.trail import Trail
from leitstand.settings import Settings

__all__ = ["open_key_store", "open_trail", "open_trail_signer", "trail_folder"]


def trail_folder(settings: Settings) -> Path:
    """Where the trail lies."""
    chosen = settings.audit.folder
    return Path(chosen).expanduser().resolve() if chosen else settings.root / "audit"


def open_key_store(settings: Settings) -> KeyStore:
    """The data keys.

    Raises:
        ConfigurationError: The master key is not 32 bytes in base64.
        PermanentBackendError: Its file cannot be read or made.
    """
    secret = settings.audit.master_key
    return open_keys(trail_folder(settings), secret.get_secret_value() if secret else "")


def open_trail_signer(settings: Settings) -> Signer:
    """The signing key.

    Raises:
        ConfigurationError: It is no Ed25519 private key in PEM.
        PermanentBackendError: Its file cannot be read or made.
    """
    secret = settings.audit.signing_key
    return open_signer(trail_folder(settings), secret.get_secret_value() if secret else "")


def open_trail(settings: Settings) -> Trail:
    """The writer; nothing is opened before it is started."""
    return Trail(
        trail_folder(settings),
        lambda: open_key_store(settings),
        lambda: open_trail_signer(settings),
        flush_s=settings.audit.flush_s,
        limit=settings.audit.max_waiting,
        segment_bytes=settings.audit.segment_bytes,
    )
