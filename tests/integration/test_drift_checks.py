"""Windows of a real inference log are judged, decided once, and told; odd windows never break a check."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from flows import reference
from flows.loop import loop_state
from flows.loop_events import DRIFT, QUALITY
from flows.monitoring import DriftCheck, Window, check_drift, due_window, kept_reports, report_window
from flows.reference import reference_of
from governance.inference_log import open_inference_log
from leitstand.errors import NotFoundError
from leitstand.types import Action, Feedback, Finding, Target, WindowRow
from leitstand.usecase import UseCase
from monitors.decision import LoopState
from monitors.health import Health
from monitors.report_record import WindowReport
from tests.loop_for_tests import NOW, Trained, World, normal_texts, trained, withheld_texts, world

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Trained once, with its reference."""
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "RESAMPLES", 1000)
        made = trained(folder)
        first = world(made, folder / "first")
        reference_of(first.adapters, made.use_case, 1)
        yield made


@pytest.fixture
def here(shared: Trained, tmp_path: Path) -> World:
    made = world(shared, tmp_path / "home")
    references = shared.home.parent / "first" / "monitors" / "references"
    shutil.copytree(references, made.loop.home / "monitors" / "references")
    return made


def checked(here: World, hours: int = 0, use_case: UseCase | None = None) -> DriftCheck:
    now = NOW + hours * HOUR
    return check_drift(here.loop, use_case or here.use_case, due_window(HOUR, now), now=now)


def lost(here: World, hours: int, label: str = "late_delivery") -> None:
    """An hour in which half of the texts belong to a queue that the version does not know, and people say so."""
    start = NOW + (hours - 1) * HOUR
    rows = here.answer([*normal_texts(200, hours)[0], *withheld_texts(200, hours)], start, HOUR, tag=f"h{hours}-")
    for row in rows[200:]:
        here.loop.feedback.record(
            Feedback(
                feedback_id=row.request_id, request_id=row.request_id, use_case="tiny", label=label,
                source="agent-1", at=row.at,
            )
        )  # fmt: skip
    for row in rows[:200]:
        here.loop.feedback.record(
            Feedback(
                feedback_id=row.request_id, request_id=row.request_id, use_case="tiny", label=row.label,
                source="agent-1", at=row.at,
            )
        )  # fmt: skip


def test_traffic_like_the_reference_leads_to_nothing(here: World) -> None:
    here.answer(normal_texts(400, 7)[0], NOW - HOUR, HOUR)
    found = checked(here)
    assert (found.decision.action, found.decision.finding) == (Action.NOTHING, Finding.HEALTHY), found.decision.reasons
    assert (found.new, found.events, found.told) == (True, (), ())
    assert kept_reports(here.loop, "tiny") == [found.report]


def test_an_unknown_queue_with_feedback_is_a_loss_that_asks_for_a_retraining_once(here: World) -> None:
    lost(here, 0)
    found = checked(here)
    assert found.decision.action is Action.RETRAIN, found.decision.reasons
    assert [event.name for event in found.events] == [DRIFT, QUALITY]
    assert found.events[0].payload["trigger"] == found.decision.report_digest
    assert [alert.key for alert in found.told] == ["tiny/quality-loss"]
    again = checked(here)
    assert (again.decision, again.new, again.events, again.file) == (found.decision, False, (), found.file)


def test_two_checks_at_once_decide_once(here: World) -> None:
    lost(here, 0)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: checked(here), range(2)))
    assert sorted(each.new for each in both) == [False, True]
    assert sum(len(each.events) for each in both) == 2
    assert len(here.loop.decisions.recent("tiny")) == 1


def test_drift_without_labels_is_told_and_retrains_nothing(here: World) -> None:
    here.answer(withheld_texts(400, 8), NOW - HOUR, HOUR)
    found = checked(here)
    assert found.report.drifted
    assert found.decision.action is Action.WARN
    assert [(event.name, event.payload["action"]) for event in found.events] == [(DRIFT, "warn")]


@pytest.mark.parametrize("rows", [0, 3])
def test_empty_and_tiny_windows_are_insufficient_not_quiet(here: World, rows: int) -> None:
    if rows:
        here.answer(normal_texts(rows, 7)[0], NOW - HOUR, HOUR)
    found = checked(here)
    assert found.report.rows == rows
    assert "at least 200" in found.report.insufficient
    assert (found.decision.action, found.decision.finding) == (Action.NOTHING, Finding.UNJUDGED)


def test_a_missing_reference_is_told_and_breaks_nothing(shared: Trained, tmp_path: Path) -> None:
    bare = world(shared, tmp_path / "home")
    (bare.loop.home / "data" / "tiny").unlink()
    bare.answer(normal_texts(300, 7)[0], NOW - HOUR, HOUR)
    found = checked(bare)
    assert "no reference" in found.report.insufficient
    assert found.report.rows == 300
    assert [alert.key for alert in found.told] == ["tiny/monitoring-blind"]


def test_the_reference_travels_with_the_version(shared: Trained, here: World, tmp_path: Path) -> None:
    made = reference_of(here.adapters, here.use_case, 1)
    other = world(shared, tmp_path / "elsewhere")
    (other.loop.home / "data" / "tiny").unlink()
    moved = replace(other.adapters, registry=here.adapters.registry)
    restored = reference_of(moved, here.use_case, 1)
    assert restored.detectors.reference_digest == made.detectors.reference_digest
    assert restored.rows().equals(made.rows())


def write(here: World, rows: list[WindowRow]) -> None:
    log = open_inference_log(here.adapters.settings)
    log.append(rows)
    log.close()


def test_rows_of_another_model_or_with_nan_are_reported_not_raised(here: World) -> None:
    rows = here.answer(normal_texts(300, 7)[0], NOW - HOUR, HOUR)
    write(here, [replace(row, request_id=f"n{n}", score=float("nan")) for n, row in enumerate(rows[:60])])
    found = checked(here)
    assert not found.report.insufficient
    assert found.report.rows == 360
    assert kept_reports(here.loop, "tiny")[0].rows == 360
    write(here, [replace(row, at=row.at + HOUR, label="strange") for row in rows])
    strange = checked(here, 1)
    assert "does not fit the reference" in strange.report.insufficient
    assert strange.decision.finding is Finding.UNJUDGED
    write(here, [replace(row, at=row.at + 2 * HOUR, embedding=b"\0\0") for row in rows])
    assert "does not fit" in checked(here, 2).report.insufficient


def test_a_clock_that_is_ahead_is_noted(here: World) -> None:
    rows = here.answer(normal_texts(300, 7)[0], NOW - HOUR, HOUR)
    assert rows
    now = NOW - timedelta(minutes=30)
    found = check_drift(here.loop, here.use_case, Window(NOW - HOUR, NOW), now=now)
    assert any("a clock is ahead" in note for note in found.notes)


def test_failed_requests_count_from_one_look_to_the_next(here: World) -> None:
    here.answer(normal_texts(300, 7)[0], NOW - HOUR, HOUR)
    assert any("begin with this look" in note for note in checked(here).notes)
    here.counts.answer(1, 400, failed=100)
    here.answer(normal_texts(300, 8)[0], NOW, HOUR, tag="b")
    found = checked(here, 1)
    assert found.report.error_rate == pytest.approx(0.25)
    assert (found.decision.finding, found.decision.action) == (Finding.FAILING, Action.ASK)


def test_nothing_deployed_is_said(shared: Trained, tmp_path: Path) -> None:
    bare = world(shared, tmp_path / "home")
    bare.adapters.routes.tables.clear()  # type: ignore[attr-defined]
    bare.adapters.registry.remove_alias("tiny", "champion", actor="tests", reason="none")
    with pytest.raises(NotFoundError, match="nothing to watch"):
        checked(bare)


def test_a_version_that_came_back_was_not_promoted_over_anything(here: World) -> None:
    routes = here.adapters.routes

    def serve(version: int, hours: int) -> LoopState:
        table = routes.read("tiny")
        assert table is not None
        target = Target(version=version, url="http://127.0.0.1:9")
        changed = table.model_copy(update={"stable": target, "changed_at": NOW + hours * HOUR})
        routes.write(changed, expected=table.revision)
        return loop_state(here.loop, "tiny", Health(), now=NOW)

    first, promoted, back = loop_state(here.loop, "tiny", Health(), now=NOW), serve(2, 1), serve(1, 2)
    assert (first.serving, first.previous_version, first.promoted_at) == (1, None, None)
    assert (promoted.serving, promoted.previous_version, promoted.promoted_at) == (2, 1, NOW + HOUR)
    assert (back.serving, back.previous_version, back.promoted_at) == (1, None, None)


def test_the_page_of_a_window_shows_the_kept_verdict_and_stands_in_the_index(here: World) -> None:
    here.answer(normal_texts(400, 7)[0], NOW - HOUR, HOUR)
    found = checked(here)
    page = report_window(here.loop, here.use_case, due_window(HOUR, NOW), now=NOW)
    record = WindowReport.model_validate_json(page.with_suffix(".json").read_bytes())
    assert record.drift == found.report
    assert (record.rows, record.labelled_rows) == (400, 0)
    assert page.name in (page.parent / "index.html").read_text()
    empty = report_window(here.loop, here.use_case, due_window(HOUR, NOW + HOUR), now=NOW + HOUR)
    assert WindowReport.model_validate_json(empty.with_suffix(".json").read_bytes()).verdict == "insufficient"


def test_a_report_on_a_sample_counts_every_row_and_label_of_the_window(here: World) -> None:
    for row in here.answer(normal_texts(400, 7)[0], NOW - HOUR, HOUR):
        right = Feedback(
            feedback_id=row.request_id, request_id=row.request_id, use_case="tiny", label=row.label, source="ann",
            at=row.at,
        )  # fmt: skip
        here.loop.feedback.record(right)
    page = report_window(here.loop, here.use_case, due_window(HOUR, NOW), now=NOW, sample_rows=100)
    record = WindowReport.model_validate_json(page.with_suffix(".json").read_bytes())
    assert (record.rows, record.sampled_rows, record.labelled_rows) == (400, 100, 400)
    assert "100 of the 400 rows of the window" in record.sampling


def test_windows_follow_each_other_and_do_not_depend_on_when_they_are_asked_for() -> None:
    one = due_window(HOUR, NOW + timedelta(minutes=2))
    assert one == due_window(HOUR, NOW + timedelta(minutes=59))
    assert due_window(HOUR, NOW + timedelta(minutes=61)).start == one.end
