"""How long a broken canary lives: decision and switch at 20 requests/s, and what its callers notice.

Real gateway, real processes as versions (`tests/tiny_bento.py`; they cost nothing, so the times are the
controller's and the statistics'), default policy from the first canary step on, 1 %. Several use cases at once, each
with its own traffic. Run: ``python -m benchmarks.rollback [USE_CASES]``; writes ``benchmarks/results/rollback.json``.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

from flows.rollout import drive
from flows.switching import make_stable
from leitstand.settings import GatewaySettings, LocalSettings, Settings
from leitstand.usecase import UseCase
from monitors.rollout_rules import Phase, Rollout
from tests.rollout_for_tests import live_controller, use_case
from tests.servers import free_ports, running

RATE = 20.0
LIMIT_S = 90
GATEWAY = (
    "from leitstand.settings import load_settings; from services.gateway import serve; "
    "from services.gateway_wiring import wire; serve(wire(load_settings()))"
)


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = Settings(
            home=home, gateway=GatewaySettings(port=free_ports(1)[0]), local=LocalSettings(ready_timeout_s=60)
        )
        environment = os.environ | {"LEITSTAND_HOME": folder, "LEITSTAND_GATEWAY__PORT": str(settings.gateway.port)}
        specs = [_spec(number) for number in range(count)]
        with running([sys.executable, "-c", GATEWAY], home / "gateway.log", environment):
            try:
                for spec in specs:
                    control = live_controller(settings, spec)
                    make_stable(control.deployer, control.routes, spec, tag=f"{spec.name}:1", version=1,
                        actor="benchmark", reason="first", spread_s=0)  # fmt: skip
                results = asyncio.run(_measure(settings, specs))
            finally:
                live_controller(settings, specs[0]).deployer.supervisor.stop()  # type: ignore[attr-defined]
    out = {"requests_per_s": RATE, "canary_percent": 1, "load": os.getloadavg()[0], "rollouts": results}
    Path("benchmarks/results/rollback.json").write_text(json.dumps(out, indent=1) + "\n")
    print(json.dumps(out, indent=1))


def _spec(number: int) -> UseCase:
    spec = use_case(shadow_minutes=0)
    serving = spec.serving.model_copy(update={"port": free_ports(1)[0]})
    return spec.model_copy(update={"name": f"case{number}", "serving": serving})


async def _measure(settings: Settings, specs: list[UseCase]) -> list[dict]:
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        ends = [asyncio.Event() for _ in specs]
        answers = [Counter() for _ in specs]
        load = [
            asyncio.create_task(_traffic(client, settings, spec.name, end, seen))
            for spec, end, seen in zip(specs, ends, answers, strict=True)
        ]
        while not all(answers):
            await asyncio.sleep(0.1)
        finals = await asyncio.gather(*(asyncio.to_thread(_roll_out, settings, spec) for spec in specs))
        await asyncio.sleep(2)
        for end in ends:
            end.set()
        await asyncio.gather(*load)
    return [_result(settings, spec, final, seen) for spec, final, seen in zip(specs, finals, answers, strict=True)]


def _roll_out(settings: Settings, spec: UseCase) -> Rollout:
    control = live_controller(settings, spec)
    begun = control.begin(spec, tag=f"{spec.name}:2.broken", version=2, actor="benchmark")
    stop = time.monotonic() + LIMIT_S
    return drive(control, begun.rollout_id, until=lambda state: state.finished or time.monotonic() > stop)


async def _traffic(client: httpx.AsyncClient, settings: Settings, name: str, end: asyncio.Event, seen: Counter) -> None:
    url = f"http://127.0.0.1:{settings.gateway.port}/v1/{name}/predict"
    while not await _is_routed(client, url):
        await asyncio.sleep(0.1)
    tasks, following = set(), time.monotonic()
    while not end.is_set():
        tasks.add(asyncio.create_task(_ask(client, url, seen)))
        tasks = {task for task in tasks if not task.done()}
        following += 1 / RATE
        await asyncio.sleep(max(0.0, following - time.monotonic()))
    await asyncio.gather(*tasks)


async def _is_routed(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.post(url, json={"texts": ["hello"]})).status_code == 200
    except httpx.HTTPError:
        return False


async def _ask(client: httpx.AsyncClient, url: str, seen: Counter) -> None:
    answer = await client.post(url, json={"texts": ["where is my card?"]})
    seen[answer.status_code] += 1


def _result(settings: Settings, spec: UseCase, final: Rollout, seen: Counter) -> dict:
    control = live_controller(settings, spec)
    history = control.store.history(final.rollout_id)
    tables = control.routes.history(spec.name)
    began = next(table.changed_at for table in tables if table.canary)
    decided = next((state for state in history if state.phase is Phase.ROLLING_BACK), None)
    if decided is None:
        return {"phase": final.phase, "requests": dict(seen)}
    return {
        "phase": final.phase,
        "decided_after_s": round((decided.at - began).total_seconds(), 2),
        "switched_after_s": round((tables[-1].changed_at - decided.at).total_seconds(), 3),
        "requests": dict(seen),
        "reason": decided.reason,
    }


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
