"""The folder of a test decides its marker; nothing in the suite may reach outside loopback."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

pytest_plugins = ["tests.servers"]

ROOT = Path(__file__).parent
FOLDERS = ("unit", "property", "contracts", "integration", "e2e", "architecture")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with the name of its folder."""
    for item in items:
        folder = item.path.relative_to(ROOT).parts[0]
        if folder in FOLDERS:
            item.add_marker(folder)


@pytest.fixture(autouse=True, scope="session")
def only_loopback() -> Iterator[None]:
    """Refuses outbound connections of this process to anything but loopback."""
    real = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])  # type: ignore[index]
            if not host.startswith("127.") and host not in ("localhost", "::1"):
                raise RuntimeError(f"a test tried to reach {host}; only loopback is allowed")
        return real(self, address)  # type: ignore[arg-type]

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def no_telemetry() -> Iterator[None]:
    """What `leitstand.settings.apply_environment` does for the command, for libraries imported by tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"):
            patch.setenv(name, "true")
        yield


@pytest.fixture
def project() -> Path:
    """The root of the repository."""
    return ROOT.parent


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Forgets the log that a command set up; its stream is closed when the command's test ends."""
    yield
    structlog.reset_defaults()
