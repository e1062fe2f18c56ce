"""Windows of the inference log: the answers between two moments, each once, with the feedback that counts.

Only the days, row groups and columns that are asked for are read. Rows that were written twice count once (by
request id, index and route). Clocks may jump: rows are found by the time they carry, and those that lie in the
future are kept and counted (`FUTURE_KEY` in the schema's metadata, `future_rows`). A window that does not fit into
memory is read by `iterate_window`, which keeps 8 bytes per row to know duplicates.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset as ds

from governance.feedback_log import effective
from governance.inference_log import ROW_SCHEMA
from governance.log_location import LogLocation, translated
from leitstand.errors import ConfigurationError, NotFoundError
from leitstand.types import Feedback, utc_now
from monitors.log_files import ATTEMPTS, day_files, live, opened

__all__ = ["DUPLICATES_KEY", "FUTURE_KEY", "WINDOW_SCHEMA", "future_rows", "iterate_window", "read_window"]

FUTURE_KEY = b"leitstand.future_rows"
DUPLICATES_KEY = b"leitstand.duplicates"
FEEDBACK_FIELDS = (
    pa.field("feedback_label", pa.string()),
    pa.field("rating", pa.int8()),
    pa.field("feedback_source", pa.string()),
    pa.field("feedback_at", pa.timestamp("us", tz="UTC")),
)
WINDOW_SCHEMA = pa.schema([*ROW_SCHEMA, *FEEDBACK_FIELDS])
TOLERANCE = timedelta(minutes=5)  # clocks of different machines differ a little
BATCH_ROWS = 32_768
_KEY = ("request_id", "index", "route")
_SEPARATOR = "\x1f"
pc: Any = pyarrow.compute  # its functions are made at import; type checkers see none of them
hash_array: Any = pd.util.hash_array  # pyright: ignore[reportAttributeAccessIssue]


def read_window(
    location: LogLocation, use_case: str, start: datetime, end: datetime, *, version: int | None = None,
    route: str | None = None, feedback: Iterable[Feedback] = (), columns: Sequence[str] | None = None,
    now: datetime | None = None,
) -> pa.Table:  # fmt: skip
    """The rows with `start` <= at < `end`, in the order in which they were written.

    Args:
        location: `governance.log_location.open_log_location(settings)`.
        use_case: Name of the use case.
        start: With a time zone.
        end: With a time zone.
        version: Only this model version.
        route: Only ``stable``, ``canary`` or ``shadow``.
        feedback: All feedback about these rows; what counts of it is joined (`governance.feedback_log.effective`).
        columns: Of `WINDOW_SCHEMA`, in this order; None: all. Others are not read.
        now: For counting rows from the future; None: the present.

    Returns:
        A table whose schema metadata counts duplicates left out and rows later than `now`.

    Raises:
        ConfigurationError: Unknown column, a time without zone, or files of a newer release.
        BackendError: The log cannot be read.
    """
    batches = list(
        iterate_window(
            location, use_case, start, end, version=version, route=route, feedback=feedback, columns=columns, now=now
        )
    )
    schema = _schema(columns)
    table = pa.Table.from_batches(batches, schema)
    counts = {
        key: str(sum(int((batch.schema.metadata or {}).get(key, b"0")) for batch in batches)).encode()
        for key in (DUPLICATES_KEY, FUTURE_KEY)
    }
    return table.replace_schema_metadata(counts)


def iterate_window(
    location: LogLocation, use_case: str, start: datetime, end: datetime, *, version: int | None = None,
    route: str | None = None, feedback: Iterable[Feedback] = (), columns: Sequence[str] | None = None,
    now: datetime | None = None,
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    """As `read_window`, a bounded number of rows at a time; each batch carries its own counts."""
    if start.tzinfo is None or end.tzinfo is None:
        raise ConfigurationError("a window needs times with a time zone", hint="use datetime(..., tzinfo=UTC)")
    schema = _schema(columns)
    wanted = [field.name for field in ROW_SCHEMA if field.name in {*schema.names, *_KEY, "at"}]
    condition = _condition(start, end, version, route)
    joined = _Feedback(feedback) if any(field.name in schema.names for field in FEEDBACK_FIELDS) else None
    seen = _Seen()
    late = (now or utc_now()) + TOLERANCE
    for day in _days(location, use_case, start, end):
        for batch in _scan(location, use_case, day, wanted, condition, seen):
            fresh, duplicates = seen.only_new(batch)
            if not fresh.num_rows and not duplicates:
                continue
            future = pc.sum(pc.greater(fresh.column("at"), pa.scalar(late, ROW_SCHEMA.field("at").type))).as_py() or 0
            columns_of = {name: fresh.column(name) for name in fresh.schema.names}
            if joined is not None:
                columns_of |= joined.about(fresh)
            counts = {DUPLICATES_KEY: str(duplicates).encode(), FUTURE_KEY: str(future).encode()}
            yield pa.record_batch([columns_of[name] for name in schema.names], schema.with_metadata(counts))


def future_rows(location: LogLocation, use_case: str, now: datetime) -> int:
    """Rows that carry a time later than `now` (five minutes are forgiven): somebody's clock is ahead."""
    limit = pa.scalar(now + TOLERANCE, ROW_SCHEMA.field("at").type)
    days = [day for day in location.days(use_case) if day >= now.astimezone(UTC).date()]
    found = [opened(live(day_files(location, use_case, day)), location) for day in days]
    return sum(dataset.count_rows(filter=ds.field("at") > limit) for dataset in found)


def _schema(columns: Sequence[str] | None) -> pa.Schema:
    unknown = [name for name in columns or () if name not in WINDOW_SCHEMA.names]
    if unknown:
        raise ConfigurationError(
            f"The inference log has no column '{unknown[0]}'", hint=f"columns are {', '.join(WINDOW_SCHEMA.names)}"
        )
    return pa.schema([WINDOW_SCHEMA.field(name) for name in (WINDOW_SCHEMA.names if columns is None else columns)])


def _condition(start: datetime, end: datetime, version: int | None, route: str | None) -> ds.Expression:
    kind = ROW_SCHEMA.field("at").type
    condition = (ds.field("at") >= pa.scalar(start, kind)) & (ds.field("at") < pa.scalar(end, kind))
    if version is not None:
        condition &= ds.field("version") == version
    if route is not None:
        condition &= ds.field("route") == route
    return condition


def _days(location: LogLocation, use_case: str, start: datetime, end: datetime) -> list[date]:
    first, last = start.astimezone(UTC).date(), (end - timedelta(microseconds=1)).astimezone(UTC).date()
    return [day for day in location.days(use_case) if first <= day <= last]


def _scan(
    location: LogLocation, use_case: str, day: date, columns: list[str], condition: ds.Expression, seen: "_Seen"
) -> Iterator[pa.RecordBatch]:
    """Rows of a day. When a file was removed meanwhile the day is begun again; `seen` leaves out what was given."""
    for attempt in range(ATTEMPTS):
        dataset = opened(live(day_files(location, use_case, day)), location, condition)
        scanner = dataset.scanner(
            columns=columns, filter=condition, batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=1
        )
        try:
            with translated(f"{location.uri}: {use_case} on {day}"):
                yield from scanner.to_batches()
            return
        except NotFoundError:
            if attempt == ATTEMPTS - 1:
                raise
            seen.forgive()


class _Feedback:
    """Effective feedback as columns, found by request id and index."""

    def __init__(self, entries: Iterable[Feedback]) -> None:
        settled = effective(entries)
        self._keys = pa.array([f"{request}{_SEPARATOR}{index}" for request, index in settled], pa.string())
        found = list(settled.values())
        values: list[list[Any]] = [
            [entry.label for entry in found], [entry.rating for entry in found],
            [entry.source for entry in found], [entry.at for entry in found],
        ]  # fmt: skip
        self._columns = {
            field.name: pa.array(value, field.type) for field, value in zip(FEEDBACK_FIELDS, values, strict=True)
        }

    def about(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        if not len(self._keys):
            return {field.name: pa.nulls(batch.num_rows, field.type) for field in FEEDBACK_FIELDS}
        places = pc.index_in(_joined(batch, _KEY[:2]), value_set=self._keys)
        return {name: column.take(places) for name, column in self._columns.items()}


class _Seen:
    """The keys met so far, as sorted arrays of 64-bit hashes that merge as they grow.

    Two of 10 million different keys collide with a probability of 3 in a million; one row would be missing.
    """

    def __init__(self) -> None:
        self._sorted: list[npt.NDArray[np.uint64]] = []
        self._repeated = False

    def forgive(self) -> None:
        """The next rows are read again: those seen are no duplicates worth counting."""
        self._repeated = True

    def only_new(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
        """The rows whose key is new, and how many were not."""
        hashes = hash_array(_joined(batch, _KEY).to_numpy(zero_copy_only=False), categorize=False)
        unique, first = np.unique(hashes, return_index=True)
        fresh = np.ones(len(unique), bool)
        for known in self._sorted:
            places = np.minimum(np.searchsorted(known, unique), len(known) - 1)
            fresh &= known[places] != unique
        self._add(unique[fresh])
        duplicates = batch.num_rows - int(fresh.sum())
        if duplicates:
            batch = batch.take(pa.array(np.sort(first[fresh])))
        return batch, 0 if self._repeated else duplicates

    def _add(self, hashes: npt.NDArray[np.uint64]) -> None:
        if not len(hashes):
            return
        self._sorted.append(hashes)
        while len(self._sorted) > 1 and len(self._sorted[-2]) < 2 * len(self._sorted[-1]):
            last = self._sorted.pop()
            self._sorted[-1] = np.sort(np.concatenate([self._sorted[-1], last]))


def _joined(batch: pa.RecordBatch, names: Sequence[str]) -> pa.Array:
    return pc.binary_join_element_wise(*(batch.column(name).cast(pa.string()) for name in names), _SEPARATOR)
