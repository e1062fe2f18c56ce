"""Local processes under supervisord: started, restarted after a crash, stopped with time to drain.

One supervisord per `home`. Programs are files below ``home/run/programs``; adding or removing one never
touches the others. Talks XML-RPC over a Unix socket that only this user may open.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from leitstand.errors import ConfigurationError, PermanentBackendError, TransientBackendError
from leitstand.files import write_text

__all__ = ["Program", "ProgramState", "Supervisor", "port_is_free", "wait_until"]

SOCKET_PATH_LIMIT = 100  # sun_path holds 108 bytes; supervisord appends a suffix while it binds

CONFIG = """\
[supervisord]
directory={directory}
logfile={run}/supervisord.log
pidfile={run}/supervisord.pid
childlogdir={run}/logs
identifier=leitstand
[unix_http_server]
file={socket}
chmod=0700
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[include]
files={run}/programs/*.conf
"""

PROGRAM = """\
[program:{name}]
command={command}
environment={environment}
stopsignal=TERM
stopwaitsecs={stop_wait}
killasgroup=true
startsecs=1
startretries=3
autorestart=true
redirect_stderr=true
stdout_logfile={run}/logs/{name}.log
stdout_logfile_maxbytes=20MB
stdout_logfile_backups=2
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A command to keep running; `stop_wait_s` is the time it gets to drain after SIGTERM."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stop_wait_s: float = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramState:
    name: str
    state: str
    pid: int
    started_at: int
    reason: str
    log: Path


class Supervisor:
    """Controls the supervisord of one `home`. Not safe for concurrent use; callers hold a file lock.

    Args:
        home: `Settings.root`.
        environment: Environment of supervisord and of every program.
    """

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.run = home / "run"
        self._environment = dict(environment)
        path = self.run / "supervisor.sock"
        if len(str(path)) > SOCKET_PATH_LIMIT:
            short = hashlib.sha256(str(home).encode()).hexdigest()[:16]
            path = Path(tempfile.gettempdir()) / f"leitstand-{os.getuid()}-{short}.sock"
        self._socket = path

    def is_running(self) -> bool:
        """Whether supervisord answers."""
        try:
            self._call("supervisor.getState")
        except TransientBackendError:
            return False
        return True

    def start(self) -> None:
        """Starts supervisord, without programs, unless it runs already."""
        if self.is_running():
            return
        shutil.rmtree(self.run / "programs", ignore_errors=True)
        for folder in ("programs", "logs"):
            (self.run / folder).mkdir(parents=True, exist_ok=True)
        config = write_text(
            self.run / "supervisord.conf",
            CONFIG.format(directory=Path.cwd(), run=self.run, socket=self._socket),
        )
        command = [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(config)]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PermanentBackendError(
                f"supervisord did not start: {(done.stderr or done.stdout).strip()}", hint=f"see {self.run}"
            )
        wait_until(self.is_running, timeout_s=15, what="supervisord to answer")

    def put(self, program: Program) -> None:
        """Adds or replaces a program and starts it. The old one is stopped first, with time to drain.

        Nothing happens when the same program runs already.
        """
        text = self._render(program)
        file = self._file(program.name)
        if file.is_file() and file.read_text() == text and self._is_up(program.name):
            return
        self.remove(program.name)
        write_text(file, text)
        self._call("supervisor.reloadConfig")
        self._call("supervisor.addProcessGroup", program.name)

    def remove(self, name: str) -> None:
        """Stops a program and forgets it; removing an unknown one is no error."""
        self._file(name).unlink(missing_ok=True)
        if any(state.name == name for state in self.states()):
            self._call("supervisor.stopProcessGroup", name)
            self._call("supervisor.reloadConfig")
            self._call("supervisor.removeProcessGroup", name)

    def states(self) -> list[ProgramState]:
        """The programs supervisord knows, running or not; empty when it does not run."""
        try:
            infos = self._call("supervisor.getAllProcessInfo")
        except TransientBackendError:
            return []
        return [
            ProgramState(
                name=info["name"],
                state=info["statename"].lower(),
                pid=info["pid"],
                started_at=info["start"],
                reason=info["spawnerr"] or info["description"],
                log=self.run / "logs" / f"{info['name']}.log",
            )
            for info in infos
        ]

    def state(self, name: str) -> ProgramState | None:
        """The state of one program, or None."""
        return next((state for state in self.states() if state.name == name), None)

    def stop(self, timeout_s: float = 90) -> None:
        """Stops every program with time to drain, then supervisord itself."""
        if not self.is_running():
            return
        pid = self._call("supervisor.getPID")
        with contextlib.suppress(TransientBackendError):
            self._call("supervisor.shutdown")
        wait_until(lambda: not _alive(pid), timeout_s=timeout_s, what="supervisord to stop")

    def log_tail(self, name: str, lines: int = 15) -> str:
        """The last lines of a program's log."""
        path = self.run / "logs" / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.is_file() else ""

    def _is_up(self, name: str) -> bool:
        state = self.state(name)
        return state is not None and state.state in {"running", "starting"}

    def _file(self, name: str) -> Path:
        return self.run / "programs" / f"{name}.conf"

    def _render(self, program: Program) -> str:
        return PROGRAM.format(
            name=program.name,
            command=" ".join(_quoted(part) for part in program.command),
            environment=",".join(f"{key}={_quoted(value)}" for key, value in sorted(program.environment.items())),
            stop_wait=int(program.stop_wait_s),
            run=self.run,
        )

    def _call(self, method: str, *arguments: Any) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        try:
            proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(proxy, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            raise PermanentBackendError(f"supervisord refused {method}{arguments}: {fault.faultString}") from fault
        except (OSError, xmlrpc.client.Error) as error:
            raise TransientBackendError(
                f"supervisord does not answer on {self._socket}: {error}", hint="start it with `leitstand up`"
            ) from error
        finally:
            transport.close()


def _quoted(value: str) -> str:
    """Quotes for supervisord's configuration, where `%` starts an expansion."""
    escaped = value.replace("%", "%%")
    if '"' in escaped or "\n" in escaped:
        raise ConfigurationError(f"a program's argument must not hold quotes or line breaks: {value!r}")
    return f'"{escaped}"'


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(
    condition: Callable[[], bool],
    *,
    timeout_s: float,
    what: str,
    interval_s: float = 0.1,
    give_up: Callable[[], str] | None = None,
) -> None:
    """Waits until `condition` holds.

    Args:
        condition: Polled every `interval_s` seconds.
        timeout_s: Seconds until the wait fails.
        what: Named in the error.
        interval_s: Seconds between two looks.
        give_up: Returns a reason to stop waiting at once, or an empty string.

    Raises:
        TransientBackendError: The time ran out.
        PermanentBackendError: `give_up` named a reason.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if give_up and (reason := give_up()):
            raise PermanentBackendError(f"Waiting for {what} failed: {reason}")
        if time.monotonic() > deadline:
            raise TransientBackendError(f"Waited {timeout_s:.0f} s for {what}, in vain")
        time.sleep(interval_s)


def port_is_free(host: str, port: int) -> bool:
    """Whether nothing listens on the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) != 0
