"""The ports: what the core needs from the outside, and what each promise means.

Each port has an embedded adapter (SQLite or files) and a remote one, and one contract test in
``tests/contracts/`` that runs against all of them. All adapters translate their library's exceptions to
the tree in ``leitstand.errors`` and keep the original as ``__cause__``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from leitstand.types import (
    Alert,
    Feedback,
    LedgerEntry,
    ModelCandidate,
    ModelRef,
    ModelVersion,
    RouteTable,
    WindowRow,
)

__all__ = [
    "AlertSink",
    "BlobStore",
    "ExperimentTracker",
    "FeedbackLog",
    "InferenceLog",
    "LineageSink",
    "ModelRegistry",
    "Progress",
    "PromotionLedger",
    "RouteStore",
    "TrackedRun",
]

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with steps done, steps in all, and the newest numbers."""


class BlobStore(Protocol):
    """Bytes under keys (``a/b/c``). Local folder or S3.

    A write is atomic: a reader sees the old bytes or the new ones, never a part. Last writer wins.
    """

    def put_file(self, key: str, source: Path) -> str:
        """Stores the file and returns its digest (``sha256:...``); skips the transfer when it is there already."""
        ...

    def get_file(self, key: str, target: Path) -> str:
        """Fetches into `target` (atomically, resuming a partial download) and returns the digest.

        Raises:
            NotFoundError: No such key.
            IntegrityError: The bytes do not match the digest stored with them.
        """
        ...

    def exists(self, key: str) -> bool: ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys that start with `prefix`, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Removes the key; removing a missing one is no error."""
        ...


class ModelRegistry(Protocol):
    """Registered versions with aliases. Versions are immutable; numbers rise from 1 and are never reused."""

    def register(self, candidate: ModelCandidate) -> ModelVersion:
        """Stores files, attachments and facts of the candidate as the next version.

        All or nothing: a version is visible to every other method only when it is complete. Registering
        the same ``candidate.key`` again returns the version there is. Safe with concurrent processes.
        """
        ...

    def get(self, ref: ModelRef) -> ModelVersion:
        """Raises NotFoundError when the version or alias does not exist."""
        ...

    def versions(self, name: str) -> Sequence[ModelVersion]:
        """All complete versions of `name`, newest first; empty when the name is unknown."""
        ...

    def names(self) -> Sequence[str]: ...

    def fetch(self, ref: ModelRef, target: Path) -> ModelVersion:
        """Copies the model directory into `target` and verifies every file against its manifest.

        Raises:
            IntegrityError: A file is truncated or changed; the message names it.
        """
        ...

    def attachment(self, ref: ModelRef, name: str, target: Path) -> Path:
        """Copies one attachment (``gate_report.html``) into the folder `target` and returns its path."""
        ...

    def attach(self, ref: ModelRef, files: Mapping[str, Path]) -> None:
        """Adds attachments to a version. Repeating it with the same bytes is no error."""
        ...

    def set_alias(self, ref: ModelRef, alias: str, *, actor: str, reason: str, evidence: str = "") -> LedgerEntry:
        """Points `alias` at the version and appends the move to the ledger; both or neither."""
        ...

    def remove_alias(self, name: str, alias: str, *, actor: str, reason: str) -> LedgerEntry: ...

    def verify_moves(self, name: str) -> None:
        """Checks that every alias of `name` is where the ledger put it.

        Raises:
            IntegrityError: One is not, or the ledger lost its last move; the message says which.
        """
        ...


class PromotionLedger(Protocol):
    """Append-only, hash-chained record of alias moves. Entries are never changed or removed."""

    def append(
        self, *, name: str, alias: str, version: int | None, previous: int | None, actor: str, reason: str,
        evidence: str = "", at: datetime | None = None,
    ) -> LedgerEntry: ...  # fmt: skip

    def entries(self, name: str | None = None) -> Sequence[LedgerEntry]:
        """Oldest first."""
        ...

    def holder(self, name: str, alias: str, at: datetime) -> int | None:
        """The version that `alias` named at a moment: who answered at 14:03."""
        ...

    def verify(self) -> int:
        """Checks the chain and returns the number of entries.

        Raises:
            IntegrityError: An entry was changed, removed or reordered; the message names its sequence number.
        """
        ...


class TrackedRun(Protocol):
    """One run of an experiment tracker. Closing it twice is no error."""

    @property
    def run_id(self) -> str: ...

    @property
    def url(self) -> str:
        """A page in the browser, or the folder of an offline run."""
        ...

    def log(self, metrics: Mapping[str, float], *, step: int | None = None) -> None: ...

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...

    def log_artifact(self, name: str, kind: str, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Records a file or folder; the same bytes under the same name are stored once."""
        ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def finish(self, *, failed: bool = False) -> None: ...


class ExperimentTracker(Protocol):
    def start(
        self, *, use_case: str, job: str, config: Mapping[str, Any], tags: Sequence[str] = (),
        run_id: str | None = None,
    ) -> TrackedRun:  # fmt: skip
        """Opens a run. With the `run_id` of an unfinished one, continues it."""
        ...


class LineageSink(Protocol):
    """Takes OpenLineage events as plain JSON objects. Never raises into the flow: a lost event is logged."""

    def emit(self, event: Mapping[str, Any]) -> None: ...


class RouteStore(Protocol):
    """Route tables, shared by every gateway process. SQLite on one machine, Redis or PostgreSQL for several."""

    def read(self, use_case: str) -> RouteTable | None: ...

    def write(self, table: RouteTable, *, expected: int) -> RouteTable:
        """Stores the table as revision ``expected + 1`` and returns it; seen by every process within a second.

        Raises:
            ConflictError: The stored revision is not `expected`; somebody else changed it meanwhile.
        """
        ...

    def names(self) -> Sequence[str]:
        """Use cases that have a table, sorted."""
        ...

    def revisions(self) -> Mapping[str, int]:
        """Use case to the revision of its table, in one cheap call: gateways poll it."""
        ...

    def history(self, use_case: str) -> Sequence[RouteTable]:
        """Every revision, oldest first: which versions answered at 14:03, and at which weight."""
        ...


class InferenceLog(Protocol):
    """Takes rows without ever making a request wait for a disk. A full buffer drops rows and counts them."""

    def append(self, rows: Sequence[WindowRow], texts: Sequence[str] = ()) -> None:
        """Takes rows; `texts`, theirs, only serve to detect the language of a sample and are never written."""
        ...

    def flush(self) -> None:
        """Returns when every row appended before is on disk (or in the bucket)."""
        ...

    def close(self) -> None: ...


class FeedbackLog(Protocol):
    """Keeps feedback. Idempotent by ``feedback_id``; late, repeated and corrected feedback is normal."""

    def record(self, feedback: Feedback) -> bool:
        """Durable when it returns; False when this id was recorded before.

        Raises:
            ConflictError: The id was recorded before with other content.
        """
        ...

    def entries(self, use_case: str, *, since: datetime | None = None) -> Sequence[Feedback]:
        """In the order of recording."""
        ...


class AlertSink(Protocol):
    """Tells people or systems about an alert: webhook, e-mail, chat, Alertmanager."""

    @property
    def name(self) -> str:
        """Names the sink in the outbox and in logs; holds no secret."""
        ...

    def send(self, alert: Alert) -> None:
        """Delivers the alert, within a bounded time; returns when the other side took it.

        Sending the same alert twice is no harm: it carries the same identity. Safe with threads.

        Raises:
            TransientBackendError: Worth trying later (time-out, refused connection, 429, 5xx).
            PermanentBackendError: The same alert will be refused again (credentials, address, 4xx).
        """
        ...
