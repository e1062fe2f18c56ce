"""Rollouts through a real gateway, with real processes as versions and clients that never stop asking."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from flows.rollout import Controller, drive
from flows.switching import make_stable
from leitstand.errors import ConflictError
from leitstand.settings import GatewaySettings, LocalSettings, Settings
from leitstand.types import utc_now
from leitstand.usecase import UseCase
from monitors.rollout_rules import Command, Phase, Rollout
from tests.rollout_for_tests import live_controller, use_case
from tests.servers import free_ports, running, wait_until

CLIENTS = 4
GATEWAY = (
    "from leitstand.settings import load_settings; from services.gateway import serve; "
    "from services.gateway_wiring import wire; serve(wire(load_settings()))"
)
QUICK = {
    "shadow_minutes": 0, "canary_percent": (20, 50, 100), "min_requests": 20, "slow_ms": 250,
    "margins": {"errors": 0.2, "slow": 0.3, "doubt": 0.2}, "margin_widening": 1.0,
}  # fmt: skip
numbers = itertools.count()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A home with a gateway that runs."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(
        home=home, gateway=GatewaySettings(port=free_ports(1)[0]), local=LocalSettings(ready_timeout_s=20)
    )
    environment = os.environ | {"LEITSTAND_HOME": str(home), "LEITSTAND_GATEWAY__PORT": str(settings.gateway.port)}
    url = f"http://127.0.0.1:{settings.gateway.port}"
    with running([sys.executable, "-c", GATEWAY], home / "gateway.log", environment) as process:
        wait_until(lambda: is_alive(url), process, home / "gateway.log", "the gateway")
        yield settings
    live_controller(settings, use_case()).deployer.supervisor.stop()  # type: ignore[attr-defined]


def is_alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def spec(settings: Settings) -> UseCase:
    """A use case of its own for each test, with version 1 behind the gateway."""
    quick = use_case(**QUICK)
    serving = quick.serving.model_copy(update={"port": free_ports(1)[0]})
    spec = quick.model_copy(update={"name": f"triage{next(numbers)}", "serving": serving})
    control = live_controller(settings, spec)
    make_stable(
        control.deployer, control.routes, spec, tag=f"{spec.name}:1", version=1, actor="test", reason="first",
        spread_s=0,
    )  # fmt: skip
    return spec


class Clients:
    """Asks the gateway without a pause, and counts the answers by status and version."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._url = f"http://127.0.0.1:{settings.gateway.port}/v1/{name}/predict"
        self.answers: Counter[tuple[int, str]] = Counter()
        self._end = threading.Event()

    def ask(self) -> None:
        with httpx.Client() as client:
            while not self._end.is_set():
                answer = client.post(self._url, json={"texts": ["where is my card?"]})
                self.answers[answer.status_code, answer.headers.get("x-leitstand-version", "")] += 1
                time.sleep(0.002)

    def is_routed(self) -> bool:
        return httpx.post(self._url, json={"texts": ["hello"]}).status_code == 200

    def stop(self) -> None:
        self._end.set()

    @property
    def failed(self) -> int:
        return sum(count for (status, _), count in self.answers.items() if status != 200)


@contextmanager
def traffic(settings: Settings, name: str) -> Iterator[Clients]:
    clients = Clients(settings, name)
    until(clients.is_routed, "the gateway to know the use case")
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(clients.ask) for _ in range(CLIENTS)]
        try:
            until(lambda: clients.answers[200, "1"] > 0, "a first answer")
            yield clients
        finally:
            clients.stop()
    for each in asked:
        each.result()


def until(condition: object, what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def percent(control: Controller, name: str) -> float:
    table = control.routes.read(name)
    return table.canary_percent if table else 0.0


def begin(settings: Settings, spec: UseCase, tag: str, version: int = 2) -> Rollout:
    return live_controller(settings, spec).begin(spec, tag=f"{spec.name}:{tag}", version=version, actor="ann")


def test_a_healthy_canary_is_promoted_through_every_step_and_no_request_fails(
    settings: Settings, spec: UseCase
) -> None:
    control = live_controller(settings, spec)
    with traffic(settings, spec.name) as clients:
        final = drive(control, begin(settings, spec, "2").rollout_id, poll_s=0.1)
        assert final.phase is Phase.PROMOTED, final.reason
        only_new = clients.answers[200, "2"]
        until(lambda: clients.answers[200, "2"] > only_new + 50, "answers of the new version")
    assert clients.failed == 0, clients.answers
    assert [table.canary_percent for table in control.routes.history(spec.name)] == [0, 20, 50, 0, 0]
    assert [endpoint.version for endpoint in control.deployer.all(spec.name)] == [2]
    assert httpx.get(f"http://127.0.0.1:{spec.serving.port}/v2").json()["version"] == "2"


@pytest.mark.parametrize("trait", ["broken", "unsure"])
def test_a_bad_canary_is_rolled_back_and_no_client_notices(settings: Settings, spec: UseCase, trait: str) -> None:
    control = live_controller(settings, spec)
    with traffic(settings, spec.name) as clients:
        final = drive(control, begin(settings, spec, f"2.{trait}").rollout_id, poll_s=0.1)
    assert final.phase is Phase.ROLLED_BACK
    assert {"broken": "errors: canary 100.00%", "unsure": "doubt: canary 45.00%"}[trait] in final.reason
    assert clients.failed == 0, clients.answers
    tables = control.routes.history(spec.name)
    assert [table.canary_percent for table in tables] == [0, 20, 0], "it never came further than the first step"
    assert [endpoint.version for endpoint in control.deployer.all(spec.name)] == [1]
    decided = next(state.at for state in control.store.history(final.rollout_id) if state.phase is Phase.ROLLING_BACK)
    assert tables[-1].changed_at - decided < timedelta(seconds=1)


def test_a_controller_killed_mid_step_leaves_everything_serving_and_another_goes_on(
    settings: Settings, spec: UseCase
) -> None:
    control = live_controller(settings, spec)
    rollout = begin(settings, spec, "2")
    command = [
        sys.executable, "-m", "tests.rollout_for_tests", str(settings.home), str(settings.gateway.port),
        spec.model_dump_json(), rollout.rollout_id,
    ]  # fmt: skip
    first = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        until(lambda: percent(control, spec.name) == 20, "the canary")
    finally:
        first.kill()
        first.wait()
    with traffic(settings, spec.name) as clients:
        until(lambda: clients.answers[200, "2"] > 0, "answers of the canary that nobody drives")
        final = drive(control, rollout.rollout_id, poll_s=0.1)
    assert final.phase is Phase.PROMOTED
    assert clients.failed == 0, clients.answers
    assert [state.revision for state in control.store.history(rollout.rollout_id)] == list(range(1, final.revision + 1))


def test_a_person_holds_approves_and_aborts_and_a_second_rollout_is_refused(settings: Settings, spec: UseCase) -> None:
    control = live_controller(settings, spec)
    rollout = begin(settings, spec, "2")
    with pytest.raises(ConflictError, match=rollout.rollout_id):
        begin(settings, spec, "3", version=3)

    def ask(command: Command) -> Rollout:
        request = control.store.ask(rollout.rollout_id, command, actor="ann", reason="a test", at=utc_now())
        return drive(control, rollout.rollout_id, until=lambda state: state.requests_seen >= request.number, poll_s=0.1)

    drive(control, rollout.rollout_id, until=lambda state: state.phase is Phase.CANARY, poll_s=0.1)
    assert ask(Command.HOLD).phase is Phase.HELD
    table = control.routes.read(spec.name)
    assert table is not None
    assert (table.canary_percent, table.actor) == (20, f"rollout:{rollout.rollout_id}")
    assert ask(Command.APPROVE).phase is Phase.CANARY
    ask(Command.ABORT)
    assert drive(control, rollout.rollout_id, poll_s=0.1).phase is Phase.ABORTED
    assert [endpoint.version for endpoint in control.deployer.all(spec.name)] == [1]
