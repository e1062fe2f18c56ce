"""The parts of the job queue that need no Redis: seals, verdicts on failures, events, workers on a scripted queue."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from leitstand.errors import (
    ConfigurationError,
    ContentBlocked,
    IntegrityError,
    NotFoundError,
    PolicyDenied,
    QuotaExceeded,
    TransientBackendError,
)
from leitstand.settings import GatewaySettings, JobSettings, Settings
from leitstand.types import Caller
from services.exchange import Exchange
from services.jobs.events import formatted
from services.jobs.failures import Backoff, judge
from services.jobs.opening import job_queue, need_job_queue, queue_uri
from services.jobs.records import Event, Outcome, Taken
from services.jobs.running import Attempt
from services.jobs.sealing import Seal, key_from_file
from services.jobs.worker import Worker
from services.policies import Policies
from services.scheduling import Overloaded
from services.upstreams import Reply, UpstreamFailed
from tests.gateway_for_tests import STABLE, answer, bench
from tests.jobs_for_tests import KEY, OTHER_KEY, new_job

WHOLE = Backoff(first_s=2, longest_s=60, chance=lambda: 1.0)


def taken(*texts: str, **more: Any) -> Taken:
    said: dict[str, Any] = {
        "id": "job", "fence": 7, "use_case": "support", "attempt": 1, "fruitless": 1, "caller": Caller(subject="ada"),
        "texts": texts or ("a", "b", "c"), "chunk_texts": 2, "top_k": 1, "subject": "",
    }  # fmt: skip
    return Taken(**said | more)


class ScriptedQueue:
    """Says `outcomes` one after the other (then ``running``), and remembers what it was told."""

    where = "nowhere"

    def __init__(self, *jobs: Taken, outcomes: Sequence[Outcome | Exception] = ()) -> None:
        self.jobs, self.outcomes = list(jobs), list(outcomes)
        self.kept: list[tuple[int, Any]] = []
        self.said: list[tuple[Any, ...]] = []

    async def take(self, worker: str, use_cases: Sequence[str], lease_s: float, *, low_first: bool) -> Taken | None:
        return self.jobs.pop(0) if self.jobs else None

    async def checkpoint(self, taken: Taken, chunk: int, answers: Any) -> Outcome:
        said = self.outcomes.pop(0) if self.outcomes else "running"
        if isinstance(said, Exception):
            raise said
        self.kept.append((chunk, answers))
        return said

    async def renew(self, taken: Taken) -> Outcome:
        return self.outcomes.pop(0) if self.outcomes else "running"  # type: ignore[return-value]

    async def release(self, taken: Taken, *, delay_s: float, counted: bool, code: str, detail: str) -> Outcome:
        self.said.append(("release", round(delay_s, 3), counted, code))
        return "queued"

    async def fail(self, taken: Taken, *, code: str, detail: str) -> Outcome:
        self.said.append(("fail", code))
        return "failed"


def attempt(inference: Any, queue: Any) -> Attempt:
    return Attempt(inference, queue, deadline_s=5, backoff=WHOLE)


def never() -> bool:
    return False


def cards(body: bytes) -> Reply:
    texts = orjson.loads(body)["inputs"][0]["data"]
    return (
        answer(1, ["card"] * len(texts)) if "" not in texts else Reply(400, b'{"error": "empty"}', "application/json")
    )


def test_what_is_sealed_opens_in_its_place_only_and_also_with_an_old_key() -> None:
    sealed = Seal([KEY]).seal(b"text", "job 1")
    assert b"text" not in sealed
    assert Seal([OTHER_KEY, KEY]).open(sealed, "job 1") == b"text"
    for seal, place in ((Seal([KEY]), "job 2"), (Seal([OTHER_KEY]), "job 1")):
        with pytest.raises(IntegrityError, match="cannot be opened"):
            seal.open(sealed, place)
    with pytest.raises(IntegrityError):
        Seal([KEY]).open(sealed[:-1] + bytes([sealed[-1] ^ 1]), "job 1")
    assert Seal([KEY]).digest(["a"]) == Seal([KEY]).digest(["a"]) != Seal([OTHER_KEY]).digest(["a"])


@pytest.mark.parametrize("keys", [[], [b"short"], [b"%%%"]])
def test_what_is_no_key_is_said(keys: list[bytes]) -> None:
    with pytest.raises(ConfigurationError):
        Seal(keys)


def test_the_key_file_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "jobs" / "key"
    assert key_from_file(path) == key_from_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    Seal([key_from_file(path)])


def test_the_queue_is_where_its_setting_or_the_routes_are(tmp_path: Path) -> None:
    routes = GatewaySettings(routes_uri="redis://127.0.0.1:1/0")
    assert queue_uri(Settings(home=tmp_path, gateway=routes)) == "redis://127.0.0.1:1/0"
    own = Settings(home=tmp_path, gateway=routes, jobs=JobSettings(redis_uri="redis://127.0.0.1:2/0"))
    assert queue_uri(own) == "redis://127.0.0.1:2/0"
    assert job_queue(Settings(home=tmp_path)) is None
    with pytest.raises(ConfigurationError, match="no job queue"):
        need_job_queue(Settings(home=tmp_path))
    with pytest.raises(ConfigurationError, match="Not a Redis URI"):
        need_job_queue(Settings(home=tmp_path, jobs=JobSettings(redis_uri="http://127.0.0.1")))


@pytest.mark.parametrize(
    ("error", "fruitless", "code", "retry_s", "counted"),
    [
        (QuotaExceeded("no", limit="tenant:day", retry_after_s=30), 1, "quota:tenant:day", 30, False),
        (QuotaExceeded("no", limit="tenant:day", retry_after_s=1e9), 1, "quota:tenant:day", 60, False),
        (Overloaded("full", 9), 1, "overloaded", 9, False),
        (UpstreamFailed("gone", "refused"), 1, "upstream:refused", 16, False),
        (UpstreamFailed("left alone", "open"), 5, "upstream:open", 16, False),
        (UpstreamFailed("slow", "timeout"), 1, "upstream:timeout", 2, True),
        (UpstreamFailed("broken", "error"), 4, "upstream:error", 16, True),
        (TransientBackendError("busy"), 9, "transient", 60, True),
        (PolicyDenied("no"), 1, "PolicyDenied", None, True),
        (NotFoundError("no routes"), 1, "NotFoundError", None, True),
        (ZeroDivisionError("secret text"), 1, "internal", None, True),
    ],
)
def test_only_what_may_pass_is_tried_again(
    error: Exception, fruitless: int, code: str, retry_s: float | None, counted: bool
) -> None:
    verdict = judge(error, fruitless, WHOLE)
    assert (verdict.code, verdict.retry_s, verdict.counted) == (code, retry_s, counted)
    assert "secret" not in verdict.detail


def test_waits_double_to_their_limit_and_are_spread() -> None:
    assert [WHOLE.delay_s(n) for n in (0, 1, 2, 3, 6, 99)] == [2, 2, 4, 8, 60, 60]
    assert Backoff(2, 60, chance=lambda: 0.0).delay_s(2) == 2


def test_an_event_is_one_block_with_its_id() -> None:
    assert formatted(Event("5-0", "running", 9, 4, 1)) == (
        b'id: 5-0\nevent: progress\ndata: {"state":"running","texts":9,"texts_done":4,"attempts":1}\n\n'
    )
    assert b"event: end\n" in formatted(Event("5-1", "done", 9, 9, 1))


def test_a_job_is_cut_into_chunks_and_only_what_is_missing_is_asked() -> None:
    assert new_job("a", "b", "c").chunks == 2
    assert taken("a", "b", "c", answered=frozenset({0})).missing() == [(1, ("c",))]


async def test_an_attempt_keeps_each_chunk_with_who_answered() -> None:
    queue = ScriptedQueue(outcomes=["running", "done"])
    async with bench({STABLE: cards}) as made:
        assert await attempt(made.inference, queue).run(taken(), never) == "done"
    assert [(chunk, len(answers)) for chunk, answers in queue.kept] == [(0, 2), (1, 1)]
    second = queue.kept[0][1][1]
    assert (second["label"], second["version"], second["route"]) == ("card", 1, "stable")
    assert (second["request_id"], second["index"]) == ("job.7.0", 1)


async def test_every_chunk_passes_the_policies_as_its_caller() -> None:
    seen: list[tuple[str, str, Sequence[str]]] = []

    async def audit(exchange: Exchange) -> None:
        seen.append((exchange.caller.subject, exchange.request_id, exchange.payload.texts()))

    async with bench({STABLE: cards}, policies=Policies(audit=audit)) as made:
        await attempt(made.inference, ScriptedQueue(outcomes=["running", "done"])).run(taken(), never)
    assert seen == [("ada", "job.7.0", ("a", "b")), ("ada", "job.7.1", ("c",))]


async def test_a_refused_text_has_an_error_in_its_place() -> None:
    async def guard(exchange: Exchange) -> None:
        if "bad" in exchange.payload.texts():
            raise ContentBlocked("Input text 0 is blocked", reasons=["injection"])

    queue = ScriptedQueue(outcomes=["running", "done"])
    async with bench({STABLE: cards}, policies=Policies(guard_input=guard)) as made:
        await attempt(made.inference, queue).run(taken("a", "bad", "", "d"), never)
    (_, first), (_, second) = queue.kept
    assert [each.get("label") for each in (*first, *second)] == ["card", None, None, "card"]
    assert first[1]["error"] == {
        "code": "blocked", "detail": "Input text 0 is blocked", "reasons": ["injection"]
    }  # fmt: skip
    assert second[0]["error"]["code"] == "http:400" and second[0]["request_id"] == "job.7.1.0"


async def test_a_failure_after_progress_waits_as_a_first_one() -> None:
    replies = iter([answer(1, ["card", "card"]), UpstreamFailed("broken", "timeout")])

    def script(_: bytes) -> Reply:
        reply = next(replies)
        if isinstance(reply, UpstreamFailed):
            raise reply
        return reply

    queue = ScriptedQueue()
    async with bench({STABLE: script}) as made:
        assert await attempt(made.inference, queue).run(taken(fruitless=4), never) == "queued"
    assert queue.said == [("release", 2, True, "upstream:timeout")]


async def test_a_failure_for_good_is_a_dead_letter() -> None:
    async def admit(_: Exchange) -> None:
        raise PolicyDenied("no")

    queue = ScriptedQueue()
    async with bench({STABLE: cards}, policies=Policies(admit=admit)) as made:
        assert await attempt(made.inference, queue).run(taken(), never) == "failed"
    assert queue.said == [("fail", "PolicyDenied")] and queue.kept == []


async def test_an_answer_is_kept_when_redis_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.jobs.running.RETRY_S", 0.0)
    away = TransientBackendError("redis is away")
    queue = ScriptedQueue(outcomes=[away, away, "done"])
    async with bench({STABLE: cards}) as made:
        assert await attempt(made.inference, queue).run(taken("a"), never) == "done"
        assert made.upstreams.asked == [STABLE], "the model was asked once"


async def test_an_attempt_that_lost_its_job_stops() -> None:
    queue = ScriptedQueue(outcomes=["lost"])
    async with bench({STABLE: cards}) as made:
        assert await attempt(made.inference, queue).run(taken(), never) == "lost"
    assert len(queue.kept) == 1


async def test_a_worker_gives_back_what_it_holds_when_it_is_told_to_stop() -> None:
    queue = ScriptedQueue(taken(), taken(id="other"))
    async with bench({STABLE: cards}) as made:
        made.upstreams.gate = asyncio.Event()
        worker = Worker(queue, attempt(made.inference, queue), concurrency=2, drain_s=5)  # type: ignore[arg-type]
        running = asyncio.create_task(worker.run())
        while len(made.upstreams.asked) < 2:
            await asyncio.sleep(0)
        worker.stop()
        made.upstreams.gate.set()
        await running
    assert [chunk for chunk, _ in queue.kept] == [0, 0], "the chunks in flight were kept"
    assert queue.said == [("release", 0, False, "")] * 2


async def test_a_worker_gives_back_what_does_not_end_in_time() -> None:
    queue = ScriptedQueue(taken())
    async with bench({STABLE: cards}) as made:
        made.upstreams.gate = asyncio.Event()
        worker = Worker(queue, attempt(made.inference, queue), drain_s=0)  # type: ignore[arg-type]
        running = asyncio.create_task(worker.run())
        while not made.upstreams.asked:
            await asyncio.sleep(0)
        worker.stop()
        await running
    assert queue.kept == [] and queue.said == [("release", 0, False, "")]


async def test_a_worker_lets_go_of_a_job_that_another_took() -> None:
    queue = ScriptedQueue(taken(), outcomes=["lost"])
    async with bench({STABLE: cards}) as made:
        made.upstreams.gate = asyncio.Event()
        worker = Worker(queue, attempt(made.inference, queue), lease_s=0.01)  # type: ignore[arg-type]
        running = asyncio.create_task(worker.run())
        while not made.upstreams.asked or worker._running:
            await asyncio.sleep(0)
        worker.stop()
        await running
    assert queue.kept == [] and queue.said == []
