"""The comparison page and the rules behind it."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from leitstand.errors import ConfigurationError, NotFoundError
from models.tracking.compare import best_index, compare, config_rows, lower_is_better
from models.tracking.curves import MAX_POINTS, chart
from models.tracking.reading import LoggedRun, LoggedTable, find_run
from models.tracking.tables import confusion_rows, keyed_table, pivoted


def run(run_id: str, **fields: Any) -> LoggedRun:
    return LoggedRun(
        **(
            {
                "run_id": run_id, "project": "leitstand", "use_case": "support", "job": "train", "state": "finished",
                "started": datetime(2026, 11, 24, tzinfo=UTC),
            }
            | fields
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "lower"),
    [("val/loss", True), ("val/ece", True), ("latency_p99_ms", True), ("val/accuracy", False), ("macro_f1", False),
     ("counterfactual_flip_rate", True), ("learning_rate", None), ("precedence", None)],
)  # fmt: skip
def test_direction_follows_from_the_metrics_name(metric: str, lower: bool | None) -> None:
    assert lower_is_better(metric) is lower


def test_best_is_the_lowest_loss_and_the_highest_accuracy() -> None:
    assert best_index("val/loss", [0.3, 0.2, None]) == 1
    assert best_index("val/accuracy", [0.93, 0.92, float("nan")]) == 0


def test_there_is_no_best_without_a_contest_or_with_a_tie() -> None:
    assert best_index("val/accuracy", [0.9, None]) is None
    assert best_index("val/accuracy", [0.9, 0.9]) is None
    assert best_index("temperature", [1.0, 2.0]) is None


def test_configuration_rows_tell_nested_differences_and_missing_keys() -> None:
    rows = config_rows([run("a", config={"t": {"lr": 1, "epochs": 2}}), run("b", config={"t": {"lr": 2, "epochs": 2}})])
    assert {row["name"]: row["differs"] for row in rows} == {"t.epochs": False, "t.lr": True}
    assert config_rows([run("a", config={"x": 1}), run("b")])[0]["values"] == ["1", None]


def test_the_page_needs_no_network_and_escapes_what_runs_say(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    runs = [
        run(name, config={"note": name}, summary={"val/accuracy": 0.9 + 0.01 * i, evil: 1.0},
            history={"val/loss": [(0, 2.0), (10, 1.0 + i)], evil: [(0, 1.0), (1, 2.0)]},
            tables={"slices": LoggedTable(("slice", "accuracy"), ((evil, 0.9 - 0.1 * i),)),
                    "confusion": LoggedTable(("label", "predicted", "count"), ((evil, "b", 3 - i),))})
        for i, name in enumerate(["run-a", evil])
    ]  # fmt: skip
    text = compare(runs, tmp_path / "page.html").read_text()
    assert evil not in text
    assert not re.findall(r"""(?:src|href)=["'](?!#)|https?://|@import|url\(""", text)
    assert text.count("<svg") == 2
    assert "1 of 1 values differ" in text


def test_a_run_without_any_numbers_still_makes_a_page(tmp_path: Path) -> None:
    assert "No numbers were logged" in compare([run("a")], tmp_path / "page.html").read_text()


def test_comparing_a_run_with_itself_or_nine_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        compare([run("a"), run("a")], tmp_path / "page.html")
    with pytest.raises(ConfigurationError):
        compare([run(str(i)) for i in range(9)], tmp_path / "page.html")


def test_runs_are_found_by_id_prefix_and_age() -> None:
    runs = [run("abc1"), run("abc2"), run("abc")]
    assert find_run(runs, "latest").run_id == "abc1"
    assert find_run(runs, "latest~2").run_id == "abc"
    assert find_run(runs, "abc").run_id == "abc"
    assert find_run(runs, "abc2").run_id == "abc2"
    with pytest.raises(ConfigurationError, match="names 3 runs"):
        find_run(runs, "ab")
    with pytest.raises(NotFoundError):
        find_run(runs, "latest~3")


def test_long_curves_are_thinned_and_keep_their_level() -> None:
    plot = chart("loss", {(0, "train"): [(step, 2.0) for step in range(10_000)]})
    assert plot is not None
    assert len(plot.lines[0].points) <= MAX_POINTS
    assert {value for _, value in plot.lines[0].points} == {2.0}


def test_a_curve_of_nothing_but_nan_is_left_out() -> None:
    assert chart("loss", {(0, "train"): [(0, float("nan")), (1, float("inf"))]}) is None


def test_curves_stay_inside_their_frame() -> None:
    plot = chart("lr", {(0, ""): [(0, -3.0), (5, 7.0)], (1, ""): [(2, 100.0)]})
    assert plot is not None
    left, top, right, bottom = plot.frame
    for line in plot.lines:
        pairs = [tuple(map(float, pair.split(","))) for pair in re.findall(r"[\d.]+,[\d.]+", line.path)]
        assert all(left - 3 <= x <= right and top <= y <= bottom for x, y in pairs)


def test_tables_of_runs_join_by_key_and_leave_gaps() -> None:
    left = LoggedTable(("slice", "accuracy"), (("short", 0.9), ("long", 0.8)))
    right = LoggedTable(("slice", "accuracy"), (("short", 0.95),))
    joined = keyed_table([left, right, None])
    assert joined is not None
    assert [(row["key"], row["cells"][0]["values"]) for row in joined["rows"]] == [
        ("short", [0.9, 0.95, None]),
        ("long", [0.8, None, None]),
    ]


def test_a_long_table_of_metrics_becomes_one_row_per_slice() -> None:
    table = LoggedTable(
        ("slice", "metric", "value", "examples"),
        (("short", "accuracy", 0.9, 10), ("short", "ece", 0.1, 10), ("long", "accuracy", 0.8, 5)),
    )
    assert pivoted(table) == LoggedTable(("slice", "accuracy", "ece"), (("short", 0.9, 0.1), ("long", 0.8, None)))


def test_confusions_that_differ_most_come_first_and_right_answers_are_left_out() -> None:
    columns = ("label", "predicted", "count")
    left = LoggedTable(columns, (("a", "a", 90), ("a", "b", 5), ("b", "c", 9)))
    right = LoggedTable(columns, (("a", "a", 80), ("a", "b", 14), ("b", "c", 9)))
    rows = confusion_rows([left, right])
    assert [(row["label"], row["predicted"], row["counts"]) for row in rows] == [
        ("a", "b", [5, 14]),
        ("b", "c", [9, 9]),
    ]
