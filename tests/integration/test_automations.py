"""On a real Prefect server: a drift event starts one retraining, and what a person switched off stays off."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from leitstand.settings import Settings, quiet_environment
from tests.servers import free_ports, running, wait_until
from tests.training_for_tests import tiny_use_case

EMIT = """
import sys
from flows.loop_events import emit, events_of
from leitstand.types import Decision, DriftReport
from prefect.events.worker import EventsWorker

report, *decisions = sys.stdin.read().splitlines()
report = DriftReport.model_validate_json(report)
for decision in decisions:
    emit(events_of(Decision.model_validate_json(decision), report, previous_version=1))
EventsWorker.instance().drain()
"""
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Server:
    folder: Path
    environment: dict[str, str]
    project: Path

    def python(self, *arguments: str, text: str = "") -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.project, env=self.environment, input=text, capture_output=True,
            text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def api(self, path: str, body: Any = None, method: str = "POST") -> Any:
        request = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}{path}", data=json.dumps(body).encode(), method=method,
            headers={"content-type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=10) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def automations(self) -> dict[str, Any]:
        return {each["name"]: each for each in self.api("/automations/filter", {})}

    def runs(self) -> list[tuple[str, dict[str, Any]]]:
        """Deployment and parameters of every run that no schedule made."""
        names = {each["id"]: each["name"] for each in self.api("/flows/filter", {})}
        found = self.api("/flow_runs/filter", {})
        return [(names[run["flow_id"]], run["parameters"]) for run in found if not run["auto_scheduled"]]

    def emit(self, *decided: tuple[str, str, str]) -> None:
        """Emits what follows from decisions: (use case, action, report digest)."""
        report = {
            "use_case": "tiny", "version": 2, "window_start": NOW.isoformat(), "window_end": NOW.isoformat(),
            "rows": 900, "reference_rows": 1, "reference_digest": "", "scores": [], "drifted": True,
        }  # fmt: skip
        decisions = [
            {"use_case": name, "version": 2, "at": NOW.isoformat(), "action": action, "reasons": ["why"],
             "report_digest": digest}
            for name, action, digest in decided
        ]  # fmt: skip
        self.python("-c", EMIT, text="\n".join(json.dumps(each) for each in [report, *decisions]))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prefect server with the deployments of `tiny`, as `leitstand init` would write them."""
    project, folder = Path(__file__).parents[2], tmp_path_factory.mktemp("prefect")
    (port,) = free_ports(1)
    (folder / "home" / "prefect").mkdir(parents=True)
    settings = Settings(home=folder / "home")
    usecases = folder / "usecases" / "tiny"
    usecases.mkdir(parents=True)
    case = tiny_use_case("base").model_dump(mode="json") | {"drift": {"check_every": "PT15M"}}
    (usecases / "usecase.yaml").write_text(yaml.safe_dump(case))
    (folder / "prefect.yaml").write_text((project / "prefect.yaml").read_text().replace("support", "tiny"))
    environment = quiet_environment(settings, base=os.environ) | {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "LEITSTAND_HOME": str(folder / "home"),
        "LEITSTAND_USECASES": str(folder / "usecases"), "LEITSTAND_LOCAL__PREFECT_PORT": str(port),
    }  # fmt: skip
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    made = Server(folder, environment, project)
    with running(command, folder / "log", env=environment) as process:
        wait_until(lambda: healthy(made), process, folder / "log", "Prefect")
        made.python("-m", "prefect", "--no-prompt", "work-pool", "create", "local", "--type", "process")
        deploy(made)
        yield made


def healthy(server: Server) -> bool:
    try:
        return server.api("/health", method="GET") is True
    except OSError:
        return False


def deploy(server: Server, only: str = "") -> None:
    file = yaml.safe_load((server.folder / "prefect.yaml").read_text())
    file["deployments"] = [each for each in file["deployments"] if each["entrypoint"].endswith(only)]
    target = server.folder / "deployed.yaml"
    target.write_text(yaml.safe_dump(file))
    server.python("-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(target))


def deadline(seconds: float = 60) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.2)
    raise AssertionError("it did not happen in time")


def test_a_drift_event_starts_one_retraining_and_what_is_switched_off_stays_off(server: Server) -> None:
    assert "created" in server.python("-m", "flows.automations", "tiny")
    retrain = server.automations()["leitstand: retrain tiny"]

    server.api(f"/automations/{retrain['id']}", {"enabled": False}, "PATCH")
    again = server.python("-m", "flows.automations")
    assert "switched off" in again
    assert "every 0:15:00" in again
    assert len(server.automations()) == 2
    assert not server.automations()["leitstand: retrain tiny"]["enabled"]
    server.api(f"/automations/{retrain['id']}", {"enabled": True}, "PATCH")

    # Harmless drift, another use case, and the same event twice; then a roll back, which comes last.
    server.emit(
        ("tiny", "warn", "sha256:0"), ("other", "retrain", "sha256:0"), ("tiny", "retrain", "sha256:1"),
        ("tiny", "retrain", "sha256:1"), ("tiny", "roll back", "sha256:2"),
    )  # fmt: skip
    for _ in deadline():
        if any(name == "deploy" for name, _ in server.runs()) and any(name == "retrain" for name, _ in server.runs()):
            break
    assert sorted(server.runs(), key=lambda run: run[0]) == [
        ("deploy", {"use_case": "tiny", "version": 1}),
        ("retrain", {"use_case": "tiny", "trigger": "sha256:1", "reason": "why"}),
    ]


def test_a_schedule_that_is_switched_off_stays_off_when_deployed_again(server: Server) -> None:
    def schedules() -> dict[str, Any]:
        found = server.api("/deployments/name/drift-check/tiny", method="GET")
        return {each["slug"]: each for each in found["schedules"]} | {"id": found["id"]}

    before = schedules()
    schedule = before["each-window"]
    assert schedule["active"]
    server.api(f"/deployments/{before['id']}/schedules/{schedule['id']}", {"active": False}, "PATCH")
    deploy(server, only="drift_check")
    server.python("-m", "flows.automations")
    after = schedules()["each-window"]
    assert not after["active"]
    assert after["schedule"]["interval"] == 900
