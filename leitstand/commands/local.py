"""`leitstand up | down | status`: everything on this machine, under one supervisor."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import typer

from flows.deploying import LocalDeployer, is_ready
from flows.supervisor import Program, port_is_free, wait_until
from governance.routes.opening import open_route_store
from governance.routes.tables import ensure_stable
from leitstand.commands.output import print_table
from leitstand.errors import ConfigurationError, PermanentBackendError
from leitstand.settings import Settings, load_settings, quiet_environment
from leitstand.types import Target
from services.jobs.opening import queue_uri

app = typer.Typer(add_completion=False)

SERVER = "prefect-server"
WORKER = "prefect-worker"
GATEWAY = "gateway"
ROLLOUTS = "rollouts"
JOBS = "jobs-worker"
POOL = "local"


@app.command("up")
def up(
    deploy: bool = typer.Option(True, help="Create or update the Prefect deployments of all use cases"),
) -> None:
    """Start Prefect, its worker, the gateway and the deployed Bentos on this machine. Repeating it is no error.

    With a Redis for the request queue, a worker for its jobs is started, too.
    """
    settings = load_settings()
    deployer = LocalDeployer(settings)
    supervisor = deployer.supervisor
    supervisor.start()
    port = settings.local.prefect_port
    _need_port(deployer, SERVER, "127.0.0.1", port, "LEITSTAND_LOCAL__PREFECT_PORT")
    _need_port(deployer, GATEWAY, settings.gateway.host, settings.gateway.port, "LEITSTAND_GATEWAY__PORT")
    environment = quiet_environment(settings, base={})
    server = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    supervisor.put(Program(name=SERVER, command=server, environment=environment))
    endpoints = deployer.start_all()
    _ensure_routes(settings, deployer)
    gateway = [sys.executable, "-m", "leitstand.cli", "gateway"]
    stop_wait_s = settings.serving.drain_s + 10
    logging = {"LEITSTAND_LOG_FILE": settings.log_file or "logs/gateway.jsonl"}
    supervisor.put(Program(name=GATEWAY, command=gateway, environment=environment | logging, stop_wait_s=stop_wait_s))
    if queue_uri(settings):
        jobs = [sys.executable, "-m", "leitstand.cli", "worker"]
        supervisor.put(Program(name=JOBS, command=jobs, environment=environment, stop_wait_s=stop_wait_s))
    else:
        supervisor.remove(JOBS)
    _say(f"Waiting for Prefect on port {port} ...")
    wait_until(
        lambda: prefect_is_up(settings),
        timeout_s=settings.local.ready_timeout_s,
        what="the Prefect server",
        give_up=lambda: _fatal(deployer, SERVER),
    )
    _prefect(settings, "work-pool", "create", POOL, "--type", "process", "--overwrite")
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", "leitstand-local"]
    supervisor.put(Program(name=WORKER, command=worker, environment=environment))
    rollouts = [sys.executable, "-m", "leitstand.cli", "rollout", "watch"]
    supervisor.put(Program(name=ROLLOUTS, command=rollouts, environment=environment, stop_wait_s=5))
    if deploy:
        for file in deployment_files(settings):
            _prefect(settings, "deploy", "--all", "--prefect-file", str(file))
        _python(settings, "flows.automations")
    wait_until(
        lambda: is_ready(gateway_url(settings)),
        timeout_s=settings.local.ready_timeout_s,
        what="the gateway to be ready",
        give_up=lambda: _fatal(deployer, GATEWAY),
    )
    for endpoint in endpoints:
        wait_until(
            lambda url=endpoint.url: is_ready(url),
            timeout_s=settings.local.ready_timeout_s,
            what=f"{endpoint.tag} to be ready",
        )
    status(as_json=False)


@app.command("down")
def down() -> None:
    """Stop what `up` started; requests in flight are answered first."""
    LocalDeployer(load_settings()).supervisor.stop()
    _say("Stopped.")


@app.command("status")
def status(as_json: bool = typer.Option(False, "--json", help="Print JSON")) -> None:
    """Show what runs, where, and whether it is ready."""
    settings = load_settings()
    deployer = LocalDeployer(settings)
    rows = []
    for state in deployer.supervisor.states():
        row = {
            "name": state.name,
            "state": state.state,
            "ready": None,
            "pid": state.pid,
            "url": "",
            "log": str(state.log),
        }
        if state.name == SERVER:
            row |= {"url": f"http://127.0.0.1:{settings.local.prefect_port}", "ready": prefect_is_up(settings)}
        if state.name == GATEWAY:
            url = gateway_url(settings)
            row |= {"url": url, "ready": is_ready(url), "breakers": breakers_of(url)}
        endpoint = deployer.endpoint_of(state.name)
        if endpoint:
            row |= {"url": endpoint.url, "ready": is_ready(endpoint.url), "tag": endpoint.tag}
        rows.append(row | {"log": str(state.log)})
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        _say("Nothing runs. Start with `leitstand up`.")
        return
    ready = {None: "", True: "yes", False: "not yet"}
    print_table(
        ["name", "state", "ready", "pid", "url", "what"],
        [[r["name"], r["state"], ready[r["ready"]], str(r["pid"]), r["url"], _what(r)] for r in rows],
    )


def gateway_url(settings: Settings) -> str:
    """Where this machine's gateway answers; one that binds to every address answers on loopback."""
    host = settings.gateway.host
    scheme = "https" if settings.tls.cert else "http"
    return f"{scheme}://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{settings.gateway.port}"  # noqa: S104


def breakers_of(url: str) -> dict[str, dict[str, str]]:
    """Use case and version to the state of its breaker in the gateway at `url`; empty when it does not tell."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:  # noqa: S310 -- our own gateway
            return json.load(answer).get("breakers", {})
    except (OSError, ValueError, AttributeError):
        return {}


def _what(row: dict[str, Any]) -> str:
    """The tag of a Bento; of the gateway, the upstreams that it leaves alone."""
    states = row.get("breakers", {})
    left = [
        f"{use_case}:{version} {state}"
        for use_case, versions in states.items()
        for version, state in versions.items()
        if state != "closed"
    ]
    return row.get("tag") or (f"breakers: {', '.join(left)}" if left else "")


def prefect_is_up(settings: Settings) -> bool:
    """Whether the local Prefect server answers as healthy."""
    url = quiet_environment(settings)["PREFECT_API_URL"]
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:  # noqa: S310 -- http on loopback
            return answer.read().strip() == b"true"
    except (urllib.error.URLError, OSError):
        return False


def deployment_files(settings: Settings) -> list[Path]:
    """The project's ``prefect.yaml`` and those of further use cases."""
    return [
        path for path in (Path("prefect.yaml"), *sorted(settings.usecases.glob("*/prefect.yaml"))) if path.is_file()
    ]


def _need_port(deployer: LocalDeployer, program: str, host: str, port: int, variable: str) -> None:
    if deployer.supervisor.state(program) is None and not port_is_free(host, port):
        raise ConfigurationError(
            f"Port {port} for {program} is taken by another program",
            hint=f"stop that program, or choose another port with {variable}",
        )


def _ensure_routes(settings: Settings, deployer: LocalDeployer) -> None:
    """Bentos that were deployed before there were routes get theirs."""
    store = open_route_store(settings)
    for name in {endpoint.use_case for endpoint in deployer.everything()} - set(store.names()):
        endpoint = deployer.current(name)
        if endpoint is not None:
            target = Target(version=endpoint.version, url=endpoint.url)
            ensure_stable(store, name, target, actor="leitstand up", reason="it was deployed before routes were kept")


def _prefect(settings: Settings, *arguments: str) -> None:
    _python(settings, "prefect", "--no-prompt", *arguments)


def _python(settings: Settings, module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=quiet_environment(settings), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PermanentBackendError(
            f"`{' '.join([module, *arguments])}` failed: {(done.stdout + done.stderr).strip()[-2000:]}",
            hint=f"see {os.fspath(settings.root / 'run' / 'logs')}",
        )


def _fatal(deployer: LocalDeployer, name: str) -> str:
    state = deployer.supervisor.state(name)
    return deployer.supervisor.log_tail(name) if state and state.state == "fatal" else ""


def _say(text: str) -> None:
    typer.echo(text, err=True)
