"""The inference log: one Parquet row per answered text, written behind the request's back.

`append` puts rows into a bounded buffer and returns; one thread per log writes them as part files
(`governance.log_location` shows the layout) every `flush_rows` rows or `flush_s` seconds, and at `close`.
What is lost and when:

- a full buffer drops new rows, counts them (`dropped`) and says so once a minute;
- while the disk is full or the server away, rows wait in the buffer and are tried again;
- kill -9 or a power cut loses what was not flushed, at most `flush_s` seconds; a file is never half there.

A part keeps its name over retries, so a write that succeeded although its answer was lost makes no duplicate.
"""

import atexit
import os
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from governance.log_language import MAX_CHARACTERS, LanguageSampler
from governance.log_location import LogLocation, open_log_location
from leitstand.errors import BackendError, PermanentBackendError
from leitstand.settings import MonitoringSettings, Settings
from leitstand.types import WindowRow

__all__ = [
    "PARQUET_OPTIONS",
    "ROW_SCHEMA",
    "SCHEMA_VERSION",
    "VERSION_KEY",
    "ParquetInferenceLog",
    "open_inference_log",
    "rows_to_table",
    "write_parquet",
]

SCHEMA_VERSION = 1
VERSION_KEY = b"leitstand.schema_version"
ROW_SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.string()),
        pa.field("index", pa.int32()),
        pa.field("at", pa.timestamp("us", tz="UTC")),
        pa.field("use_case", pa.string()),
        pa.field("version", pa.int32()),
        pa.field("route", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("abstain", pa.bool_()),
        pa.field("probabilities", pa.binary()),
        pa.field("embedding", pa.binary()),
        pa.field("characters", pa.int32()),
        pa.field("words", pa.int32()),
        pa.field("tokens", pa.int32()),
        pa.field("digit_share", pa.float32()),
        pa.field("upper_share", pa.float32()),
        pa.field("non_ascii_share", pa.float32()),
        pa.field("language", pa.string()),
        pa.field("latency_ms", pa.float32()),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()},
)
PARQUET_OPTIONS: Mapping[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": ["use_case", "version", "route", "subject", "label", "language"],
}
_COMPLAIN_S = 60.0
_RETRY_S = 5.0

logger = structlog.get_logger()


def open_inference_log(settings: Settings) -> "ParquetInferenceLog":
    """The log that ``monitoring.log`` names; close it before the process ends.

    Raises:
        ConfigurationError: The location cannot be understood.
    """
    return ParquetInferenceLog(open_log_location(settings), settings.monitoring)


def rows_to_table(rows: Sequence[WindowRow]) -> pa.Table:
    """Rows as columns of `ROW_SCHEMA`."""
    columns = [pa.array([getattr(row, field.name) for row in rows], field.type) for field in ROW_SCHEMA]
    return pa.Table.from_arrays(columns, schema=ROW_SCHEMA)


def write_parquet(table: pa.Table, file: object) -> None:
    """Writes with the log's compression: zstd, dictionaries only where values repeat."""
    with pq.ParquetWriter(file, table.schema, **PARQUET_OPTIONS) as writer:
        writer.write_table(table)


class ParquetInferenceLog:
    """`InferenceLog` over a `LogLocation`. Safe with threads; open one per process."""

    def __init__(self, location: LogLocation, settings: MonitoringSettings) -> None:
        self._location = location
        self._settings = settings
        self._languages = LanguageSampler(settings.languages_per_s)
        self._writer_name = f"{os.getpid()}-{secrets.token_hex(2)}"
        self._changed = threading.Condition()
        self._rows: list[WindowRow] = []
        self._texts: dict[int, str] = {}
        self._oldest: float | None = None
        self._held: dict[tuple[str, str], tuple[pa.Table, int]] = {}
        self._accepted = self._written = self._parts = self._refused = self._attempts = 0
        self._flush_asked = self._misfits = 0
        self._failure: BackendError | None = None
        self._closing = False
        self._complained = -_COMPLAIN_S
        self._thread = threading.Thread(target=self._run, name="leitstand-inference-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def dropped(self) -> int:
        """Rows that were refused because the buffer was full, or lost at close."""
        return self._refused

    @property
    def written(self) -> int:
        """Rows that are on disk, or in the bucket."""
        return self._written - self._misfits

    @property
    def buffered(self) -> int:
        """Rows accepted and not yet written."""
        return self._accepted - self._written

    def append(self, rows: Sequence[WindowRow], texts: Sequence[str] = ()) -> None:
        """Takes the rows of one request and returns at once.

        Args:
            rows: In any order; a row whose `language` is empty gets one if its text is given.
            texts: The texts of `rows`, or none. A sample has its language detected; no text is ever written.
        """
        with self._changed:
            if self._closing or self.buffered + len(rows) > self._settings.buffer_rows:
                self._drop(len(rows))
                return
            if texts:
                self._remember(texts[: len(rows)])
            self._rows.extend(rows)
            self._accepted += len(rows)
            if self._oldest is None:
                self._oldest = time.monotonic()
                self._changed.notify_all()
            elif len(self._rows) >= self._settings.flush_rows:
                self._changed.notify_all()

    def flush(self) -> None:
        """Returns when every row appended before is on disk, or in the bucket.

        Raises:
            BackendError: It could not be written now; the rows stay in the buffer and are tried again.
        """
        with self._changed:
            goal, start = self._accepted, self._attempts
            while self._written < goal:
                if not self._thread.is_alive():
                    raise PermanentBackendError("The inference log is closed", hint="open another one")
                if self._failure is not None and self._attempts > start + 1:  # one may have run when we came
                    raise self._failure
                self._flush_asked = self._attempts + 1
                self._changed.notify_all()
                self._changed.wait(1.0)

    def close(self) -> None:
        """Writes what is left and ends the thread. Rows that cannot be written now are counted as dropped."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        atexit.unregister(self.close)
        self._thread.join()
        if self.buffered:
            self._complained = -_COMPLAIN_S
            self._drop(self.buffered)

    def _remember(self, texts: Sequence[str]) -> None:
        for place, text in enumerate(texts, start=len(self._rows)):
            if self._languages.wants():
                self._texts[place] = text[:MAX_CHARACTERS]

    def _drop(self, count: int) -> None:
        self._refused += count
        now = time.monotonic()
        if now - self._complained >= _COMPLAIN_S:
            self._complained = now
            logger.warning(
                "The inference log's buffer is full; rows are dropped",
                dropped=self._refused, buffer_rows=self._settings.buffer_rows, location=self._location.uri,
                cause=str(self._failure or "the disk is too slow"),
            )  # fmt: skip

    def _run(self) -> None:
        while self._wait():
            self._write_once()
        for _ in range(2):  # what a failed write held, then what came meanwhile
            if self.buffered:
                self._write_once()
        self._languages.close()

    def _wait(self) -> bool:
        """Until there is something to write; False when the log is closing."""
        with self._changed:
            retry = time.monotonic() + min(_RETRY_S, self._settings.flush_s)
            while not self._closing:
                if self._flush_asked > self._attempts:
                    return True
                now = time.monotonic()
                due = None if self._oldest is None else self._oldest + self._settings.flush_s
                if self._held:
                    due = retry
                elif len(self._rows) >= self._settings.flush_rows:
                    return True
                if due is not None and due <= now:
                    return True
                self._changed.wait(None if due is None else due - now)
            return False

    def _write_once(self) -> None:
        """Writes what an earlier attempt left, or else the present rows."""
        failure: BackendError | None = None
        done = 0
        if not self._held:
            self._held = self._take()
        for (folder, name), (table, rows) in list(self._held.items()):
            try:
                self._location.write(folder, name, lambda file, table=table: write_parquet(table, file))
            except BackendError as error:
                failure = error
                break
            done += rows
            del self._held[folder, name]
        with self._changed:
            self._written += done
            self._failure = failure
            self._attempts += 1
            self._changed.notify_all()

    def _take(self) -> dict[tuple[str, str], tuple[pa.Table, int]]:
        """The present rows by the file they will be in, with their number."""
        with self._changed:
            rows, self._rows = self._rows, []
            texts, self._texts = self._texts, {}
            self._oldest = None
        rows = self._languages.fill(rows, texts)
        try:
            return self._parted(rows)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError) as error:
            sound = [row for row in rows if _fits(row)]
            with self._changed:
                self._written += len(rows) - len(sound)
                self._misfits += len(rows) - len(sound)
                self._refused += len(rows) - len(sound)
            logger.error("Rows do not fit the inference log", rows=len(rows) - len(sound), cause=str(error))
            return self._parted(sound)

    def _parted(self, rows: Sequence[WindowRow]) -> dict[tuple[str, str], tuple[pa.Table, int]]:
        groups: dict[tuple[str, date], list[WindowRow]] = defaultdict(list)
        for row in rows:
            groups[row.use_case, row.at.astimezone(UTC).date()].append(row)
        return {
            (self._location.day(*key), self._part_name()): (rows_to_table(members), len(members))
            for key, members in groups.items()
        }

    def _part_name(self) -> str:
        self._parts += 1
        return f"part-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{self._writer_name}-{self._parts}.parquet"


def _fits(row: WindowRow) -> bool:
    try:
        rows_to_table([row])
        row.at.astimezone(UTC)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
        return False
    return True
