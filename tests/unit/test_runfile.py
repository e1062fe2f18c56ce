"""The frame of a W&B run file, on bytes made here."""

import struct
import zlib
from pathlib import Path

import pytest

from leitstand.errors import IntegrityError
from models.tracking.runfile import BLOCK_BYTES, FILE_HEADER, read_run_file

LONG = "x" * (2 * BLOCK_BYTES)


def record(text: str) -> bytes:
    from wandb.proto import wandb_internal_pb2

    message = vars(wandb_internal_pb2)["Record"]()
    message.run.run_id = text
    return message.SerializeToString()


def frame(payloads: list[bytes]) -> bytes:
    """Writes records as LevelDB's log does, splitting at block borders."""
    out = bytearray(FILE_HEADER)
    for payload in payloads:
        rest, first = payload, True
        while rest or first:
            left = BLOCK_BYTES - len(out) % BLOCK_BYTES
            if left < 7:
                out += bytes(left)
                continue
            part, rest = rest[: left - 7], rest[left - 7 :]
            kind = (1 if first else 4) if not rest else (2 if first else 3)
            out += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            first = False
    return bytes(out)


def ids(path: Path) -> list[str]:
    return [item.run.run_id for item in read_run_file(path).records]


def test_records_come_back_in_order_also_over_block_borders(tmp_path: Path) -> None:
    path = tmp_path / "run.wandb"
    path.write_bytes(frame([record("a"), record(LONG), record("b")]))
    assert ids(path) == ["a", LONG, "b"]
    assert read_run_file(path).complete


@pytest.mark.parametrize("cut", [1, 5, 8, 40])
def test_a_cut_file_gives_what_stands_before_the_cut_and_says_so(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "run.wandb"
    path.write_bytes(frame([record("a"), record("b" * 50)])[:-cut])
    assert ids(path) == ["a"]
    assert not read_run_file(path).complete


def test_a_changed_byte_ends_the_reading(tmp_path: Path) -> None:
    data = bytearray(frame([record("a"), record("b"), record("c")]))
    data[len(frame([record("a")])) + 8] ^= 1
    path = tmp_path / "run.wandb"
    path.write_bytes(data)
    assert ids(path) == ["a"]
    assert not read_run_file(path).complete


def test_an_empty_file_is_a_cut_one(tmp_path: Path) -> None:
    path = tmp_path / "run.wandb"
    path.write_bytes(b"")
    assert ids(path) == []
    assert not read_run_file(path).complete


def test_another_file_format_is_refused_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "run.wandb"
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(IntegrityError, match=r"run\.wandb is not a run file"):
        read_run_file(path)
