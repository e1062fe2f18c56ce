"""What an inference log promises, over a local folder and a real S3 server, with the windows read from it."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from governance.inference_log import ROW_SCHEMA, ParquetInferenceLog, open_inference_log, rows_to_table
from governance.log_location import LogLocation, open_log_location
from leitstand.errors import BackendError, ConfigurationError, PermanentBackendError
from leitstand.settings import MonitoringSettings, S3Settings, Settings
from monitors.compaction import compact
from monitors.windows import read_window
from tests.rows_for_tests import NOON, row, rows
from tests.servers import S3Server, aws_credentials, free_ports

DAY = timedelta(days=1)
NEVER = 3600.0


@pytest.fixture(params=["folder", "s3"])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "folder":
        return Settings(home=tmp_path, monitoring=MonitoringSettings(flush_s=NEVER))
    server: S3Server = request.getfixturevalue("s3_server")
    return Settings(
        home=tmp_path, s3=server.settings, monitoring=MonitoringSettings(flush_s=NEVER, log=server.prefix())
    )


@pytest.fixture
def log(installation: Settings) -> Iterator[ParquetInferenceLog]:
    opened = open_inference_log(installation)
    yield opened
    opened.close()


@pytest.fixture
def place(installation: Settings) -> LogLocation:
    return open_log_location(installation)


def test_after_a_flush_every_row_can_be_read(log: ParquetInferenceLog, place: LogLocation) -> None:
    written = [*rows(3), row(1, index=1)]
    log.append(written[:2])
    log.append(written[2:])
    log.flush()
    found = read_window(place, "support", NOON, NOON + DAY, columns=ROW_SCHEMA.names)
    assert found.to_pylist() == rows_to_table(written).to_pylist()
    assert (log.written, log.buffered, log.dropped) == (4, 0, 0)


def test_rows_are_parted_by_use_case_and_day(log: ParquetInferenceLog, place: LogLocation) -> None:
    log.append([row(1), row(2, at=NOON + DAY), row(3, use_case="finance")])
    log.flush()
    assert place.use_cases() == ["finance", "support"]
    assert place.days("support") == [NOON.date(), (NOON + DAY).date()]
    assert place.days("nobody") == []
    assert len(place.files(place.day("support", NOON.date()))) == 1


def test_closing_writes_the_rest_and_may_be_repeated(log: ParquetInferenceLog, place: LogLocation) -> None:
    log.append(rows(5))
    log.close()
    log.close()
    assert read_window(place, "support", NOON, NOON + DAY).num_rows == 5
    log.append(rows(1))
    assert log.dropped == 1


def test_rows_are_written_by_number_and_by_age_without_being_asked(installation: Settings, place: LogLocation) -> None:
    def written(**changes: float) -> None:
        monitoring = installation.monitoring.model_copy(update=changes)
        log = open_inference_log(installation.model_copy(update={"monitoring": monitoring}))
        log.append(rows(3))
        deadline = threading.Event()
        for _ in range(300):
            if log.written == 3:
                break
            deadline.wait(0.05)
        assert log.written == 3
        log.close()

    written(flush_rows=3)
    written(flush_s=0.05)


def test_many_threads_lose_nothing(log: ParquetInferenceLog, place: LogLocation) -> None:
    def append(start: int) -> None:
        for number in range(start, start + 100):
            log.append([row(number)])

    threads = [threading.Thread(target=append, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.flush()
    found = read_window(place, "support", NOON, NOON + DAY, columns=["request_id"])
    assert sorted(found.column(0).to_pylist()) == sorted(f"r{number}" for number in range(400))


def test_compaction_leaves_the_rows_and_one_file(log: ParquetInferenceLog, place: LogLocation) -> None:
    for number in (4, 2, 0):
        log.append(rows(2, start=number))
        log.flush()
    before = read_window(place, "support", NOON, NOON + DAY).sort_by("request_id")
    result = compact(place, "support", NOON + DAY, retention_days=30)
    assert (result.days_merged, result.files_merged, result.files_deleted) == (1, 3, 0)
    assert read_window(place, "support", NOON, NOON + DAY).sort_by("request_id").equals(before)
    assert compact(place, "support", NOON + DAY + timedelta(hours=1), retention_days=30).files_deleted == 3
    assert len(place.files(place.day("support", NOON.date()))) == 1
    merged = read_window(place, "support", NOON, NOON + DAY, columns=["at"])
    assert merged.column(0).to_pylist() == sorted(merged.column(0).to_pylist()), "sorted by time"
    assert merged.num_rows == 6


def test_days_beyond_the_retention_go(log: ParquetInferenceLog, place: LogLocation) -> None:
    log.append([row(0), row(1, at=NOON - 5 * DAY)])
    log.flush()
    assert compact(place, "support", NOON, retention_days=5).days_expired == 0
    assert compact(place, "support", NOON, retention_days=4).days_expired == 1
    assert place.days("support") == [NOON.date()]


def test_languages_come_from_a_sample_of_the_texts(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, monitoring=MonitoringSettings(flush_s=NEVER))
    log, place = open_inference_log(settings), open_log_location(settings)
    texts = ["Wo bleibt meine neue Karte, ich warte seit Wochen", "ok", "Where is my card, please?"]

    def languages(number: int) -> list[str]:
        some = [row(number, index=index, language="xx" if index == 2 else "") for index in range(4)]
        log.append(some[:3], texts)
        log.append(some[3:])
        log.flush()
        table = read_window(place, "support", NOON, NOON + DAY, columns=["request_id", "language"])
        return [record["language"] for record in table.to_pylist() if record["request_id"] == f"r{number}"]

    deadline = time.monotonic() + 60  # the detector loads beside us; rows do not wait for it
    number = 0
    while (found := languages(number)) == ["", "", "xx", ""] and time.monotonic() < deadline:
        number += 1
        time.sleep(0.2)
    log.close()
    assert found == ["de", "", "xx", ""]


def test_an_unreachable_server_is_an_error_of_ours_and_costs_no_row(s3_server: S3Server, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    nobody = S3Settings(endpoint_url=f"http://127.0.0.1:{port}")
    log = open_inference_log(
        Settings(home=tmp_path, s3=nobody, monitoring=MonitoringSettings(log=s3_server.prefix(), flush_s=NEVER))
    )
    log.append(rows(2))
    with pytest.raises(BackendError):
        log.flush()
    assert (log.buffered, log.dropped) == (2, 0)
    log._location = open_log_location(
        Settings(s3=s3_server.settings, monitoring=MonitoringSettings(log=s3_server.prefix()))
    )
    log.flush()
    assert (log.written, log.buffered) == (2, 0)
    log.close()


def test_wrong_credentials_are_named_and_the_rows_counted(s3_server: S3Server, tmp_path: Path) -> None:
    monitoring = MonitoringSettings(log=s3_server.prefix(), flush_s=NEVER)
    with aws_credentials(secret_key="wrong"):
        log = open_inference_log(Settings(home=tmp_path, s3=s3_server.settings, monitoring=monitoring))
        log.append(rows(1))
        with pytest.raises(PermanentBackendError, match="rights"):
            log.flush()
        log.close()
    assert log.dropped == 1


@pytest.mark.parametrize("uri", ["s3://", "gs://bucket/x", "http://somewhere"])
def test_other_places_are_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"monitoring\.log"):
        open_inference_log(Settings(home=tmp_path, monitoring=MonitoringSettings(log=uri)))
