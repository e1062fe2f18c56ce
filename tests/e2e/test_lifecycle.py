"""The first promise: from source files to a served, promoted, explained version, and again after a fault.

One workspace is shared by the module: a use case as `leitstand init` writes it, real Prefect server and
worker, real registry, real Bento. The tests read in order like a story.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.servers import free_ports


@dataclass(frozen=True)
class Workspace:
    folder: Path
    environment: dict[str, str]
    service: str

    @property
    def home(self) -> Path:
        return self.folder / ".leitstand"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "leitstand.cli", *arguments]

    def leitstand(self, *arguments: str, timeout: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment | more, capture_output=True, text=True,
            check=False, timeout=timeout,
        )  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "started.log").open("ab") as log:
            return subprocess.Popen(
                self.command(*arguments), cwd=self.folder, env=self.environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def versions(self, name: str = "triage") -> list[dict[str, Any]]:
        return json.loads(self.leitstand("models", "list", name, "--json").stdout)

    def edit(self, old: str, new: str) -> None:
        file = self.folder / "usecases/triage/usecase.yaml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    project = Path(__file__).parents[2]
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(project / "usecases", folder / "usecases")
    shutil.copy(project / "prefect.yaml", folder)
    prefect, port, gateway = free_ports(3)
    environment = os.environ | {
        "LEITSTAND_HOME": str(folder / ".leitstand"),
        "LEITSTAND_USECASES": str(folder / "usecases"),
        "LEITSTAND_LOCAL__PREFECT_PORT": str(prefect),
        "LEITSTAND_GATEWAY__PORT": str(gateway),
    }
    environment.pop("PREFECT_API_URL", None)
    workspace = Workspace(folder, environment, f"http://127.0.0.1:{port}")
    assert workspace.leitstand("init", "triage").returncode == 0
    shutil.copy(folder / "usecases/triage/prefect.yaml", folder / "prefect.yaml")
    workspace.edit("port: 3001", f"port: {port}")
    try:
        up = workspace.leitstand("up")
        assert up.returncode == 0, up.stderr
        yield workspace
    finally:
        workspace.leitstand("down")


def test_one_command_takes_source_files_to_a_served_champion(workspace: Workspace) -> None:
    done = workspace.leitstand("run", "triage", "--json")
    assert done.returncode == 0, done.stderr
    version = json.loads(done.stdout)
    assert version["version"] == 1
    assert {"gate_report.html", "gate_report.json", "model_card.md", "model_card.html"} <= set(version["attachments"])
    (listed,) = workspace.versions()
    assert set(listed["aliases"]) == {"champion", "challenger"}
    told = workspace.leitstand("predict", "triage", "How do I activate my new card?", "--json")
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    assert (answer["version"], answer["predictions"][0]["label"]) == ("1", "activate_my_card")


def test_an_answer_is_explained_from_its_record_and_given_again(workspace: Workspace) -> None:
    told = workspace.leitstand("predict", "triage", "I forgot my passcode", "--json")
    answer = json.loads(told.stdout)
    assert answer["route"] == "stable", told.stderr
    explained = workspace.leitstand("explain", answer["request_id"])
    assert explained.returncode == 0, explained.stderr
    (listed,) = workspace.versions()
    for fact in ("triage:1 as stable", listed["data_digest"], listed["commit"], "approved"):
        assert str(fact) in explained.stdout, (fact, explained.stdout)
    again = workspace.leitstand("replay", answer["request_id"])
    assert again.returncode == 0, again.stdout + again.stderr
    assert "identical" in again.stdout
    verified = workspace.leitstand("audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_the_service_speaks_the_open_inference_protocol(workspace: Workspace) -> None:
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["my card", "an ATM?"]}]}
    answer = httpx.post(f"{workspace.service}/v2/models/triage/versions/1/infer", json=body).raise_for_status().json()
    assert (answer["model_name"], answer["model_version"]) == ("triage", "1")
    assert {(o["name"], o["datatype"], tuple(o["shape"])) for o in answer["outputs"]} == {
        ("label", "BYTES", (2,)), ("score", "FP32", (2,)), ("abstain", "BOOL", (2,)),
    }  # fmt: skip


def test_the_gateway_routes_to_what_was_deployed_logs_it_and_takes_feedback(workspace: Workspace) -> None:
    gateway = f"http://127.0.0.1:{workspace.environment['LEITSTAND_GATEWAY__PORT']}/v1/triage"
    answered = httpx.post(f"{gateway}/predict", json={"text": "How do I activate my new card?", "top_k": 2})
    assert answered.status_code == 200, answered.text
    (prediction,) = answered.json()["predictions"]
    assert (answered.headers["x-leitstand-version"], prediction["label"]) == ("1", "activate_my_card")
    assert [top["score"] for top in prediction["top"]] == sorted((t["score"] for t in prediction["top"]), reverse=True)
    assert len(prediction["top"]) == 2
    said = {"request_id": answered.headers["x-request-id"], "label": "a_queue_of_tomorrow", "source": "agent-1"}
    taken = httpx.post(f"{gateway}/feedback", json=said).json()
    assert taken["recorded"] and taken["new_label"], "recorded, and said to be none that the model has"
    assert httpx.post(f"{gateway}/feedback", json=said | {"label": "activate_my_card"}).json()["known"]
    routes = json.loads(workspace.leitstand("routes", "list", "--json").stdout)
    assert [(table["use_case"], table["stable"]["version"]) for table in routes] == [("triage", 1)]


def test_every_stage_left_lineage_from_source_to_endpoint(workspace: Workspace) -> None:
    lines = [line for file in (workspace.home / "lineage").glob("*.jsonl") for line in file.read_text().splitlines()]
    events = [json.loads(line) for line in lines]
    jobs = [f"triage.{stage}" for stage in ("ingest", "train", "evaluate", "register", "package", "deploy")]
    for job in jobs:
        kinds = [event["eventType"] for event in events if event["job"]["name"] == job]
        assert kinds[:2] == ["START", "COMPLETE"], (job, kinds)
    reached = {d["name"] for e in events for d in e["inputs"] if d["name"].endswith("train.csv")}
    assert reached, "the walk must begin at the source file"
    for before, after in itertools.pairwise(jobs):
        outputs = {(d["namespace"], d["name"]) for e in events if e["job"]["name"] == before for d in e["outputs"]}
        inputs = {(d["namespace"], d["name"]) for e in events if e["job"]["name"] == after for d in e["inputs"]}
        assert outputs & inputs, f"nothing leads from {before} to {after}"


def test_a_second_run_with_nothing_changed_trains_nothing_and_says_so(workspace: Workspace) -> None:
    done = workspace.leitstand("run", "triage")
    assert done.returncode == 0, done.stderr
    assert "no training" in done.stderr + done.stdout
    assert len(workspace.versions()) == 1


def test_a_worker_runs_the_deployment(workspace: Workspace) -> None:
    api = f"http://127.0.0.1:{workspace.environment['LEITSTAND_LOCAL__PREFECT_PORT']}/api"
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "deployment", "run", "lifecycle/triage", "--param", "seed=5", "--watch"],
        cwd=workspace.folder, env=workspace.environment | {"PREFECT_API_URL": api}, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    newest = workspace.versions()[0]
    assert newest["version"] == 2
    assert newest["parent"] == "triage:1"
    assert "champion" in newest["aliases"]  # type: ignore[operator]
    ready = httpx.get(f"{workspace.service}/v2/models/triage").raise_for_status().json()
    assert ready["versions"] == ["2"]


def test_a_failing_gate_stops_promotion_names_the_number_and_has_its_own_exit_code(workspace: Workspace) -> None:
    workspace.edit("{metric: accuracy, floor: 0.7,", "{metric: accuracy, floor: 0.9999,")
    done = workspace.leitstand("run", "triage", "--seed", "6")
    workspace.edit("{metric: accuracy, floor: 0.9999,", "{metric: accuracy, floor: 0.7,")
    assert done.returncode == 3, done.stderr
    assert "accuracy" in done.stderr
    assert "0.9999 by" in done.stderr
    rejected = workspace.versions()[0]
    assert rejected["version"] == 3
    assert rejected["aliases"] == []


def test_packaging_killed_half_way_is_done_again_as_if_nothing_had_happened(workspace: Workspace) -> None:
    process = workspace.start("package", "triage", "--version", "3")
    deadline = time.monotonic() + 60
    while not psutil.Process(process.pid).children(recursive=True):
        assert process.poll() is None, (workspace.folder / "started.log").read_text()[-2000:]
        assert time.monotonic() < deadline, "the build did not start"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = workspace.leitstand("package", "triage", "--version", "3", "--json")
    assert first.returncode == 0, first.stderr
    again = workspace.leitstand("package", "triage", "--version", "3", "--json")
    assert json.loads(first.stdout)["tag"] == json.loads(again.stdout)["tag"]


def test_training_killed_half_way_is_resumed_and_nothing_is_half_registered(workspace: Workspace) -> None:
    workspace.edit(
        "full: {method: finetune, epochs: 8,", "full: {method: finetune, epochs: 2, checkpoint_every_steps: 2,"
    )
    before = len(workspace.versions())
    process = workspace.start("run", "triage", "--profile", "full", "--no-serve")
    deadline = time.monotonic() + 200
    while not list(workspace.home.glob("runs/triage/*/checkpoints/[!.]*")):
        assert process.poll() is None, (workspace.folder / "started.log").read_text()[-2000:]
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(workspace.versions()) == before
    done = workspace.leitstand("run", "triage", "--profile", "full", "--no-serve", "--json")
    assert done.returncode in {0, 3, 4}, done.stderr
    assert len(workspace.versions()) == before + 1
    records = [json.loads(path.read_text()) for path in workspace.home.glob("runs/triage/*/record.json")]
    assert [record["resumed"] for record in records if record["profile"] == "full"] == [True]


def test_two_lifecycles_at_once_leave_one_version_each_and_an_intact_ledger(workspace: Workspace) -> None:
    before = len(workspace.versions())
    both = [workspace.start("run", "triage", "--seed", seed, "--no-serve") for seed in ("21", "22")]
    codes = [process.wait(timeout=300) for process in both]
    log = (workspace.folder / "started.log").read_text()
    assert set(codes) <= {0, 4}, log[-3000:]
    assert "database is locked" not in log
    assert len(workspace.versions()) == before + 2
    assert workspace.leitstand("models", "verify").returncode == 0
