"""Whether a gateway's memory stays flat: its resident memory over many requests, and the slope of the second half.

    python -m benchmarks.soak [--requests 500000] [--connections 16] [--access-log all]

One gateway in front of the upstream of `benchmarks.gateway`. Nine of ten requests are predictions of ever new subjects;
the rest names use cases and paths that do not exist, ever new ones, as scanners do: what keeps something per name would
grow. The memory is read after each slice of wrk's load. The slope is a least-squares fit over the second half, after
caches, pools and logs have their size, with the standard error that its residuals give. Writes results/soak.json.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.gateway import GATEWAY, GATEWAY_CORE, HERE, OTHER_CORE, UPSTREAM, running
from benchmarks.machine import describe
from governance.routes.opening import open_route_store
from leitstand.files import write_text
from leitstand.settings import GatewaySettings, Settings
from leitstand.types import RouteTable, Target, utc_now

SLICE_S = 5
SCRIPT = """\
math.randomseed(SEED)
wrk.method = 'POST'
wrk.headers['content-type'] = 'application/json'
request = function()
  local number = math.random(1, 1000000000)
  wrk.headers['x-subject'] = 'subject-' .. number
  local path = '/v1/support/predict'
  local kind = number % 20
  if kind == 0 then path = '/v1/name-' .. number .. '/predict' end
  if kind == 1 then path = '/path-' .. number end
  return wrk.format(nil, path, nil, '{"text": "My new card still has not arrived, number ' .. number .. '"}')
end
done = function(s, l, r)
  print(string.format('JSON {"requests":%d,"refused":%d,"broken":%d}', s.requests, s.errors.status,
    s.errors.connect + s.errors.read + s.errors.write + s.errors.timeout))
end
"""


def load(connections: int, seed: int, work: Path) -> dict[str, int]:
    script = work / "soak.lua"
    script.write_text(SCRIPT.replace("SEED", str(seed)))
    command = ["taskset", "-c", OTHER_CORE, "wrk", "-t1", f"-c{connections}", f"-d{SLICE_S}s", "-s", str(script)]
    out = subprocess.run([*command, f"http://127.0.0.1:{GATEWAY}"], capture_output=True, text=True, check=True).stdout
    return json.loads(re.search("JSON (.*)", out).group(1))  # type: ignore[union-attr]


def slope(samples: list[tuple[int, float]]) -> tuple[float, float]:
    """MiB per 100,000 requests over the second half, and its standard error."""
    half = np.asarray(samples[len(samples) // 2 :], float)
    x, y = half[:, 0] / 100_000, half[:, 1]
    if len(x) < 4:
        return float("nan"), float("nan")
    fit, covariance = np.polyfit(x, y, 1, cov=True)
    return float(fit[0]), float(np.sqrt(covariance[0, 0]))


def soak(process: psutil.Process, asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    total = refused = broken = 0
    samples: list[tuple[int, float]] = []
    while total < asked.requests:
        counts = load(asked.connections, total + 1, work)
        total, refused, broken = total + counts["requests"], refused + counts["refused"], broken + counts["broken"]
        samples.append((total, round(process.memory_info().rss / 2**20, 2)))
        print(f"{total:8d} requests, {samples[-1][1]:7.2f} MiB", flush=True)
    per_100k, error = slope(samples)
    return {
        "requests": total, "refused": refused, "broken": broken,
        "rss_mib": {"first": samples[0][1], "last": samples[-1][1]},
        "slope_mib_per_100k_requests": round(per_100k, 3), "standard_error": round(error, 3), "samples": samples,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500_000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--access-log", choices=("off", "errors", "all"), default="all")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "soak.json")
    asked = parser.parse_args()
    result: dict[str, Any] = {"machine": describe(), "connections": asked.connections, "access_log": asked.access_log}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="leitstand-soak-")))
        target = Target(version=1, url=f"http://127.0.0.1:{UPSTREAM}")
        table = RouteTable(use_case="support", stable=target, changed_at=utc_now(), actor="soak", reason="soak")
        open_route_store(Settings(home=work, gateway=GatewaySettings())).write(table, expected=0)
        options = ["--log-level", "warning", "--no-access-log"]
        command = ["-m", "uvicorn", "benchmarks.gateway:upstream", "--port", str(UPSTREAM), *options]
        stack.enter_context(running(OTHER_CORE, command, f"{target.url}/", work))
        environment = {
            "LEITSTAND_HOME": str(work), "LEITSTAND_GATEWAY__PORT": str(GATEWAY),
            "LEITSTAND_LOG_FILE": "logs/gateway.jsonl",
            "LEITSTAND_TELEMETRY__ACCESS_LOG": asked.access_log, "LEITSTAND_USECASES": str(work),
        }  # fmt: skip
        ready = f"http://127.0.0.1:{GATEWAY}/readyz"
        command = ["-m", "leitstand.cli", "gateway"]
        process = stack.enter_context(running(GATEWAY_CORE, command, ready, work, **environment))
        result |= soak(process, asked, work)
    result["load_after"] = round(os.getloadavg()[0], 2)
    write_text(asked.out, json.dumps(result, indent=1) + "\n")
    print(f"{result['slope_mib_per_100k_requests']} +- {result['standard_error']} MiB per 100,000 requests")


if __name__ == "__main__":
    main()
