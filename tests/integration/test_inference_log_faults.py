"""The inference log when disks fill, processes die and files vanish: nothing half-written, nothing twice."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from structlog.testing import capture_logs

from governance.inference_log import open_inference_log
from governance.log_location import LogLocation, open_log_location
from leitstand.errors import PermanentBackendError, TransientBackendError
from leitstand.settings import MonitoringSettings, Settings, child_environment
from monitors.compaction import compact
from monitors.windows import DUPLICATES_KEY, read_window
from tests.rows_for_tests import NOON, row, rows

DAY = timedelta(days=1)
WEEK = timedelta(days=7)
MINUTE = timedelta(minutes=1)


def ids(place: LogLocation) -> list[str]:
    table = read_window(place, "support", NOON, NOON + DAY, columns=["request_id"])
    assert table.schema.metadata[DUPLICATES_KEY] == b"0"
    return sorted(table.column(0).to_pylist())


def expected(count: int) -> list[str]:
    return sorted(f"r{number}" for number in range(count))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_keeps_rows_until_the_buffer_is_full_and_then_counts(small_disk: Path) -> None:
    settings = MonitoringSettings(log=str(small_disk / "log"), flush_s=3600, buffer_rows=50, languages_per_s=0)
    log = open_inference_log(Settings(monitoring=settings))
    log.append(rows(10))
    log.flush()
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(1024))
    log.append(rows(40, start=10))
    with pytest.raises(PermanentBackendError, match="No space"):
        log.flush()
    with capture_logs() as said:
        log.append(rows(20, start=50))
        log.append(rows(20, start=70))
    assert (log.buffered, log.dropped) == (40, 40)
    assert len(said) == 1, "once a minute"
    place = open_log_location(Settings(monitoring=settings))
    assert ids(place) == expected(10), "what was there is whole"
    assert not list(small_disk.rglob("*.part"))
    ballast.unlink()
    log.flush()
    log.close()
    assert ids(place) == expected(50)
    assert (log.written, log.dropped) == (50, 40)


def test_kill_9_loses_what_was_not_flushed_and_nothing_else(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from governance.inference_log import open_inference_log
        from leitstand.settings import MonitoringSettings, Settings
        from tests.rows_for_tests import row
        settings = MonitoringSettings(log=sys.argv[1], flush_s=0.02, flush_rows=50, languages_per_s=0)
        log = open_inference_log(Settings(monitoring=settings))
        number = 0
        while True:
            log.append([row(number)])
            number += 1
            if number % 100 == 0:
                print(log.written, flush=True)
            while log.buffered > 10_000:  # the disk is slower: a full buffer would drop rows
                time.sleep(0.001)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True,
        env=child_environment(), cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    try:
        written = next(number for number in map(int, process.stdout) if number > 2000)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    place = open_log_location(Settings(monitoring=MonitoringSettings(log=str(tmp_path / "log"))))
    found = read_window(place, "support", NOON, NOON + WEEK, columns=["request_id"]).column(0).to_pylist()
    assert len(found) >= written
    assert sorted(found) == expected(len(found)), "a prefix, each row once"


class Died(Exception):
    """Stands for kill -9: nothing after it runs."""


@pytest.fixture
def place(tmp_path: Path) -> LogLocation:
    place = open_log_location(Settings(monitoring=MonitoringSettings(log=str(tmp_path / "log"))))
    _flushed(place, rows(4))
    _flushed(place, rows(4, start=4))
    return place


def _flushed(place: LogLocation, written: list) -> None:
    log = open_inference_log(Settings(monitoring=MonitoringSettings(log=place.uri, languages_per_s=0)))
    log.append(written)
    log.close()


@pytest.mark.parametrize("step", range(7))
def test_compaction_may_die_at_any_step(place: LogLocation, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the calls that change files over two runs and dies at each of them, before and after it."""
    calls = 0

    def dying(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == step:
                raise Died
            result = real(*args, **kwargs)
            calls += 1
            if calls == step:
                raise Died
            return result

        return call

    with monkeypatch.context() as patch:
        patch.setattr(LogLocation, "write", dying(LogLocation.write))
        patch.setattr(LogLocation, "delete", dying(LogLocation.delete))
        died = False
        for late in (0, 1, 2):
            try:
                compact(place, "support", NOON + DAY + late * MINUTE, retention_days=30, grace=MINUTE)
            except Died:
                died = True
            assert ids(place) == expected(8)
    assert died == (step > 0)
    _flushed(place, rows(2, start=8))
    for hours in (1, 2, 3):
        compact(place, "support", NOON + DAY + timedelta(hours=hours), retention_days=30)
        assert ids(place) == expected(10)
    assert len(place.files(place.day("support", NOON.date()))) == 1


def test_late_rows_join_a_day_that_was_merged(place: LogLocation) -> None:
    compact(place, "support", NOON + DAY, retention_days=30)
    _flushed(place, rows(1, start=8))
    assert ids(place) == expected(9)
    compact(place, "support", NOON + DAY + MINUTE, retention_days=30)
    assert ids(place) == expected(9)


def test_writers_compaction_and_readers_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Compaction of the running day without any grace, as fast as it goes, beside two writers and a reader."""
    settings = Settings(monitoring=MonitoringSettings(log=str(tmp_path / "log"), flush_rows=5, languages_per_s=0))
    place = open_log_location(settings)
    writing = threading.Event()

    def write(start: int) -> None:
        log = open_inference_log(settings)
        for number in range(start, start + 150):
            log.append([row(number)])
            if number % 10 == 0:
                log.flush()
        log.close()

    def merge() -> None:
        runs = 0
        while not writing.is_set():
            runs += 1
            moment = NOON + runs * MINUTE
            compact(place, "support", moment, retention_days=30, today=True, grace=timedelta())

    writers = [threading.Thread(target=write, args=(start,)) for start in (0, 150)]
    merger = threading.Thread(target=merge)
    for thread in (*writers, merger):
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in writers):
        found = ids(place)
        assert len(set(found)) == len(found) >= seen, "never fewer than before"
        seen = len(found)
    writing.set()
    merger.join()
    assert ids(place) == expected(300)


def test_a_reader_survives_files_that_vanish_after_it_listed_them(
    place: LogLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LogLocation.files
    lists = 0

    def listing(self: LogLocation, folder: str) -> list[str]:
        nonlocal lists
        names = real(self, folder)
        lists += 1
        if lists == 1:
            with monkeypatch.context() as patch:
                patch.setattr(LogLocation, "files", real)
                for late in (0, 1):
                    compact(place, "support", NOON + DAY + late * MINUTE, retention_days=30, grace=MINUTE)
        return names

    monkeypatch.setattr(LogLocation, "files", listing)
    assert ids(place) == expected(8)
    assert lists > 1


def test_files_that_never_stay_are_reported(place: LogLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogLocation, "files", lambda self, folder: ["part-gone.parquet"])
    with pytest.raises(TransientBackendError, match="changes faster"):
        ids(place)


def test_a_big_day_is_sorted_slice_by_slice(place: LogLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitors.compaction.SLICE_ROWS", 3)
    _flushed(place, [row(number, at=NOON + timedelta(seconds=50 - number)) for number in range(8, 30)])
    compact(place, "support", NOON + DAY, retention_days=30)
    table = read_window(place, "support", NOON, NOON + DAY, columns=["at"])
    assert table.num_rows == 30
    assert table.column(0).to_pylist() == sorted(table.column(0).to_pylist())


def test_what_dead_writers_left_is_swept_and_never_read(place: LogLocation) -> None:
    folder = Path(place.path(place.day("support", NOON.date()), ""))
    old, fresh = folder / ".part-1.parquet.x.part", folder / ".part-2.parquet.x.part"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    compact(place, "support", NOON + DAY, retention_days=30)
    assert (old.exists(), fresh.exists()) == (False, True)
    assert ids(place) == expected(8)


def test_a_detector_that_dies_costs_languages_and_no_rows(tmp_path: Path) -> None:
    log = open_inference_log(Settings(home=tmp_path))
    texts = ["Where is my card, please?"]
    log.append([row(0, language="")], texts)
    log.flush()
    child = log._languages._child
    assert child is not None
    child.kill()
    child.wait()
    with capture_logs() as said:
        for number in (1, 2):
            log.append([row(number, language="")], texts)
            log.flush()
    log.close()
    assert [entry["log_level"] for entry in said] == ["warning"], "once"
    assert ids(open_log_location(Settings(home=tmp_path))) == expected(3)


def test_without_lingua_the_log_says_so_once_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("governance.log_language.importlib.util.find_spec", lambda name: None)
    log = open_inference_log(Settings(home=tmp_path))
    with capture_logs() as said:
        for number in range(2):
            log.append([row(number, language="")], ["Where is my card, please?"])
            log.flush()
    log.close()
    assert ["pip install" in entry["hint"] for entry in said] == [True]
    assert ids(open_log_location(Settings(home=tmp_path))) == expected(2)


def test_rows_that_fit_no_column_are_dropped_alone(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, monitoring=MonitoringSettings(languages_per_s=0))
    log = open_inference_log(settings)
    log.append([row(0), row(1, characters="many"), row(2)])
    with capture_logs() as said:
        log.flush()
    log.close()
    assert (log.written, log.dropped, log.buffered) == (2, 1, 0)
    assert [entry["log_level"] for entry in said] == ["error"]
    (file,) = (tmp_path / "inference-log").rglob("*.parquet")
    assert pq.read_table(file, partitioning=None).column("request_id").to_pylist() == ["r0", "r2"]
