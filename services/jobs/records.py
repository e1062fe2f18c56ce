"""What a job is, at rest and on its way: plain values, no Redis and no HTTP.

queued ──take──> running ──last chunk──> done
  │  ▲             │  │
  │  └──release────┘  └──fail, or too many attempts──> failed (a dead letter) ──replay──> queued
  └──────cancel────┴─────────────────────────────────> cancelled
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self

from leitstand.types import Caller

__all__ = ["ENDED", "PRIORITIES", "Event", "JobLimits", "JobStatus", "NewJob", "Outcome", "Priority", "QueueStats",
    "State", "Taken"]  # fmt: skip

State = Literal["queued", "running", "done", "failed", "cancelled"]
Priority = Literal["high", "normal", "low"]
Outcome = Literal["running", "done", "queued", "failed", "cancelled", "lost"]
"""What a worker is told about a job that it holds; ``lost``: somebody else holds or ended it."""

PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
ENDED: frozenset[str] = frozenset({"done", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class JobLimits:
    """How much the queue takes on, and how long it keeps what.

    Attributes:
        max_open: Jobs that wait or run, of all tenants.
        max_open_per_tenant: The same of one tenant.
        max_bytes: Sealed inputs that are kept, of open jobs and dead letters.
        max_attempts: Attempts in a row that may end without one more answered chunk.
        max_age_s: A job that did not end by then becomes a dead letter.
        result_ttl_s: How long a result is kept.
        dead_ttl_s: How long a dead letter is kept.
    """

    max_open: int = 1000
    max_open_per_tenant: int = 100
    max_bytes: int = 256 * 2**20
    max_attempts: int = 5
    max_age_s: float = 86_400
    result_ttl_s: float = 86_400
    dead_ttl_s: float = 7 * 86_400


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What a caller asks for. ``idempotency_key`` is empty when none was given."""

    id: str
    use_case: str
    caller: Caller
    texts: Sequence[str]
    chunk_texts: int
    top_k: int = 3
    subject: str = ""
    priority: Priority = "normal"
    idempotency_key: str = ""

    @property
    def chunks(self) -> int:
        """Into how many requests the texts are cut."""
        return -(-len(self.texts) // self.chunk_texts)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A job in a worker's hands.

    ``fence`` is its right to write, until the next worker takes the job; ``fruitless`` counts the attempts in a row,
    this one included, that answered nothing so far.
    """

    id: str
    fence: int
    use_case: str
    attempt: int
    fruitless: int
    caller: Caller
    texts: Sequence[str]
    chunk_texts: int
    top_k: int
    subject: str
    answered: frozenset[int] = field(default_factory=frozenset)

    def missing(self) -> list[tuple[int, Sequence[str]]]:
        """The chunks that no earlier attempt answered, in order."""
        size = self.chunk_texts
        starts = range(0, len(self.texts), size)
        return [(n, self.texts[at : at + size]) for n, at in enumerate(starts) if n not in self.answered]


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """Everything about a job but its texts."""

    id: str
    use_case: str
    tenant: str
    state: State
    priority: Priority
    texts: int
    texts_done: int
    texts_refused: int
    chunks: int
    attempts: int
    max_attempts: int
    cancelling: bool
    replays: int
    worker: str
    error_code: str
    error: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    retry_at: datetime | None
    expires_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether nothing will happen to it any more, unless it is replayed."""
        return self.state in ENDED

    @classmethod
    def read(cls, job_id: str, said: Mapping[str, str]) -> Self:
        """From the fields that Redis holds."""
        numbers: dict[str, Any] = {
            name: int(said.get(name, 0))
            for name in ("texts", "texts_done", "texts_refused", "chunks", "attempts", "max_attempts", "replays")
        }
        times: dict[str, Any] = {
            f"{name}_at": _time(said.get(f"{name}_ms")) for name in ("started", "finished", "retry", "expires")
        }
        words: dict[str, Any] = {
            name: said.get(name, "")
            for name in ("use_case", "tenant", "state", "priority", "worker", "error_code", "error")
        }
        created = _time(said["created_ms"])
        assert created is not None  # noqa: S101 -- written with the job
        return cls(
            id=job_id, cancelling=said.get("cancel") == "1" and said.get("state") not in ENDED, created_at=created,
            **numbers, **times, **words,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """One step of a job. ``id`` is its place in the stream: whoever saw it asks for what came after."""

    id: str
    state: State
    texts: int
    texts_done: int
    attempts: int

    @property
    def last(self) -> bool:
        """Whether the job ended with it."""
        return self.state in ENDED


@dataclass(frozen=True, kw_only=True)
class QueueStats:
    """The queue at one moment. ``waiting`` and ``running`` by use case; ``delayed`` are retries not yet due."""

    waiting: Mapping[str, int]
    running: Mapping[str, int]
    delayed: int
    dead: int
    bytes: int
    oldest_s: float


def _time(milliseconds: str | None) -> datetime | None:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC) if milliseconds and int(milliseconds) else None
