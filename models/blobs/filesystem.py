"""Blobs in a local folder.

    .objects/ab/abcd...     the bytes, named by their SHA-256, never changed
    a/b/c                   the key ``a/b/c``: a relative symbolic link to its bytes

A key moves from one content to the next by one rename of its link, so a reader gets whole content
together with its digest, equal content is stored once, and people and tools can open the files where they
lie. The file system needs symbolic links, rename and `flock`; a key cannot also be the folder of another.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from filelock import FileLock

from leitstand.errors import ConfigurationError, ConflictError, IntegrityError, NotFoundError
from leitstand.files import atomic_path, digest_file
from models.blobs.disk import on_disk

__all__ = ["FilesystemBlobStore"]

OBJECTS = ".objects"


class FilesystemBlobStore:
    """`BlobStore` in one folder. Safe with threads and processes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put_file(self, key: str, source: Path) -> str:
        link = self._link(key)
        digest = digest_file(source)
        with on_disk(self._root), self._lock():
            old = _target(link)
            self._tidy()
            self._store(source, digest)
            if old != digest:
                self._point(link, digest, key)
                if old is not None:
                    self._reclaim(old)
            self._pending.unlink(missing_ok=True)
        return digest

    def get_file(self, key: str, target: Path) -> str:
        while True:
            digest = self._digest(key)
            try:
                return self._copy(digest, key, target)
            except FileNotFoundError:
                if self._digest(key) == digest:
                    what = f"{self._root}: the bytes of '{key}' are gone"
                    raise IntegrityError(what, hint="store it again") from None

    def exists(self, key: str) -> bool:
        return self._link(key).is_symlink()

    def list(self, prefix: str = "") -> Iterator[str]:
        return iter(sorted(key for key in self._keys() if key.startswith(prefix)))

    def delete(self, key: str) -> None:
        link = self._link(key)
        with on_disk(self._root), self._lock():
            digest = _target(link)
            self._tidy()
            if digest is not None:
                link.unlink()
                self._reclaim(digest)
                self._drop_empty_folders(link.parent)

    def _copy(self, digest: str, key: str, target: Path) -> str:
        with on_disk(target), atomic_path(target) as part:
            shutil.copyfile(self._object(digest), part)
            if digest_file(part) != digest:
                raise IntegrityError(
                    f"'{key}' in {self._root} was truncated or changed: its bytes do not match {digest}",
                    hint="store it again",
                )
        return digest

    def _store(self, source: Path, digest: str) -> None:
        stored = self._object(digest)
        if stored.exists() and digest_file(stored) == digest:
            return
        stored.parent.mkdir(parents=True, exist_ok=True)
        self._pending.write_text(digest)
        try:
            shutil.copyfile(source, self._incoming)
            if digest_file(self._incoming) != digest:
                raise IntegrityError(f"{source} changed while it was stored", hint="store it again")
            with self._incoming.open("rb+") as file:
                os.fsync(file.fileno())
            self._incoming.replace(stored)
        finally:
            self._incoming.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Removes what a killed writer left: bytes that came half, or whole and without a key; needs the lock."""
        self._incoming.unlink(missing_ok=True)
        if self._pending.is_file():
            self._reclaim(self._pending.read_text())
            self._pending.unlink()

    def _point(self, link: Path, digest: str, key: str) -> None:
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            fresh = link.with_name(f".{link.name}.new")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(os.path.relpath(self._object(digest), link.parent))
            fresh.replace(link)
        except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
            raise ConflictError(
                f"'{key}' cannot be stored in {self._root}: a folder is a key, or a key a folder", hint="rename one"
            ) from error

    def _reclaim(self, digest: str) -> None:
        """Removes content that no key names any more; needs the lock."""
        if all(_target(self._root / key) != digest for key in self._keys()):
            self._object(digest).unlink(missing_ok=True)

    def _drop_empty_folders(self, folder: Path) -> None:
        while folder != self._root and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent

    def _keys(self) -> Iterator[str]:
        for folder, folders, files in os.walk(self._root):
            folders[:] = [name for name in folders if name != OBJECTS]
            for name in files:
                path = Path(folder, name)
                if path.is_symlink() and not (name.startswith(".") and name.endswith(".new")):
                    yield path.relative_to(self._root).as_posix()

    def _digest(self, key: str) -> str:
        digest = _target(self._link(key))
        if digest is None:
            raise NotFoundError(f"{self._root} holds no '{key}'", hint="look into the folder for what is there")
        return digest

    def _link(self, key: str) -> Path:
        parts = PurePosixPath(key).parts
        if not parts or key.startswith("/") or ".." in parts or OBJECTS in parts:
            raise ConfigurationError(f"'{key}' is not a key", hint="use a relative path without '..'")
        return self._root.joinpath(*parts)

    def _object(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self._root / OBJECTS / name[:2] / name

    @property
    def _incoming(self) -> Path:
        return self._root / OBJECTS / "incoming"

    @property
    def _pending(self) -> Path:
        """Names the bytes that are being stored, until a key names them."""
        return self._root / OBJECTS / "pending"

    def _lock(self) -> FileLock:
        self._root.mkdir(parents=True, exist_ok=True)
        return FileLock(self._root / ".lock")


def _target(link: Path) -> str | None:
    """The digest that a key's link points at; None when there is no link."""
    try:
        return "sha256:" + link.readlink().name
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
            return None
        raise
