"""What the inference log costs the caller, how fast it writes, how large it gets, and how fast windows are read.

    python -m benchmarks.inference_log [--rows 1000000] [--repeats 3]

Rows look like the support use case's: 77 probabilities and a 384-dimensional embedding in float16 (random, so they
do not compress), request ids that are UUIDs. `append` is called with one row at a time while the writer works in its
thread, as a gateway does; the cost is measured per call, so it holds what the writer takes from the interpreter lock.
The paced run offers a fixed rate, the flat-out run waits only when the buffer is half full. Reads are made by
processes of their own, whose peak memory is saved.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from governance.inference_log import open_inference_log
from governance.log_location import LogLocation, open_log_location
from governance.text_statistics import text_statistics
from leitstand.files import write_text
from leitstand.settings import MonitoringSettings, Settings
from leitstand.types import WindowRow, utc_now
from monitors.compaction import compact
from monitors.windows import iterate_window, read_window

HERE = Path(__file__).resolve().parent
DAY = datetime(2026, 11, 20, tzinfo=UTC)
TEXT = "I was charged twice for the same thing and would like my money back, please."
NUMERIC = ["label", "score", "characters", "words", "tokens", "digit_share", "latency_ms"]


def settings(folder: Path) -> Settings:
    return Settings(monitoring=MonitoringSettings(log=str(folder), languages_per_s=0))


def made_rows(count: int) -> list[WindowRow]:
    random = np.random.default_rng(17)
    vectors = random.normal(size=(4096, 384)).astype("<f2")
    shares = random.dirichlet(np.ones(77), size=4096).astype("<f2")
    labels = [f"label_{number}" for number in range(77)]
    step = timedelta(seconds=86_000 / count)
    return [
        WindowRow(
            request_id=str(uuid.UUID(bytes=random.bytes(16))), index=0, at=DAY + step * number, use_case="support",
            version=3, route="stable", subject="", label=labels[number % 77], score=0.5 + number % 50 / 100,
            abstain=False, probabilities=shares[number % 4096].tobytes(), embedding=vectors[number % 4096].tobytes(),
            characters=77, words=15, tokens=18, digit_share=0.0, upper_share=0.02, non_ascii_share=0.0, language="en",
            latency_ms=12.5,
        )
        for number in range(count)
    ]  # fmt: skip


def building() -> float:
    """Microseconds to make one row of an answer, statistics included."""
    row = made_rows(1)[0]
    fields = {name: getattr(row, name) for name in WindowRow.__slots__}
    vector, shares = np.zeros(384, np.float32), np.zeros(77, np.float32)
    start = time.perf_counter()
    for _ in range(20_000):
        statistics = text_statistics(TEXT)
        WindowRow(
            **fields | statistics._asdict() | {"at": utc_now()}
            | {"embedding": vector.astype("<f2").tobytes(), "probabilities": shares.astype("<f2").tobytes()}
        )  # fmt: skip
    return (time.perf_counter() - start) / 20_000 * 1e6


def paced(folder: Path, rows: list[WindowRow], per_s: int, seconds: float) -> dict[str, float]:
    log = open_inference_log(settings(folder))
    costs = np.empty(int(per_s * seconds))
    begin = time.perf_counter()
    for number in range(len(costs)):
        due = begin + number / per_s
        while (now := time.perf_counter()) < due:
            time.sleep(max(0.0, due - now))
        log.append([rows[number % len(rows)]])
        costs[number] = time.perf_counter() - now
    log.close()
    p50, p99, p999 = (np.quantile(costs, (0.5, 0.99, 0.999)) * 1e6).tolist()
    return {"rows_per_s": per_s, "mean_us": float(costs.mean() * 1e6), "p50_us": p50, "p99_us": p99, "p999_us": p999,
        "dropped": log.dropped}  # fmt: skip


def flat_out(folder: Path, rows: list[WindowRow]) -> dict[str, float]:
    log = open_inference_log(settings(folder))
    begin, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(rows), 64):
        log.append(rows[start : start + 64])
        while log.buffered > 25_000:
            time.sleep(0.002)
    log.close()
    wall = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    used = (time.process_time() - cpu) / len(rows) * 1e6
    return {"rows_per_s": len(rows) / wall, "cpu_us_per_row": used, "bytes_per_row": size / len(rows),
        "files": len(list(folder.rglob("*.parquet"))), "dropped": log.dropped}  # fmt: skip


def merged(place: LogLocation) -> dict[str, float]:
    now = DAY + timedelta(days=2)
    begin = time.perf_counter()
    compact(place, "support", now, retention_days=30)
    seconds = time.perf_counter() - begin
    compact(place, "support", now + timedelta(hours=1), retention_days=30)
    files = [path for path in Path(place.base).rglob("*.parquet")]
    return {"seconds": seconds, "bytes": sum(path.stat().st_size for path in files), "files": len(files)}


def reading(kind: str, place: LogLocation) -> dict[str, float]:
    """In a process of its own."""
    before = _peak_mib()
    end = DAY + timedelta(days=1)
    begin = time.perf_counter()
    if kind == "iterate":
        rows = sum(batch.num_rows for batch in iterate_window(place, "support", DAY, end))
    elif kind == "hour":
        rows = read_window(place, "support", DAY, DAY + timedelta(hours=1)).num_rows
    else:
        rows = read_window(place, "support", DAY, end, columns=NUMERIC if kind == "numeric" else None).num_rows
    seconds = time.perf_counter() - begin
    return {"rows": rows, "seconds": seconds, "mib": _peak_mib() - before, "mib_imports": before}


def _peak_mib() -> float:
    """Highest resident size of this process so far; unlike `ru_maxrss` it starts anew with a new program."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def in_a_process(kind: str, folder: Path, repeats: int) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "benchmarks.inference_log", "--read", kind, "--folder", str(folder)]
    return [json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parent).stdout)
        for _ in range(repeats)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--read", choices=["all", "numeric", "hour", "iterate"])
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(reading(args.read, open_log_location(settings(args.folder)))))
        return
    found: dict[str, Any] = {"machine": describe(), "at": utc_now().isoformat(), "rows": args.rows}
    found["building_us"] = [building() for _ in range(args.repeats)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample = made_rows(20_000)
        for rate in (200, 1000, 3000):
            key = f"paced_{rate}"
            found[key] = [paced(folder / f"{key}-{turn}", sample, rate, 10) for turn in range(args.repeats)]
            print(key, found[key], flush=True)
        rows = made_rows(args.rows)
        found["flat_out"] = flat_out(folder / "log", rows)
        print("flat out", found["flat_out"], flush=True)
        del rows
        kinds = ("numeric", "hour", "iterate", "all")
        found["read_parts"] = {kind: in_a_process(kind, folder / "log", args.repeats) for kind in kinds}
        print("parts", found["read_parts"], flush=True)
        found["compaction"] = merged(open_log_location(settings(folder / "log")))
        print("compaction", found["compaction"], flush=True)
        found["read_compacted"] = {kind: in_a_process(kind, folder / "log", args.repeats) for kind in kinds}
        print("compacted", found["read_compacted"], flush=True)
    write_text(HERE / "results" / "inference_log.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
