"""What watching costs per request: counting, an access log line, traces. No server, no upstream.

    python benchmarks/observability.py [--requests 20000] [--rounds 5]

The gateway is a function that sends an answer, so only the outermost layer and the spans are measured; exports go to
a sink that drops them. Writes benchmarks/results/observability.json.
"""

import argparse
import asyncio
import json
import statistics
import time
from io import StringIO
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from benchmarks.machine import describe
from leitstand.events import configure_logging
from leitstand.settings import TelemetrySettings
from services.access_log import AccessLog
from services.asgi import EXCHANGE
from services.exchange import Exchange, TextPayload
from services.observing import Observed
from services.policies import Policies
from services.tracing import STAGES, Tracing

RESULT = Path(__file__).parent / "results" / "observability.json"
HEADERS = [(b"host", b"x"), (b"content-type", b"application/json"), (b"user-agent", b"bench")]


class Nowhere(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


async def check(exchange: Exchange) -> None: ...


def gateway(policies: Policies) -> Any:
    stages = [getattr(policies, name) for name in STAGES]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope[EXCHANGE] = exchange = Exchange(
            use_case="support", request_id="r", subject="", payload=TextPayload(["a"]), path="", deadline=0,
            version=1, route="stable",
        )  # fmt: skip
        for stage in stages:
            await stage(exchange)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    return app


async def seconds(app: Any, requests: int) -> float:
    async def send(message: Any) -> None: ...

    start = time.perf_counter()
    for _ in range(requests):
        scope = {"type": "http", "method": "POST", "path": "/v1/support/predict", "headers": HEADERS}
        await app(scope, None, send)
    return time.perf_counter() - start


def variants() -> dict[str, tuple[Any, list[Any]]]:
    plain = Policies(**dict.fromkeys(STAGES, check))
    traced = {
        name: Tracing(TelemetrySettings(sample_ratio=ratio), exporter=Nowhere())
        for name, ratio in (("traces, 1 in 100", 0.01), ("traces, all", 1.0))
    }
    log = AccessLog("all", tenant_key=b"key")

    def known(name: str) -> bool:
        return True

    made: dict[str, tuple[Any, list[Any]]] = {
        "nothing": (gateway(plain), []),
        "counted": (Observed(gateway(plain), known), []),
        "counted, access log": (Observed(gateway(plain), known, log), [log]),
    }
    for name, tracing in traced.items():
        made[f"counted, {name}"] = (Observed(gateway(tracing.policies(plain)), known, tracing), [tracing])
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    configure_logging(stream=StringIO())
    made = variants()
    took: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(asked.rounds):
        for name, (app, _) in made.items():
            took[name].append(asyncio.run(seconds(app, asked.requests)) / asked.requests * 1e6)
    for _, watchers in made.values():
        for watcher in watchers:
            watcher.close()
    base = statistics.median(took["nothing"])
    rows = {
        name: {"us": round(statistics.median(each), 2), "from": round(min(each), 2), "to": round(max(each), 2),
            "more_us": round(statistics.median(each) - base, 2)}
        for name, each in took.items()
    }  # fmt: skip
    for name, row in rows.items():
        print(f"{name:28} {row['us']:8.2f} us  ({row['from']:.2f} to {row['to']:.2f}), {row['more_us']:.2f} more")
    document = {"machine": describe(), "requests": asked.requests, "rounds": asked.rounds, "per_request": rows}
    RESULT.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
