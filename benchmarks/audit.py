"""What the audit trail costs: durable records per second and their latency, verified records per second, one core each.

    python benchmarks/audit.py [--turns 3] [--records 60000]

Appenders are coroutines of one event loop, as requests of the gateway are; each waits until its record is on disk
before it appends the next one. Records look like those of a ticket: one sentence in, one label out, both encrypted
with the key of one of 200 subjects. The disk counts: `--folder` says which. Result: benchmarks/results/audit.json.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.machine import describe
from governance.audit.keys import Scope, open_keys
from governance.audit.records import Content, Entry
from governance.audit.signing import open_signer
from governance.audit.trail import Trail
from governance.audit.verify_standalone import read_public_keys, verify_trail
from leitstand.types import Caller, Usage
from services.auditing import entry_of
from services.exchange import Exchange, TextPayload

RESULT = Path(__file__).parent / "results" / "audit.json"
APPENDERS = (1, 16, 64, 128, 256, 512)
TEXT = "My new card still has not arrived, although I ordered it two weeks ago. What shall I do now?"


def entry(number: int) -> Entry:
    now = datetime.now(UTC)
    facts: dict[str, Any] = {
        "request_id": f"01JDFK{number:020d}", "started_at": now, "ended_at": now, "tenant": "bank", "method": "jwt",
        "key_id": "k-1", "use_case": "support", "route": "stable", "version": 3, "path": "/v2/models/support/infer",
        "parameters": {}, "sources": (), "verdicts": [], "policy": "sha256:" + "0" * 64, "tokens_in": 24,
        "tokens_out": 0, "cost_micros": 12, "status": 200, "problem": "",
    }  # fmt: skip
    made = Entry(Scope("bank", f"subject-{number % 200}"), facts)
    made.input = Content("texts", [TEXT])
    made.output = Content("predictions", {"labels": ["card_arrival"], "scores": [0.97], "abstain": [False]})
    return made


async def append(folder: Path, appenders: int, records: int) -> dict[str, float]:
    trail = Trail(folder, lambda: open_keys(folder), lambda: open_signer(folder))
    trail.start(10)
    waits: list[float] = []

    async def one(first: int) -> None:
        for number in range(first, records, appenders):
            start = time.perf_counter()
            await trail.durable(entry(number))
            waits.append(time.perf_counter() - start)

    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one(first) for first in range(appenders)))
    seconds, used = time.perf_counter() - start, time.process_time() - cpu
    trail.close()
    waits.sort()
    return {
        "records_per_s": len(waits) / seconds,
        "p50_ms": waits[len(waits) // 2] * 1000,
        "p99_ms": waits[int(len(waits) * 0.99)] * 1000,
        "cpu_us_per_record": used / len(waits) * 1e6,
    }


def verify(folder: Path) -> dict[str, float]:
    keys = read_public_keys((folder / "public_keys").glob("*.pem"))
    start = time.process_time()
    result = verify_trail(folder, keys)
    seconds = time.process_time() - start
    assert result.all_problems == []
    size = sum(path.stat().st_size for path in (folder / "chains").rglob("*.jsonl"))
    return {"records_per_s": result.records / seconds, "bytes_per_record": size / result.records}


def build_record(count: int = 50_000) -> float:
    """Microseconds that the event loop spends on making one entry."""
    exchange = Exchange(
        use_case="support", request_id="r", subject="ann", payload=TextPayload([TEXT]), path="/v2/models/support/infer",
        deadline=0.0, caller=Caller("ann", "bank", frozenset(), "jwt", "k-1"), usage=Usage(24, 0, 12),
    )  # fmt: skip
    start = time.perf_counter()
    for _ in range(count):
        entry_of(exchange)
    return (time.perf_counter() - start) / count * 1e6


def fsync_ms(folder: Path, size: int = 1000, count: int = 300) -> float:
    """Median time of one append of `size` bytes with fdatasync: the floor of a record that comes alone."""
    import os

    path = folder / "probe"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    waits = []
    for _ in range(count):
        start = time.perf_counter()
        os.write(handle, b"x" * size)
        os.fdatasync(handle)
        waits.append(time.perf_counter() - start)
    os.close(handle)
    path.unlink()
    return statistics.median(waits) * 1000


def spread(turns: list[dict[str, float]]) -> dict[str, list[float]]:
    """Median, lowest, highest of each number."""
    return {
        name: [round(f(turn[name] for turn in turns), 3) for f in (statistics.median, min, max)] for name in turns[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    chosen = parser.parse_args()
    sys.setswitchinterval(0.0005)  # as the gateway sets it
    appended: dict[int, list[dict[str, float]]] = {count: [] for count in APPENDERS}
    verified = []
    scratch = Path(tempfile.mkdtemp(dir=chosen.folder, prefix=".audit-benchmark-"))
    try:
        flush = fsync_ms(scratch)
        for turn in range(chosen.turns):
            for count in APPENDERS:
                folder = scratch / f"{turn}-{count}"
                total = chosen.records if count > 1 else chosen.records // 20
                appended[count].append(uvloop.run(append(folder, count, total)))
                if count > 1:
                    verified.append(verify(folder))
                shutil.rmtree(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    result = {
        "what": "median, lowest and highest of the turns", "turns": chosen.turns, "records": chosen.records,
        "machine": describe(), "flush_ms": round(flush, 3), "event_loop_us_per_entry": round(build_record(), 2),
        "appended": {str(count): spread(turns) for count, turns in appended.items()}, "verified": spread(verified),
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
