"""Seconds from SIGKILL of a served Bento to ready again.

python -m benchmarks.restart --home .leitstand [--name support] [--repeats 5]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.machine import describe
from leitstand.files import write_text

PORT = 3980


def is_ready() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=1) as response:
            return response.status == 200
    except OSError:
        return False


def start(home: Path, name: str) -> "subprocess.Popen[bytes]":
    environment = dict(os.environ) | {"BENTOML_HOME": str(home / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "serve", f"{name}:latest", "--host", "127.0.0.1", "--port", str(PORT)]
    return subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait(wanted: bool) -> None:
    deadline = time.monotonic() + 120
    while is_ready() is not wanted:
        if time.monotonic() > deadline:
            raise SystemExit("the Bento did not answer within 120 s")
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--name", default="support")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    home, taken = args.home.resolve(), []
    process = start(home, args.name)
    try:
        wait(True)
        for _ in range(args.repeats):
            process.kill()
            process.wait(10)
            begin = time.monotonic()
            wait(False)  # the worker ends with its server
            process = start(home, args.name)
            wait(True)
            taken.append(round(time.monotonic() - begin, 2))
            print(taken[-1], flush=True)
    finally:
        process.terminate()
        process.wait(30)
    result = {"machine": describe(), "seconds": taken, "median": statistics.median(taken)}
    write_text(Path(__file__).parent / "results" / "restart.json", json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
