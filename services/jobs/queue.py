"""The request queue on Redis streams (ADR 0012): every accepted job ends once, in a result or as a dead letter.

Each method is one script (`services.jobs.scripts`), so it happens whole or not at all, also when Redis is killed
in the middle: what it promised is as durable as its append-only file (``appendfsync always``: every reply).
Texts and answers are sealed before they leave this process. Use it on one event loop; any number of processes
may share the queue.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import redis.asyncio as redis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from leitstand.errors import (
    ConfigurationError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    PermanentBackendError,
    QuotaExceeded,
    TransientBackendError,
)
from leitstand.types import Caller
from services.jobs import scripts
from services.jobs.records import Event, JobLimits, JobStatus, NewJob, Outcome, QueueStats, Taken
from services.jobs.sealing import Seal
from services.scheduling import Overloaded

__all__ = ["JobQueue"]

PREFIX = "{leitstand:jobs}"
TIMEOUT_S = 5.0
CONNECTIONS = 32
FULL_RETRY_S = 5.0


class JobQueue:
    """Jobs of all use cases.

    Args:
        uri: ``redis://[user:password@]host:port/db`` or ``rediss://...``.
        seal: Seals what callers sent and models said.
        limits: How much is taken on; a job keeps the limits it was accepted with.
        clock: Milliseconds since the epoch, for tests; None: the clock of Redis, the same for all processes.

    Raises:
        ConfigurationError: `uri` is not a Redis URI.
    """

    def __init__(
        self, uri: str, seal: Seal, limits: JobLimits | None = None, clock: Callable[[], int] | None = None
    ) -> None:
        try:
            pool = redis.BlockingConnectionPool.from_url(
                uri, max_connections=CONNECTIONS, timeout=TIMEOUT_S, socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=Retry(ConstantBackoff(0.05), 1),  # a pooled connection may be older than its Redis
            )  # fmt: skip
        except ValueError as error:
            raise ConfigurationError(
                f"Not a Redis URI: {error}", hint="set LEITSTAND_JOBS__REDIS_URI=redis://host:6379/0"
            ) from error
        self._redis: Any = redis.Redis.from_pool(pool)
        self._seal = seal
        self._limits = limits or JobLimits()
        self._clock = clock or (lambda: 0)
        self._scripts = {name: self._redis.register_script(getattr(scripts, name)) for name in scripts.__all__}
        address = pool.connection_kwargs
        self.where = f"redis at {address.get('host', address.get('path'))}:{address.get('port', '')}"

    async def submit(self, job: NewJob) -> tuple[str, bool]:
        """Accepts the job, and returns its id and whether it is new; with a known idempotency key, the earlier job's.

        Raises:
            ConflictError: The idempotency key belongs to a job with another body.
            QuotaExceeded: The tenant has as many open jobs as it may.
            Overloaded: The queue is full.
            TransientBackendError: Redis does not answer; the job may have been accepted all the same.
        """
        body, digest, sealed, caller = await asyncio.to_thread(self._sealed, job)
        limits = self._limits
        try:
            said, job_id = await self._run(
                "SUBMIT", job.id, job.use_case, job.priority, job.caller.tenant, digest, body, caller, sealed,
                len(job.texts), job.chunks, limits.max_open, limits.max_open_per_tenant, limits.max_bytes,
                limits.max_attempts, _ms(limits.max_age_s), _ms(limits.result_ttl_s), _ms(limits.dead_ttl_s),
            )  # fmt: skip
        except _OutOfMemory as error:
            raise Overloaded("the job queue's Redis is out of memory", FULL_RETRY_S) from error
        if said == b"full":
            raise Overloaded(f"the job queue holds as many {job_id.decode()} as it may", FULL_RETRY_S)
        if said == b"tenant":
            raise QuotaExceeded(
                f"{limits.max_open_per_tenant} jobs of tenant '{job.caller.tenant}' are open already",
                limit="tenant:open_jobs", retry_after_s=FULL_RETRY_S, hint="wait until one ends, or cancel one",
            )  # fmt: skip
        if said == b"conflict":
            raise ConflictError(
                "This idempotency key was used for another request", hint="use a new key for a new request"
            )
        return job_id.decode(), said == b"new"

    async def status(self, job_id: str) -> JobStatus | None:
        """What is known of the job, or None: never accepted, or erased after its time."""
        async with self._translated():
            said = await self._redis.hgetall(_key("job", job_id))
        return JobStatus.read(job_id, _words(said)) if said else None

    async def caller(self, job_id: str) -> Caller | None:
        """Who asked for the job, as the gateway knew it then; None for an unknown job.

        Raises:
            IntegrityError: The record was sealed with another key, or tampered with.
        """
        async with self._translated():
            sealed = await self._redis.hget(_key("job", job_id), "caller")
        return _caller(orjson.loads(self._seal.open(sealed, f"caller of job {job_id}"))) if sealed else None

    async def take(
        self, worker: str, use_cases: Sequence[str], lease_s: float, *, low_first: bool = False
    ) -> Taken | None:
        """Begins an attempt at the next job: one whose worker fell silent, else the first that waits by priority.

        A job that cannot be opened (another key) becomes a dead letter and is not returned.
        """
        begun = await self._run("TAKE", _ms(lease_s), worker, int(low_first), *use_cases)
        if not begun:
            return None
        job_id, fence = begun[0].decode(), int(begun[1])
        async with self._translated(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(_key("job", job_id), "use_case", "attempts", "fruitless", "caller", "fence")
            pipe.get(_key("input", job_id))
            pipe.hkeys(_key("results", job_id))
            (use_case, attempts, fruitless, caller, now_held), sealed, answered = await pipe.execute()
        if sealed is None or int(now_held) != fence:
            return None
        try:
            asked, who = await asyncio.to_thread(self._opened, job_id, sealed, caller)
        except IntegrityError as error:
            await self._run("FAIL", job_id, fence, "unreadable", str(error))
            return None
        return Taken(
            id=job_id, fence=fence, use_case=use_case.decode(), attempt=int(attempts),
            fruitless=int(fruitless), caller=who, answered=frozenset(map(int, answered)), **asked,
        )  # fmt: skip

    async def checkpoint(self, taken: Taken, chunk: int, answers: Sequence[Mapping[str, Any]]) -> Outcome:
        """Keeps the answers of one chunk and renews the lease; the last one ends the job in the same step."""
        sealed = self._seal.seal(orjson.dumps(answers), _part(taken.id, chunk))
        refused = sum("error" in answer for answer in answers)
        return await self._decide("CHECKPOINT", taken.id, taken.fence, chunk, sealed, len(answers), refused)

    async def renew(self, taken: Taken) -> Outcome:
        """Says that the worker lives. ``running``: go on; anything else: stop."""
        return await self._decide("RENEW", taken.id, taken.fence)

    async def release(self, taken: Taken, *, delay_s: float, counted: bool, code: str, detail: str) -> Outcome:
        """Ends the attempt without an end of the job: it waits again for `delay_s`, or is dead if it was the last."""
        return await self._decide(
            "RELEASE", taken.id, taken.fence, _ms(delay_s), int(counted), code[:64], detail[:1000]
        )

    async def fail(self, taken: Taken, *, code: str, detail: str) -> Outcome:
        """Makes the job a dead letter."""
        return await self._decide("FAIL", taken.id, taken.fence, code[:64], detail[:1000])

    async def cancel(self, job_id: str) -> str:
        """``cancelled``, ``cancelling`` (running; stops at its next chunk), or the state that it ended in.

        Raises:
            NotFoundError: No such job.
        """
        return _known(job_id, await self._run("CANCEL", job_id))

    async def replay(self, job_id: str) -> None:
        """Lets a dead letter wait for a worker again, with all attempts; answered chunks stay answered.

        Raises:
            NotFoundError: No such job.
            ConflictError: It is no dead letter.
        """
        state = _known(job_id, await self._run("REPLAY", job_id))
        if state != "replayed":
            raise ConflictError(f"Job {job_id} is {state}", hint="only dead letters (failed jobs) can be replayed")

    async def erase(self, job_id: str) -> None:
        """Forgets an ended job with its texts and answers, before its time.

        Raises:
            NotFoundError: No such job.
            ConflictError: It did not end yet.
        """
        state = _known(job_id, await self._run("ERASE", job_id))
        if state != "erased":
            raise ConflictError(f"Job {job_id} is {state}", hint="cancel it first")

    async def sweep(self) -> None:
        """Lets due retries wait again, ends jobs that are too old, erases what was kept long enough."""
        await self._run("SWEEP")

    async def stats(self) -> QueueStats:
        """How full the queue is."""
        delayed, dead, size, oldest, *rest = await self._run("STATS")
        rows = [(rest[i].decode(), int(rest[i + 1]), int(rest[i + 2])) for i in range(0, len(rest), 3)]
        return QueueStats(
            waiting={name: entries - running for name, entries, running in rows},
            running={name: running for name, _, running in rows},
            delayed=int(delayed), dead=int(dead), bytes=int(size), oldest_s=max(0, int(oldest)) / 1000,
        )  # fmt: skip

    async def jobs(self, limit: int = 100, *, dead: bool = False) -> list[JobStatus]:
        """The newest jobs of any state, or the newest dead letters."""
        names = ["dead"] if dead else ["open", "dead", "ended"]
        async with self._translated():
            ids = {each.decode() for name in names for each in await self._redis.zrevrange(_key(name), 0, limit - 1)}
        newest = sorted(ids, reverse=True)[:limit]
        found = [await self.status(job_id) for job_id in newest]
        return [status for status in found if status is not None]

    async def results(self, job_id: str) -> list[dict[str, Any]]:
        """One answer per text, in their order, as far as they are there.

        Raises:
            IntegrityError: They were sealed with another key, or tampered with.
        """
        async with self._translated():
            chunks = await self._redis.hgetall(_key("results", job_id))
        return await asyncio.to_thread(self._answers, job_id, chunks)

    async def events(self, job_id: str, after: str = "0") -> list[Event]:
        """What happened after the event `after`; everything that is kept, for ``0``."""
        async with self._translated():
            found = await self._redis.xrange(_key("events", job_id), min=f"({after}", count=100)
        return [_event(entry.decode(), _words(fields)) for entry, fields in found]

    async def durability(self) -> list[str]:
        """What this Redis may lose of accepted jobs, in words; empty: nothing, or it does not tell."""
        try:
            async with self._translated():
                said = _words(await self._redis.config_get("append*", "maxmemory-policy"))
        except PermanentBackendError:
            return []
        lost = []
        if said.get("appendonly") == "no":
            lost.append("appendonly is no: a restart of Redis loses accepted jobs")
        elif said.get("appendfsync") != "always":
            lost.append(
                f"appendfsync is {said.get('appendfsync')}: a power loss loses what was accepted in the last seconds"
            )
        if said.get("maxmemory-policy", "noeviction") != "noeviction":
            lost.append(f"maxmemory-policy is {said['maxmemory-policy']}: a full Redis drops jobs; set noeviction")
        return lost

    async def close(self) -> None:
        """Closes the connections; the next call opens others."""
        await self._redis.aclose()

    def _sealed(self, job: NewJob) -> tuple[str, str, bytes, bytes]:
        asked = {"texts": list(job.texts), "top_k": job.top_k, "subject": job.subject, "chunk_texts": job.chunk_texts}
        body = self._seal.digest([asked["texts"], job.top_k, job.subject, job.priority])
        who = [job.caller.tenant, job.caller.subject, job.use_case, job.idempotency_key]
        digest = self._seal.digest(who) if job.idempotency_key else ""
        caller = self._seal.seal(orjson.dumps(_plain(job.caller)), f"caller of job {job.id}")
        return body, digest, self._seal.seal(orjson.dumps(asked), f"texts of job {job.id}"), caller

    def _opened(self, job_id: str, sealed: bytes, caller: bytes) -> tuple[dict[str, Any], Caller]:
        who = _caller(orjson.loads(self._seal.open(caller, f"caller of job {job_id}")))
        return orjson.loads(self._seal.open(sealed, f"texts of job {job_id}")), who

    def _answers(self, job_id: str, chunks: Mapping[bytes, bytes]) -> list[dict[str, Any]]:
        ordered = sorted((int(number), sealed) for number, sealed in chunks.items())
        opened = [orjson.loads(self._seal.open(sealed, _part(job_id, number))) for number, sealed in ordered]
        return [answer for chunk in opened for answer in chunk]

    async def _decide(self, script: str, *arguments: Any) -> Outcome:
        return (await self._run(script, *arguments)).decode()

    async def _run(self, script: str, *arguments: Any) -> Any:
        async with self._translated():
            return await self._scripts[script](keys=[PREFIX], args=[self._clock(), *arguments])

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except (exceptions.AuthenticationError, exceptions.AuthorizationError) as error:
            raise PermanentBackendError(f"{self.where} refuses us: {error}", hint="check user and password") from error
        except (exceptions.ReadOnlyError, exceptions.BusyLoadingError) as error:
            raise TransientBackendError(f"{self.where} is not ready: {error}", hint="wait") from error
        except exceptions.OutOfMemoryError as error:
            raise _OutOfMemory(f"{self.where} is out of memory", hint="raise maxmemory, or end jobs") from error
        except exceptions.ResponseError as error:
            if "MISCONF" in str(error):
                raise TransientBackendError(f"{self.where} cannot write: {error}", hint="is its disk full?") from error
            raise PermanentBackendError(f"{self.where} cannot do it: {error}", hint="see the server's log") from error
        except (exceptions.RedisError, OSError) as error:
            raise TransientBackendError(f"{self.where} does not answer: {error}", hint="is it running?") from error


class _OutOfMemory(TransientBackendError):
    """Redis has reached its ``maxmemory``."""


def _known(job_id: str, said: bytes) -> str:
    if said == b"unknown":
        raise NotFoundError(f"No job {job_id}", hint="it may be erased: results are kept for jobs.result_ttl")
    return said.decode()


def _key(*parts: str) -> str:
    return ":".join((PREFIX, *parts))


def _part(job_id: str, chunk: int) -> str:
    return f"answers {chunk} of job {job_id}"


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _words(said: Mapping[bytes, bytes]) -> dict[str, str]:
    """Text fields; sealed ones are left out by their replacement characters never being read."""
    return {_word(name): _word(value) for name, value in said.items()}


def _word(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _event(entry: str, said: Mapping[str, str]) -> Event:
    numbers: Iterable[int] = (int(said[name]) for name in ("texts", "texts_done", "attempts"))
    return Event(entry, said["state"], *numbers)  # type: ignore[arg-type]


def _plain(caller: Caller) -> dict[str, Any]:
    return {
        "subject": caller.subject, "tenant": caller.tenant, "scopes": sorted(caller.scopes), "method": caller.method,
        "key_id": caller.key_id,
    }  # fmt: skip


def _caller(said: dict[str, Any]) -> Caller:
    said["scopes"] = frozenset(said["scopes"])
    return Caller(**said)
