"""W&B runs on this disk and against a local server: kills, faults, continuing and pushing."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog
from pydantic import SecretStr
from structlog.testing import capture_logs
from typer.testing import CliRunner

from leitstand.errors import ConfigurationError, LeitstandError, TransientBackendError
from leitstand.settings import Settings, TrackingSettings
from models.tracking import syncing
from models.tracking import wandb as adapter
from models.tracking.reading import LoggedRun, find_run, read_runs
from models.tracking.syncing import sync_runs
from models.tracking.wandb import open_tracker
from tests.wandb_server import KEY, WandbServer, wandb_server

CLOSED = "http://127.0.0.1:9"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server() as state:
        yield state


def online(home: Path, url: str, key: str = KEY) -> Settings:
    return Settings(home=home, tracking=TrackingSettings(api_key=SecretStr(key), base_url=url))


def start(settings: Settings, run_id: str | None = None, **config: Any) -> Any:
    return open_tracker(settings).start(use_case="support", job="train", config=config, run_id=run_id)


def logged(home: Path, run_id: str, artifact: Path | None = None, **options: Any) -> LoggedRun:
    """A finished offline run."""
    run = start(Settings(home=home), run_id)
    for step in range(3):
        run.log({"train/loss": 3.0 - step}, step=step)
    if artifact:
        run.log_artifact("support-model", "model", artifact)
    run.finish(**options)
    return find_run(read_runs(home), run_id)


def until(condition: Callable[[], Any], deadline_s: float = 30) -> Any:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("the condition did not come true in time")


WRITER = """
import sys, time
from pathlib import Path
from leitstand.settings import Settings
from models.tracking.wandb import open_tracker
run = open_tracker(Settings(home=Path(sys.argv[1]))).start(
    use_case="support", job="train", config={"seed": 17}, run_id="killed1")
for step in range(100_000):
    run.log({"train/loss": 1 / (step + 1), "pad": step}, step=step)
    time.sleep(0.002)
"""


@pytest.fixture
def killed(home: Path, project: Path) -> LoggedRun:
    """A run whose process was killed with SIGKILL while it logged, W&B's helper process with it."""
    own_helper = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # not that of the tests
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(home)], cwd=project, env=own_helper)
    try:
        running = until(lambda: [run for run in read_runs(home) if len(run.history.get("train/loss", [])) > 50])
        assert running[0].state == "running"
    finally:
        helpers = psutil.Process(process.pid).children(recursive=True)
        for each in (process, *helpers):
            each.kill()
        process.wait(timeout=10)
        psutil.wait_procs(helpers, timeout=10)
    return until(lambda: [run for run in read_runs(home) if run.state != "running"])[0]


def test_a_killed_run_is_crashed_keeps_its_points_and_can_be_continued(home: Path, killed: LoggedRun) -> None:
    points = killed.history["train/loss"]
    assert points[:2] == [(0, 1.0), (1, 0.5)]
    run = start(Settings(home=home), "killed1")
    run.log({"train/loss": 0.25}, step=40)
    run.finish()
    merged = find_run(read_runs(home), "killed1")
    assert len(merged.folders) == 2
    assert dict(merged.history["train/loss"])[40] == 0.25
    steps = [step for step, _ in merged.history["train/loss"]]
    assert steps[: len(points)] == [step for step, _ in points]
    assert steps == sorted(set(steps))


def test_a_real_run_file_is_read_to_the_last_value(home: Path) -> None:
    """Fails when a W&B release changes the file's layout."""
    run = start(Settings(home=home), "layout1", seed=17)
    run.log({"a/b": 0.125, "c": 3}, step=7)
    until(lambda: any("proc.memory.rssMB" in seen.system for seen in read_runs(home)))  # sampled beside the run
    run.finish()
    found = find_run(read_runs(home), "layout1")
    assert found.complete
    assert (found.use_case, found.job, found.project) == ("support", "train", "leitstand")
    assert found.history == {"a/b": [(7, 0.125)], "c": [(7, 3.0)]}
    assert found.config == {"seed": 17}
    assert "proc.memory.rssMB" in found.system
    assert run.url == str(found.folders[0])


def test_a_damaged_tail_gives_the_beginning_and_a_foreign_file_is_left_out(home: Path) -> None:
    run = logged(home, "cut1")
    file = next(run.folders[0].glob("*.wandb"))
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3])
    logged(home, "whole1")
    broken = next(find_run(read_runs(home), "whole1").folders[0].glob("*.wandb"))
    broken.write_bytes(b"not a run file")
    with capture_logs() as logs:
        runs = read_runs(home)
    assert [(run.run_id, run.state, run.complete) for run in runs] == [("cut1", "crashed", False)]
    assert [log["event"] for log in logs] == ["a run file cannot be read"]


def test_a_disk_fault_costs_one_log_line_and_not_the_training(home: Path) -> None:
    run = start(Settings(home=home), "fault1")
    run.log({"loss": 1.0}, step=0)
    (Path(run.url) / "files" / "media").write_text("a file where W&B wants a folder")
    structlog.reset_defaults()
    with capture_logs() as logs:
        run.log_table("slices", ["slice", "accuracy"], [["short", 0.5]])
        run.log_table("again", ["slice", "accuracy"], [["short", 0.5]])
        run.log_artifact("model", "model", home / "missing")
    run.log({"loss": 0.5}, step=1)
    run.finish()
    assert [log["run_id"] for log in logs] == ["fault1"]
    assert find_run(read_runs(home), "fault1").history["loss"] == [(0, 1.0), (1, 0.5)]


def test_training_goes_on_when_not_even_a_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the home should be")
    run = start(Settings(home=tmp_path / "home"))
    run.log({"loss": 1.0})
    run.finish()
    assert run.run_id


def test_without_network_the_run_goes_on_offline(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "INIT_TIMEOUT_S", 1.0)
    run = start(online(home, CLOSED), "nonet1")
    run.log({"loss": 1.0}, step=3)
    run.finish()
    found = find_run(read_runs(home), "nonet1")
    assert found.history["loss"] == [(3, 1.0)]
    assert found.state == "finished"
    assert Path(run.url).is_dir()


def test_a_key_that_cannot_be_one_is_a_configuration_error_and_is_not_printed(home: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_tracker(online(home, CLOSED, key="hunter2"))
    assert "hunter2" not in str(caught.value)


def test_a_refused_key_stops_the_run_at_its_start(home: Path, server: WandbServer) -> None:
    with pytest.raises(ConfigurationError, match="refused"):
        start(online(home, server.url, key="w" * 40))


def test_with_a_key_the_run_is_online_and_its_metrics_arrive(home: Path, server: WandbServer) -> None:
    run = start(online(home, server.url), "online1")
    run.log({"train/loss": 2.0}, step=5)
    run.finish()
    assert run.url.startswith(server.url)
    lines = server.history["online1"].values()
    assert [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line] == [(5, 2.0)]
    assert find_run(read_runs(home), "online1").state == "finished"


def test_sync_pushes_each_folder_once_and_an_artifact_once(home: Path, server: WandbServer, tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"the same weights")
    settings = online(home, server.url)
    runs = [logged(home, name, weights) for name in ("one1", "two2")]
    assert len(sync_runs(settings, runs, dry_run=True).pushed) == 2
    assert server.runs == {}
    assert len(sync_runs(settings, runs).pushed) == 2
    models = [key for key in server.artifacts if key[0] == "support-model"]
    assert len(models) == 1
    assert server.uploads["weights.bin"] == b"the same weights"
    asked = len(server.operations)
    again = sync_runs(settings, runs)
    assert (len(again.pushed), len(again.already_there)) == (0, 2)
    assert len(server.operations) == asked


def test_sync_leaves_a_running_run_for_later(home: Path, server: WandbServer) -> None:
    run = start(Settings(home=home), "busy1")
    run.log({"loss": 1.0}, step=0)
    seen = until(lambda: read_runs(home))
    report = sync_runs(online(home, server.url), seen)
    run.finish()
    assert (len(report.pushed), len(report.still_running)) == (0, 1)
    assert server.runs == {}


def test_sync_of_a_continued_run_pushes_only_the_new_part(home: Path, server: WandbServer) -> None:
    settings = online(home, server.url)
    sync_runs(settings, [logged(home, "grow1", failed=True)])
    run = start(Settings(home=home), "grow1")
    run.log({"train/loss": 0.5}, step=3)
    run.finish()
    report = sync_runs(settings, read_runs(home))
    assert (len(report.pushed), len(report.already_there)) == (1, 1)
    lines = [server.history["grow1"][offset] for offset in sorted(server.history["grow1"])]
    assert [line["step"] for line in lines if "train/loss" in line] == [0, 1, 2, 3]


def test_sync_pushes_what_a_killed_run_left(home: Path, killed: LoggedRun, server: WandbServer) -> None:
    settings = online(home, server.url)
    file = next(killed.folders[0].glob("*.wandb"))
    file.write_bytes(file.read_bytes()[:-3])
    assert len(sync_runs(settings, [killed]).pushed) == 1
    assert len(server.history["killed1"]) >= 50
    assert len(sync_runs(settings, [killed]).already_there) == 1


def test_sync_with_a_refused_key_marks_nothing(home: Path, server: WandbServer) -> None:
    run = logged(home, "deny1")
    with pytest.raises(ConfigurationError, match="refused the key"):
        sync_runs(online(home, server.url, key="w" * 40), [run])
    assert len(sync_runs(online(home, server.url), [run]).pushed) == 1


def test_sync_without_a_server_is_transient_and_marks_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "GRAPHQL_RETRIES", 1)
    run = logged(home, "gone1")
    with pytest.raises(TransientBackendError):
        sync_runs(online(home, CLOSED), [run])
    assert len(sync_runs(online(home, CLOSED), [run], dry_run=True).pushed) == 1


def test_sync_without_a_key_says_which_variable_to_set(home: Path) -> None:
    with pytest.raises(LeitstandError, match="LEITSTAND_TRACKING__API_KEY"):
        sync_runs(Settings(home=home), [])


def test_the_command_lists_shows_and_compares_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leitstand.commands.runs import app

    monkeypatch.setenv("LEITSTAND_HOME", str(home))
    for name in ("first1", "second2"):
        logged(home, name)
    call = CliRunner().invoke
    listed = json.loads(call(app, ["list", "--json"]).stdout)
    assert [row["run_id"] for row in listed] == ["second2", "first1"]
    assert "second2" in call(app, ["list", "support"]).stdout
    assert "second2" not in call(app, ["list", "other"]).stdout
    shown = json.loads(call(app, ["show", "latest~1", "--json"]).stdout)
    assert shown["curves"]["train/loss"] == {"points": 3, "last": [2, 1.0]}
    page = Path(call(app, ["compare", "first", "latest"]).stdout.strip())
    assert "first1" in page.read_text()
    assert "2 to push" in call(app, ["sync", "--dry-run"]).output
