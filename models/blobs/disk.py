"""Says plainly that a disk is full, read-only or closed to us, instead of a bare `OSError`."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from leitstand.errors import PermanentBackendError

__all__ = ["on_disk"]

REASONS = {
    errno.ENOSPC: ("the disk is full", "free space there, then run again; nothing half-written was kept"),
    errno.EDQUOT: ("the disk quota is used up", "free space there, then run again; nothing half-written was kept"),
    errno.EFBIG: ("the file would be larger than the limit allows", "raise the file size limit (ulimit -f)"),
    errno.EROFS: ("the disk is read-only", "mount it writable, or set another folder"),
    errno.EACCES: ("this user may not write there", "change its owner or mode, or set another folder"),
}


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Raises a full, read-only or forbidden disk met in the block as a permanent error that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in REASONS:
            raise
        what, hint = REASONS[error.errno]
        raise PermanentBackendError(f"Cannot write to {error.filename or path}: {what}", hint=hint) from error
