"""Merges a day's small files of the inference log into one, sorted by time, and deletes old days.

Steps for a day: write the merged file, whose footer names the files it replaces; a later run, `grace` after that,
deletes those. Dying between any two steps changes nothing for readers (`monitors.log_files`), and a reader that
listed the day just before has `grace` to finish. Writers only ever add files with new names, so they need no lock.
Two compactions of one folder exclude each other by a lock file; in a bucket, run one at a time (should two run
anyway, rows lie there twice, and readers count them once).
"""

import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import structlog
from filelock import FileLock

from governance.inference_log import PARQUET_OPTIONS, ROW_SCHEMA
from governance.log_location import LogLocation, translated
from leitstand.files import digest_json
from monitors.log_files import COMPACTED, SUPERSEDES_KEY, DayFile, day_files, live, opened

__all__ = ["CompactionResult", "compact"]

GRACE = timedelta(minutes=10)
SLICE_ROWS = 250_000  # what is sorted in memory at once
GROUP_ROWS = 32_768
ABANDONED_S = 3600.0

logger = structlog.get_logger()


@dataclass(frozen=True)
class CompactionResult:
    """What one run did."""

    days_merged: int
    files_merged: int
    files_deleted: int
    days_expired: int


def compact(
    location: LogLocation, use_case: str, now: datetime, *, retention_days: int, today: bool = False,
    grace: timedelta = GRACE,
) -> CompactionResult:  # fmt: skip
    """Merges every finished day that has more than one file, and forgets days beyond the retention.

    Args:
        location: `governance.log_location.open_log_location(settings)`.
        use_case: Name of the use case.
        now: With a time zone.
        retention_days: Days before today that are kept.
        today: Merge the running day, too.
        grace: Time that readers get before replaced files are deleted.

    Raises:
        BackendError: The log cannot be read or written. Nothing is lost; run it again.
    """
    merged = files = deleted = 0
    current = now.astimezone(UTC).date()
    with _alone(location):
        expired = _expire(location, use_case, current - timedelta(days=retention_days))
        for day in location.days(use_case):
            deleted += _delete_replaced(location, use_case, day, now - grace)
            count = _merge_day(location, use_case, day, now) if day < current or today else 0
            merged, files = merged + bool(count), files + count
    return CompactionResult(merged, files, deleted, expired)


@contextlib.contextmanager
def _alone(location: LogLocation) -> Iterator[None]:
    if location.local is None:
        yield
        return
    location.local.mkdir(parents=True, exist_ok=True)
    with FileLock(location.local / ".compaction.lock"):
        yield


def _expire(location: LogLocation, use_case: str, first_kept: date) -> int:
    old = [day for day in location.days(use_case) if day < first_kept]
    for day in old:
        location.delete_folder(location.day(use_case, day))
        logger.info("A day of the inference log expired", use_case=use_case, day=day.isoformat())
    return len(old)


def _delete_replaced(location: LogLocation, use_case: str, day: date, before: datetime) -> int:
    """Deletes files that were replaced before that moment, and what dead writers left."""
    folder = location.day(use_case, day)
    if location.local is not None:
        _sweep(location, folder)
    files = day_files(location, use_case, day)
    present = {file.name for file in files}
    settled = [file for file in files if file.name.startswith(COMPACTED) and _made_at(file.name) <= before]
    replaced = present & frozenset[str]().union(*(file.supersedes for file in settled))
    for name in sorted(replaced):
        location.delete(folder, name)
    return len(replaced)


def _sweep(location: LogLocation, folder: str) -> None:
    """Temporary files of writers that were killed."""
    for path in (location.local / folder).glob(".*.part"):  # type: ignore[operator]
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()


def _merge_day(location: LogLocation, use_case: str, day: date, now: datetime) -> int:
    """Writes one file for the rows of all; returns how many files it replaces, 0 when there was nothing to do."""
    present = day_files(location, use_case, day)
    files = live(present)
    if len(files) < 2:  # noqa: PLR2004
        return 0
    replaces = sorted(file.name for file in present)
    name = f"{COMPACTED}{now.astimezone(UTC):%Y%m%dT%H%M%S%f}-{digest_json(replaces)[7:15]}.parquet"
    schema = ROW_SCHEMA.with_metadata(
        {**(ROW_SCHEMA.metadata or {}), SUPERSEDES_KEY: json.dumps(replaces).encode()},
    )
    location.write(location.day(use_case, day), name, lambda file: _write_sorted(location, files, schema, file))
    return len(files)


def _write_sorted(location: LogLocation, files: Sequence[DayFile], schema: pa.Schema, file: Any) -> None:
    """Sorts slice by slice, each a range of time of about `SLICE_ROWS` rows."""
    dataset = opened(files, location)
    with translated(location.uri), pq.ParquetWriter(file, schema, **PARQUET_OPTIONS) as writer:
        for condition in _slices(dataset):
            table = dataset.to_table(filter=condition).sort_by([("at", "ascending")])
            writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=GROUP_ROWS)


def _slices(dataset: ds.Dataset) -> Iterator[ds.Expression | None]:
    at = dataset.to_table(columns=["at"]).column("at")
    count = -(-len(at) // SLICE_ROWS)
    if count <= 1:
        yield None
        return
    ordered = np.sort(at.cast(pa.int64()).to_numpy())
    edges = np.unique(ordered[[len(ordered) * part // count for part in range(1, count)]]).tolist()
    kind = ROW_SCHEMA.field("at").type
    scalars = [pa.scalar(edge, pa.int64()).cast(kind) for edge in edges]
    yield ds.field("at") < scalars[0]
    for low, high in itertools.pairwise(scalars):
        yield (ds.field("at") >= low) & (ds.field("at") < high)
    yield ds.field("at") >= scalars[-1]


def _made_at(name: str) -> datetime:
    return datetime.strptime(name.removeprefix(COMPACTED).partition("-")[0], "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)
