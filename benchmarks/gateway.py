"""What the gateway adds to a request: latency direct and through it, and requests per second on one core.

    python -m benchmarks.gateway [--seconds 6] [--repeats 5]

The upstream is a bare ASGI application that answers the same bytes at once. The gateway is pinned to the first core,
upstream and wrk (one thread) to the second, and it does all it does in production: routes from the store, metrics, and
the inference log with its thread on the same core. Direct and through take turns within each repeat. Added latency is
the difference of the percentiles at one connection; throughput is measured at 16. CPU milliseconds per request of the
gateway hardly change when other programs run beside the benchmark; wall-clock figures do. `canary and shadow` routes
half of the requests to a canary and a copy of each to a shadow. `switch_ms` is the time from a change of the
table to the first answer that follows it.
"""

import argparse
import importlib.metadata
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil

from benchmarks.machine import describe
from governance.routes.opening import open_route_store
from leitstand.files import write_text
from leitstand.ports import RouteStore
from leitstand.settings import GatewaySettings, Settings
from leitstand.types import RouteTable, Target, utc_now

HERE = Path(__file__).resolve().parent
GATEWAY, UPSTREAM = 3971, 3972
GATEWAY_CORE, OTHER_CORE = "0", "1"
PACKAGES = ("uvicorn", "uvloop", "httptools", "aiohttp", "fastapi", "orjson", "prometheus_client")
TEXT = "My new card still has not arrived, it has been two weeks"
V2 = "/v2/models/support/infer"
V1 = "/v1/support/predict"
TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
BODIES = {V2: json.dumps({"inputs": [TENSOR]}), V1: json.dumps({"text": TEXT})}
ANSWER = orjson.dumps(
    {
        "model_name": "support", "model_version": "1",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["card_arrival"]},
            {"name": "score", "datatype": "FP32", "shape": [1], "data": [0.9876]},
            {"name": "abstain", "datatype": "BOOL", "shape": [1], "data": [False]},
        ],
    }
)  # fmt: skip
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]


async def upstream(scope: Any, receive: Any, send: Any) -> None:
    """Answers everything alike."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


@contextmanager
def running(core: str, command: list[str], ready: str, work: Path, **environment: str) -> Iterator[psutil.Process]:
    """A process on one core, from ready to drained."""
    log = work / f"{command[1]}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["taskset", "-c", core, sys.executable, *command],
            env=os.environ | environment, cwd=HERE.parent, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not answers(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def wrk(
    port: int, path: str, body: str, connections: int, seconds: float, work: Path,
    headers: Mapping[str, str] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Requests per second and percentiles in milliseconds; fails on any answer but 2xx."""
    script = work / "post.lua"
    shown = "".join(f"wrk.headers['{name}'] = '{value}'\n" for name, value in (headers or {}).items())
    script.write_text(
        f"{shown}wrk.method = 'POST'\nwrk.body = [==[{body}]==]\nwrk.headers['content-type'] = 'application/json'\n"
        "done = function(s, l, r)\n"
        "  local bad = s.errors.status + s.errors.connect + s.errors.read + s.errors.write + s.errors.timeout\n"
        '  print(string.format(\'JSON {"requests":%d,"bad":%d,"p50":%.4f,"p99":%.4f,"seconds":%.4f}\',\n'
        "    s.requests, bad, l:percentile(50) / 1000, l:percentile(99) / 1000, s.duration / 1e6))\nend\n"
    )
    command = ["taskset", "-c", OTHER_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", str(script)]
    out = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True
    ).stdout
    result = json.loads(re.search("JSON (.*)", out).group(1))  # type: ignore[union-attr]
    if result["bad"]:
        raise RuntimeError(f"{result['bad']} requests failed: {out}")
    return {"rps": round(result["requests"] / result["seconds"], 1), "p50_ms": result["p50"], "p99_ms": result["p99"]}


def cpu_s(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def through(process: psutil.Process, path: str, connections: int, seconds: float, work: Path) -> dict[str, float]:
    before = cpu_s(process)
    result = wrk(GATEWAY, path, BODIES[path], connections, seconds, work)
    requests = result["rps"] * seconds
    return result | {"gateway_cpu_ms": round((cpu_s(process) - before) / requests * 1000, 4)}


def repeat(process: psutil.Process, seconds: float, work: Path) -> dict[str, Any]:
    """One turn of everything."""
    made: dict[str, Any] = {}
    for connections in (1, 16):
        made[f"direct c{connections}"] = wrk(UPSTREAM, V2, BODIES[V2], connections, seconds, work)
        for name, path in (("v2", V2), ("v1", V1)):
            result = through(process, path, connections, seconds, work)
            for key in ("p50_ms", "p99_ms"):
                result[f"added_{key}"] = round(result[key] - made[f"direct c{connections}"][key], 4)
            made[f"{name} c{connections}"] = result
    return made


def switches(store: RouteStore, count: int = 20) -> list[float]:
    """Milliseconds from the write of a table to the first answer that follows it."""
    made = []
    url = f"http://127.0.0.1:{GATEWAY}{V2}"
    for number in range(count):
        before = store.read("support")
        assert before is not None
        wanted = before.stable.version + 1
        stable = before.stable.model_copy(update={"version": wanted})
        store.write(before.model_copy(update={"stable": stable}), expected=before.revision)
        start = time.perf_counter()
        while True:
            with urllib.request.urlopen(urllib.request.Request(url, BODIES[V2].encode())) as response:
                if response.headers["x-leitstand-version"] == str(wanted):
                    break
            time.sleep(0.002)
        made.append(round((time.perf_counter() - start) * 1000, 1))
        time.sleep(0.013 * number)  # not in step with the gateway's polling
    return made


def spread(repeats: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Median, lowest and highest of every figure."""
    return {
        case: {
            figure: [round(pick([one[case][figure] for one in repeats]), 4) for pick in (statistics.median, min, max)]
            for figure in repeats[0][case]
        }
        for case in repeats[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gateway.json")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": describe(), "seconds": args.seconds, "repeats": args.repeats}
    result["machine"]["versions"] = {name: importlib.metadata.version(name) for name in PACKAGES}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="leitstand-gateway-")))
        target = Target(version=1, url=f"http://127.0.0.1:{UPSTREAM}")
        plain = RouteTable(
            use_case="support", stable=target, changed_at=utc_now(), actor="benchmark", reason="benchmark"
        )
        mixed = {"canary": target.model_copy(update={"version": 2}), "canary_percent": 50.0, "shadow": target}
        store = open_route_store(Settings(home=work, gateway=GatewaySettings()))
        store.write(plain, expected=0)
        options = ["--log-level", "warning", "--no-access-log"]
        command = ["-m", "uvicorn", "benchmarks.gateway:upstream", "--port", str(UPSTREAM), *options]
        stack.enter_context(running(OTHER_CORE, command, f"{target.url}/", work))
        environment = {"LEITSTAND_HOME": str(work), "LEITSTAND_GATEWAY__PORT": str(GATEWAY)}
        command = ["-m", "leitstand.cli", "gateway"]
        ready = f"http://127.0.0.1:{GATEWAY}/readyz"
        process = stack.enter_context(running(GATEWAY_CORE, command, ready, work, **environment))
        wrk(GATEWAY, V2, BODIES[V2], 16, 2, work)
        runs = []
        for _ in range(args.repeats):
            runs.append(repeat(process, args.seconds, work))
            print(json.dumps(runs[-1]), flush=True)
        result |= {"spread": spread(runs), "runs": runs}
        store.write(plain.model_copy(update=mixed), expected=1)
        time.sleep(1)
        result["canary and shadow"] = through(process, V1, 16, args.seconds, work)
        result["switch_ms"] = switches(store)
        result["rss_mib"] = round(process.memory_info().rss / 2**20, 1)
    result["load_after"] = round(os.getloadavg()[0], 2)
    write_text(args.out, json.dumps(result, indent=1))
    print(json.dumps(result["spread"], indent=1))


if __name__ == "__main__":
    main()
