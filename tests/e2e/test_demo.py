"""The demo's loop with real processes: drift seen, model retrained, a bad canary rolled back, a good one promoted.

The fast scenario: 14 queues of which 4 are withheld, without the minute of shadow. An interrupted demo comes first,
in the same folder: it must leave nothing running and nothing in the way of the next one.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import psutil
import pytest

COMMAND = [sys.executable, "-m", "leitstand.cli", "demo", "--fast", "--json"]


@dataclass(frozen=True)
class User:
    """Somebody with an installation of their own."""

    home: Path
    environment: dict[str, str]

    @property
    def demo(self) -> Path:
        return self.home / "demo"

    def processes(self) -> list[psutil.Process]:
        """What runs with the demo's home."""
        return [process for process in psutil.process_iter() if _home_of(process) == str(self.demo)]


def _home_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("LEITSTAND_HOME", "")
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[User]:
    home = tmp_path_factory.mktemp("user")
    environment = os.environ | {
        "LEITSTAND_HOME": str(home),
        "LEITSTAND_USECASES": str(request.config.rootpath / "usecases"),
        "BENTOML_HOME": str(home / "bentos of the user"),
        "LEITSTAND_REGISTRY__URI": f"sqlite:///{home}/registry of the user.db",
    }
    user = User(home, environment)
    yield user
    for process in user.processes():
        process.kill()


def wait_until(condition: object, what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)


def test_an_interrupted_demo_stops_everything_that_it_started(user: User) -> None:
    # Where the tests run in the background of a shell, SIGINT is ignored, and children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with (user.home / "interrupted.log").open("wb") as log:
        process = subprocess.Popen(COMMAND, env=user.environment, stdout=log, stderr=log, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    programs = user.demo / "run" / "programs"
    wait_until(lambda: list(programs.glob("bento-*.conf")) or process.poll() is not None, "a Bento that is started")
    assert len(user.processes()) > 1, (user.home / "interrupted.log").read_text()[-2000:]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    wait_until(lambda: not user.processes(), "its processes to end", 30)


@pytest.fixture(scope="module")
def finished(user: User) -> subprocess.CompletedProcess[str]:
    """A whole demo, in the folder that the interrupted one left."""
    return subprocess.run(COMMAND, env=user.environment, capture_output=True, text=True, check=False, timeout=550)


def test_every_step_of_the_loop_happens(finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.returncode == 0, finished.stderr[-4000:]
    result = json.loads(finished.stdout)
    assert len(result["steps"]) == 9
    assert all(step["happened"] for step in result["steps"])
    kinds = [event["kind"] for event in result["events"] if event["kind"]]
    story = ["served", "gate", "rolled back", "onset", "detected", "decided", "quarantined", "retrained", "promoted"]
    assert [kind for kind in kinds if kind in story] == story
    numbers = result["numbers"]
    assert numbers["calm_alarms"] == numbers["failed_requests"] == 0
    assert numbers["bad_canary_answers"] > 0, "the bad canary was in traffic"
    assert numbers["audit_records"] >= numbers["answers"] > 0
    assert numbers["accuracy_champion_new_queues"] == 0
    assert numbers["accuracy_retrained_new_queues"] > 0.8
    assert numbers["accuracy_gap"] <= 0.05


def test_the_story_can_be_read_without_a_terminal_and_its_pages_opened(
    finished: subprocess.CompletedProcess[str],
) -> None:
    assert "1. A champion that does not know 4 of 14 queues" in finished.stderr
    assert "\x1b[" not in finished.stderr
    result = json.loads(finished.stdout)
    pages = [Path(unquote(urlparse(link["url"]).path)) for link in result["links"]]
    assert len(pages) == 7
    assert all(page.is_file() for page in pages)
    timeline = Path(result["page"]).read_text()
    assert "<svg" in timeline
    assert "http://" not in timeline.replace("http://127.0.0.1", "").replace("http://www.w3.org", "")


def test_nothing_outlives_the_demo_and_the_users_own_stores_are_untouched(
    user: User, finished: subprocess.CompletedProcess[str]
) -> None:
    assert finished.returncode == 0
    assert user.processes() == []
    assert sorted(path.name for path in user.home.iterdir()) == ["demo", "interrupted.log"]
