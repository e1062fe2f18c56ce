"""The one place that knows how a W&B run file (``run-ID.wandb``) is laid out on disk.

wandb 0.31 ships a writer but no reader for Python (``wandb.sdk.internal.datastore`` is gone, and
``wandb leet inspect`` costs a second per run), so the frame is decoded here: a seven-byte file header,
then the record format of LevelDB's log
(https://github.com/google/leveldb/blob/main/doc/log_format.md) with CRC-32 (ISO-HDLC) as checksum, and
one protobuf message ``wandb_internal.Record`` per record. The layout is not a public promise of W&B:
``tests/integration/test_tracking.py`` fails loudly when it moves. Nothing here gives records a meaning.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leitstand.errors import IntegrityError

__all__ = ["RunFile", "has_ended", "read_run_file"]

FILE_HEADER = b":W&B\xe1\xbe\x00"
BLOCK_BYTES = 32 * 1024
FRAME = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class RunFile:
    """What could be read.

    `complete` is False when the file ends in the middle of a record or is damaged; `damaged` tells the two apart:
    of a file that is only cut, as a killed process leaves it, every record before the cut was read.
    """

    records: list[Any] = field(default_factory=list)
    complete: bool = True
    damaged: bool = False


def read_run_file(path: Path) -> RunFile:
    """Reads records up to the first one that is cut off or fails its checksum.

    Raises:
        IntegrityError: The file does not start as a run file of this W&B version does.
    """
    from google.protobuf.message import DecodeError  # noqa: PLC0415  -- wandb takes 0.5 s to import
    from wandb.proto import wandb_internal_pb2  # noqa: PLC0415

    data = path.read_bytes()
    if data[: len(FILE_HEADER)] != FILE_HEADER[: len(data)]:
        raise IntegrityError(
            f"{path} is not a run file that this version can read (it starts with {data[:7].hex()})",
            hint="install the wandb version of pyproject.toml, or open the run with `wandb leet`",
        )
    new_record: Any = vars(wandb_internal_pb2)["Record"]  # generated at import time
    result = RunFile()
    try:
        for payload in _payloads(data):
            record: Any = new_record()
            record.ParseFromString(payload)
            result.records.append(record)
    except _Cut:
        result.complete = False
    except (_Damaged, DecodeError):
        result.complete, result.damaged = False, True
    return result


def has_ended(path: Path) -> bool:
    """Whether the end of the run stands in the file."""
    return any(record.WhichOneof("record_type") == "exit" for record in reversed(read_run_file(path).records))


class _Cut(Exception):
    """The file ends in the middle of a record."""


class _Damaged(Exception):
    """The rest of the file cannot be trusted."""


def _payloads(data: bytes) -> Iterator[bytes]:
    """Yields whole records; a record longer than a block comes in several fragments."""
    parts: list[bytes] = []
    position = len(FILE_HEADER)
    while position < len(data):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < FRAME.size:
            position += left
            continue
        kind, fragment = _fragment(data, position)
        position += FRAME.size + len(fragment)
        if (kind in (FULL, FIRST)) == bool(parts):
            raise _Damaged
        parts.append(fragment)
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []
    if parts or len(data) < len(FILE_HEADER):
        raise _Cut


def _fragment(data: bytes, position: int) -> tuple[int, bytes]:
    if position + FRAME.size > len(data):
        raise _Cut
    checksum, length, kind = FRAME.unpack_from(data, position)
    start = position + FRAME.size
    fragment = data[start : start + length]
    if kind not in (FULL, FIRST, MIDDLE, LAST):
        raise _Damaged
    if len(fragment) < length:
        raise _Cut
    if zlib.crc32(data[start - 1 : start + length]) != checksum:
        raise _Damaged
    return kind, fragment
