"""In-memory parts around the rollout controller: a deployer, counters and a champion, each with its faults."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock

from flows.deploying import LocalDeployer
from flows.rollout import Controller, drive, gateway_urls
from flows.rollout_store import RolloutStore, open_rollout_store
from governance.routes.opening import open_route_store
from leitstand.errors import PermanentBackendError
from leitstand.settings import GatewaySettings, Settings
from leitstand.types import Endpoint, RouteTable, Target
from leitstand.usecase import RolloutSpec, UseCase, load
from monitors.gateway_counts import GatewayMetrics
from monitors.rollout_rules import Rollout
from tests.fakes import InMemoryRouteStore

START = datetime(2026, 1, 1, tzinfo=UTC)
USE_CASE = load(Path(__file__).parents[1] / "usecases/support/usecase.yaml")


def use_case(**policy: object) -> UseCase:
    """The support use case with parts of its rollout policy replaced."""
    spec = RolloutSpec.model_validate(USE_CASE.rollout.model_dump() | policy)
    return USE_CASE.model_copy(update={"rollout": spec})


@dataclass
class Clock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **delta: float) -> None:
        self.now += timedelta(**delta)


class InMemoryDeployer:
    """A `Deployer` whose instances exist in a list; a tag in `dead` never becomes ready."""

    def __init__(self) -> None:
        self.running: dict[str, Endpoint] = {}
        self.dead: set[str] = set()
        self._ports = iter(range(4000, 5000))

    def deploy(self, use_case: UseCase, *, tag: str, version: int) -> Endpoint:
        if tag in self.dead:
            raise PermanentBackendError(f"Bento {tag} did not become ready")
        there = [endpoint for endpoint in self.all(use_case.name) if endpoint.tag == tag]
        port = use_case.serving.port if not self.running else next(self._ports)
        return there[-1] if there else self._run(use_case.name, version, tag, port)

    def bring_home(self, use_case: UseCase, endpoint: Endpoint) -> Endpoint:
        home = f"http://127.0.0.1:{use_case.serving.port}"
        if endpoint.url == home or home in self.running:
            return endpoint
        return self._run(endpoint.use_case, endpoint.version, endpoint.tag, use_case.serving.port)

    def undeploy(self, endpoint: Endpoint) -> None:
        self.running.pop(endpoint.url, None)

    def current(self, use_case: str) -> Endpoint | None:
        return next(iter(self.all(use_case)), None)

    def all(self, use_case: str) -> Sequence[Endpoint]:
        return [endpoint for endpoint in self.running.values() if endpoint.use_case == use_case]

    def _run(self, use_case: str, version: int, tag: str, port: int) -> Endpoint:
        url = f"http://127.0.0.1:{port}"
        self.running[url] = Endpoint(use_case=use_case, version=version, tag=tag, url=url, deployed_at=START)
        return self.running[url]


@dataclass
class InMemoryCounts:
    """A `CountSource` of one gateway whose counters tests move."""

    counters: dict[str, float] = field(default_factory=dict)

    def read(self, use_case: str) -> Mapping[str, dict[str, float]]:
        return {"gateway": dict(self.counters)}

    def answer(self, version: int, requests: int, *, failed: int = 0, slow: int = 0, confidence: float = 0.95) -> None:
        good = requests - failed
        for name, value in {
            "answered": good, "failed": failed, "le:0.1": good - slow, "le:inf": good,
            "texts": good, "doubt": good * (1 - confidence),
        }.items():  # fmt: skip
            self.counters[f"{version}/{name}"] = self.counters.get(f"{version}/{name}", 0.0) + value

    def shadow(self, version: int, *, agree: int = 0, disagree: int = 0, failed: int = 0) -> None:
        for name, value in {"agree": agree, "disagree": disagree, "failed": failed}.items():
            key = f"{version}~shadow/{name}"
            self.counters[key] = self.counters.get(key, 0.0) + value


@dataclass
class InMemoryChampion:
    holder: int = 1
    moves: list[int] = field(default_factory=list)

    def give(self, rollout: Rollout) -> None:
        self._move(rollout.version)

    def take_back(self, rollout: Rollout) -> None:
        if self.holder == rollout.version and rollout.previous is not None:
            self._move(rollout.previous)

    def _move(self, version: int) -> None:
        if self.holder != version:
            self.holder = version
            self.moves.append(version)


@dataclass
class World:
    """A controller over in-memory parts, version 1 stable, and a file for the store."""

    folder: Path
    spec: UseCase = USE_CASE
    clock: Clock = field(default_factory=Clock)
    routes: InMemoryRouteStore = field(default_factory=InMemoryRouteStore)
    deployer: InMemoryDeployer = field(default_factory=InMemoryDeployer)
    counts: InMemoryCounts = field(default_factory=InMemoryCounts)
    champion: InMemoryChampion = field(default_factory=InMemoryChampion)

    def __post_init__(self) -> None:
        first = self.deployer.deploy(self.spec, tag="support:1", version=1)
        stable = Target(version=1, url=first.url)
        table = RouteTable(use_case="support", stable=stable, changed_at=START, actor="test", reason="first")
        self.routes.write(table, expected=0)

    def controller(self) -> Controller:
        """A new one each time, as after a crash."""
        return Controller(
            store=RolloutStore(self.folder / "rollouts.db"), routes=self.routes, deployer=self.deployer,
            counts=self.counts, champion=self.champion, use_case=lambda _: self.spec,
            lock=lambda name: FileLock(self.folder / f"{name}.lock"), clock=self.clock, spread_s=0.0,
        )  # fmt: skip

    @property
    def table(self) -> RouteTable:
        table = self.routes.read("support")
        assert table is not None
        return table

    def versions(self) -> set[int]:
        """Which versions run."""
        return {endpoint.version for endpoint in self.deployer.all("support")}


def tiny_bento(tag: str, host: str, port: int) -> list[str]:
    """The command line of a tiny service in place of a Bento."""
    return [sys.executable, "-S", str(Path(__file__).with_name("tiny_bento.py")), tag, host, str(port)]


def live_controller(settings: Settings, spec: UseCase) -> Controller:
    """A controller over real processes, a real route store and a real gateway; only the champion is in memory."""
    return Controller(
        store=open_rollout_store(settings), routes=open_route_store(settings),
        deployer=LocalDeployer(settings, command=tiny_bento), counts=GatewayMetrics(gateway_urls(settings)),
        champion=InMemoryChampion(), use_case=lambda _: spec,
        lock=lambda name: FileLock(settings.root / f"{name}.lock"),
    )  # fmt: skip


if __name__ == "__main__":  # drives a rollout in a process of its own, to be killed: HOME PORT SPEC ROLLOUT_ID
    home, gateway, written, rollout_id = sys.argv[1:]
    place = Settings(home=Path(home), gateway=GatewaySettings(port=int(gateway)))
    drive(live_controller(place, UseCase.model_validate_json(written)), rollout_id, poll_s=0.2)
