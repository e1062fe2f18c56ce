"""The request queue with real processes: gateway, workers, Redis, a model server. What is accepted ends."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml

from governance.routes.opening import open_route_store
from leitstand.settings import GatewaySettings, Settings
from leitstand.types import RouteTable, Target, utc_now
from tests.servers import free_ports, redis_running, running, wait_until

DEADLINE_S = 60


@dataclass
class Site:
    """Everything on free ports below one folder; each part can be killed and started again."""

    home: Path
    ports: list[int] = field(default_factory=lambda: free_ports(3))
    stacks: dict[str, ExitStack] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def redis_uri(self) -> str:
        return f"redis://127.0.0.1:{self.ports[1]}/0"

    @property
    def environment(self) -> dict[str, str]:
        jobs = {
            "REDIS_URI": self.redis_uri, "LEASE_S": "1", "POLL_S": "0.05", "BACKOFF_S": "0.1", "MAX_BACKOFF_S": "0.5",
            "CHUNK_TEXTS": "4", "MAX_OPEN_PER_TENANT": "1000", "MAX_ATTEMPTS": "2",
        }  # fmt: skip
        return os.environ | {f"LEITSTAND_JOBS__{name}": value for name, value in jobs.items()} | {
            "LEITSTAND_HOME": str(self.home / "home"), "LEITSTAND_GATEWAY__PORT": str(self.ports[0]),
            "LEITSTAND_USECASES": str(self.home / "usecases"), "LEITSTAND_SERVING__DRAIN_S": "2",
        } | self.extra  # fmt: skip

    def start(self, name: str) -> None:
        stack = self.stacks[name] = ExitStack()
        if name == "redis":
            stack.enter_context(redis_running(self.home, self.ports[1]))
            return
        log = self.home / f"{name}.log"
        module = ["tests.tiny_upstream", "1", str(self.ports[2])] if name == "upstream" else ["leitstand.cli"]
        module += [] if name == "upstream" else ["gateway" if name == "gateway" else "worker"]
        process = stack.enter_context(running([sys.executable, "-m", *module], log, env=self.environment))
        stack.process = process  # type: ignore[attr-defined]
        ready = {
            "upstream": lambda: answers(f"http://127.0.0.1:{self.ports[2]}/v2"),
            "gateway": lambda: answers(f"{self.url}/readyz"),
        }.get(name, lambda: b"takes jobs" in log.read_bytes())
        wait_until(ready, process, log, name)

    def kill(self, name: str) -> None:
        self.stacks.pop(name).close()

    def process(self, name: str) -> "subprocess.Popen[bytes]":
        return self.stacks[name].process  # type: ignore[attr-defined]

    def describe(self) -> None:
        """A use case whose breaker forgives soon: every job that fails on purpose opens it for the others."""
        source = Path(__file__).parents[2] / "usecases" / "support" / "usecase.yaml"
        breaker = {"open_s": 0.1, "max_open_s": 0.2}
        target = self.home / "usecases" / "support" / "usecase.yaml"
        target.parent.mkdir(parents=True)
        target.write_text(yaml.safe_dump(yaml.safe_load(source.read_text()) | {"resilience": {"breaker": breaker}}))

    def route(self) -> None:
        store = open_route_store(Settings(home=self.home / "home", gateway=GatewaySettings()))
        target = Target(version=1, url=f"http://127.0.0.1:{self.ports[2]}")
        table = RouteTable(use_case="support", stable=target, changed_at=utc_now(), actor="test", reason="test")
        store.write(table, expected=0)

    def submit(self, *texts: str, key: str = "", **body: Any) -> httpx.Response:
        headers = {"idempotency-key": key} if key else {}
        return httpx.post(f"{self.url}/v1/support/jobs", json={"texts": texts} | body, headers=headers, timeout=10)

    def accepted(self, *texts: str, **more: Any) -> str:
        got = self.submit(*texts, **more)
        assert got.status_code == 202, got.text
        return got.json()["id"]

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.url}/v1/support/jobs/{path}", headers=headers, timeout=10)

    def ended(self, job: str) -> dict[str, Any]:
        """Waits until the job ended and returns its status."""
        until(lambda: self.get(job).json()["state"] in ("done", "failed", "cancelled"), f"{job} to end")
        return self.get(job).json()

    def cli(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "leitstand.cli", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)

    def close(self) -> None:
        for name in list(self.stacks):
            self.kill(name)


def answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(url).status_code == 200
    return False


def until(ready: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + deadline_s
    while not ready():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.02)


@contextmanager
def site_running(home: Path, *parts: str, **extra: str) -> Iterator[Site]:
    made = Site(home, extra=extra)
    try:
        made.describe()
        made.route()
        for part in parts:
            made.start(part)
        until(lambda: "support" in httpx.get(f"{made.url}/readyz").json()["routes"], "the routes")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_running(tmp_path_factory.mktemp("jobs"), "redis", "upstream", "gateway", "worker-0") as made:
        yield made


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines()) for block in response.text.split("\n\n") if block
    ]
    return [block | json.loads(block["data"]) for block in blocks if "data" in block]


def test_a_job_is_answered_text_by_text_and_tells_where_it_stands(site: Site) -> None:
    got = site.submit(*(f"text {n}" for n in range(10)), top_k=2)
    assert got.status_code == 202
    said = got.json()
    assert got.headers["location"] == said["links"]["self"] == f"/v1/support/jobs/{said['id']}"
    assert said["state"] in ("queued", "running", "done") and said["texts"] == 10
    status = site.ended(said["id"])
    assert (status["state"], status["texts_done"], status["attempts"], status["error"]) == ("done", 10, 1, None)
    result = site.get(f"{said['id']}/result").json()
    assert len(result["predictions"]) == 10
    first, last = result["predictions"][0], result["predictions"][-1]
    assert (first["label"], first["version"], first["index"], len(first["top"])) == ("card", 1, 0, 2)
    assert last["request_id"] != first["request_id"] and last["index"] == 1


def test_progress_is_told_and_goes_on_after_the_event_that_was_seen(site: Site) -> None:
    job = site.accepted(*(f"text {n}" for n in range(10)))
    events = events_of(site.get(f"{job}/events"))
    assert events[0]["state"] == "queued" and events[-1]["state"] == "done"
    assert [e["event"] for e in events] == ["progress"] * (len(events) - 1) + ["end"]
    assert [e["texts_done"] for e in events] == sorted(e["texts_done"] for e in events)
    rest = events_of(site.get(f"{job}/events", **{"last-event-id": events[1]["id"]}))
    assert [e["id"] for e in rest] == [e["id"] for e in events[2:]]
    nothing = site.get(f"{job}/events", **{"last-event-id": events[-1]["id"]})
    assert nothing.status_code == 204


def test_a_repeated_request_with_its_key_is_the_same_job(site: Site) -> None:
    first, again = site.submit("a", key="same"), site.submit("a", key="same")
    assert first.json()["id"] == again.json()["id"] and again.status_code == 202
    other = site.submit("b", key="same")
    assert other.status_code == 409 and other.headers["content-type"] == "application/problem+json"
    assert site.submit("a", key="with space").status_code == 422


def test_a_text_that_the_model_refuses_spoils_no_other(site: Site) -> None:
    job = site.accepted("a", "", "c")
    status = site.ended(job)
    assert (status["state"], status["texts_done"], status["texts_refused"]) == ("done", 3, 1)
    predictions = site.get(f"{job}/result").json()["predictions"]
    assert [p.get("label") for p in predictions] == ["card", None, "card"]
    assert predictions[1]["error"]["code"] == "http:400"


def test_what_fails_again_and_again_is_a_dead_letter_that_the_command_line_knows(site: Site) -> None:
    job = site.accepted("a", "b", "c", "d", "wrong")
    status = site.ended(job)
    assert (status["state"], status["texts_done"], status["error"]["code"]) == ("failed", 4, "upstream:error")
    assert site.get(f"{job}/result").status_code == 409
    dead = json.loads(site.cli("jobs", "dead", "--json").stdout)
    assert [each["id"] for each in dead if each["id"] == job] == [job]
    assert site.cli("jobs", "replay", "--all", "--dry-run").stdout.split() == [each["id"] for each in dead]
    assert site.cli("jobs", "replay", job).stdout.strip() == job
    assert site.ended(job)["state"] == "failed"
    shown = site.cli("jobs", "show", job)
    assert "upstream:error" in shown.stdout and "wrong" not in shown.stdout.replace("answered", "")
    assert job in site.cli("jobs", "list").stdout
    assert site.cli("jobs", "replay", "unknown").returncode == 1


def test_a_running_job_stops_at_its_next_chunk(site: Site) -> None:
    job = site.accepted("slow", *(f"text {n}" for n in range(20)))
    until(lambda: site.get(job).json()["state"] == "running", "the job to run")
    assert site.get(f"{job}/result").status_code == 409
    got = httpx.delete(f"{site.url}/v1/support/jobs/{job}")
    assert (got.status_code, got.json()["cancelling"]) == (202, True)
    status = site.ended(job)
    assert status["state"] == "cancelled" and status["texts_done"] <= 4
    assert httpx.delete(f"{site.url}/v1/support/jobs/{job}").status_code == 200


def test_mistakes_are_problems(site: Site) -> None:
    unknown = "00000000-0000-7000-8000-000000000000"
    assert site.get(unknown).status_code == 404
    assert site.get("nonsense").status_code == 404
    assert site.get(f"{unknown}/events").status_code == 404
    assert httpx.post(f"{site.url}/v1/other/jobs", json={"texts": ["a"]}).status_code == 404
    for body in ({}, {"texts": []}, {"texts": ["a"], "priority": "urgent"}, {"texts": [1]}, {"text": "a"}):
        got = httpx.post(f"{site.url}/v1/support/jobs", json=body)
        assert got.status_code == 422 and got.json()["title"] == "Not valid"
    assert site.submit(*["a"] * 10_001).status_code == 422
    assert site.submit("x" * 17_000_000).status_code == 413
    assert site.submit("x" * 3_000_000).status_code == 202, "a job may be larger than a prediction"


def test_the_queue_and_its_jobs_are_measured(site: Site) -> None:
    site.ended(site.accepted("a"))
    until(lambda: "jobs_store_up 1.0" in httpx.get(f"{site.url}/metrics").text, "the queue to be measured")
    text = httpx.get(f"{site.url}/metrics").text
    for line in ("jobs_dead_letters ", 'jobs_waiting{use_case="support"}', "jobs_oldest_seconds ",
                 'jobs_submitted_total{outcome="new",use_case="support"}'):  # fmt: skip
        assert line in text


def test_the_commands_of_the_how_to_work_as_printed(site: Site, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/run-long-jobs.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", page, re.S)
    assert len(blocks) == 4
    script = "set -eu\n" + "\n".join(blocks).replace("localhost:8080", site.url.removeprefix("http://"))
    environment = site.environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ('"label":"card"', "event: end", "is done already", "created_at"):
        assert said in done.stdout


def test_a_worker_that_is_told_to_end_gives_its_jobs_back(tmp_path: Path) -> None:
    with site_running(tmp_path, "redis", "upstream", "gateway", "worker-0", LEITSTAND_JOBS__LEASE_S="60") as site:
        job = site.accepted(*["slow", "a", "b", "c"] * 3)
        until(lambda: site.get(job).json()["state"] == "running", "the job to run")
        site.process("worker-0").send_signal(signal.SIGTERM)
        assert site.process("worker-0").wait(DEADLINE_S) == 0
        status = site.get(job).json()
        assert (status["state"], status["error"]) == ("queued", None)
        done = status["texts_done"]
        site.kill("worker-0")
        site.start("worker-1")
        status = site.ended(job)
        assert (status["state"], status["texts_done"], status["attempts"]) == ("done", 12, 2)
        assert done in (0, 4)


def test_without_redis_jobs_are_answered_503_and_predictions_go_on(tmp_path: Path) -> None:
    with site_running(tmp_path, "upstream", "gateway") as site:
        got = site.submit("a")
        assert got.status_code == 503 and "does not answer" in got.json()["detail"]
        assert got.headers["retry-after"] == "1"
        assert httpx.post(f"{site.url}/v1/support/predict", json={"text": "a"}).status_code == 200


@dataclass
class Load:
    """Clients that ask until they are told 202, with one key per job; and what they were told."""

    site: Site
    seed: int
    ids: dict[str, set[str]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    refusals: int = 0
    ending: threading.Event = field(default_factory=threading.Event)

    def run(self, name: int) -> None:
        chance = random.Random(f"{self.seed}-{name}")
        with httpx.Client(timeout=5) as client:
            count = 0
            while not self.ending.is_set() and count < MOST:
                count += 1
                key = f"{name}-{count}"
                texts = [f"text {key} {n}" for n in range(chance.randint(1, 20))]
                if chance.random() < 0.1:
                    texts.append("wrong")
                self.texts[key] = texts
                self.ask(client, key)
                if chance.random() < 0.3:
                    self.ask(client, key)
                time.sleep(chance.random() * 0.4)

    def ask(self, client: httpx.Client, key: str) -> None:
        """Until the job is accepted; a request whose answer was lost is sent again."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                got = client.post(
                    f"{self.site.url}/v1/support/jobs",
                    json={"texts": self.texts[key]},
                    headers={"idempotency-key": key},
                )
                if got.status_code == 202:
                    self.ids.setdefault(key, set()).add(got.json()["id"])
                    return
                assert got.status_code == 503, got.text
            self.refusals += 1
            time.sleep(0.05)


SEED = int(os.environ.get("LEITSTAND_TEST_SEED", "4"))
KILLS = 6
MOST = 60  # jobs per client: a slow machine has no more to finish in the end
PARTS = ("worker-0", "worker-1", "gateway", "redis")


def test_every_accepted_job_ends_once_whatever_is_killed(tmp_path: Path) -> None:
    """Workers, gateway and Redis die by SIGKILL at random moments under load, and come back."""
    chance = random.Random(SEED)
    parts = ("redis", "upstream", "gateway", "worker-0", "worker-1")
    with site_running(tmp_path, *parts, LEITSTAND_JOBS__MAX_ATTEMPTS="6") as site:
        load = Load(site, SEED)
        clients = [threading.Thread(target=load.run, args=(name,)) for name in range(2)]
        for client in clients:
            client.start()
        order = [*PARTS, *chance.choices(PARTS, k=KILLS - len(PARTS))]
        chance.shuffle(order)
        for part in order:
            time.sleep(chance.random() * 1.0)
            site.kill(part)
            time.sleep(chance.random() * 0.3)
            site.start(part)
        load.ending.set()
        for client in clients:
            client.join()
        ended = {key: site.ended(next(iter(ids))) for key, ids in load.ids.items()}
        judge(site, load, ended)


def judge(site: Site, load: Load, ended: dict[str, dict[str, Any]]) -> None:
    failed = sum(status["state"] == "failed" for status in ended.values())
    attempts = sum(status["attempts"] for status in ended.values())
    said = f"seed {SEED}: {len(ended)} jobs, {attempts} attempts, {failed} dead letters, {load.refusals} asked again"
    sys.stdout.write(f"{said}\n")
    assert len(ended) > 20
    assert set(ended) == set(load.texts), "every job was accepted in the end"
    assert all(len(ids) == 1 for ids in load.ids.values()), "one key, one job"
    store: Any = redis.Redis.from_url(site.redis_uri, decode_responses=True)
    for key, status in ended.items():
        told = [fields["state"] for _, fields in store.xrange(f"{{leitstand:jobs}}:events:{status['id']}")]
        assert sum(state in ("done", "failed", "cancelled") for state in told) == 1, f"{key} ended once: {told}"
        assert told[-1] == status["state"]
        if status["state"] == "done":
            assert "wrong" not in load.texts[key]
            predictions = site.get(f"{status['id']}/result").json()["predictions"]
            assert [p["label"] for p in predictions] == ["card"] * len(load.texts[key])
        else:
            assert status["state"] == "failed"
    wrong = [key for key, texts in load.texts.items() if "wrong" in texts]
    assert all(ended[key]["state"] == "failed" for key in wrong)
    assert store.zcard("{leitstand:jobs}:open") == 0
    assert store.zcard("{leitstand:jobs}:dead") == failed
    assert store.xlen("{leitstand:jobs}:queue:normal:support") == 0
    assert store.xpending("{leitstand:jobs}:queue:normal:support", "workers")["pending"] == 0
    assert not [k for k in store.scan_iter("{leitstand:jobs}:input:*") if k.split(":")[-1] not in
                store.zrange("{leitstand:jobs}:dead", 0, -1)]  # fmt: skip
    store.close()
