"""Jobs, a queue with a clock of its own, and what a worker would say."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from leitstand.types import Caller
from services.jobs.queue import JobQueue
from services.jobs.records import JobLimits, NewJob, Taken
from services.jobs.sealing import Seal
from services.request_ids import new_request_id

KEY = base64.urlsafe_b64encode(bytes(range(32)))
OTHER_KEY = base64.urlsafe_b64encode(bytes(32))
LEASE_S = 3600.0
EXPIRED_S = 0.0  # a lease of nothing: whatever is held counts as left behind


@dataclass
class Clock:
    """Milliseconds that only a test moves."""

    now: int = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += round(seconds * 1000)


@dataclass
class Bench:
    """A queue on an empty database, and its clock."""

    uri: str
    limits: JobLimits = field(default_factory=JobLimits)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.uri, Seal([KEY]), self.limits, self.clock)

    async def add(self, *texts: str, **more: Any) -> str:
        job_id, _ = await self.queue.submit(new_job(*texts, **more))
        return job_id

    async def take(self, lease_s: float = LEASE_S, **more: Any) -> Taken:
        taken = await self.queue.take("worker", (), lease_s, **more)
        assert taken is not None, "no job waits"
        return taken

    async def state(self, job_id: str) -> str:
        status = await self.queue.status(job_id)
        return status.state if status else "gone"


def new_job(*texts: str, **more: Any) -> NewJob:
    """A job of two texts per chunk."""
    said: dict[str, Any] = {
        "id": new_request_id(), "use_case": "support", "caller": Caller(tenant="acme", subject="ada"),
        "texts": texts or ("a card", "a pin", "a fee"), "chunk_texts": 2,
    }  # fmt: skip
    return NewJob(**said | more)


def answers(texts: Sequence[str]) -> list[dict[str, Any]]:
    """What a worker keeps for some texts."""
    return [{"label": text.upper()} for text in texts]
