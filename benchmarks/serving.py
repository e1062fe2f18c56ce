"""Throughput and latency of the Bento against other servers, on the same weights, texts and engine.

    python -m benchmarks.serving --model MODEL_DIR --usecase usecases/support/usecase.yaml [--only ours fastapi ...]

The offline limit (sorted batches, no server, tokenising included) is 1.0. Closed loop: wrk, one thread, at
1, 16 and 64 connections. Open loop: fixed rates at half load and at three times the peak. Systems take
turns within each repeat. CPU milliseconds per request of server and client are saved, since they hardly
change when other programs run beside the benchmark; wall-clock figures do.

Peers compute with the same engine and precision, and pad each batch to its longest text, as their
documentation shows; `--peers-packed` lends them our packed rows, which leaves only the servers to compare.

Threads: one single-threaded engine stream per core for OpenVINO, one intra-op thread per core for torch,
TOKENIZERS_PARALLELISM=false, one server process each. LitServe and MLServer get environments of their own,
made in a temporary folder unless --venvs names one.
"""

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe
from benchmarks.open_loop import open_loop
from leitstand.files import write_text
from leitstand.types import ModelVersion, utc_now
from leitstand.usecase import load
from models.artifact import verify
from models.packaging import package
from models.requirements import pinned

HERE = Path(__file__).resolve().parent
PORT = 3990
V2 = "/v2/models/support/infer"


@dataclass
class System:
    """One server: how to start it, where it answers, what it wants as a body."""

    name: str
    command: list[str]
    path: str = "/predict"
    batch: bool = False
    ready: str = "/readyz"
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path | None = None

    def body(self, text: str) -> bytes:
        if self.path == V2:
            tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
            return json.dumps({"inputs": [tensor]}).encode()
        return json.dumps({"text": [text] if self.batch else text}).encode()


def systems(args: argparse.Namespace, work: Path, python: str) -> dict[str, System]:
    run = ["uvicorn", "--host", "127.0.0.1", "--port", str(PORT), "--log-level", "warning"]
    bento = ["-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(PORT)]
    home = {"BENTOML_HOME": str(work / "home" / "bentoml")}
    made = [
        System("ours", [python, *bento, "support:latest"], V2, env=home, cwd=work),
        System("fastapi", [python, "-m", *run, "benchmarks.peers.fastapi_app:app"]),
        System("bentoml-batchable", [python, *bento, "benchmarks.peers.bentoml_app:Batchable"], batch=True, env=home),
    ]
    for name, ready in (("litserve", "/health"), ("mlserver", "/v2/health/ready")):
        if name in args.only:
            peer = peer_python(args.venvs or work, name, args.engine)
            command = [peer, "-m", "benchmarks.peers.litserve_app", str(PORT)]
            path = "/predict"
            if name == "mlserver":
                command, path = [str(Path(peer).with_name("mlserver")), "start", str(mlserver_folder(work))], V2
            made.append(System(name, command, path, ready=ready))
    return {system.name: system for system in made if system.name in args.only}


def peer_python(folder: Path, name: str, engine: str) -> str:
    """An environment with the peer and the engine in the versions that ours uses."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        venv.create(folder / name, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", name], check=True)
    ours = dict(line.split("==") for line in pinned(["openvino", "tokenizers", "torch", "transformers", "safetensors"]))
    wanted = ["openvino", "tokenizers"] if engine == "openvino" else ["torch", "transformers", "safetensors"]
    subprocess.run([python, "-m", "pip", "install", "-q", *(f"{n}=={ours[n]}" for n in wanted)], check=True)
    return str(python)


def mlserver_folder(work: Path) -> Path:
    folder = work / "mlserver"
    settings = {"name": "support", "implementation": "benchmarks.peers.mlserver_app.Model", "max_batch_size": 64,
        "max_batch_time": 0.005}  # fmt: skip
    server = {"host": "127.0.0.1", "http_port": PORT, "grpc_port": PORT + 1, "metrics_port": PORT + 2,
        "parallel_workers": 0, "debug": False}  # fmt: skip
    write_text(folder / "model-settings.json", json.dumps(settings))
    write_text(folder / "settings.json", json.dumps(server))
    return folder


@contextmanager
def served(system: System, args: argparse.Namespace, log: Path) -> Iterator[tuple[psutil.Process, float]]:
    """Starts the system and yields its process and the seconds until it was ready."""
    environment = dict(os.environ) | {
        "PYTHONPATH": "" if system.name == "ours" else str(HERE.parent), "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "true", "BENTOML_DO_NOT_TRACK": "True", "PEER_MODEL": str(args.model),
        "PEER_ENGINE": args.engine, "PEER_PRECISION": args.precision, "PEER_PACKED": str(int(args.peers_packed)),
    } | system.env  # fmt: skip
    start = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            system.command, cwd=system.cwd or HERE.parent, env=environment, stdout=out, stderr=out
        )
    try:
        while not answers(f"http://127.0.0.1:{PORT}{system.ready}"):
            if process.poll() is not None or time.monotonic() - start > 120:
                raise RuntimeError(f"{system.name} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.05)
        yield psutil.Process(process.pid), time.monotonic() - start
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ends the server and every process it started."""
    if process.poll() is None:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(tree, timeout=15)
        for each in alive:
            each.kill()
    process.wait(10)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def cpu_s(process: psutil.Process) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in (process, *process.children(recursive=True)))


def closed_loop(
    system: System, bodies: Path, connections: int, seconds: float, process: psutil.Process
) -> dict[str, Any]:
    before, own = cpu_s(process), os.times()
    out = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "20s", "-s", HERE / "load.lua",
         f"http://127.0.0.1:{PORT}{system.path}", "--", bodies],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    result = json.loads(re.search("JSON (.*)", out).group(1))  # type: ignore[union-attr]
    after = os.times()
    good = result["requests"] - result["shed"] - result["failed"]
    client = after.children_user + after.children_system - own.children_user - own.children_system
    result["rps"] = round(good / result["seconds"], 1)
    result["server_cpu_ms"] = round((cpu_s(process) - before) / max(1, good) * 1000, 3)
    result["client_cpu_ms"] = round(client / max(1, good) * 1000, 3)
    return result


def offline(args: argparse.Namespace) -> dict[str, Any]:
    """The limit without a server, in a process of its own: the best of several batch sizes."""
    code = (
        "import sys, time, csv, json; from pathlib import Path; import models.loading as m\n"
        "texts, labels = zip(*[(r['text'], r['category']) for r in csv.DictReader(open(sys.argv[4]))])\n"
        "c = m.open_classifier(Path(sys.argv[1]), engine=sys.argv[2], precision=sys.argv[3])\n"
        "c.predict(texts[:256]); best = None\n"
        "for size in (16, 32, 64, 128):\n"
        "    m.BATCH_TEXTS = size\n"
        "    t, p = time.perf_counter(), time.process_time(); made = c.predict(texts)\n"
        "    r = dict(batch=size, rps=round(len(texts) / (time.perf_counter() - t), 1),\n"
        "        cpu_ms=round((time.process_time() - p) / len(texts) * 1000, 3),\n"
        "        accuracy=sum(a == b for a, b in zip(made.labels, labels)) / len(labels))\n"
        "    best = r if best is None or r['rps'] > best['rps'] else best\n"
        "print(json.dumps(best))"
    )
    command = [sys.executable, "-c", code, str(args.model), args.engine, args.precision, str(args.texts)]
    environment = dict(os.environ) | {"PYTHONPATH": str(HERE.parent), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(system: System, args: argparse.Namespace, texts: list[str], work: Path) -> dict[str, Any]:
    bodies = work / f"{system.name}.jsonl"
    lines = [system.body(text) for text in texts]
    bodies.write_bytes(b"\n".join(lines) + b"\n")
    with served(system, args, work / f"{system.name}.log") as (process, ready_s):
        closed_loop(system, bodies, 16, 3, process)
        result: dict[str, Any] = {"ready_s": round(ready_s, 2), "closed": {}, "open": {}}
        for connections in (1, 16, 64):
            result["closed"][str(connections)] = closed_loop(system, bodies, connections, args.seconds, process)
        peak = result["closed"]["64"]["rps"]
        for name, factor in (("half_load", 0.5), ("overload_3x", 3.0)) if not args.closed_only else ():
            result["open"][name] = open_loop(PORT, system.path, lines, max(1.0, peak * factor), args.seconds)
    return result


def release(args: argparse.Namespace, work: Path) -> None:
    """Packages the model as version 1, so that what is measured is the Bento that users get."""
    version = ModelVersion(
        name="support", version=1, key="benchmark", weights_digest=verify(args.model), data_digest="sha256:" + "0" * 64,
        base_model="benchmark", commit="0" * 40, run_id="benchmark", profile="benchmark", created_at=utc_now(),
    )  # fmt: skip
    with args.texts.open() as file:
        rows = list(csv.DictReader(file))
    sample = ([row["text"] for row in rows], [row["category"] for row in rows])
    package(version, args.model, load(args.usecase), home=work / "home", engine=args.engine, precision=args.precision,
            sample=sample)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--usecase", type=Path, default=HERE.parent / "usecases" / "support" / "usecase.yaml")
    parser.add_argument("--texts", type=Path, default=HERE.parent / "usecases" / "support" / "data" / "test.csv")
    parser.add_argument("--engine", choices=["openvino", "torch"], default="openvino")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--closed-only", action="store_true", help="skip the fixed rates")
    parser.add_argument("--peers-packed", action="store_true", help="lend the peers our packed rows; default: padding")
    parser.add_argument("--only", nargs="+", default=["ours", "fastapi", "bentoml-batchable", "litserve", "mlserver"])
    parser.add_argument("--venvs", type=Path, help="folder of the peers' environments; default: a temporary one")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.model = args.model.resolve()
    with args.texts.open() as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    with tempfile.TemporaryDirectory(prefix="leitstand-serving-") as folder:
        work = Path(folder)
        release(args, work)
        chosen = systems(args, work, sys.executable)
        result: dict[str, Any] = {"machine": describe(), "engine": args.engine, "precision": args.precision,
            "peers_packed": args.peers_packed,
            "seconds": args.seconds, "offline": [], "systems": {name: [] for name in chosen}}  # fmt: skip
        for _ in range(args.repeats):
            result["offline"].append(offline(args))
            print("offline", result["offline"][-1], flush=True)
            for name, system in chosen.items():
                result["systems"][name].append(measure(system, args, texts, work))
                print(name, json.dumps(result["systems"][name][-1]), flush=True)
        result["load_after"] = round(os.getloadavg()[0], 2)
    out = args.out or HERE / "results" / f"serving-{args.engine}-{args.precision}.json"
    write_text(out, json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
