"""Reads a trail: records by request, by time, and what they hold in the clear while their keys exist.

Looking up a request goes through the bytes of the segments, at about a gigabyte per second; no index can then be
older than the trail. Reading does not verify: `governance.audit.verify_standalone` does.
"""

import mmap
from base64 import b64decode
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from governance.audit.keys import KeyStore
from governance.audit.records import InferenceRecord, Sealed, TrailEvent, place
from governance.audit.verify_standalone import segments
from leitstand.errors import IntegrityError, NotFoundError

__all__ = ["Opened", "Reader", "moment_of", "opened_json"]

ERASED = "erased"
EVENT_FIELDS = {"schema_version", "kind", "at"}


@dataclass(frozen=True)
class Opened:
    """The encrypted parts of a record in the clear; None where there is none.

    Attributes:
        erased: Whether the subject's key is gone; then all parts are None.
        who: Subject and caller by name.
        input: What was asked.
        output: What was answered.
    """

    erased: bool
    who: bytes | None = None
    input: bytes | None = None
    output: bytes | None = None


class Reader:
    """Reads the trail in `folder`. Safe with a writer beside it: only whole lines are read.

    Args:
        folder: The trail.
        keys: The data keys; None: nothing is decrypted.
    """

    def __init__(self, folder: Path, keys: KeyStore | None = None) -> None:
        self.folder = folder
        self._keys = keys

    def records(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[InferenceRecord]:
        """Inferences that ended in [since, until), chain by chain, in the order of writing."""
        for line in self.lines(since, until):
            if isinstance(line, InferenceRecord):
                yield line

    def lines(
        self, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[InferenceRecord | TrailEvent]:
        """Inferences and what happened to the trail itself, in [since, until)."""
        for chain in self.chains():
            for file in segments_between(chain, since, until):
                for raw in _whole_lines(file):
                    line = _parse(chain.name, raw, file)
                    at = line.ended_at if isinstance(line, InferenceRecord) else line.at
                    if (since is None or at >= since) and (until is None or at < until):
                        yield line

    def find(self, request_id: str) -> list[InferenceRecord]:
        """Every record of a request; several when a client used the id again.

        Raises:
            NotFoundError: There is none.
        """
        needle = b'"request_id":' + orjson.dumps(request_id)
        found = [
            record for chain in self.chains() for file in segments(chain) for raw in _lines_with(file, needle)
            if isinstance(record := _parse(chain.name, raw, file), InferenceRecord) and record.request_id == request_id
        ]  # fmt: skip
        if not found:
            raise NotFoundError(
                f"No audit record of request '{request_id}' in {self.folder}",
                hint="the id stands in the answer's header x-request-id; records older than the retention are removed",
            )
        return sorted(found, key=lambda record: record.started_at)

    def newest(self, limit: int) -> list[InferenceRecord]:
        """The newest inferences, newest first; looks no further back than it must."""
        found: list[InferenceRecord] = []
        for chain in self.chains():
            own: list[InferenceRecord] = []
            for file in reversed(segments(chain)):
                tail: deque[bytes] = deque(_whole_lines(file), maxlen=2 * limit)
                read = [_parse(chain.name, raw, file) for raw in tail if b'"kind":"inference"' in raw]
                own = [record for record in read if isinstance(record, InferenceRecord)] + own
                if len(own) >= limit:
                    break
            found += own[-limit:]
        return sorted(found, key=lambda record: record.ended_at, reverse=True)[:limit]

    def count(self, subject: str) -> int:
        """How many records a subject has, by its name in records."""
        needle = b'"subject":"%b"' % subject.encode()
        return sum(1 for chain in self.chains() for file in segments(chain) for _ in _lines_with(file, needle))

    def open(self, record: InferenceRecord) -> Opened:
        """Decrypts a record and compares what comes out with its hashes.

        Raises:
            IntegrityError: A part is not what was recorded.
        """
        key = self._keys.by_name(record.subject) if self._keys else None
        if key is None:
            return Opened(erased=True)
        parts: dict[str, bytes | None] = {}
        for name in ("who", "input", "output"):
            sealed: Sealed | None = getattr(record, name)
            if sealed is None:
                continue
            plain = key.open(b64decode(sealed.sealed), place(record.chain, record.sequence, name))
            if key.hash(plain) != sealed.hash:
                raise IntegrityError(f"The {name} of record {record.id} does not match its hash")
            parts[name] = plain
        return Opened(erased=False, **parts)

    def chains(self) -> list[Path]:
        """The folders of the chains."""
        return sorted(path for path in (self.folder / "chains").glob("*") if path.is_dir())


def segments_between(chain: Path, since: datetime | None, until: datetime | None) -> list[Path]:
    """The segments of a chain that may hold records of [since, until); judged by their first records."""
    files = segments(chain)
    begins = [moment_of(next(_whole_lines(file), b"")) for file in files]
    chosen = []
    for index, file in enumerate(files):
        following = next((begin for begin in begins[index + 1 :] if begin is not None), None)
        begin = begins[index]
        if since is not None and following is not None and following < since:
            continue
        if until is not None and begin is not None and begin >= until:
            continue
        chosen.append(file)
    return chosen


def moment_of(line: bytes) -> datetime | None:
    """When the record in a line was written, as it says; None without one."""
    if not line:
        return None
    record = orjson.loads(line)["record"]
    return datetime.fromisoformat(record["ended_at"] if record["kind"] == "inference" else record["at"]).astimezone(UTC)


def opened_json(part: bytes | None) -> Any:
    """A part as JSON where it is JSON, else as text, for people to read."""
    if part is None:
        return None
    try:
        return orjson.loads(part)
    except ValueError:
        return part.decode(errors="replace")


def _parse(chain: str, raw: bytes, file: Path) -> InferenceRecord | TrailEvent:
    try:
        line = orjson.loads(raw)
        record = line["record"]
        known = {
            "chain": chain, "sequence": line["sequence"], "hash": line["hash"], "previous_hash": line["previous"],
        }  # fmt: skip
        if record["kind"] == "inference":
            return InferenceRecord.model_validate(record | known)
        details = {name: value for name, value in record.items() if name not in EVENT_FIELDS}
        return TrailEvent(kind=record["kind"], at=record["at"], details=details, **known)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"A record in {file} is not readable: {error}"[:500],
            hint="`leitstand audit verify` says which is bad first",
        ) from error


def _whole_lines(file: Path) -> Iterator[bytes]:
    with file.open("rb", buffering=1 << 20) as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield line


def _lines_with(file: Path, needle: bytes) -> Iterator[bytes]:
    with file.open("rb") as opened:
        if not file.stat().st_size:
            return
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            place = content.find(needle)
            while place >= 0:
                begin, end = content.rfind(b"\n", 0, place) + 1, content.find(b"\n", place)
                if end < 0:
                    return
                yield content[begin : end + 1]
                place = content.find(needle, end)
