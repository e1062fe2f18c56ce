"""Whatever is logged, compacted, repeated or late: a window holds each answer once, with what counts about it."""

from datetime import UTC, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from governance.feedback_log import effective
from governance.inference_log import ROW_SCHEMA, rows_to_table, write_parquet
from governance.log_location import LogLocation, open_log_location
from leitstand.errors import ConfigurationError
from leitstand.settings import MonitoringSettings, Settings
from leitstand.types import WindowRow
from monitors.compaction import compact
from monitors.windows import (
    DUPLICATES_KEY,
    FUTURE_KEY,
    WINDOW_SCHEMA,
    future_rows,
    iterate_window,
    read_window,
)
from tests.rows_for_tests import NOON, row, rows, said

DAY = timedelta(days=1)
FOLDER_FIXTURE = Path(__file__).parents[1] / "fixtures" / "inference_log"


def location(folder: Path) -> LogLocation:
    return open_log_location(Settings(monitoring=MonitoringSettings(log=str(folder))))


def put(place: LogLocation, number: int, written: list[WindowRow]) -> None:
    """Each list of rows as one part per day, as a writer would."""
    for day in sorted({each.at.date() for each in written}):
        table = rows_to_table([each for each in written if each.at.date() == day])
        name = f"part-{number:03}.parquet"
        place.write(place.day("support", day), name, lambda file, table=table: write_parquet(table, file))


@pytest.fixture
def place(tmp_path: Path) -> LogLocation:
    return location(tmp_path / "log")


def ids(table: pa.Table) -> list[str]:
    return table.column("request_id").to_pylist()


WRITES = st.lists(
    st.lists(
        st.builds(
            lambda number, index, route, hour: row(number, index=index, route=route, at=NOON + timedelta(hours=hour)),
            st.integers(0, 6), st.integers(0, 1), st.sampled_from(["stable", "shadow"]), st.integers(-30, 30),
        ),
        max_size=6,
    ),
    max_size=5,
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WRITES, st.integers(-40, 0), st.integers(0, 40), st.booleans())
def test_a_window_is_the_set_of_its_keys(
    tmp_path_factory: pytest.TempPathFactory, writes: list[list[WindowRow]], first: int, last: int, merge: bool
) -> None:
    place = location(tmp_path_factory.mktemp("log"))
    for number, written in enumerate(writes):
        put(place, number, written)
    if merge:
        compact(place, "support", NOON + 3 * DAY, retention_days=30)
    start, end = NOON + timedelta(hours=first), NOON + timedelta(hours=last)
    found = read_window(place, "support", start, end).select(["request_id", "index", "route"]).to_pylist()
    keys = [tuple(record.values()) for record in found]
    expected = {(r.request_id, r.index, r.route) for written in writes for r in written if start <= r.at < end}
    assert sorted(keys) == sorted(expected)


ROWS = st.builds(
    row, number=st.integers(0, 9), request_id=st.text(max_size=8), index=st.integers(0, 2**31 - 1),
    subject=st.text(max_size=4), label=st.text(max_size=4), score=st.floats(0, 1, width=32), abstain=st.booleans(),
    probabilities=st.binary(max_size=8), embedding=st.binary(max_size=8), characters=st.integers(0, 2**31 - 1),
    latency_ms=st.floats(0, 1e6, width=32), version=st.integers(0, 2**31 - 1),
    at=st.datetimes(min_value=NOON.replace(tzinfo=None), max_value=NOON.replace(hour=23, tzinfo=None),
        timezones=st.just(UTC)),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(ROWS, max_size=5, unique_by=lambda each: (each.request_id, each.index)))
def test_any_row_survives_the_file(tmp_path_factory: pytest.TempPathFactory, written: list[WindowRow]) -> None:
    place = location(tmp_path_factory.mktemp("log"))
    put(place, 1, written)
    found = read_window(place, "support", NOON, NOON + DAY, columns=ROW_SCHEMA.names).to_pylist()
    assert [WindowRow(**record) for record in found] == written


def test_rows_come_back_as_they_were_written(place: LogLocation) -> None:
    written = rows(5)
    put(place, 1, written)
    found = read_window(place, "support", NOON, NOON + DAY, columns=ROW_SCHEMA.names)
    assert found.to_pylist() == rows_to_table(written).to_pylist()
    assert found.schema.equals(ROW_SCHEMA)


def test_the_end_is_exclusive_and_filters_apply(place: LogLocation) -> None:
    put(place, 1, [row(0), row(1, version=4), row(2, route="shadow"), row(3)])
    end = NOON + timedelta(seconds=3)
    assert ids(read_window(place, "support", NOON, end)) == ["r0", "r1", "r2"]
    assert ids(read_window(place, "support", NOON, end, version=4)) == ["r1"]
    assert ids(read_window(place, "support", NOON, end, route="shadow")) == ["r2"]


def test_an_empty_window_has_all_columns(place: LogLocation) -> None:
    empty = read_window(place, "nobody", NOON, NOON + DAY)
    assert empty.num_rows == 0
    assert empty.schema.equals(WINDOW_SCHEMA)


def test_columns_that_were_not_asked_for_are_not_read(place: LogLocation) -> None:
    put(place, 1, rows(3))
    (name,) = place.files(place.day("support", NOON.date()))
    path = Path(place.path(place.day("support", NOON.date()), name))
    metadata = pq.ParquetFile(path).metadata.row_group(0)
    (chunk,) = (c for c in map(metadata.column, range(metadata.num_columns)) if c.path_in_schema == "embedding")
    raw = bytearray(path.read_bytes())
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    raw[begin : begin + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(raw)
    assert read_window(place, "support", NOON, NOON + DAY, columns=["label", "score"]).column_names == [
        "label",
        "score",
    ]


def test_feedback_is_joined_by_request_and_index(place: LogLocation) -> None:
    put(place, 1, [row(0), row(0, index=1), row(1)])
    entries = [said(0, "lost"), said(5, "late", request_id="r1", source="b", rating=-1), said(9, request_id="unknown")]
    found = read_window(
        place, "support", NOON, NOON + DAY, feedback=entries,
        columns=["request_id", "index", "feedback_label", "rating", "feedback_source", "feedback_at"],
    ).to_pylist()  # fmt: skip
    settled = effective(entries)
    assert [record["feedback_label"] for record in found] == ["lost", None, "late"]
    assert [record["rating"] for record in found] == [None, None, -1]
    assert found[2]["feedback_at"] == settled["r1", 0].at
    assert found[1]["feedback_source"] is None


def test_duplicates_and_rows_from_the_future_are_counted(place: LogLocation) -> None:
    put(place, 1, [row(0), row(1)])
    put(place, 2, [row(1), row(2, at=NOON + DAY), row(3, at=NOON + timedelta(minutes=1))])
    found = read_window(place, "support", NOON, NOON + 2 * DAY, now=NOON)
    assert sorted(ids(found)) == ["r0", "r1", "r2", "r3"]
    assert (found.schema.metadata[DUPLICATES_KEY], found.schema.metadata[FUTURE_KEY]) == (b"1", b"1")
    assert future_rows(place, "support", NOON) == 1


def test_a_window_can_be_read_batch_by_batch(place: LogLocation) -> None:
    for number in range(4):
        put(place, number, rows(50, start=number * 40))
    batches = list(iterate_window(place, "support", NOON, NOON + DAY, columns=["request_id"]))
    assert sum(batch.num_rows for batch in batches) == 170
    assert len(batches) > 1


def test_unknown_columns_and_times_without_zone_are_refused(place: LogLocation) -> None:
    with pytest.raises(ConfigurationError, match="no column 'text'"):
        read_window(place, "support", NOON, NOON + DAY, columns=["text"])
    with pytest.raises(ConfigurationError, match="time zone"):
        read_window(place, "support", NOON.replace(tzinfo=None), NOON)


def test_files_of_schema_version_1_can_be_read(place: LogLocation) -> None:
    (file,) = FOLDER_FIXTURE.glob("version-1.parquet")
    folder = Path(place.base) / place.day("support", NOON.date())
    folder.mkdir(parents=True)
    (folder / "part-1.parquet").write_bytes(file.read_bytes())
    found = read_window(place, "support", NOON, NOON + DAY, columns=ROW_SCHEMA.names)
    assert found.to_pylist() == rows_to_table(rows(3)).to_pylist()


def test_files_of_a_newer_release_are_refused(place: LogLocation) -> None:
    table = rows_to_table(rows(1)).replace_schema_metadata({"leitstand.schema_version": "99"})
    place.write(place.day("support", NOON.date()), "part-1.parquet", lambda file: write_parquet(table, file))
    with pytest.raises(ConfigurationError, match="schema version 99"):
        read_window(place, "support", NOON, NOON + DAY)
