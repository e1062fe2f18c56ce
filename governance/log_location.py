"""Where the inference log lies: a local folder or an ``s3://`` prefix, behind one small interface.

    use_case=support/date=2026-11-24/part-20261124T101500123456-4711-9f3a-1.parquet    as it was flushed
    use_case=support/date=2026-11-24/day-20261125T020000000000-81c2.parquet            compacted

Files appear whole or not at all: a temporary name and a rename in a folder, one upload in a bucket. pyarrow's
own S3 client is used, because it reads parts of a file; its credentials come from the usual chain.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pyarrow import fs

from leitstand.errors import ConfigurationError, NotFoundError, PermanentBackendError, TransientBackendError
from leitstand.files import atomic_path
from leitstand.settings import S3Settings, Settings

__all__ = ["LogLocation", "open_log_location", "translated"]

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 30
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


@dataclass(frozen=True)
class LogLocation:
    """A file system and a folder in it. Safe with threads.

    Attributes:
        filesystem: pyarrow's; `open` on it for reading.
        base: Path of the folder within it.
        uri: For messages.
    """

    filesystem: fs.FileSystem
    base: str
    uri: str

    @property
    def local(self) -> Path | None:
        """The folder, when it is one of this machine."""
        return Path(self.base) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def day(self, use_case: str, on: date) -> str:
        """Folder of one day, relative to `base`."""
        return f"use_case={use_case}/date={on.isoformat()}"

    def days(self, use_case: str) -> list[date]:
        """Days that have a folder, oldest first."""
        found = [name.partition("=") for name in self._names(f"use_case={use_case}", fs.FileType.Directory)]
        return sorted(date.fromisoformat(value) for key, _, value in found if key == "date")

    def use_cases(self) -> list[str]:
        """Use cases that were ever logged, sorted."""
        return sorted(n.partition("=")[2] for n in self._names("", fs.FileType.Directory) if n.startswith("use_case="))

    def files(self, folder: str) -> list[str]:
        """Names of the Parquet files of a folder, sorted; temporary ones are left out."""
        names = self._names(folder, fs.FileType.File)
        return sorted(name for name in names if name.endswith(".parquet") and not name.startswith("."))

    def path(self, folder: str, name: str) -> str:
        """Path of a file for `filesystem`."""
        return f"{self.base}/{folder}/{name}"

    def write(self, folder: str, name: str, fill: Callable[[IO[bytes] | Any], None]) -> None:
        """Creates a file whole or not at all; an existing one of that name is replaced.

        Raises:
            TransientBackendError: The server did not answer.
            PermanentBackendError: Disk full, no rights, no such bucket.
        """
        target = self.path(folder, name)
        with translated(f"{self.uri}/{folder}/{name}"):
            if self.local is not None:
                with atomic_path(Path(target)) as part, part.open("wb") as file:
                    fill(file)
                return
            buffer = pa.BufferOutputStream()
            fill(buffer)
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(buffer.getvalue())

    def delete(self, folder: str, name: str) -> None:
        """Removes a file; one that is gone is no error.

        Raises:
            BackendError: The server or the disk refused.
        """
        try:
            with translated(f"{self.uri}/{folder}/{name}"):
                self.filesystem.delete_file(self.path(folder, name))
        except NotFoundError:
            pass

    def delete_folder(self, folder: str) -> None:
        """Removes a folder with everything in it; one that is gone is no error."""
        try:
            with translated(f"{self.uri}/{folder}"):
                self.filesystem.delete_dir(f"{self.base}/{folder}")
        except NotFoundError:
            pass

    def _names(self, folder: str, kind: fs.FileType) -> list[str]:
        selector = fs.FileSelector(f"{self.base}/{folder}".rstrip("/"), allow_not_found=True)
        with translated(f"{self.uri}/{folder}"):
            return [info.base_name for info in self.filesystem.get_file_info(selector) if info.type == kind]


def open_log_location(settings: Settings) -> LogLocation:
    """The location that ``monitoring.log`` names; empty: a folder below `home`.

    Raises:
        ConfigurationError: The URI is of another kind, or names no bucket.
    """
    uri = settings.monitoring.log
    if not uri:
        uri = str(settings.root / "inference-log")
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        base = str(Path(rest if separator else uri).expanduser().absolute())
        return LogLocation(fs.LocalFileSystem(), base, base)
    base = rest.strip("/")
    if scheme != "s3" or not base:
        raise ConfigurationError(
            f"monitoring.log: '{uri}' is neither a folder nor a bucket", hint="write a path or s3://BUCKET/PREFIX"
        )
    return LogLocation(_s3(settings.s3), base, f"s3://{base}")


def _s3(settings: S3Settings) -> fs.FileSystem:
    """Path-style addresses on servers other than AWS; small files go up in one request."""
    scheme, _, host = settings.endpoint_url.rpartition("://")
    return fs.S3FileSystem(
        region=settings.region,
        endpoint_override=host or None,
        scheme=scheme or "https",
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        background_writes=False,
        allow_delayed_open=True,
    )


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raises what pyarrow and the file system raise as errors of Leitstand's tree."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{where} does not exist") from error
    except OSError as error:
        full = error.errno in _FULL or "No such bucket" in str(error) or "ACCESS_DENIED" in str(error)
        if full or any(word in str(error) for word in ("NO_SUCH_BUCKET", "INVALID_ACCESS_KEY", "SIGNATURE")):
            raise PermanentBackendError(
                f"{where} cannot be used: {error}", hint="check free space, the bucket and the rights"
            ) from error
        raise TransientBackendError(f"{where}: {error}", hint="see whether the disk or the server works") from error
