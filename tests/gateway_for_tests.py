"""Parts of a gateway without sockets: scripted upstreams, and a pipeline around them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter

import orjson

from leitstand.specs.resilience import ResilienceSpec
from leitstand.types import RouteTable, Target, utc_now
from services.exchange import Exchange, TextPayload
from services.gates import Gates
from services.inference import Inference
from services.policies import Policies
from services.recording import Recorder
from services.route_watch import RouteWatch
from services.upstreams import Offer, Reply, UpstreamFailed
from tests.fakes import InMemoryInferenceLog, InMemoryRouteStore

STABLE, CANARY, SHADOW = (Target(version=n, url=f"http://upstream-{n}") for n in (1, 2, 3))


def answer(version: int, labels: Sequence[str], status: int = 200) -> Reply:
    """A reply of the protocol in JSON."""
    count = [len(labels)]
    document = {
        "model_name": "support", "model_version": str(version),
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": count, "data": labels},
            {"name": "score", "datatype": "FP32", "shape": count, "data": [0.75] * len(labels)},
            {"name": "abstain", "datatype": "BOOL", "shape": count, "data": [False] * len(labels)},
        ],
    }  # fmt: skip
    return Reply(status, orjson.dumps(document), "application/json")


Script = Callable[[bytes], Reply] | Reply | UpstreamFailed


class ScriptedUpstreams:
    """Answers by target what a test told it to, and remembers who was asked and how long they were given."""

    def __init__(self, scripts: Mapping[Target, Script]) -> None:
        self.scripts = dict(scripts)
        self.asked: list[Target] = []
        self.given_s: list[float] = []
        self.gate: asyncio.Event | None = None

    async def call(self, target: Target, path: str, body: bytes | None, headers: object, timeout_s: float) -> Reply:
        self.asked.append(target)
        self.given_s.append(timeout_s)
        if self.gate is not None:
            await self.gate.wait()
        script = self.scripts[target]
        if isinstance(script, UpstreamFailed):
            raise script
        return script if isinstance(script, Reply) else script(body or b"")

    async def ask(self, target: Target, path: str, timeout_s: float) -> Reply:
        return await self.call(target, path, None, {}, timeout_s)

    async def describe(self, target: Target, use_case: str, wait_s: float = 1.0) -> Offer:
        return Offer(labels=("card", "pin"))


@dataclass
class Bench:
    """A pipeline and what it is made of."""

    inference: Inference
    upstreams: ScriptedUpstreams
    log: InMemoryInferenceLog
    recorder: Recorder
    store: InMemoryRouteStore
    watch: RouteWatch
    counted: dict[str, float] = field(default_factory=dict)

    async def ask(self, *texts: str, **more: object) -> Exchange:
        made = exchange(*texts, **more)
        await self.inference.run(made)
        return made

    async def settled(self) -> None:
        """Returns when the shadow calls are done."""
        await self.inference._shadows.settled()

    def rows(self) -> list:
        """The rows that were logged; ends the recorder."""
        self.recorder.close()
        return self.log.rows


def exchange(*texts: str, subject: str = "", request_id: str = "r-1", **more: object) -> Exchange:
    """A request that has five seconds."""
    return Exchange(
        use_case="support", request_id=request_id, subject=subject, payload=TextPayload(texts or ("a card",)),
        path="/v2/models/support/infer", deadline=perf_counter() + 5, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def table(**changes: object) -> RouteTable:
    return RouteTable(use_case="support", stable=STABLE, changed_at=utc_now(), actor="test", reason="test").model_copy(
        update=changes
    )


@asynccontextmanager
async def bench(
    scripts: Mapping[Target, Script], *, policies: Policies | None = None, max_in_flight: int = 10,
    max_shadows: int = 10, resilience: ResilienceSpec | None = None, **changes: object,
) -> AsyncIterator[Bench]:  # fmt: skip
    """A pipeline whose route table has `changes`."""
    store, log, chosen = InMemoryRouteStore(), InMemoryInferenceLog(), resilience or ResilienceSpec()
    store.write(table(**changes), expected=0)
    upstreams, watch = ScriptedUpstreams(scripts), RouteWatch(store)
    await watch.refresh()
    recorder = Recorder(log, subject_key=b"key")
    inference = Inference(
        watch, upstreams, recorder, policies=policies, max_in_flight=max_in_flight,  # type: ignore[arg-type]
        max_shadows=max_shadows, gates=Gates(lambda _: chosen, max_in_flight=max_in_flight),
    )  # fmt: skip
    try:
        yield Bench(inference, upstreams, log, recorder, store, watch)
    finally:
        await inference.close()
        await watch.stop()
        recorder.close()
