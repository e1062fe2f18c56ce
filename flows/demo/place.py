"""The demo's own home: a fresh folder, free ports, its processes under its own supervisor.

Nothing of the user's installation is read or written: settings come from here alone, not from the environment
or a ``.env`` file, and the stores of every tool lie below the folder.
"""

import os
import shutil
import socket
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from flows.deploying import LocalDeployer, is_ready
from flows.supervisor import Program, Supervisor, wait_until
from leitstand.errors import ConflictError, LeitstandError
from leitstand.files import write_text
from leitstand.settings import Settings, apply_environment, isolate_environment, load_settings, quiet_environment

__all__ = ["Place", "open_place"]

MARK = ".leitstand-demo"
GATEWAY = "gateway"
FIRST_PORT, LAST_PORT = 21_000, 31_000


@dataclass(frozen=True)
class Place:
    """Where one demo runs.

    Attributes:
        home: Its folder.
        settings: Its settings.
        bento_port: Main port of the use case.
        variables: What a shell needs to use this home with any command.
    """

    home: Path
    settings: Settings
    bento_port: int
    variables: dict[str, str]

    @property
    def work(self) -> Path:
        """Working directory of every process."""
        return self.home / "work"

    @property
    def gateway(self) -> str:
        """The gateway's URL."""
        return f"http://127.0.0.1:{self.settings.gateway.port}"

    @property
    def supervisor(self) -> Supervisor:
        """Controls every process of the demo."""
        return LocalDeployer(self.settings).supervisor

    def start_gateway(self) -> None:
        """Starts the gateway, unless `leitstand up` did, and returns when it is ready."""
        supervisor = self.supervisor
        supervisor.start()
        command = [sys.executable, "-m", "leitstand.cli", "gateway"]
        environment = quiet_environment(self.settings, base={})
        stop_wait_s = self.settings.serving.drain_s + 10
        supervisor.put(Program(name=GATEWAY, command=command, environment=environment, stop_wait_s=stop_wait_s))

        def broken() -> str:
            state = supervisor.state(GATEWAY)
            return supervisor.log_tail(GATEWAY) if state and state.state == "fatal" else ""

        wait_until(
            lambda: is_ready(self.gateway), timeout_s=self.settings.local.ready_timeout_s, what="the gateway",
            give_up=broken,
        )  # fmt: skip

    def stop(self) -> None:
        """Stops every process; requests in flight are answered first."""
        self.supervisor.stop()


def open_place(home: Path, *, prefect_server: bool = False) -> Place:
    """Makes `home` afresh, ends what an earlier demo left running there, and moves this process into it.

    From here on this process has the demo's settings and working directory.

    Args:
        home: The folder.
        prefect_server: Whether a Prefect server will run.

    Raises:
        ConflictError: The folder holds something else than a demo.
    """
    home = home.expanduser().resolve()
    if home.is_dir() and any(home.iterdir()):
        if not (home / MARK).is_file():
            raise ConflictError(f"{home} is not the folder of a demo", hint="name another one with --home")
        _end_earlier(home)
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    write_text(home / MARK, "Made by `leitstand demo`, which removes this folder at its next start.\n")
    bento, gateway, prefect = _free_ports(3)
    variables = {
        "LEITSTAND_HOME": str(home),
        "LEITSTAND_USECASES": str(home / "usecases"),
        "LEITSTAND_GATEWAY__PORT": str(gateway),
        "LEITSTAND_LOCAL__PREFECT_PORT": str(prefect),
        "LEITSTAND_MONITORING__KEEP_TEXTS_DAYS": "7",
        "LEITSTAND_MONITORING__FLUSH_S": "1",
        "LEITSTAND_SERVING__DRAIN_S": "5",
    }
    isolate_environment(variables)
    work = home / "work"
    work.mkdir()
    os.chdir(work)  # not `home`: its folder `monitors` would hide the package of that name from `python -m`
    settings = load_settings()
    apply_environment(settings, prefect_server=prefect_server)
    return Place(home=home, settings=settings, bento_port=bento, variables=variables)


def _end_earlier(home: Path) -> None:
    settings = Settings(home=home)
    try:
        Supervisor(home, quiet_environment(settings)).stop()
    except LeitstandError as error:
        raise ConflictError(
            f"An earlier demo in {home} does not end: {error.message}", hint="end its processes, or name another --home"
        ) from error


def _free_ports(count: int) -> list[int]:
    """Free ports below the range that systems hand out, each with a free one a thousand above for a second Bento."""
    found: list[int] = []
    with ExitStack() as stack:
        for port in range(FIRST_PORT + os.getpid() % 5000, LAST_PORT):
            if len(found) == count:
                break
            probe = stack.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    if len(found) < count:
        raise ConflictError(f"No {count} free ports between {FIRST_PORT} and {LAST_PORT}")
    return found
