"""What limits add to a request: `python -m benchmarks.budgets` writes results/budgets.json.

Each store, with eight limits per request (two of rate, two of places, four of days), as the policies ask it:
one request after the other, then 64 clients, then two processes of 64 clients at once. `admit` is what a request
waits for; `settle` is waited for only where the next request could tell. Redis writes its append-only file each
second. The median of several runs, with the least and the most.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import uvloop
import yaml

from benchmarks.machine import describe
from governance.budgets.opening import open_budget_store
from governance.budgets.plans import Plans
from leitstand.settings import BudgetSettings, Settings
from leitstand.types import Caller
from services.budgeting import Budgeting
from services.exchange import Exchange, TextPayload
from services.upstreams import Reply
from tests.servers import free_ports

HERE = Path(__file__).parent
RESULT = HERE / "results" / "budgets.json"
SUPPORT = HERE.parent / "usecases" / "support" / "usecase.yaml"
RUNS, SEQUENTIAL, CLIENTS, EACH = 5, 2000, 64, 100
LIMITS: dict[str, Any] = {
    "prices": {"per_million_tokens_in": 1}, "use_case": {"requests_per_s": 100_000, "cost_per_day": 1000},
    "tenant": {"requests_per_s": 100_000, "concurrent": 1000, "tokens_per_day": 10**12, "cost_per_day": 1000},
    "user": {"concurrent": 1000, "requests_per_day": 10**9},
}  # fmt: skip
CALLER = Caller("ann", "acme", method="jwt")
ANSWER = Reply(200, b"{}", "application/json")


def budgeting(folder: Path, uri: str, limits: dict[str, Any]) -> Budgeting:
    target = folder / "usecases" / "support" / "usecase.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(yaml.safe_dump(yaml.safe_load(SUPPORT.read_text()) | {"budgets": limits}))
    settings = Settings(usecases=folder / "usecases", budgets=BudgetSettings(uri=uri, timeout_s=10))
    return Budgeting(open_budget_store(settings), Plans(settings))


async def one(policy: Budgeting) -> tuple[float, float]:
    """Seconds that a request waits for each stage."""
    exchange = Exchange("support", "r", "", TextPayload(["My new card has not arrived yet"]), "/v2", 0, caller=CALLER)
    start = time.perf_counter()
    await policy.admit(exchange)
    admitted = time.perf_counter()
    exchange.route, exchange.reply, exchange.upstream_s = "stable", ANSWER, 0.001
    before = time.perf_counter()
    await policy.settle(exchange)
    return admitted - start, time.perf_counter() - before


async def sequential(policy: Budgeting) -> dict[str, float]:
    admits, settles = zip(*[await one(policy) for _ in range(SEQUENTIAL)], strict=True)
    found = {}
    for name, values in (("admit", admits), ("settle", settles)):
        cuts = statistics.quantiles(values, n=100)
        found |= {f"{name}_p{percent}_us": round(cuts[percent - 1] * 1e6, 1) for percent in (50, 95, 99)}
    return found


async def concurrent(policy: Budgeting) -> dict[str, float]:
    async def client() -> None:
        for _ in range(EACH):
            await one(policy)

    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    elapsed, count = time.perf_counter() - start, CLIENTS * EACH
    return {
        "requests_per_s": round(count / elapsed),
        "cpu_us_per_request": round((time.process_time() - cpu) / count * 1e6, 1),
    }


async def child(folder: Path, uri: str) -> None:
    """One of two processes: says when it is ready, waits for the start, prints its numbers."""
    policy = budgeting(folder, uri, LIMITS)
    await one(policy)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(await concurrent(policy)), flush=True)
    await policy.close()


def two_processes(folder: Path, uri: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.budgets", str(folder), uri]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
        for _ in range(2)
    ]
    pipes = [(process.stdin, process.stdout) for process in both]
    for _, out in pipes:
        assert out is not None
        assert out.readline() == "ready\n"
    for into, _ in pipes:
        assert into is not None
        into.write("go\n")
        into.flush()
    found = [json.loads(process.communicate()[0]) for process in both]
    return {"requests_per_s_of_two": sum(each["requests_per_s"] for each in found)}


async def measure(folder: Path, uri: str, limits: dict[str, Any]) -> dict[str, float]:
    policy = budgeting(folder, uri, limits)
    await one(policy)
    found = await sequential(policy) | await concurrent(policy)
    await policy.close()
    return found


@contextmanager
def redis_each_second(folder: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "",
        "--appendonly", "yes", "--appendfsync", "everysec"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port)
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def repeated(run: Callable[[], dict[str, float]]) -> dict[str, dict[str, float]]:
    runs = [run() for _ in range(RUNS)]
    return {
        name: {
            "median": statistics.median(each[name] for each in runs),
            "least": min(each[name] for each in runs), "most": max(each[name] for each in runs),
        }
        for name in runs[0]
    }  # fmt: skip


def main() -> None:
    found: dict[str, Any] = {"machine": describe(), "runs": RUNS, "limits_per_request": 8}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {"sqlite": str(folder / "budgets.db")}
        with redis_each_second(folder) as places["redis"]:
            for store, uri in places.items():
                found[store] = repeated(
                    lambda uri=uri: uvloop.run(measure(folder, uri, LIMITS)) | two_processes(folder, uri)
                )
                print(store, json.dumps(found[store]))
            found["no limits"] = repeated(lambda: uvloop.run(measure(folder, places["sqlite"], {})))
            print("no limits", json.dumps(found["no limits"]))
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        uvloop.run(child(Path(sys.argv[1]), sys.argv[2]))
    else:
        main()
