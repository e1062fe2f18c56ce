"""Time and memory of the drift decision, and of Evidently's preset and Alibi-Detect on the same data.

    python -m benchmarks.drift ours [--rows N ...]
    python -m benchmarks.drift evidently [--rows N ...]
    python -m benchmarks.drift alibi --alibi PYTHON [--rows N ...]
    python -m benchmarks.drift show

100 numeric columns; ours and Alibi-Detect's MMD also take embeddings of 384 dimensions. Each case is a process of its
own and its result is saved at once. `ours` reads a stream of record batches, views of one block of numbers.
Evidently and Alibi-Detect get the whole window as a data frame or array.
"""

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

RESULT = Path(__file__).parent / "results" / "drift.json"
COLUMNS, WIDTH, REFERENCE, BATCH = 100, 384, 10_000, 16_384
ROWS = {
    "ours": (10_000, 100_000, 1_000_000, 10_000_000),
    "evidently": (10_000, 100_000, 300_000),
    "alibi": (1_000, 2_000, 4_000),
}
NAMES = tuple(f"x{i}" for i in range(COLUMNS))


def _block() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((COLUMNS, 4 * BATCH), dtype=np.float32)
    return numbers, rng.standard_normal((4 * BATCH, WIDTH), dtype=np.float32).astype("<f2")


def _batches(block: tuple[np.ndarray, np.ndarray], rows: int, seed: int) -> Iterator[Any]:
    """Views of the block from random places, without a copy: made in no time, and seldom the same twice."""
    import pyarrow as pa  # not where Alibi-Detect is: it needs an older numpy

    rng = np.random.default_rng(seed)
    numbers, vectors = block
    offsets = pa.py_buffer(np.arange(BATCH + 1, dtype=np.int32) * (2 * WIDTH))
    for start in range(0, rows, BATCH):
        size, at = min(BATCH, rows - start), int(rng.integers(0, 3 * BATCH))
        embedding = pa.Array.from_buffers(pa.binary(), size, [None, offsets, pa.py_buffer(vectors[at : at + size])])
        columns = [pa.array(row[at : at + size]) for row in numbers]
        yield pa.record_batch([*columns, embedding], [*NAMES, "embedding"])


def _ours(rows: int) -> dict[str, Any]:
    import pyarrow as pa

    from leitstand.usecase import DriftSpec
    from monitors.detection import fit_detectors
    from monitors.features import Columns

    columns = Columns(
        numeric=NAMES, categorical=(), sampled=(), prediction=(), probabilities=None, score=None, label=None
    )
    block = _block()
    reference = pa.Table.from_batches(list(_batches(block, REFERENCE, 1)))
    with _timed() as fit:
        detectors = fit_detectors(reference, DriftSpec(), labels=(), columns=columns, resamples=1000)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    with _timed() as took:
        report = detectors.judge(_batches(block, rows, 2), start=at, end=at)
    return took | {"fit_s": fit["seconds"], "fit_cpu_s": fit["cpu_s"], "tests": len(report.scores)}


@contextlib.contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Wall-clock and processor seconds of the block; on a busy machine only the second compares."""
    found: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield found
    found |= {"seconds": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def _evidently(rows: int) -> dict[str, Any]:
    import pandas as pd
    from evidently import Report
    from evidently.presets import DataDriftPreset

    rng = np.random.default_rng(1)
    frames = [
        pd.DataFrame(rng.standard_normal((n, COLUMNS), dtype=np.float32), columns=list(NAMES))
        for n in (rows, REFERENCE)
    ]
    with _timed() as took:
        Report([DataDriftPreset()]).run(*frames).dict()
    return took | {"tests": COLUMNS}


def _alibi(rows: int) -> dict[str, Any]:
    from alibi_detect.cd import KSDrift, MMDDrift  # not in this project's environment

    rng = np.random.default_rng(1)
    columns = [rng.standard_normal((rows, COLUMNS), dtype=np.float32) for _ in range(2)]
    vectors = [rng.standard_normal((rows, WIDTH), dtype=np.float32) for _ in range(2)]
    tests = KSDrift(columns[0]), MMDDrift(vectors[0], backend="pytorch")
    with _timed() as took:
        with _timed() as first:
            tests[0].predict(columns[1])
        tests[1].predict(vectors[1])
    return took | {"ks_s": first["seconds"], "tests": COLUMNS + 1}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _one(who: str, rows: int) -> None:
    before = _peak()
    found = {"ours": _ours, "evidently": _evidently, "alibi": _alibi}[who](rows)
    print(json.dumps({"who": who, "rows": rows, "peak_gib": _peak(), "start_gib": before} | found))


def _run(who: str, rows: int, python: str, limit: int) -> dict[str, Any]:
    command = [
        python,
        str(Path(__file__).resolve()) if who == "alibi" else "-m",
        *([] if who == "alibi" else ["benchmarks.drift"]),
    ]
    try:
        done = subprocess.run(
            [*command, "one", "--who", who, "--rows", str(rows)],
            capture_output=True,
            text=True,
            timeout=limit,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return {"who": who, "rows": rows, "seconds": None, "note": f"not finished in {limit} s"}
    except subprocess.CalledProcessError as error:
        return {"who": who, "rows": rows, "seconds": None, "note": error.stderr.strip().splitlines()[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _measure(who: str, sizes: list[int], python: str, limit: int) -> None:
    import os

    from benchmarks.machine import describe

    for rows in sizes:
        found = _run(who, rows, python, limit) | {"load": round(os.getloadavg()[0], 1)}
        result = json.loads(RESULT.read_text()) if RESULT.is_file() else {"cases": []}
        result["machine"] = describe()
        kept = [case for case in result["cases"] if (case["who"], case["rows"]) != (who, rows)]
        result["cases"] = [*kept, found]
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        print(found, flush=True)


def _show() -> None:
    for case in sorted(json.loads(RESULT.read_text())["cases"], key=lambda case: (case["who"], case["rows"])):
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in case.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("ours", "evidently", "alibi", "show", "one"))
    parser.add_argument("--who", default="ours")
    parser.add_argument("--rows", type=int, nargs="*")
    parser.add_argument("--alibi", default=sys.executable, help="a Python with alibi-detect[torch] installed")
    parser.add_argument("--limit", type=int, default=600, help="seconds per case")
    args = parser.parse_args()
    if args.command == "one":
        _one(args.who, args.rows[0])
    elif args.command == "show":
        _show()
    else:
        python = args.alibi if args.command == "alibi" else sys.executable
        _measure(args.command, args.rows or list(ROWS[args.command]), python, args.limit)


if __name__ == "__main__":
    main()
