"""The writer: who waits is answered when the record is on disk, and nobody is told otherwise."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from governance.audit.keys import open_keys
from governance.audit.reading import Reader, opened_json
from governance.audit.records import Content
from governance.audit.signing import open_signer
from governance.audit.trail import AuditUnavailable, Trail
from tests.audit_for_tests import entry, verify


def made(folder: Path, **more: object) -> Trail:
    return Trail(folder, lambda: open_keys(folder), lambda: open_signer(folder), **more)  # type: ignore[arg-type]


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[Trail]:
    trail = made(tmp_path)
    trail.start(10)
    yield trail
    trail.close()


def requests_in(folder: Path) -> list[str]:
    return [record.request_id for record in Reader(folder).records()]


async def test_a_durable_record_is_on_disk_when_its_caller_goes_on(trail: Trail) -> None:
    for number in range(20):
        await trail.durable(entry(number))
        assert requests_in(trail.folder)[-1] == f"r-{number}"


async def test_records_of_many_callers_share_their_flushes(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda handle: (flushes.append(handle), real(handle)))
    await asyncio.gather(*(trail.durable(entry(number)) for number in range(500)))
    assert requests_in(trail.folder) == [f"r-{number}" for number in range(500)]
    assert len(flushes) < 50


async def test_relaxed_records_are_written_in_time_and_at_the_latest_when_the_trail_is_closed(tmp_path: Path) -> None:
    trail = made(tmp_path, flush_s=30)
    trail.start(10)
    await trail.durable(entry(0))
    assert trail.later(entry(1)) and requests_in(tmp_path) == ["r-0"]
    await asyncio.to_thread(trail.close)
    assert requests_in(tmp_path) == ["r-0", "r-1"]
    assert verify(tmp_path).all_problems == []


async def test_relaxed_records_that_find_no_room_are_counted_in_the_trail(tmp_path: Path) -> None:
    trail = made(tmp_path, flush_s=30, limit=3)
    trail.start(10)
    assert [trail.later(entry(number)) for number in range(5)] == [True, True, True, False, False]
    await asyncio.to_thread(trail.close)
    (lost,) = [line for line in Reader(tmp_path).lines() if line.kind == "lost"]
    assert lost.details == {"records": 2} and len(requests_in(tmp_path)) == 3


async def test_a_full_disk_fails_those_who_wait_and_ends_when_there_is_room(
    trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trail.durable(entry(0))
    real, room = os.write, asyncio.Event()

    def full(handle: int, data: bytes) -> int:
        if not room.is_set():
            raise OSError(28, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(AuditUnavailable, match="No space left"):
        await trail.durable(entry(1))
    assert "No space left" in trail.down
    assert trail.later(entry(2))
    room.set()
    async with asyncio.timeout(10):
        while trail.down:
            await asyncio.sleep(0.01)
    await trail.durable(entry(3))
    assert requests_in(trail.folder) == ["r-0", "r-2", "r-3"] or requests_in(trail.folder) == ["r-0", "r-3", "r-2"]
    (resumed,) = [line for line in Reader(trail.folder).lines() if line.kind == "resumed"]
    assert "No space left" in resumed.details["cause"]
    await asyncio.to_thread(trail.close)
    assert verify(trail.folder).all_problems == []


async def test_a_record_that_is_no_json_fails_alone(trail: Trail) -> None:
    wrong = entry(1)
    wrong.input = Content("texts", ["\ud800"])
    results = await asyncio.gather(*map(trail.durable, (entry(0), wrong, entry(2))), return_exceptions=True)
    assert [type(each).__name__ for each in results] == ["NoneType", "PermanentBackendError", "NoneType"]
    assert requests_in(trail.folder) == ["r-0", "r-2"]


async def test_a_caller_that_goes_away_costs_nobody_else_a_record(trail: Trail) -> None:
    tasks = [asyncio.create_task(trail.durable(entry(number))) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await trail.durable(entry(99))
    assert len(requests_in(trail.folder)) == 21


async def test_a_closed_trail_takes_nothing(trail: Trail) -> None:
    await asyncio.to_thread(trail.close)
    with pytest.raises(AuditUnavailable, match="closed"):
        await trail.durable(entry(0))


async def test_a_trail_that_cannot_be_opened_says_so_and_opens_later(tmp_path: Path) -> None:
    place = tmp_path / "taken"
    place.write_text("a file where the folder should be")
    trail = made(place)
    trail.start(10)
    with pytest.raises(AuditUnavailable, match="taken"):
        await trail.durable(entry(0))
    place.unlink()
    async with asyncio.timeout(10):
        while trail.down:
            await asyncio.sleep(0.01)
    await trail.durable(entry(1))
    await asyncio.to_thread(trail.close)
    assert requests_in(place) == ["r-1"]


async def test_what_was_written_is_read_in_the_clear_only_with_the_key(trail: Trail) -> None:
    await trail.durable(entry(7))
    keys = open_keys(trail.folder)
    (record,) = Reader(trail.folder).find("r-7")
    opened = Reader(trail.folder, keys).open(record)
    assert opened_json(opened.input) == ["text 7"] and opened_json(opened.who) == {"subject": "ann", "caller": "svc"}
    assert Reader(trail.folder).open(record).erased
    assert record.subject.startswith("s-") and "ann" not in record.model_dump_json()
    keys.close()
