"""What a feedback log promises."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from governance.feedback_log import SqliteFeedbackLog, open_feedback_log
from leitstand.errors import ConflictError, IntegrityError, PermanentBackendError
from leitstand.settings import MonitoringSettings, Settings
from tests.rows_for_tests import NOON, said


@pytest.fixture
def log(tmp_path: Path) -> SqliteFeedbackLog:
    return open_feedback_log(Settings(home=tmp_path))


def test_the_same_id_again_changes_nothing(log: SqliteFeedbackLog) -> None:
    assert log.record(said(1))
    assert not log.record(said(1))
    assert list(log.entries("support")) == [said(1)]


def test_the_same_id_with_other_content_is_a_conflict(log: SqliteFeedbackLog) -> None:
    log.record(said(1))
    with pytest.raises(ConflictError, match="f1"):
        log.record(said(1, "other"))
    assert list(log.entries("support")) == [said(1)]


def test_entries_come_in_the_order_of_recording_and_by_their_own_time(log: SqliteFeedbackLog) -> None:
    late, early = said(9), said(2)
    for entry in (late, early, said(3, use_case="finance")):
        log.record(entry)
    assert list(log.entries("support")) == [late, early]
    assert list(log.entries("support", since=NOON + timedelta(hours=1, seconds=9))) == [late]


def test_feedback_for_an_unknown_request_is_kept(log: SqliteFeedbackLog) -> None:
    assert log.record(said(1, request_id="never-seen"))


def test_what_was_recorded_is_there_for_another_process(log: SqliteFeedbackLog, tmp_path: Path) -> None:
    log.record(said(1))
    assert list(open_feedback_log(Settings(home=tmp_path)).entries("support")) == [said(1)]


def test_of_many_threads_with_the_same_id_one_records(log: SqliteFeedbackLog) -> None:
    outcomes: list[bool] = []

    def record() -> None:
        for number in range(20):
            outcomes.append(log.record(said(number)))
        log.close()

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(outcomes), len(outcomes)) == (20, 80)
    assert {entry.feedback_id for entry in log.entries("support")} == {f"f{number}" for number in range(20)}


def test_a_damaged_file_and_an_unusable_place_are_named(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"no database" * 100)
    with pytest.raises(IntegrityError, match="damaged"):
        open_feedback_log(Settings(monitoring=MonitoringSettings(feedback=str(damaged)))).record(said())
    with pytest.raises(PermanentBackendError):
        open_feedback_log(Settings(monitoring=MonitoringSettings(feedback=str(tmp_path)))).record(said())
