"""The trail that the settings ask for, opened for writing or for reading."""

import time
from datetime import datetime
from pathlib import Path

from governance.audit.chain import Chain, event
from governance.audit.keys import KeyStore, open_keys
from governance.audit.retention import Pruned, prune
from governance.audit.signing import Signer, open_signer
from governance.audit.trail import Trail
from leitstand.errors import PermanentBackendError
from leitstand.settings import Settings

__all__ = ["note", "open_key_store", "open_trail", "open_trail_signer", "prune_trail", "trail_folder"]


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


def note(settings: Settings, kind: str, **details: object) -> None:
    """Records something that was done to the trail, durably, in a chain that no gateway writes to now.

    Raises:
        PermanentBackendError: It cannot be written.
    """
    try:
        chain = Chain.take(trail_folder(settings), open_trail_signer(settings))
        try:
            chain.append([event(kind, **details)])
        except BaseException:
            chain.abandon()
            raise
        chain.close(time.monotonic())
    except OSError as error:
        raise PermanentBackendError(
            f"The audit trail cannot be written: {error}", hint="check disk space and rights"
        ) from error


def prune_trail(settings: Settings, *, now: datetime, dry_run: bool = False) -> Pruned:
    """Removes what is older than the retention, and records that; nothing where there is no trail.

    Raises:
        PermanentBackendError: The trail cannot be changed.
    """
    folder = trail_folder(settings)
    if not (folder / "chains").is_dir():
        return Pruned()
    days = settings.audit.retention_days
    try:
        done = prune(folder, open_trail_signer(settings), open_key_store(settings), days=days, now=now, dry_run=dry_run)
    except OSError as error:
        raise PermanentBackendError(f"The audit trail cannot be pruned: {error}", hint="check its rights") from error
    if done.segments and not dry_run:
        note(settings, "pruned", files=list(done.segments), records=done.records, retention_days=days)
    return done
