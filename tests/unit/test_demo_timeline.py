"""The demo's record: when what happened, the accuracy curve, and what the page shows of it."""

from datetime import UTC, datetime, timedelta

import pytest

from flows.demo.page import MARKS, curve, summary_rows
from flows.demo.run import paired_gap
from flows.demo.scenario import Row
from flows.demo.timeline import Timeline, rolling
from flows.demo.traffic import Answer

START = datetime(2026, 11, 24, tzinfo=UTC)


def answer(right: bool, version: int | None = 1) -> Answer:
    return Answer(Row("text", "a"), START, "r", version, "stable", "a" if right else "b")


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


@pytest.fixture
def timeline() -> Timeline:
    timeline = Timeline(START)
    step = timeline.begin("New queues", "They appear.", START)
    timeline.answers += [answer(True)] * 200
    timeline.note("new queue", at(1), "onset")
    timeline.answers += [answer(False)] * 200
    timeline.note("alarm", at(2), "detected")
    timeline.note("another alarm", at(3), "detected")
    step.ended, step.happened = at(4), True
    return timeline


def test_entries_know_their_step_and_how_many_requests_had_been_answered(timeline: Timeline) -> None:
    assert [(entry.step, entry.requests) for entry in timeline.entries] == [(1, 200), (1, 400), (1, 400)]
    assert timeline.steps[0].seconds == 240


def test_times_count_from_the_first_of_a_kind_and_are_unknown_when_one_is_missing(timeline: Timeline) -> None:
    assert timeline.minutes_between("onset", "detected") == 1
    assert timeline.minutes_between("onset", "promoted") is None


def test_the_rolling_accuracy_is_that_of_the_last_answers_and_a_failure_is_not_right() -> None:
    points = rolling([answer(True)] * 4 + [answer(False)] * 2 + [answer(True, None)] * 2, 4, 2)
    assert [(point.request, point.value) for point in points] == [(4, 1.0), (6, 0.5), (8, 0.0)]
    assert rolling([answer(True)] * 3, 4, 1) == []


def test_the_curve_stays_inside_its_frame_and_marks_the_moments(timeline: Timeline) -> None:
    drawn = curve(timeline)
    assert drawn is not None
    points = [tuple(map(float, pair.split(","))) for pair in drawn.lines[0][1].split()]
    assert all(drawn.left <= x <= drawn.width and drawn.top <= y <= drawn.height - drawn.bottom for x, y in points)
    assert points[0][1] == drawn.top
    assert points[-1][1] == drawn.height - drawn.bottom
    assert [mark.text for mark in drawn.marks] == [MARKS["onset"], MARKS["detected"], MARKS["detected"]]
    assert curve(Timeline(START)) is None


def test_the_summary_shows_only_what_is_known(timeline: Timeline) -> None:
    assert summary_rows(timeline) == []
    timeline.numbers |= {"accuracy_retrained": 0.91234, "onset_to_detected_requests": 250, "accuracy_champion": None}
    assert summary_rows(timeline) == [
        ("requests from the first new question to the alarm", "250"), ("retrained, all queues", "0.9123"),
    ]  # fmt: skip


def test_the_record_is_plain_values(timeline: Timeline) -> None:
    record = timeline.as_json()
    assert record["steps"] == [{"number": 1, "title": "New queues", "seconds": 240.0, "happened": True}]
    assert [event["kind"] for event in record["events"]] == ["onset", "detected", "detected"]


def test_the_gap_to_the_yardstick_is_paired() -> None:
    gap, error = paired_gap([True] * 90 + [False] * 10, [True] * 80 + [False] * 20)
    assert (gap, error) == (pytest.approx(0.1), pytest.approx(0.03))
    assert paired_gap([True, False], [True, False]) == (0, 0)
