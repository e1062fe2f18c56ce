"""The ExperimentTracker port: what training relies on, over the in-memory fake and W&B offline."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from leitstand.ports import ExperimentTracker
from leitstand.settings import Settings
from tests.fakes import InMemoryTracker


@dataclass
class Seen:
    """What a tracker holds about a run, in one shape for all of them."""

    config: dict[str, Any]
    tags: tuple[str, ...]
    summary: dict[str, Any]
    state: str
    series: dict[str, list[tuple[int, float]]]
    tables: dict[str, tuple[tuple[str, ...], list[list[Any]]]]
    artifacts: list[str]


class InMemory:
    def __init__(self, home: Path) -> None:
        self.tracker = InMemoryTracker()

    def see(self, run_id: str) -> Seen:
        run = self.tracker.runs[run_id]
        names = {name for _, metrics in run.history for name in metrics}
        return Seen(
            config=run.config, tags=run.tags, summary=run.summaries, state=run.state,
            series={name: run.series(name) for name in names}, tables=run.tables,
            artifacts=[name for name, *_ in run.artifacts],
        )  # fmt: skip


class WandbOffline:
    def __init__(self, home: Path) -> None:
        from models.tracking.wandb import open_tracker

        self.home = home
        self.tracker = open_tracker(Settings(home=home))

    def see(self, run_id: str) -> Seen:
        from models.tracking.reading import find_run, read_runs

        run = find_run(read_runs(self.home), run_id)
        tables = {name: (table.columns, [list(row) for row in table.rows]) for name, table in run.tables.items()}
        return Seen(
            config=run.config, tags=run.tags, summary=run.summary, state=run.state, series=run.history,
            tables=tables, artifacts=[artifact.name for artifact in run.artifacts],
        )  # fmt: skip


@pytest.fixture(params=[InMemory, WandbOffline])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    return request.param(tmp_path / "home")


def start(place: Any, **options: Any) -> Any:
    tracker: ExperimentTracker = place.tracker
    return tracker.start(**({"use_case": "support", "job": "train", "config": {"seed": 17}} | options))


def test_a_run_keeps_its_configuration_tags_and_summary(place: Any) -> None:
    run = start(place, config={"seed": 17, "training": {"epochs": 2}}, tags=["quick"])
    run.summary({"val/accuracy": 0.93})
    run.finish()
    seen = place.see(run.run_id)
    assert seen.config == {"seed": 17, "training": {"epochs": 2}}
    assert seen.tags == ("quick",)
    assert seen.summary["val/accuracy"] == 0.93
    assert seen.state == "finished"
    assert run.url


def test_metrics_keep_the_step_they_were_logged_at_and_count_on_without_one(place: Any) -> None:
    run = start(place)
    run.log({"train/loss": 2.0}, step=10)
    run.log({"train/loss": 1.0, "lr": 0.5}, step=20)
    run.log({"train/loss": 0.5})
    run.finish()
    series = place.see(run.run_id).series
    assert series["train/loss"] == [(10, 2.0), (20, 1.0), (21, 0.5)]
    assert series["lr"] == [(20, 0.5)]


def test_tables_come_back_as_they_were_logged(place: Any) -> None:
    run = start(place)
    slices = (("slice", "accuracy"), [["length:short", 0.9], ["typos", None]])
    confusion = (("label", "predicted", "count"), [["card_arrival", "lost_card", 3]])
    run.log_table("slices", *slices)
    run.log_table("confusion", *confusion)
    run.finish()
    assert place.see(run.run_id).tables == {"slices": slices, "confusion": confusion}


def test_the_same_bytes_under_one_name_are_stored_once(place: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"one")
    run = start(place)
    run.log_artifact("support-model", "model", folder)
    run.log_artifact("support-model", "model", folder, {"again": True})
    run.log_artifact("support-weights", "model", folder / "weights.bin")
    run.finish()
    assert place.see(run.run_id).artifacts == ["support-model", "support-weights"]


def test_changed_bytes_under_one_name_are_stored_again(place: Any, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    run = start(place)
    for path, content in ((old, b"one"), (new, b"two")):
        path.mkdir()
        (path / "weights.bin").write_bytes(content)
        run.log_artifact("support-model", "model", path)
    run.finish()
    assert place.see(run.run_id).artifacts == ["support-model", "support-model"]


def test_finishing_twice_is_no_error_and_the_first_verdict_stays(place: Any) -> None:
    run = start(place)
    run.finish(failed=True)
    run.finish()
    assert place.see(run.run_id).state == "failed"


def test_a_run_that_is_continued_is_one_run_with_one_curve(place: Any) -> None:
    first = start(place, run_id="resumed1")
    first.log({"train/loss": 2.0}, step=1)
    first.log({"train/loss": 1.5}, step=2)
    first.finish(failed=True)
    second = start(place, run_id="resumed1")
    second.log({"train/loss": 1.0})
    second.finish()
    seen = place.see("resumed1")
    assert seen.series["train/loss"] == [(1, 2.0), (2, 1.5), (3, 1.0)]
    assert seen.state == "finished"


def test_an_id_that_this_process_left_open_can_be_continued(place: Any) -> None:
    start(place, run_id="open1").log({"train/loss": 2.0}, step=1)
    second = start(place, run_id="open1")
    second.log({"train/loss": 1.0}, step=2)
    second.finish()
    assert place.see("open1").series["train/loss"] == [(1, 2.0), (2, 1.0)]


def test_two_runs_at_once_do_not_mix(place: Any) -> None:
    left, right = start(place), start(place)
    left.log({"loss": 1.0}, step=1)
    right.log({"loss": 2.0}, step=1)
    right.finish()
    left.finish()
    assert left.run_id != right.run_id
    assert place.see(left.run_id).series["loss"] == [(1, 1.0)]
    assert place.see(right.run_id).series["loss"] == [(1, 2.0)]
