"""What the gateway adds to a streamed chat: to the first text, to each piece, and in CPU.

    python -m benchmarks.chat [--repeats 5]

The upstream writes the time into every piece, so that the client can say how old it is when it arrives; direct and
through the gateway take turns within each repeat. `first_ms` is the time from sending the request to the first text,
`piece_ms` the age of each later piece, both at one stream with a piece every 5 ms. `cpu_us_per_piece` is the CPU time
of the gateway's process divided by pieces, at 16 streams that write as fast as they can. `plain` has neither guards,
budget nor record; `protected` has a budget with prices, a strict audit record, and a guard on the answer, whose
hold-back makes the age of its pieces a matter of the text, so only its CPU and its first text are given.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import uvicorn
import yaml

from benchmarks.machine import describe
from governance.routes.opening import open_route_store
from leitstand.files import write_text
from leitstand.settings import Settings
from leitstand.sse import EventReader
from leitstand.types import RouteTable, Target, utc_now

HERE = Path(__file__).resolve().parent
GATEWAY, UPSTREAM = 3981, 3982
GATEWAY_CORE, OTHER_CORE = "0", "1"
PIECES, PAUSE_MS = 200, 5
BURST, STREAMS = 1000, 16
GUARDS = {
    "output": [
        {"rule": "personal_data", "action": "mask"},
        {"rule": "unsafe", "action": "block"},
    ]
}  # fmt: skip
BUDGETS = {"prices": {"per_million_tokens_out": "1"}, "tenant": {"tokens_per_day": 10**12}}


async def upstream(scope: Any, receive: Any, send: Any) -> None:
    """Streams ``PIECES PAUSE_MS`` of the last message; each text is the time in microseconds."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if not body:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        return
    count, pause_ms = map(int, json.loads(body)["messages"][-1]["content"].split())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for _ in range(count):
        text = f"{time.monotonic_ns() // 1000} "
        data = f'{{"id":"x","choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}]}}'
        await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})
        await asyncio.sleep(pause_ms / 1000)
    usage = f'{{"choices":[],"usage":{{"prompt_tokens":5,"completion_tokens":{count}}}}}'
    end = (
        f'data: {{"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}\n\ndata: {usage}\n\ndata: [DONE]\n\n'
    )
    await send({"type": "http.response.body", "body": end.encode()})


async def listen(session: aiohttp.ClientSession, url: str, model: str, order: str) -> tuple[float, list[float], int]:
    """Milliseconds to the first text, the age of each later piece in ms, and the pieces that came."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": order}], "max_tokens": 4000}
    start = time.monotonic_ns()
    first, ages, pieces, reader = 0.0, [], 0, EventReader()
    async with session.post(f"{url}/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for raw in response.content.iter_any():
            now = time.monotonic_ns()
            for event in reader.feed(raw):
                text = "" if event.data == "[DONE]" else _text(event.data)
                if not text:
                    continue
                pieces += 1
                if not first:
                    first = (now - start) / 1e6
                elif text.strip().isdigit():
                    ages.append((now // 1000 - int(text)) / 1000)
    return first, ages, pieces


def _text(data: str) -> str:
    choices = json.loads(data)["choices"]
    return choices[0]["delta"].get("content") or "" if choices else ""


@contextmanager
def running(core: str, command: list[str], ready: str, work: Path, **environment: str) -> Iterator[psutil.Process]:
    """A process on one core, from ready to ended."""
    with (work / "log").open("ab") as out:
        process = subprocess.Popen(
            ["taskset", "-c", core, sys.executable, *command], env=os.environ | environment, cwd=HERE.parent,
            stdout=out, stderr=out,
        )  # fmt: skip
    try:
        asyncio.run(_ready(ready, process))
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


async def _ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError("a server ended")
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise RuntimeError(f"{url} does not answer")


def prepare(home: Path) -> None:
    """Two use cases, with and without protection, on the same upstream."""
    base = yaml.safe_load((HERE.parent / "usecases/support/usecase.yaml").read_text())
    for name in ("access", "budgets", "guards", "audit", "resilience", "chat"):
        base.pop(name, None)
    for name, more in {
        "plain": {"audit": {"mode": "off"}},
        "protected": {"audit": {"mode": "strict"}, "guards": GUARDS, "budgets": BUDGETS},
    }.items():
        write_text(home / "usecases" / name / "usecase.yaml", yaml.safe_dump(base | {"name": name} | more))
        target = Target(version=1, url=f"http://127.0.0.1:{UPSTREAM}/v1", kind="openai", model="x")
        table = RouteTable(use_case=name, stable=target, changed_at=utc_now(), actor="benchmark", reason="benchmark")
        open_route_store(Settings(home=home)).write(table, expected=0)


async def measure(repeats: int, gateway: psutil.Process) -> dict[str, Any]:
    """All figures; lists hold one value per repeat."""
    direct, through = f"http://127.0.0.1:{UPSTREAM}/v1", f"http://127.0.0.1:{GATEWAY}/v1"
    ways = {"direct": (direct, "x"), "plain": (through, "plain"), "protected": (through, "protected")}
    found: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    async with aiohttp.ClientSession() as session:
        for url, model in ways.values():
            await listen(session, url, model, "50 0")
        for _ in range(repeats):
            for way, (url, model) in ways.items():
                firsts, ages = [], []
                for _ in range(5):
                    first, some, _ = await listen(session, url, model, f"{PIECES} {PAUSE_MS}")
                    firsts.append(first)
                    ages += some
                _add(found[way], "first_ms", statistics.median(firsts))
                if way != "protected":
                    _add(found[way], "piece_ms_p50", statistics.median(ages))
                    _add(found[way], "piece_ms_p99", statistics.quantiles(ages, n=100)[98])
            for way in ("plain", "protected"):
                before, start = sum(gateway.cpu_times()[:2]), time.perf_counter()
                streams = [listen(session, through, way, f"{BURST} 0") for _ in range(STREAMS)]
                await asyncio.gather(*streams)
                spent, written = sum(gateway.cpu_times()[:2]) - before, BURST * STREAMS
                _add(found[way], "cpu_us_per_piece", spent / written * 1e6)
                _add(found[way], "pieces_per_s", written / (time.perf_counter() - start))
    return {way: {name: _summary(values) for name, values in figures.items()} for way, figures in found.items()}


def _add(figures: dict[str, list[float]], name: str, value: float) -> None:
    figures.setdefault(name, []).append(value)


def _summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def main() -> None:
    """Measures and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help="be the upstream")
    arguments = parser.parse_args()
    if arguments.serve:
        uvicorn.run(upstream, host="127.0.0.1", port=UPSTREAM, log_level="warning", access_log=False, http="httptools")
        return
    os.sched_setaffinity(0, {int(OTHER_CORE)})
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        prepare(home)
        environment = {
            "LEITSTAND_HOME": name, "LEITSTAND_USECASES": str(home / "usecases"),
            "LEITSTAND_GATEWAY__PORT": str(GATEWAY),
        }  # fmt: skip
        command, ready = ["-m", "leitstand.cli", "gateway"], f"http://127.0.0.1:{GATEWAY}/readyz"
        with (
            running(OTHER_CORE, ["-m", "benchmarks.chat", "--serve"], f"http://127.0.0.1:{UPSTREAM}/", home),
            running(GATEWAY_CORE, command, ready, home, **environment) as gateway,
        ):
            figures = asyncio.run(measure(arguments.repeats, gateway))
    setting = {"pieces": PIECES, "pause_ms": PAUSE_MS, "burst": BURST, "streams": STREAMS, "repeats": arguments.repeats}
    document = {"machine": describe(), "setting": setting, "figures": figures}
    write_text(HERE / "results" / "chat.json", json.dumps(document, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
