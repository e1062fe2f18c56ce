"""Puts Bentos where they answer: several versions of one use case at once, each its own process and port.

The use case's `serving.port` is the *main* address, for people who call the Bento without a gateway: the first
deployment gets it, and `bring_home` gives it to the version that a switch made stable. Every other instance
listens on a spare port a thousand above, outside the range that systems hand out by themselves, so that
it is still there after a restart. Which version gets which requests is decided by the route table
(`flows.switching`), never here. A version that does not become ready disturbs nobody: nothing else was touched.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from filelock import FileLock
from pydantic import ValidationError

from flows.supervisor import Program, Supervisor, port_is_free, wait_until
from leitstand import own_calls
from leitstand.errors import BackendError, ConfigurationError, PermanentBackendError
from leitstand.files import write_text
from leitstand.settings import Settings, quiet_environment
from leitstand.types import Endpoint, utc_now
from leitstand.usecase import UseCase

__all__ = ["Deployer", "LocalDeployer", "is_ready"]

SPARE_OFFSET = 1000
SPARE_PORTS = 100
MAX_PORT = 65_535


class Deployer(Protocol):
    """Runs Bentos, any number of versions per use case. An `Endpoint` is one running instance of a version."""

    def deploy(self, use_case: UseCase, *, tag: str, version: int) -> Endpoint:
        """Returns an instance of the Bento that answers as ready; others go on. What runs already is returned."""
        ...

    def bring_home(self, use_case: UseCase, endpoint: Endpoint) -> Endpoint:
        """Makes the use case's main address answer with this version.

        Returns the instance there, ready; it may be another process than `endpoint`, which goes on until it
        is undeployed. Stays with `endpoint` when the address cannot be had.
        """
        ...

    def undeploy(self, endpoint: Endpoint) -> None:
        """Stops the instance after its requests in flight are answered; stopping an unknown one is no error."""
        ...

    def current(self, use_case: str) -> Endpoint | None:
        """The instance that `bring_home` (or the first deployment) made the main one, or None."""
        ...

    def all(self, use_case: str) -> Sequence[Endpoint]:
        """Every instance of the use case, oldest first."""
        ...


class LocalDeployer:
    """Processes under the supervisor of `settings.root`. Safe with several processes.

    Args:
        settings: Where the supervisor lives and which address services bind to.
        command: The command line that serves a tag on a host and port; ``bentoml serve`` unless given.
    """

    def __init__(self, settings: Settings, command: Callable[[str, str, int], list[str]] | None = None) -> None:
        self._settings = settings
        self._host = settings.serving.host
        self._command = command or _bentoml_serve
        self.supervisor = Supervisor(settings.root, quiet_environment(settings))

    def deploy(self, use_case: UseCase, *, tag: str, version: int) -> Endpoint:
        """See `Deployer.deploy`.

        Raises:
            ConfigurationError: The first deployment finds another program on the use case's port.
            PermanentBackendError: The Bento did not become ready.
        """
        with self._lock():
            there = [endpoint for endpoint in self.all(use_case.name) if endpoint.tag == tag]
            endpoint = there[-1] if there else self._reserve(use_case, tag, version)
        self._run(endpoint, keep=bool(there))
        if self.current(use_case.name) is None:
            self._make_current(endpoint)
        return endpoint

    def bring_home(self, use_case: UseCase, endpoint: Endpoint) -> Endpoint:
        """See `Deployer.bring_home`. Starts a second process of the version, so that no request meets a closed port."""
        home = self._url(use_case.serving.port)
        if endpoint.url != home:
            with self._lock():
                there = next((other for other in self.all(use_case.name) if other.url == home), None)
                if there is None and port_is_free(self._host, use_case.serving.port):
                    there = self._remember(endpoint.model_copy(update={"url": home, "deployed_at": utc_now()}))
            if there is not None and there.tag == endpoint.tag and self._runs_at_home(there):
                endpoint = there
        self._make_current(endpoint)
        return endpoint

    def undeploy(self, endpoint: Endpoint) -> None:
        """See `Deployer.undeploy`."""
        with self._lock():
            self.supervisor.remove(self.program_of(endpoint))
            self._file_of(endpoint).unlink(missing_ok=True)
            current = self.current(endpoint.use_case)
            if current and current.url == endpoint.url:
                (self._folder / f"{endpoint.use_case}.json").unlink()

    def current(self, use_case: str) -> Endpoint | None:
        """See `Deployer.current`."""
        return _read(self._folder / f"{use_case}.json")

    def all(self, use_case: str) -> Sequence[Endpoint]:
        """See `Deployer.all`."""
        files = sorted((self._folder / use_case).glob("*.json"))
        known = [endpoint for endpoint in map(_read, files) if endpoint]
        current = self.current(use_case)
        if current and all(endpoint.url != current.url for endpoint in known):
            known.append(current)
        return sorted(known, key=lambda endpoint: endpoint.deployed_at)

    def everything(self) -> list[Endpoint]:
        """Every instance of every use case."""
        names = sorted({path.stem for path in self._folder.glob("*") if not path.name.startswith(".")})
        return [endpoint for name in names for endpoint in self.all(name)]

    def start_all(self) -> list[Endpoint]:
        """Starts every instance that was deployed before, without waiting for them."""
        known = self.everything()
        with self._lock():
            for endpoint in known:
                self.supervisor.put(self._program(endpoint))
        return known

    def program_of(self, endpoint: Endpoint) -> str:
        """The supervisor's name for the instance: ``bento-<use case>-v<version>``, with the port for a second one."""
        return f"bento-{endpoint.use_case}-{self._file_of(endpoint).stem}"

    def endpoint_of(self, program: str) -> Endpoint | None:
        """The instance that a program of the supervisor runs, or None."""
        return next((each for each in self.everything() if self.program_of(each) == program), None)

    def _reserve(self, use_case: UseCase, tag: str, version: int) -> Endpoint:
        port = self._choose_port(use_case)
        endpoint = Endpoint(
            use_case=use_case.name, version=version, tag=tag, url=self._url(port), deployed_at=utc_now()
        )
        return self._remember(endpoint)

    def _choose_port(self, use_case: UseCase) -> int:
        home = use_case.serving.port
        taken = {_port(endpoint) for endpoint in self.everything()}
        if home not in taken and port_is_free(self._host, home):
            return home
        if not self.all(use_case.name):
            raise ConfigurationError(
                f"Port {home} of use case '{use_case.name}' is taken by another program",
                hint="stop that program, or change `serving.port` in the use case",
            )
        first = home + SPARE_OFFSET if home + SPARE_OFFSET + SPARE_PORTS <= MAX_PORT else home - 2 * SPARE_OFFSET
        for port in range(first, first + SPARE_PORTS):
            if port not in taken and port_is_free(self._host, port):
                return port
        raise ConfigurationError(
            f"No port between {first} and {first + SPARE_PORTS - 1} is free for another version of '{use_case.name}'",
            hint="undeploy versions that nobody needs, or change `serving.port` in the use case",
        )

    def _run(self, endpoint: Endpoint, *, keep: bool) -> None:
        """Starts the instance and waits for it; one that fails is forgotten, unless it was there before."""
        name = self.program_of(endpoint)
        try:
            self.supervisor.start()
            self._start(endpoint)
        except BackendError as error:
            log = self.supervisor.run / "logs" / f"{name}.log"
            tail = self.supervisor.log_tail(name)
            if not keep:
                self.undeploy(endpoint)
            raise PermanentBackendError(
                f"Bento {endpoint.tag} did not become ready: {error.message}\n{tail}", hint=f"see {log}"
            ) from error

    def _runs_at_home(self, endpoint: Endpoint) -> bool:
        try:
            self._run(endpoint, keep=False)
        except BackendError:
            return False
        return True

    def _start(self, endpoint: Endpoint) -> None:
        name = self.program_of(endpoint)
        with self._lock():
            self.supervisor.put(self._program(endpoint))

        def broken() -> str:
            state = self.supervisor.state(name)
            return state.reason if state and state.state == "fatal" else ""

        wait_until(
            lambda: is_ready(endpoint.url),
            timeout_s=self._settings.local.ready_timeout_s,
            what=f"{endpoint.tag} to be ready at {endpoint.url}",
            give_up=broken,
        )

    def _program(self, endpoint: Endpoint) -> Program:
        return Program(
            name=self.program_of(endpoint),
            command=self._command(endpoint.tag, self._host, _port(endpoint)),
            environment=quiet_environment(self._settings, base={}),
            stop_wait_s=self._settings.serving.drain_s + 10,
        )

    def _remember(self, endpoint: Endpoint) -> Endpoint:
        write_text(self._file_of(endpoint), endpoint.model_dump_json(indent=1))
        return endpoint

    def _make_current(self, endpoint: Endpoint) -> None:
        write_text(self._folder / f"{endpoint.use_case}.json", endpoint.model_dump_json(indent=1))

    def _file_of(self, endpoint: Endpoint) -> Path:
        """The instance's file: ``v2.json`` unless another instance of the version has it; then with the port."""
        folder = self._folder / endpoint.use_case
        plain = folder / f"v{endpoint.version}.json"
        other = _read(plain)
        numbered = plain.with_name(f"v{endpoint.version}-{_port(endpoint)}.json")
        return numbered if numbered.is_file() or (other and other.url != endpoint.url) else plain

    def _url(self, port: int) -> str:
        return f"http://{self._host}:{port}"

    def _lock(self) -> FileLock:
        """Guards the supervisor's programs and the choice of ports; never held while waiting for readiness."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self._folder / ".lock")

    @property
    def _folder(self) -> Path:
        return self._settings.root / "run" / "endpoints"


def _bentoml_serve(tag: str, host: str, port: int) -> list[str]:
    return [sys.executable, "-m", "bentoml", "serve", tag, "--host", host, "--port", str(port)]


def _read(path: Path) -> Endpoint | None:
    try:
        return Endpoint.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None


def _port(endpoint: Endpoint) -> int:
    return int(endpoint.url.rsplit(":", 1)[1])


def is_ready(url: str) -> bool:
    """Whether the service at `url` says that it is warm and takes requests."""
    return own_calls.is_ready(url)
