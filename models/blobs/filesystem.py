"""Blobs in a local folder.

    objects/ab/abcd...      the bytes, named by their SHA-256, never changed
    keys/a/b/c.ref          the digest that the key ``a/b/c`` stands for

A key moves from one content to the next by one rename of a small file, so a reader gets whole content
together with its digest, and equal content is stored once. A folder on a network share works as long as
rename and `flock` do.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from filelock import FileLock

from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError
from leitstand.files import atomic_path, digest_file, write_text
from models.blobs.disk import on_disk

__all__ = ["FilesystemBlobStore"]

REF = ".ref"


class FilesystemBlobStore:
    """`BlobStore` in one folder. Safe with threads and processes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put_file(self, key: str, source: Path) -> str:
        pointer = self._pointer(key)
        digest = digest_file(source)
        with on_disk(self._root), self._lock():
            old = pointer.read_text() if pointer.exists() else None
            self._store(source, digest)
            if old != digest:
                write_text(pointer, digest)
                if old is not None:
                    self._reclaim(old)
        return digest

    def get_file(self, key: str, target: Path) -> str:
        while True:
            digest = self._digest(key)
            try:
                return self._copy(digest, key, target)
            except FileNotFoundError:
                if self._digest(key) == digest:
                    raise IntegrityError(
                        f"{self._root}: the bytes of '{key}' are gone", hint="store it again"
                    ) from None

    def _copy(self, digest: str, key: str, target: Path) -> str:
        with on_disk(target), atomic_path(target) as part:
            shutil.copyfile(self._object(digest), part)
            if digest_file(part) != digest:
                raise IntegrityError(
                    f"{self._object(digest)} does not match the digest stored for '{key}'", hint="store it again"
                )
        return digest

    def exists(self, key: str) -> bool:
        return self._pointer(key).is_file()

    def list(self, prefix: str = "") -> Iterator[str]:
        keys = self._root / "keys"
        names = (path.relative_to(keys).as_posix().removesuffix(REF) for path in keys.rglob(f"*{REF}"))
        return iter(sorted(name for name in names if name.startswith(prefix)))

    def delete(self, key: str) -> None:
        pointer = self._pointer(key)
        with on_disk(self._root), self._lock():
            if pointer.is_file():
                digest = pointer.read_text()
                pointer.unlink()
                self._reclaim(digest)

    def _store(self, source: Path, digest: str) -> None:
        stored = self._object(digest)
        if stored.exists() and digest_file(stored) == digest:
            return
        with atomic_path(stored) as part:
            shutil.copyfile(source, part)
            if digest_file(part) != digest:
                raise IntegrityError(f"{source} changed while it was stored", hint="store it again")

    def _reclaim(self, digest: str) -> None:
        """Removes content that no key names any more; needs the lock."""
        if all(path.read_text() != digest for path in (self._root / "keys").rglob(f"*{REF}")):
            self._object(digest).unlink(missing_ok=True)

    def _digest(self, key: str) -> str:
        try:
            return self._pointer(key).read_text()
        except FileNotFoundError as error:
            raise NotFoundError(f"{self._root} holds no '{key}'", hint="list the folder's keys") from error

    def _pointer(self, key: str) -> Path:
        parts = PurePosixPath(key).parts
        if not parts or key.startswith("/") or ".." in parts or any(part.endswith(REF) for part in parts):
            raise ConfigurationError(f"'{key}' is not a key", hint=f"use a relative path without '..' and '{REF}'")
        return (self._root / "keys").joinpath(*parts[:-1], parts[-1] + REF)

    def _object(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self._root / "objects" / name[:2] / name

    def _lock(self) -> FileLock:
        self._root.mkdir(parents=True, exist_ok=True)
        return FileLock(self._root / ".lock")
