"""What each protecting stage of the gateway costs, with LiteLLM's proxy and a bare reverse proxy beside it.

    python -m benchmarks.gateway_stages [--seconds 5] [--repeats 3] [--litellm PATH_TO_ITS_BIN_FOLDER]

One process per case, pinned to the first core; upstream, Redis and the load to the second. `all` has everything on:
an API key, limits and a daily budget (in SQLite), the guards below, and an audit record that is on disk before the
answer leaves; the other cases leave one out, or keep the budgets in Redis. Cases take turns within each repeat. At
300 requests/s latency counts from the moment a request was due; the throughput is measured with 64 connections. The
`chat` cases ask an OpenAI-compatible upstream, as LiteLLM does, which checks a key and neither guards nor records.
The overhead is what a request takes beyond the same request sent to the upstream itself.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
import yaml

from benchmarks.gateway import ANSWER, BODIES, HERE, OTHER_CORE, PACKAGES, TEXT, V1, answers, cpu_s, running, wrk
from benchmarks.machine import describe
from benchmarks.open_loop import open_loop
from governance.routes.opening import open_route_store
from leitstand.files import write_text
from leitstand.settings import Settings
from leitstand.types import RouteTable, Target, utc_now

CORE = "0"
PORT, UPSTREAM, REDIS = 3981, 3982, 3983
RATE = 300.0
CHAT = "/v1/chat/completions"
CHAT_BODY = json.dumps({"model": "support", "messages": [{"role": "user", "content": TEXT}]})
CHAT_ANSWER = orjson.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "tiny",
        "choices": [
            {
                "index": 0, "finish_reason": "stop",
                "message": {"role": "assistant", "content": "Your card should arrive within five working days."},
            }
        ],
        "usage": {"prompt_tokens": 16, "completion_tokens": 9, "total_tokens": 25},
    }
)  # fmt: skip
GUARDS = {
    "input": [
        {"rule": "length", "max_chars": 20000},
        {"rule": "injection", "action": "block"},
        {"rule": "secrets", "action": "mask"},
        {"rule": "personal_data", "action": "mask"},
        {"rule": "unsafe", "action": "block"},
    ],
    "output": [{"rule": "personal_data", "action": "mask"}, {"rule": "unsafe", "action": "block"}],
}
ENOUGH = {"requests_per_s": 100000, "concurrent": 10000, "tokens_per_day": 10**12, "cost_per_day": 1000000}
BUDGETS = {"prices": {"per_million_tokens_in": 0.15, "per_million_tokens_out": 0.6}, "tenant": ENOUGH, "key": ENOUGH}


async def upstream(scope: Any, receive: Any, send: Any) -> None:
    """Answers everything at once, a chat request like a provider and others like a Bento."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    body = CHAT_ANSWER if scope["path"].endswith("/chat/completions") else ANSWER
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Cases:
    """Starts the processes that are compared.

    Args:
        work: A folder.
        litellm: Folder of its programs; None leaves it out.
    """

    def __init__(self, work: Path, litellm: Path | None) -> None:
        self._work, self._litellm = work, litellm
        text = (HERE.parent / "usecases" / "support" / "usecase.yaml").read_text()
        self._use_case = {key: value for key, value in yaml.safe_load(text).items() if key not in ("guards", "budgets")}
        settings = Settings(home=work)
        target = Target(version=1, url=f"http://127.0.0.1:{UPSTREAM}")
        chat = target.model_copy(update={"kind": "openai", "model": "tiny"})
        facts: dict[str, Any] = {"changed_at": utc_now(), "actor": "benchmark", "reason": "benchmark"}
        for name, stable in (("support", target), ("chat", chat)):
            open_route_store(settings).write(RouteTable(use_case=name, stable=stable, **facts), expected=0)
        scopes = [f"{name}:{action}" for name in ("support", "chat") for action in ("predict", "chat")]
        command = [sys.executable, "-m", "leitstand.cli", "keys", "create", "--subject", "benchmark", "--json"]
        made = subprocess.run(
            [*command, *(part for scope in scopes for part in ("--scope", scope))],
            env=os.environ | {"LEITSTAND_HOME": str(work)}, cwd=HERE.parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
        self.key = json.loads(made.stdout)["key"]

    def names(self) -> list[str]:
        """In the order in which they take turns."""
        plain = ["all", "no access", "no budgets", "no guards", "no audit", "nothing", "redis budgets", "bare proxy"]
        return [*plain, "chat: all", "chat: nothing", *(["chat: litellm"] if self._litellm else [])]

    @contextmanager
    def started(self, case: str) -> Iterator[psutil.Process]:
        """The case's process, ready."""
        if case == "bare proxy":
            app = ["-m", "uvicorn", "benchmarks.peers.reverse_proxy:app", "--port", str(PORT)]
            command, ready = [*app, "--log-level", "warning", "--no-access-log"], f"http://127.0.0.1:{PORT}/"
            more = {"UPSTREAM": f"http://127.0.0.1:{UPSTREAM}"}
        elif case == "chat: litellm":
            with self._lite() as process:
                yield process
            return
        else:
            command, ready = ["-m", "leitstand.cli", "gateway"], f"http://127.0.0.1:{PORT}/readyz"
            more = self._environment(case)
        with running(CORE, command, ready, self._work, **more) as process:
            yield process

    def _environment(self, case: str) -> dict[str, str]:
        bare = case.endswith("nothing")
        folder = self._work / case.replace(": ", "-").replace(" ", "-")
        for name in ("support", "chat"):
            document = self._use_case | {"name": name}
            if not bare and case != "no guards":
                document["guards"] = GUARDS
            if not bare and case != "no budgets":
                document["budgets"] = BUDGETS
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "usecase.yaml").write_text(yaml.safe_dump(document))
        return {
            "LEITSTAND_HOME": str(self._work),
            "LEITSTAND_USECASES": str(folder),
            "LEITSTAND_GATEWAY__PORT": str(PORT),
            "LEITSTAND_ACCESS__MODE": "off" if bare or case == "no access" else "required",
            "LEITSTAND_AUDIT__MODE": "off" if bare or case == "no audit" else "strict",
            "LEITSTAND_BUDGETS__URI": f"redis://127.0.0.1:{REDIS}/0" if case == "redis budgets" else "",
        }

    @contextmanager
    def _lite(self) -> Iterator[psutil.Process]:
        assert self._litellm is not None
        config = self._work / "litellm.yaml"
        model = {"model": "openai/tiny", "api_base": f"http://127.0.0.1:{UPSTREAM}/v1", "api_key": "none"}
        general = {"master_key": "sk-benchmark"}
        document = {"model_list": [{"model_name": "chat", "litellm_params": model}], "general_settings": general}
        config.write_text(yaml.safe_dump(document))
        command = ["taskset", "-c", CORE, str(self._litellm / "litellm"), "--config", str(config), "--port", str(PORT)]
        environment = os.environ | {"LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False", "LITELLM_MODE": "PRODUCTION"}
        with (self._work / "litellm.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--host", "127.0.0.1"], cwd=self._work, env=environment, stdout=log, stderr=log
            )
        try:
            deadline = time.monotonic() + 120
            while not answers(f"http://127.0.0.1:{PORT}/health/liveliness"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._work / "litellm.log").read_text()[-2000:])
                time.sleep(0.2)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def measure(process: psutil.Process, case: str, key: str, seconds: float, work: Path) -> dict[str, float]:
    """One turn of one case."""
    chat = case.startswith("chat")
    path = CHAT if chat else V1
    body = CHAT_BODY.replace('"support"', '"chat"') if chat else BODIES[V1]
    shown = "sk-benchmark" if case == "chat: litellm" else key
    headers = {"authorization": f"Bearer {shown}"}
    wrk(PORT, path, body, 16, 1, work, headers)  # what is done once, is done now
    made: dict[str, float] = {}
    one = wrk(PORT, path, body, 1, seconds, work, headers)
    before = cpu_s(process)
    many = wrk(PORT, path, body, 64, seconds, work, headers)
    made["cpu_ms"] = round((cpu_s(process) - before) / (many["rps"] * seconds) * 1000, 4)
    made |= {"c1_p50_ms": one["p50_ms"], "c1_p99_ms": one["p99_ms"], "rps_c64": many["rps"]}
    text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    steady = open_loop(PORT, path, [body.encode()], RATE, seconds, headers=text)
    made |= {f"rate300_{name}": steady[name] for name in ("p50_ms", "p95_ms", "p99_ms", "errors", "goodput")}
    made["rss_mib"] = round(process.memory_info().rss / 2**20, 1)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--litellm", type=Path, help="bin folder of an environment with litellm[proxy]")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gateway-stages.json")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": describe(), "seconds": args.seconds, "repeats": args.repeats}
    result["machine"]["versions"] = {name: importlib.metadata.version(name) for name in PACKAGES}
    runs: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="leitstand-stages-")))
        options = ["--log-level", "warning", "--no-access-log"]
        command = ["-m", "uvicorn", "benchmarks.gateway_stages:upstream", "--port", str(UPSTREAM), *options]
        stack.enter_context(running(OTHER_CORE, command, f"http://127.0.0.1:{UPSTREAM}/", work))
        if shutil.which("redis-server"):
            stack.enter_context(_redis(work))
        cases = Cases(work, args.litellm)
        chosen = [name for name in cases.names() if not args.only or name in args.only]
        for _ in range(args.repeats):
            for path, body in (("direct", BODIES[V1]), ("chat: direct", CHAT_BODY)):
                url = CHAT if path != "direct" else V1
                runs.setdefault(path, []).append(_direct(url, body, args.seconds, work))
            for case in chosen:
                with cases.started(case) as process:
                    runs.setdefault(case, []).append(measure(process, case, cases.key, args.seconds, work))
                print(json.dumps({case: runs[case][-1]}), flush=True)
    result["cases"] = {
        case: {
            figure: [round(pick([one[figure] for one in made]), 4) for pick in (statistics.median, min, max)]
            for figure in made[0]
        }
        for case, made in runs.items()
    }
    result["load_after"] = round(os.getloadavg()[0], 2)
    write_text(args.out, json.dumps(result | {"runs": runs}, indent=1))
    for case, figures in result["cases"].items():
        print(f"{case:<16}", {name: values[0] for name, values in figures.items()})


def _direct(path: str, body: str, seconds: float, work: Path) -> dict[str, float]:
    one = wrk(UPSTREAM, path, body, 1, seconds, work)
    steady = open_loop(UPSTREAM, path, [body.encode()], RATE, seconds)
    rates = {f"rate300_{name}": steady[name] for name in ("p50_ms", "p95_ms", "p99_ms")}
    return {"c1_p50_ms": one["p50_ms"], "c1_p99_ms": one["p99_ms"], **rates}


@contextmanager
def _redis(work: Path) -> Iterator[None]:
    command = ["taskset", "-c", OTHER_CORE, "redis-server", "--port", str(REDIS), "--bind", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--dir", str(work), "--appendonly", "yes"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(1)
        yield
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    main()
