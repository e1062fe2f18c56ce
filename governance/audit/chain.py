"""One chain on disk: the segments that a single writer appends to, and the signed heads beside them.

    chains/NAME/000000000001.jsonl   records; a segment is named by its first one
    chains/NAME/heads.jsonl          signed when a segment or the chain ends, and every minute
    chains/NAME/head.json            the newest signed head, replaced about once a second
    chains/NAME/torn/                bytes of records that a crash left unfinished
    chains/NAME/lock                 held by the writer

A writer takes the first chain whose lock is free, or begins one; so there are as many chains as there were writers at
once, and writers never wait for each other. The line format stands in `governance.audit.verify_standalone`.
"""

import fcntl
import hashlib
import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

import orjson
import structlog

from governance.audit.signing import Signer
from governance.audit.verify_standalone import ChainResult, frame, genesis, read_public_keys, segments, verify_chain
from leitstand import __version__
from leitstand.errors import IntegrityError
from leitstand.files import write_text
from leitstand.types import utc_now

__all__ = ["Chain", "add_line", "event"]

SEGMENT_BYTES = 64 * 2**20
HEAD_S = 1.0
KEEP_HEAD_S = 60.0

logger = structlog.get_logger()


def event(kind: str, **details: object) -> bytes:
    """The body of a record that says something about the trail itself."""
    return orjson.dumps({"schema_version": 1, "kind": kind, "at": utc_now(), **details}, option=orjson.OPT_UTC_Z)


class Chain:
    """The writer's end of one chain. For one thread.

    Attributes:
        name: Of the chain.
        sequence: Number of the last record that is durable.
    """

    def __init__(self, root: Path, folder: Path, lock: int, signer: Signer, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.name = folder.name
        self.sequence = 0
        self._root, self._folder, self._lock, self._signer = root, folder, lock, signer
        self._segment_bytes = segment_bytes
        self._hash = genesis(self.name)
        self._handle = -1
        self._size = 0
        self._day = date.min
        self._signed = 0
        self._signed_at = self._kept_at = 0.0

    @classmethod
    def take(cls, root: Path, signer: Signer, *, segment_bytes: int = SEGMENT_BYTES) -> "Chain":
        """Opens the first free chain below `root`, or begins one.

        A chain that was tampered with is left as it is, for `leitstand audit verify` to show.

        Raises:
            OSError: The disk is full, read-only or closed to us.
        """
        signer.publish(root)
        for folder in sorted((root / "chains").glob("*/")):
            lock = _locked(folder)
            if lock is None:
                continue
            chain = cls(root, folder, lock, signer, segment_bytes)
            try:
                chain._resume()
                return chain
            except IntegrityError as error:
                logger.error("A chain of the audit trail does not hold; another is begun", cause=error.message)
                os.close(lock)
            except BaseException:
                chain._release()
                raise
        return cls._begin(root, signer, segment_bytes)

    def append(self, bodies: Sequence[bytes]) -> None:
        """Writes records and returns when they are on disk: all of them, or none.

        Raises:
            OSError: They could not be written; nothing of them is left.
        """
        lines, own, sequence = [], self._hash, self.sequence
        for body in bodies:
            sequence += 1
            line, own = frame(own, sequence, body)
            lines.append(line)
        data = b"".join(lines)
        if self._size and (self._size + len(data) > self._segment_bytes or self._day != _today()):
            self._rotate()
        if self._handle < 0:
            self._open_segment()
        try:
            _write(self._handle, data)
        except OSError:
            self._take_back()
            raise
        self._size += len(data)
        self.sequence, self._hash = sequence, own

    def sign(self, now: float, *, kind: str = "head", force: bool = False) -> None:
        """Signs the head when it is due; `now` is a monotonic time."""
        if not force and (self.sequence == self._signed or now - self._signed_at < HEAD_S):
            return
        line = self._signer.statement(kind, self.name, self.sequence, self._hash.decode())
        if force or now - self._kept_at >= KEEP_HEAD_S:
            add_line(self._folder / "heads.jsonl", line)
            self._kept_at = now
        write_text(self._folder / "head.json", line.decode())
        self._signed, self._signed_at = self.sequence, now

    def close(self, now: float) -> None:
        """Says in the chain that it ended well, signs its end, and frees it for the next writer."""
        try:
            self.append([event("closed")])
            self.sign(now, kind="closed", force=True)
        finally:
            self._release()

    def abandon(self) -> None:
        """Frees the chain without another word, as a crash would."""
        self._release()

    @classmethod
    def _begin(cls, root: Path, signer: Signer, segment_bytes: int) -> "Chain":
        host = re.sub(r"[^a-z0-9-]", "-", socket.gethostname().lower())[:40] or "host"
        folder = root / "chains" / f"{host}-{os.urandom(4).hex()}"
        folder.mkdir(parents=True, mode=0o750)
        lock = _locked(folder)
        assert lock is not None  # noqa: S101 -- nobody else knows its name
        chain = cls(root, folder, lock, signer, segment_bytes)
        try:
            chain._say_opened(torn=None)
        except BaseException:
            chain._release()
            raise
        return chain

    def _resume(self) -> None:
        """Goes on behind the last record that holds; what a crash left unfinished is moved away and recorded."""
        _trim_line(self._folder / "heads.jsonl")
        keys = read_public_keys(sorted((self._root / "public_keys").glob("*.pem")))
        state = verify_chain(self._root, self._folder, keys, newest_only=True)
        torn = self._cut_torn(state) if state.problems or state.torn_at is not None else None
        self.sequence = state.last
        self._hash = state.hash.encode() if state.last else genesis(self.name)
        files = segments(self._folder)
        if files:
            self._handle = os.open(files[-1], os.O_WRONLY | os.O_APPEND)
            self._size = os.fstat(self._handle).st_size
            self._day = datetime.fromtimestamp(files[-1].stat().st_mtime, UTC).date()
        self._say_opened(torn)

    def _cut_torn(self, state: ChainResult) -> dict[str, object]:
        """Moves what follows the last good record into ``torn/``, when no signed head vouches for it."""
        file = segments(self._folder)[-1]
        if state.torn_at is None:
            raise IntegrityError(str(state.problems[0]), hint="run `leitstand audit verify`")
        with file.open("rb+") as opened:
            opened.seek(state.torn_at)
            left = opened.read()
            kept = self._folder / "torn" / f"{file.stem}-{state.torn_at}"
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(left)
            opened.truncate(state.torn_at)
            os.fsync(opened.fileno())
        logger.warning("An unfinished record was cut off the audit trail", chain=self.name, bytes=len(left))
        return {"bytes": len(left), "sha256": hashlib.sha256(left).hexdigest(), "behind": state.last}

    def _say_opened(self, torn: dict[str, object] | None) -> None:
        begun = self.sequence > 0
        if torn:
            self.append([event("recovered", **torn)])
        self.append([event("opened", version=__version__, host=socket.gethostname(), pid=os.getpid())])
        self.sign(0.0, kind="opened", force=True)
        if not begun:
            first = self._signer.statement("begun", self.name, 1, _first_hash(self._folder))
            add_line(self._root / "chains.jsonl", first)

    def _rotate(self) -> None:
        """Ends the segment with a signed head; the next record begins another."""
        self.sign(self._kept_at, kind="segment", force=True)
        os.close(self._handle)
        self._handle = -1

    def _open_segment(self) -> None:
        path = self._folder / f"{self.sequence + 1:012d}.jsonl"
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        os.ftruncate(self._handle, 0)
        self._size, self._day = 0, _today()
        _sync_folder(self._folder)

    def _take_back(self) -> None:
        """Removes what a failed write left. When even that fails, the next attempt opens the chain again."""
        try:
            os.ftruncate(self._handle, self._size)
            os.fsync(self._handle)
        except OSError:
            self._release()
            raise

    def _release(self) -> None:
        for handle in (self._handle, self._lock):
            if handle >= 0:
                with suppress(OSError):
                    os.close(handle)
        self._handle = self._lock = -1

    @property
    def usable(self) -> bool:
        """Whether the chain is still held."""
        return self._lock >= 0


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
    os.fdatasync(handle)


def _locked(folder: Path) -> int | None:
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o640)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def add_line(path: Path, line: bytes) -> None:
    """Appends one line, or nothing at all. Lines of other processes may come between."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        size = os.fstat(handle).st_size
        try:
            _write(handle, line)
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def _trim_line(path: Path) -> None:
    """Cuts an unfinished last line off, which only a crash in the middle of a write leaves."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _first_hash(folder: Path) -> str:
    with segments(folder)[0].open("rb") as file:
        return orjson.loads(file.readline())["hash"]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _today() -> date:
    return datetime.now(UTC).date()
