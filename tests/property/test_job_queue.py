"""The queue as a state machine: whatever callers, workers, deaths and time do, each job ends at most once and whole.

Against a real Redis: its scripts are what is tested. The model knows who holds which fence.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from leitstand.errors import ConflictError
from services.jobs.records import ENDED, JobLimits, Taken
from tests.jobs_for_tests import EXPIRED_S, LEASE_S, Bench, answers
from tests.servers import RedisServer

T = TypeVar("T")
ATTEMPTS = 3
LIMITS = JobLimits(max_open=1000, max_open_per_tenant=1000, max_attempts=ATTEMPTS, max_age_s=1000)


class Queue(RuleBasedStateMachine):
    """Rules are what may happen; `valid` holds the fence of each job that may still write."""

    server: RedisServer
    jobs, held = Bundle("jobs"), Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.bench = Bench(self.server.database_again(), LIMITS)
        self.run(self.bench.queue._redis.flushdb())
        self.texts: dict[str, list[str]] = {}
        self.valid: dict[str, int] = {}
        self.ended: dict[str, str] = {}
        self.cancelled: set[str] = set()

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(what)

    def teardown(self) -> None:
        self.run(self.bench.queue.close())
        self.runner.close()

    @rule(target=jobs, count=st.integers(1, 5), priority=st.sampled_from(["high", "normal", "low"]))
    def submit(self, count: int, priority: str) -> str:
        texts = [f"text {n}" for n in range(count)]
        job = self.run(self.bench.add(*texts, priority=priority))
        self.texts[job] = texts
        return job

    @rule(target=held, dead=st.booleans())
    def take(self, dead: bool) -> Any:
        taken = self.run(self.bench.queue.take("w", (), EXPIRED_S if dead else LEASE_S))
        if taken is None:
            return multiple()
        assert dead or taken.id not in self.valid, "nobody takes what another holds"
        assert taken.id not in self.ended
        self.valid[taken.id] = taken.fence
        return taken

    @rule(taken=held, data=st.data())
    def checkpoint(self, taken: Taken, data: st.DataObject) -> None:
        missing = taken.missing()
        chunk, texts = data.draw(st.sampled_from(missing)) if missing else (0, [])
        self.told(taken, self.run(self.bench.queue.checkpoint(taken, chunk, answers(texts))))

    @rule(taken=held)
    def finish(self, taken: Taken) -> None:
        for chunk, texts in taken.missing():
            self.told(taken, self.run(self.bench.queue.checkpoint(taken, chunk, answers(texts))))

    @rule(taken=consumes(held), delay=st.sampled_from([0, 50]), counted=st.booleans())
    def release(self, taken: Taken, delay: int, counted: bool) -> None:
        said = self.run(self.bench.queue.release(taken, delay_s=delay, counted=counted, code="c", detail="d"))
        self.told(taken, said)

    @rule(taken=consumes(held))
    def fail(self, taken: Taken) -> None:
        self.told(taken, self.run(self.bench.queue.fail(taken, code="c", detail="d")))

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        said = self.run(self.bench.queue.cancel(job))
        if said == "cancelling":
            self.cancelled.add(job)
        elif job not in self.ended:
            assert said == "cancelled"

    @rule(job=jobs)
    def replay(self, job: str) -> None:
        if self.ended.get(job) == "failed":
            self.run(self.bench.queue.replay(job))
            del self.ended[job]
            self.cancelled.discard(job)
        else:
            with pytest.raises(ConflictError):
                self.run(self.bench.queue.replay(job))

    @rule(seconds=st.integers(1, 400))
    def wait(self, seconds: int) -> None:
        self.bench.clock.forward(seconds)
        self.run(self.bench.queue.sweep())

    def told(self, taken: Taken, said: str) -> None:
        if self.valid.get(taken.id) != taken.fence:
            assert said == "lost" or said == self.ended.get(taken.id)
        elif said == "lost":
            raise AssertionError("who holds a job is heard")
        elif said != "running":
            del self.valid[taken.id]
            if said in ENDED:
                self.ended[taken.id] = said
        if said == "done":
            assert taken.id not in self.cancelled

    @invariant()
    def what_ended_stays_ended_and_is_whole(self) -> None:
        for job, texts in self.texts.items():
            status = self.run(self.bench.queue.status(job))
            assert status is not None
            if job in self.ended:
                assert status.state == self.ended[job]
            elif status.ended:
                self.ended[job] = status.state
                self.valid.pop(job, None)
            if status.state == "done":
                assert self.run(self.bench.queue.results(job)) == answers(texts)
            if status.state == "running":
                assert self.valid.get(job) is not None

    @invariant()
    def what_is_counted_is_what_is_there(self) -> None:
        stats = self.run(self.bench.queue.stats())
        open_jobs = [job for job in self.texts if job not in self.ended]
        assert sum(stats.waiting.values()) + sum(stats.running.values()) + stats.delayed == len(open_jobs)
        assert sum(stats.running.values()) == len(self.valid)
        assert stats.dead == sum(state in ENDED and state == "failed" for state in self.ended.values())
        assert (stats.bytes == 0) == (not open_jobs and not stats.dead)


def test_any_history_ends_each_job_at_most_once_and_whole(redis_server: RedisServer) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    uri = redis_server.database()

    class Server:
        @staticmethod
        def database_again() -> str:
            return uri

    Queue.server = Server()  # type: ignore[assignment]
    chosen = settings(
        max_examples=30,
        stateful_step_count=25,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Queue, settings=chosen)
