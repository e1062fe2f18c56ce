"""The closed loop in numbers: requests until drift is detected, minutes until the retrained version is promoted.

    python -m benchmarks.loop [--seeds 17 18 19] [--fast] [--prefect]

Each seed is one whole `leitstand demo` in a temporary folder: other withheld queues, other rows, other mistakes of the
agents. Accuracies are on rows that no model was trained on. False alarms over hundreds of windows without drift are
measured by `benchmarks.drift_power`; here they are counted over the demo's own calm windows.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from leitstand.files import write_text

RESULT = Path(__file__).parent / "results" / "loop.json"
HEADLINES = (
    "onset_to_detected_requests", "onset_to_retrained_minutes", "onset_to_promoted_minutes", "bad_canary_seconds",
    "accuracy_champion", "accuracy_during", "accuracy_retrained", "accuracy_everything", "accuracy_gap",
)  # fmt: skip


def play(seed: int, *options: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "leitstand.cli", "demo", "--json", "--seed", str(seed)]
        begin = time.monotonic()
        done = subprocess.run(
            [*command, "--home", f"{folder}/demo", *options], stdout=subprocess.PIPE, text=True, check=False
        )
        seconds = time.monotonic() - begin
    result = json.loads(done.stdout) if done.stdout else {"steps": [], "numbers": {}}
    return {
        "seed": seed, "exit": done.returncode, "seconds": round(seconds, 1), "steps": result["steps"],
        "numbers": result["numbers"],
    }  # fmt: skip


def spread(runs: list[dict[str, Any]], name: str) -> dict[str, float] | None:
    values = [run["numbers"][name] for run in runs if run["numbers"].get(name) is not None]
    if not values:
        return None
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--prefect", action="store_true")
    args = parser.parse_args()
    options = [f"--{name}" for name in ("fast", "prefect") if getattr(args, name)]
    before = describe()
    runs = [play(seed, *options) for seed in args.seeds]
    good = [run for run in runs if run["exit"] == 0]
    windows = sum(run["numbers"].get("calm_windows", 0) for run in runs)
    result = {
        "machine": before, "load_after": describe()["load"], "options": options,
        "finished": f"{len(good)} of {len(runs)}", "seconds": [run["seconds"] for run in runs],
        "false_alarms": {"windows": windows, "alarms": sum(run["numbers"].get("calm_alarms", 0) for run in runs)},
        "headlines": {name: spread(good, name) for name in HEADLINES}, "runs": runs,
    }  # fmt: skip
    write_text(RESULT, json.dumps(result, indent=1))
    print(json.dumps(result["headlines"], indent=1))


if __name__ == "__main__":
    main()
