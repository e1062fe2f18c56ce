"""Which rows play which part in the demo, and what its agents say."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from flows.demo.agents import POISONED, labels_of
from flows.demo.scenario import FAST, FULL, Drawn, Row, Scenario, draw
from flows.demo.traffic import Answer, accuracy
from leitstand.errors import ConfigurationError

NOW = datetime(2026, 11, 24, tzinfo=UTC)
SMALL = replace(FAST, queues=8, withheld=2, window=30, rows_per_queue=0)
ROWS = [Row(f"question {number} about {queue}", f"queue {queue}") for queue in range(8) for number in range(100)]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw(ROWS, SMALL, 3)


def test_the_same_seed_gives_the_same_parts_and_another_seed_others(drawn: Drawn) -> None:
    assert draw(ROWS, SMALL, 3) == drawn
    assert draw(ROWS, SMALL, 4).withheld != drawn.withheld or draw(ROWS, SMALL, 4).base != drawn.base


def test_no_row_is_in_two_parts_and_everything_is_all_but_what_is_measured(drawn: Drawn) -> None:
    parts = [drawn.measured, drawn.base, drawn.calm, drawn.drifting, drawn.spare]
    assert sum(map(len, parts)) == len({row for part in parts for row in part}) == len(ROWS)
    assert set(drawn.everything) | set(drawn.measured) == set(ROWS)
    assert not set(drawn.everything) & set(drawn.measured)
    assert set(drawn.fresh) <= set(drawn.measured)


def test_the_first_champion_and_calm_traffic_know_no_withheld_queue(drawn: Drawn) -> None:
    withheld = set(drawn.withheld)
    assert len(withheld) == SMALL.withheld
    assert not withheld & {row.label for row in (*drawn.base, *drawn.calm)}
    assert {row.label for row in drawn.measured} == set(drawn.labels) == withheld | set(drawn.known)


def test_every_window_of_the_drift_has_the_share_of_new_queues_that_was_asked_for(drawn: Drawn) -> None:
    for start in range(0, len(drawn.drifting) - SMALL.window, SMALL.window):
        window = drawn.drifting[start : start + SMALL.window]
        share = sum(row.label in drawn.withheld for row in window) / len(window)
        assert share == pytest.approx(SMALL.drift_share, abs=0.05)


def test_a_text_that_stands_twice_is_drawn_once() -> None:
    twice = [*ROWS, *(Row(row.text.upper() + "  ", row.label) for row in ROWS[:50])]
    assert draw(twice, SMALL, 3) == draw(ROWS, SMALL, 3)


@pytest.mark.parametrize("wrong", [{"queues": 9}, {"withheld": 8}, {"window": 200}])
def test_a_scenario_that_the_data_cannot_fill_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="The demo"):
        draw(ROWS, replace(SMALL, **wrong), 3)


@pytest.mark.parametrize("scenario", [FULL, FAST], ids=lambda scenario: scenario.name)
def test_the_shipped_scenarios_fit_the_shipped_data(scenario: Scenario, project: object) -> None:
    from flows.demo.case import read_rows
    from leitstand.usecase import load

    drawn = draw(read_rows(load(project / "usecases/support/usecase.yaml")), scenario, 17)  # type: ignore[operator]
    counts = Counter(row.label for row in drawn.drifting if row.label in drawn.withheld)
    assert min(counts.values()) >= 30, "a new queue needs 20 labelled rows besides those held out"
    assert len(drawn.drifting) >= scenario.window * scenario.drift_windows


def answers(rows: list[Row]) -> list[Answer]:
    return [Answer(row, NOW, f"r{number}", 1, "stable", "queue 0", 0.9) for number, row in enumerate(rows)]


def test_agents_are_mostly_right_and_the_poisoned_source_never(drawn: Drawn) -> None:
    asked = answers(list(drawn.drifting))
    said = labels_of(asked, drawn.known, SMALL, 5)
    truth = {answer.request_id: answer.row.label for answer in asked}
    wrong = Counter(each.source for each in said if each.label != truth[each.request_id])
    assert wrong.pop(POISONED) == SMALL.poisoned == sum(each.source == POISONED for each in said)
    assert sum(wrong.values()) <= 0.1 * len(asked)
    assert {each.source for each in said} == {f"agent-{n + 1}" for n in range(SMALL.agents)} | {POISONED}
    assert len({each.feedback_id for each in said}) == len(said)
    assert {each.label for each in said} <= set(drawn.labels)


def test_nobody_labels_a_request_that_failed() -> None:
    failed = [Answer(ROWS[0], NOW, problem="503")]
    assert labels_of(failed, ["queue 0", "queue 1"], SMALL, 5) == []
    assert accuracy(failed) is None
