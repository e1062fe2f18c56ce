"""Which files of a day of the inference log count, when some were compacted into others meanwhile.

A compacted file names the files it replaces in its footer. A reader leaves those out, so it makes no difference
whether they are deleted yet: compaction may die between any two steps. Files are opened in parallel, because a
day of small parts in a bucket is mostly waiting.
"""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date

import pyarrow.dataset as ds

from governance.inference_log import ROW_SCHEMA, SCHEMA_VERSION, VERSION_KEY
from governance.log_location import LogLocation, translated
from leitstand.errors import ConfigurationError, NotFoundError, TransientBackendError

__all__ = ["COMPACTED", "SUPERSEDES_KEY", "DayFile", "day_files", "live", "opened"]

COMPACTED = "day-"
SUPERSEDES_KEY = b"leitstand.supersedes"
OPEN_AT_ONCE = 8
ATTEMPTS = 5
_FORMAT = ds.ParquetFileFormat()


@dataclass(frozen=True)
class DayFile:
    """One Parquet file with its footer read.

    Attributes:
        name: File name within its folder.
        fragment: For pyarrow's dataset.
        supersedes: Names of the files whose rows it holds.
    """

    name: str
    fragment: ds.ParquetFileFragment
    supersedes: frozenset[str]


def day_files(location: LogLocation, use_case: str, day: date) -> list[DayFile]:
    """All files of a day, replaced ones too, by name.

    Raises:
        ConfigurationError: One was written by a newer version of the log.
        TransientBackendError: Files kept disappearing while they were opened.
    """
    folder = location.day(use_case, day)
    attempts = 0
    while True:
        names = location.files(folder)
        try:
            with ThreadPoolExecutor(OPEN_AT_ONCE, "leitstand-footers") as pool:
                return list(pool.map(lambda name: _open(location, folder, name), names))
        except NotFoundError as error:  # compaction or retention removed it after we listed it
            attempts += 1
            if attempts == ATTEMPTS:
                raise TransientBackendError(
                    f"{location.uri}/{folder} changes faster than it can be read", hint="see what deletes its files"
                ) from error


def live(files: Sequence[DayFile]) -> list[DayFile]:
    """The files whose rows count: those that no other one replaces."""
    replaced = frozenset[str]().union(*(file.supersedes for file in files))
    return [file for file in files if file.name not in replaced]


def opened(
    files: Iterable[DayFile], location: LogLocation, condition: ds.Expression | None = None
) -> ds.FileSystemDataset:
    """The files as one dataset in the present schema; columns that older files lack are null.

    Each row group is a fragment of its own, since a scan buffers whole fragments, and a compacted file is large.
    Row groups whose statistics exclude `condition` are left out.
    """
    fragments = [part for file in files for part in file.fragment.split_by_row_group(condition, ROW_SCHEMA)]
    return ds.FileSystemDataset(fragments, ROW_SCHEMA, _FORMAT, location.filesystem)


def _open(location: LogLocation, folder: str, name: str) -> DayFile:
    path = location.path(folder, name)
    with translated(f"{location.uri}/{folder}/{name}"):
        fragment = _FORMAT.make_fragment(path, location.filesystem)
        fragment.ensure_complete_metadata()
        metadata = fragment.metadata.metadata or {}
    version = int(metadata.get(VERSION_KEY, b"0"))
    if not 1 <= version <= SCHEMA_VERSION:
        raise ConfigurationError(
            f"{location.uri}/{folder}/{name} has schema version {version}; this release reads 1 to {SCHEMA_VERSION}",
            hint="read the log with the release that wrote it, or a newer one",
        )
    return DayFile(name, fragment, frozenset(json.loads(metadata.get(SUPERSEDES_KEY, b"[]"))))
