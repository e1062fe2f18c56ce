"""Digests and atomic writes: the two habits that keep half-written state out of every store."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "atomic_dir",
    "atomic_path",
    "canonical_json",
    "digest_bytes",
    "digest_file",
    "digest_json",
    "short_digest",
    "write_text",
]

_ABANDONED_S = 86_400


def digest_bytes(data: bytes) -> str:
    """``sha256:<hex>`` of the bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """``sha256:<hex>`` of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: Any) -> str:
    """``sha256:<hex>`` of the canonical JSON of a value."""
    return digest_bytes(canonical_json(value).encode())


def short_digest(digest: str) -> str:
    """The first 16 hexadecimal digits of a ``sha256:`` digest: the name of a folder or file that holds its content."""
    return digest.removeprefix("sha256:")[:16]


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside `target`; renames it into place when the block succeeds.

    The file is flushed to disk before the rename, so a crash leaves the old file or the new one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `target`; renames it into place when the block succeeds.

    A `target` that exists already is replaced. Losing the race against another writer of the same
    content-addressed folder is no error: the first one stays. What killed writers left behind more than a
    day ago is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
    try:
        yield part
        part.chmod(0o755)
        _swap_in(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sweep(target: Path) -> None:
    for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
        with contextlib.suppress(OSError):
            if left.suffix in (".part", ".old") and time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)


def _swap_in(part: Path, target: Path) -> None:
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".old"))
    try:
        with contextlib.suppress(FileNotFoundError):
            target.replace(old / "x")
        part.replace(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another writer was quicker: its folder stays
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def write_text(target: Path, text: str) -> Path:
    """Writes UTF-8 text atomically and returns the path."""
    with atomic_path(target) as part:
        part.write_text(text, encoding="utf-8")
    return target
