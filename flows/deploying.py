"""Puts a Bento where it answers. `LocalDeployer` runs it as a supervised process on this machine.

A new version is ready before it counts: when it does not become ready, the one before is started again and
the error says why. Switching without a gap is the gateway's work; here the port is closed for the few
seconds between the old process's drain and the new one's readiness.
"""

import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from flows.supervisor import Program, Supervisor, port_is_free, wait_until
from leitstand.errors import BackendError, ConfigurationError, PermanentBackendError
from leitstand.files import write_text
from leitstand.settings import Settings, quiet_environment
from leitstand.types import Endpoint, utc_now
from leitstand.usecase import UseCase

__all__ = ["Deployer", "LocalDeployer", "is_ready"]


class Deployer(Protocol):
    """Runs Bentos. One service per use case."""

    def deploy(self, use_case: UseCase, *, tag: str, version: int) -> Endpoint:
        """Returns when the Bento answers as ready; deploying what runs already changes nothing."""
        ...

    def current(self, use_case: str) -> Endpoint | None:
        """What was deployed last, or None."""
        ...


class LocalDeployer:
    """`bentoml serve` under the supervisor of `settings.root`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.supervisor = Supervisor(settings.root, quiet_environment(settings))

    def deploy(self, use_case: UseCase, *, tag: str, version: int) -> Endpoint:
        """See `Deployer.deploy`.

        Raises:
            ConfigurationError: Another program holds the use case's port.
            PermanentBackendError: The Bento did not become ready; the version before runs again.
        """
        before = self.current(use_case.name)
        url = f"http://{self._settings.serving.host}:{use_case.serving.port}"
        endpoint = Endpoint(use_case=use_case.name, version=version, tag=tag, url=url, deployed_at=utc_now())
        name = program_name(use_case.name)
        self.supervisor.start()
        if self.supervisor.state(name) is None and not port_is_free(self._settings.serving.host, use_case.serving.port):
            raise ConfigurationError(
                f"Port {use_case.serving.port} of use case '{use_case.name}' is taken by another program",
                hint="stop that program, or change `serving.port` in the use case",
            )
        try:
            self._start(endpoint, use_case.serving.port)
        except BackendError as error:
            self._restore(before, use_case.serving.port, name)
            raise PermanentBackendError(
                f"Bento {tag} did not become ready: {error.message}\n{self.supervisor.log_tail(name)}",
                hint=f"see {self.supervisor.run / 'logs' / (name + '.log')}"
                + (f"; {before.tag} answers again" if before else ""),
            ) from error
        write_text(self._file(use_case.name), endpoint.model_dump_json(indent=1))
        return endpoint

    def current(self, use_case: str) -> Endpoint | None:
        """See `Deployer.current`."""
        try:
            return Endpoint.model_validate_json(self._file(use_case).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError):
            return None

    def start_all(self) -> list[Endpoint]:
        """Starts every Bento that was deployed before, without waiting for them."""
        endpoints = [self.current(path.stem) for path in sorted(self._folder.glob("*.json"))]
        known = [endpoint for endpoint in endpoints if endpoint]
        for endpoint in known:
            self.supervisor.put(self._program(endpoint, int(endpoint.url.rsplit(":", 1)[1])))
        return known

    def _start(self, endpoint: Endpoint, port: int) -> None:
        self.supervisor.put(self._program(endpoint, port))
        name = program_name(endpoint.use_case)

        def broken() -> str:
            state = self.supervisor.state(name)
            return state.reason if state and state.state == "fatal" else ""

        wait_until(
            lambda: is_ready(endpoint.url),
            timeout_s=self._settings.local.ready_timeout_s,
            what=f"{endpoint.tag} to be ready at {endpoint.url}",
            give_up=broken,
        )

    def _restore(self, before: Endpoint | None, port: int, name: str) -> None:
        log = self.supervisor.run / "logs" / f"{name}.log"
        if log.is_file():
            log.replace(log.with_suffix(".failed.log"))
        if before is None:
            self.supervisor.remove(name)
        else:
            self._start(before, port)

    def _program(self, endpoint: Endpoint, port: int) -> Program:
        serving = self._settings.serving
        command = [sys.executable, "-m", "bentoml", "serve", endpoint.tag, "--host", serving.host, "--port", str(port)]
        return Program(
            name=program_name(endpoint.use_case),
            command=command,
            environment=quiet_environment(self._settings, base={}),
            stop_wait_s=serving.drain_s + 10,
        )

    @property
    def _folder(self) -> Path:
        return self._settings.root / "run" / "endpoints"

    def _file(self, use_case: str) -> Path:
        return self._folder / f"{use_case}.json"


def program_name(use_case: str) -> str:
    """The supervisor's name for the service of a use case."""
    return f"bento-{use_case}"


def is_ready(url: str) -> bool:
    """Whether the service at `url` says that it is warm and takes requests."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:  # noqa: S310 -- http on loopback
            return answer.status == 200  # noqa: PLR2004
    except (urllib.error.URLError, OSError):
        return False
