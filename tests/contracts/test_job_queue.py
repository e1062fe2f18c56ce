"""What the job queue promises, on a real Redis."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from leitstand.errors import ConflictError, IntegrityError, NotFoundError, QuotaExceeded, TransientBackendError
from leitstand.types import Caller
from services.jobs.queue import JobQueue
from services.jobs.records import JobLimits, Taken
from services.jobs.sealing import Seal
from services.scheduling import Overloaded
from tests.jobs_for_tests import EXPIRED_S, KEY, LEASE_S, OTHER_KEY, Bench, answers, new_job
from tests.servers import RedisServer, free_ports

LIMITS = JobLimits(max_open=4, max_open_per_tenant=3, max_bytes=10_000, max_attempts=2, max_age_s=600, dead_ttl_s=60)


@pytest.fixture
async def bench(redis_server: RedisServer) -> AsyncIterator[Bench]:
    made = Bench(redis_server.database(), LIMITS)
    yield made
    await made.queue.close()


async def finish(bench: Bench, taken: Taken) -> str:
    said = "running"
    for chunk, texts in taken.missing():
        said = await bench.queue.checkpoint(taken, chunk, answers(texts))
    return said


async def test_a_job_ends_with_its_last_chunk_and_keeps_one_answer_per_text_in_order(bench: Bench) -> None:
    job = await bench.add("a", "b", "c", "d", "e")
    taken = await bench.take()
    assert [list(texts) for _, texts in taken.missing()] == [["a", "b"], ["c", "d"], ["e"]]
    assert (taken.id, taken.caller.subject, taken.attempt) == (job, "ada", 1)
    assert await bench.state(job) == "running"
    assert await finish(bench, taken) == "done"
    status = await bench.queue.status(job)
    assert status and status.ended and (status.texts_done, status.texts, status.attempts) == (5, 5, 1)
    assert await bench.queue.results(job) == answers(["a", "b", "c", "d", "e"])
    assert await bench.queue.take("w", (), EXPIRED_S) is None
    stats = await bench.queue.stats()
    assert (stats.waiting, stats.running, stats.oldest_s) == ({"support": 0}, {"support": 0}, 0)


async def test_nothing_waits_in_an_empty_queue(bench: Bench) -> None:
    assert await bench.queue.take("w", (), LEASE_S) is None
    assert await bench.queue.take("w", ("unknown",), LEASE_S) is None


async def test_the_same_key_and_body_is_the_same_job_and_another_body_a_conflict(bench: Bench) -> None:
    first, new = await bench.queue.submit(new_job("a", idempotency_key="k"))
    again, second_new = await bench.queue.submit(new_job("a", idempotency_key="k"))
    assert (again, new, second_new) == (first, True, False)
    with pytest.raises(ConflictError):
        await bench.queue.submit(new_job("b", idempotency_key="k"))
    other, _ = await bench.queue.submit(new_job("a", idempotency_key="k", caller=Caller(tenant="other")))
    assert other != first


async def test_a_key_names_its_job_also_when_many_ask_at_once(bench: Bench) -> None:
    got = await asyncio.gather(*(bench.queue.submit(new_job("a", idempotency_key="k")) for _ in range(20)))
    assert len({job for job, _ in got}) == 1
    assert sum(new for _, new in got) == 1


async def test_submitting_again_because_the_reply_was_lost_adds_nothing(bench: Bench) -> None:
    job = new_job("a")
    assert await bench.queue.submit(job) == await bench.queue.submit(job) == (job.id, True)
    assert (await bench.queue.stats()).waiting == {"support": 1}


async def test_limits_refuse_what_is_too_much_and_admit_again_when_a_job_ended(bench: Bench) -> None:
    for _ in range(3):
        await bench.add("a")
    with pytest.raises(QuotaExceeded, match="tenant 'acme'"):
        await bench.add("a")
    await bench.add("a", caller=Caller(tenant="other"))
    with pytest.raises(Overloaded, match="jobs"):
        await bench.add("a", caller=Caller(tenant="third"))
    await finish(bench, await bench.take())
    await bench.add("a")


async def test_texts_have_a_bound_in_bytes_and_leave_with_their_job(bench: Bench) -> None:
    job = await bench.add("x" * 6000)
    with pytest.raises(Overloaded, match="bytes"):
        await bench.add("x" * 6000)
    await finish(bench, await bench.take())
    assert (await bench.queue.stats()).bytes == 0
    assert not await bench.queue._redis.exists(f"{{leitstand:jobs}}:input:{job}")
    await bench.add("x" * 6000)


async def test_a_job_left_behind_goes_on_where_it_was_and_its_old_worker_is_refused(bench: Bench) -> None:
    job = await bench.add("a", "b", "c")
    zombie = await bench.take()
    assert await bench.queue.checkpoint(zombie, 0, answers(["a", "b"])) == "running"
    assert await bench.queue.take("w", (), LEASE_S) is None
    heir = await bench.take(EXPIRED_S)
    assert heir.id == job and heir.fence > zombie.fence and [n for n, _ in heir.missing()] == [1]
    assert await bench.queue.checkpoint(zombie, 1, [{"label": "late"}]) == "lost"
    assert await bench.queue.renew(zombie) == "lost"
    assert await bench.queue.release(zombie, delay_s=0, counted=True, code="x", detail="") == "lost"
    assert await bench.queue.fail(zombie, code="x", detail="") == "lost"
    assert await finish(bench, heir) == "done"
    assert await bench.queue.checkpoint(zombie, 1, [{"label": "late"}]) == "lost"
    assert await bench.queue.results(job) == answers(["a", "b", "c"])


async def test_saying_again_what_ended_a_job_is_answered_the_same(bench: Bench) -> None:
    job = await bench.add("a")
    taken = await bench.take()
    assert await finish(bench, taken) == "done"
    assert await bench.queue.checkpoint(taken, 0, [{"label": "other"}]) == "done"
    assert await bench.queue.results(job) == answers(["a"])
    assert [event.state for event in await bench.queue.events(job)] == ["queued", "running", "done"]


async def test_a_chunk_that_is_said_twice_counts_once_and_keeps_its_first_answer(bench: Bench) -> None:
    job = await bench.add("a", "b", "c")
    taken = await bench.take()
    assert await bench.queue.checkpoint(taken, 0, answers(["a", "b"])) == "running"
    assert await bench.queue.checkpoint(taken, 0, answers(["x", "y"])) == "running"
    status = await bench.queue.status(job)
    assert status and status.texts_done == 2
    assert await bench.queue.results(job) == answers(["a", "b"])


async def test_a_heartbeat_keeps_the_job(bench: Bench) -> None:
    await bench.add("a")
    taken = await bench.take()
    await asyncio.sleep(0.3)
    assert await bench.queue.renew(taken) == "running"
    assert await bench.queue.take("w", (), 0.25) is None


async def test_a_retry_waits_its_time_and_does_not_lose_its_place_in_the_limits(bench: Bench) -> None:
    job = await bench.add("a")
    taken = await bench.take()
    assert (
        await bench.queue.release(taken, delay_s=30, counted=True, code="upstream:timeout", detail="slow") == "queued"
    )
    await bench.queue.sweep()
    assert await bench.queue.take("w", (), LEASE_S) is None
    assert (await bench.queue.stats()).delayed == 1
    status = await bench.queue.status(job)
    assert status and (status.error_code, status.error) == ("upstream:timeout", "slow") and status.retry_at
    bench.clock.forward(31)
    await bench.queue.sweep()
    assert (await bench.take()).attempt == 2


async def test_attempts_that_answer_nothing_end_in_a_dead_letter(bench: Bench) -> None:
    job = await bench.add("a")
    for outcome in ("queued", "failed"):
        taken = await bench.take()
        assert await bench.queue.release(taken, delay_s=0, counted=True, code="bad", detail="luck") == outcome
    status = await bench.queue.status(job)
    assert status and (status.state, status.error_code, status.attempts) == ("failed", "bad", 2)
    assert [each.id for each in await bench.queue.jobs(dead=True)] == [job]


async def test_a_job_that_kills_its_workers_ends_in_a_dead_letter(bench: Bench) -> None:
    job = await bench.add("a")
    await bench.take()
    await bench.take(EXPIRED_S)
    assert await bench.queue.take("w", (), EXPIRED_S) is None
    status = await bench.queue.status(job)
    assert status and (status.state, status.error_code) == ("failed", "worker-lost")


async def test_progress_gives_a_job_all_its_attempts_again(bench: Bench) -> None:
    job = await bench.add("a", "b", "c", "d", "e", "f")
    for chunk in range(2):
        await bench.take(EXPIRED_S)
        taken = await bench.take(EXPIRED_S)
        await bench.queue.checkpoint(taken, chunk, answers(["x", "y"]))
    assert await finish(bench, await bench.take(EXPIRED_S)) == "done"
    status = await bench.queue.status(job)
    assert status and status.attempts == 5


async def test_an_attempt_that_is_given_back_does_not_count(bench: Bench) -> None:
    await bench.add("a")
    for _ in range(5):
        taken = await bench.take()
        assert await bench.queue.release(taken, delay_s=0, counted=False, code="", detail="") == "queued"
    assert await finish(bench, await bench.take()) == "done"


async def test_a_replayed_dead_letter_keeps_what_was_answered(bench: Bench) -> None:
    job = await bench.add("a", "b", "c")
    taken = await bench.take()
    await bench.queue.checkpoint(taken, 0, answers(["a", "b"]))
    assert await bench.queue.fail(taken, code="bad", detail="text") == "failed"
    await bench.queue.replay(job)
    again = await bench.take()
    assert [n for n, _ in again.missing()] == [1]
    assert await finish(bench, again) == "done"
    assert await bench.queue.results(job) == answers(["a", "b", "c"])
    with pytest.raises(ConflictError, match="is done"):
        await bench.queue.replay(job)
    with pytest.raises(NotFoundError):
        await bench.queue.replay("unknown")
    assert await bench.queue.jobs(dead=True) == []


async def test_a_cancelled_job_never_runs(bench: Bench) -> None:
    job = await bench.add("a")
    assert await bench.queue.cancel(job) == "cancelled"
    assert await bench.queue.cancel(job) == "cancelled"
    assert await bench.queue.take("w", (), EXPIRED_S) is None
    assert (await bench.queue.stats()).waiting == {"support": 0}
    with pytest.raises(NotFoundError):
        await bench.queue.cancel("unknown")


async def test_a_running_job_is_cancelled_at_its_next_word(bench: Bench) -> None:
    job = await bench.add("a", "b", "c")
    taken = await bench.take()
    assert await bench.queue.cancel(job) == "cancelling"
    status = await bench.queue.status(job)
    assert status and status.cancelling
    assert await bench.queue.checkpoint(taken, 0, answers(["a", "b"])) == "cancelled"
    assert await bench.queue.results(job) == []
    released = await bench.add("a")
    taken = await bench.take()
    await bench.queue.cancel(released)
    assert await bench.queue.release(taken, delay_s=9, counted=True, code="x", detail="") == "cancelled"
    lost = await bench.add("a")
    await bench.take()
    await bench.queue.cancel(lost)
    assert await bench.queue.take("w", (), EXPIRED_S) is None
    assert await bench.state(lost) == "cancelled"


async def test_the_last_chunk_of_a_cancelled_job_does_not_finish_it(bench: Bench) -> None:
    job = await bench.add("a")
    taken = await bench.take()
    await bench.queue.cancel(job)
    assert await finish(bench, taken) == "cancelled"


async def test_a_retry_that_waits_can_be_cancelled(bench: Bench) -> None:
    job = await bench.add("a")
    await bench.queue.release(await bench.take(), delay_s=5, counted=True, code="x", detail="")
    assert await bench.queue.cancel(job) == "cancelled"
    bench.clock.forward(6)
    await bench.queue.sweep()
    assert await bench.queue.take("w", (), EXPIRED_S) is None


async def test_a_job_nobody_could_end_in_time_is_a_dead_letter(bench: Bench) -> None:
    waits, runs = await bench.add("a"), await bench.add("a")
    first = await bench.take()
    assert first.id == waits
    bench.clock.forward(601)
    await bench.queue.sweep()
    assert await bench.state(runs) == "failed"
    assert await bench.state(waits) == "running"
    assert await bench.queue.release(first, delay_s=0, counted=True, code="x", detail="") == "failed"
    assert {each.error_code for each in await bench.queue.jobs(dead=True)} == {"expired"}


async def test_dead_letters_are_erased_after_their_time_and_free_their_key(bench: Bench) -> None:
    job, _ = await bench.queue.submit(new_job("a", idempotency_key="k"))
    await bench.queue.fail(await bench.take(), code="x", detail="")
    assert (await bench.queue.stats()).bytes > 0
    bench.clock.forward(61)
    await bench.queue.sweep()
    assert await bench.queue.status(job) is None
    assert (await bench.queue.stats()).bytes == 0
    assert await bench.queue._redis.keys("*:idem:*") == []
    assert await bench.queue.jobs() == []


async def test_an_ended_job_expires_with_everything_that_belongs_to_it(bench: Bench) -> None:
    job, _ = await bench.queue.submit(new_job("a", idempotency_key="k"))
    await finish(bench, await bench.take())
    keys = [key for key in await bench.queue._redis.keys("*") if job.encode() in key or b":idem:" in key]
    assert len(keys) == 4
    left = [await bench.queue._redis.pttl(key) for key in keys]
    assert all(0 < each <= 86_400_000 for each in left)


async def test_high_goes_first_unless_it_is_low_s_turn(bench: Bench) -> None:
    low, normal, high = [await bench.add("a", priority=each) for each in ("low", "normal", "high")]
    assert (await bench.take()).id == high
    assert (await bench.take(low_first=True)).id == low
    assert (await bench.take()).id == normal


async def test_a_worker_takes_only_jobs_of_its_use_cases(bench: Bench) -> None:
    await bench.add("a")
    other = await bench.add("a", use_case="finance")
    taken = await bench.queue.take("w", ("finance",), LEASE_S)
    assert taken and taken.id == other
    assert await bench.queue.take("w", ("finance",), LEASE_S) is None


async def test_two_workers_never_hold_the_same_job(bench: Bench) -> None:
    ids = [await bench.add("a", caller=Caller(tenant=str(n))) for n in range(4)]
    taken = await asyncio.gather(*(bench.queue.take(str(n), (), LEASE_S) for n in range(8)))
    assert sorted(each.id for each in taken if each) == sorted(ids)


async def test_redis_holds_no_text_no_subject_and_no_answer(bench: Bench) -> None:
    await bench.add("my secret text", caller=Caller(tenant="acme", subject="ada.lovelace"), subject="customer-9",
        idempotency_key="known-to-the-client")  # fmt: skip
    taken = await bench.take()
    await bench.queue.checkpoint(taken, 0, [{"label": "very_private"}])
    redis, everything = bench.queue._redis, b""
    for key in await redis.keys("*"):
        kind = await redis.type(key)
        value = (
            await redis.get(key) if kind == b"string" else await redis.hgetall(key) if kind == b"hash"
            else await redis.xrange(key) if kind == b"stream" else await redis.zrange(key, 0, -1) if kind == b"zset"
            else await redis.smembers(key)
        )  # fmt: skip
        everything += key + repr(value).encode()
    for secret in (b"secret text", b"lovelace", b"customer-9", b"known-to-the-client", b"very_private"):
        assert secret not in everything


async def test_a_job_sealed_with_another_key_is_a_dead_letter_and_replays_with_the_key(bench: Bench) -> None:
    job = await bench.add("a")
    other = JobQueue(bench.uri, Seal([OTHER_KEY]), LIMITS, bench.clock)
    assert await other.take("w", (), LEASE_S) is None
    status = await bench.queue.status(job)
    assert status and (status.state, status.error_code) == ("failed", "unreadable")
    with pytest.raises(IntegrityError, match="LEITSTAND_JOBS__KEY"):
        await other.caller(job)
    await other.close()
    await bench.queue.replay(job)
    rotated = JobQueue(bench.uri, Seal([OTHER_KEY, KEY]), LIMITS, bench.clock)
    taken = await rotated.take("w", (), LEASE_S)
    assert taken and list(taken.texts) == ["a"]
    await rotated.close()


async def test_a_caller_moved_to_another_job_is_noticed(bench: Bench) -> None:
    mine, other = await bench.add("a"), await bench.add("b", caller=Caller(tenant="other"))
    redis = bench.queue._redis
    stolen = await redis.hget(f"{{leitstand:jobs}}:job:{mine}", "caller")
    await redis.hset(f"{{leitstand:jobs}}:job:{other}", "caller", stolen)
    with pytest.raises(IntegrityError):
        await bench.queue.caller(other)


async def test_events_come_after_the_one_that_was_seen(bench: Bench) -> None:
    job = await bench.add("a", "b", "c")
    await finish(bench, await bench.take())
    events = await bench.queue.events(job)
    assert [(event.state, event.texts_done) for event in events] == [
        ("queued", 0), ("running", 0), ("running", 2), ("done", 3)
    ]  # fmt: skip
    assert [event.last for event in events] == [False, False, False, True]
    assert await bench.queue.events(job, events[2].id) == events[3:]
    assert await bench.queue.events(job, events[3].id) == []


async def test_a_full_redis_refuses_jobs_and_loses_none(bench: Bench) -> None:
    job, redis = await bench.add("a"), bench.queue._redis
    taken = await bench.take()
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(Overloaded, match="memory"):
            await bench.add("b")
        with pytest.raises(TransientBackendError):
            await finish(bench, taken)
        assert await bench.state(job) == "running"
    finally:
        await redis.config_set("maxmemory", "0")
    assert await finish(bench, taken) == "done"


async def test_a_redis_that_is_away_is_a_passing_trouble() -> None:
    (port,) = free_ports(1)
    queue = JobQueue(f"redis://127.0.0.1:{port}/0", Seal([KEY]))
    with pytest.raises(TransientBackendError, match="does not answer"):
        await queue.status("x")
    await queue.close()


async def test_what_redis_may_lose_is_said(bench: Bench) -> None:
    redis = bench.queue._redis
    assert await bench.queue.durability() == []
    await redis.config_set("appendfsync", "everysec")
    try:
        assert "power loss" in (await bench.queue.durability())[0]
    finally:
        await redis.config_set("appendfsync", "always")


async def test_an_ended_job_can_be_erased_before_its_time(bench: Bench) -> None:
    job, _ = await bench.queue.submit(new_job("a", idempotency_key="k"))
    with pytest.raises(ConflictError, match="queued"):
        await bench.queue.erase(job)
    await bench.queue.fail(await bench.take(), code="x", detail="")
    await bench.queue.erase(job)
    assert await bench.queue.status(job) is None and (await bench.queue.stats()).bytes == 0
    assert [key for key in await bench.queue._redis.keys("*") if job.encode() in key or b":idem:" in key] == []
    with pytest.raises(NotFoundError):
        await bench.queue.erase(job)
