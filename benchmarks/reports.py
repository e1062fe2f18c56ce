"""Time and memory of a drift report, by rows of window and reference, with and without sampling.

    python -m benchmarks.reports --out benchmarks/results/reports.json

Each measurement is its own process, so that memory is its own. Seconds are those of `build_report`, without the
import of Evidently (reported apart). Rows have 384-dimension embeddings and 77 labels; a tenth is labelled.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

ROWS = (1_000, 10_000, 100_000)
DEFAULT_SAMPLE = 10_000


def measure(rows: int, sample: int) -> dict[str, Any]:
    """One report in this process: seconds, peak memory and its growth, sizes on disk."""
    from tests.report_windows_for_tests import START, window_table

    labels = tuple(f"label_{number:02d}" for number in range(77))
    reference = window_table(rows, seed=1, feedback=1.0, labels=labels, dimensions=384)
    window = window_table(rows, seed=2, shift=0.3, feedback=0.1, labels=labels, dimensions=384)
    started = time.perf_counter()
    from monitors.reports import Subject, build_report

    imported = time.perf_counter() - started
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    subject = Subject(use_case="support", title="Support", version=3, start=START, end=START + timedelta(hours=1))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = build_report(
            reference, window, subject=subject, out=folder / "support", workspace=folder / "evidently",
            sample_rows=sample,
        )  # fmt: skip
        snapshot = next((folder / "evidently").glob("*/snapshots/*.json"))
        sizes = {"page_mb": files.html.stat().st_size / 1e6, "record_kb": files.json.stat().st_size / 1e3,
            "snapshot_mb": snapshot.stat().st_size / 1e6}  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows": rows,
        "sample_rows": sample,
        "seconds": round(files.seconds, 2),
        "import_seconds": round(imported, 2),
        "peak_mib": round(peak / 1024),
        "growth_mib": round((peak - before) / 1024),
    } | {name: round(size, 2) for name, size in sizes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--one", nargs=2, type=int, metavar=("ROWS", "SAMPLE"), help="measure one case and print it")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    from benchmarks.machine import describe

    cases = [(rows, DEFAULT_SAMPLE) for rows in ROWS] + [(ROWS[-1], ROWS[-1])]
    results = []
    for _ in range(options.turns):
        for rows, sample in cases:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.reports", "--one", str(rows), str(sample)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(results[-1], flush=True)
    if options.out:
        options.out.write_text(json.dumps({"machine": describe(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
