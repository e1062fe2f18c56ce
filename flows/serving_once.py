"""Serves a packaged Bento for as long as a block runs, outside the supervisor and any routes: to replay a request."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from flows.supervisor import wait_until
from leitstand.errors import NotFoundError
from leitstand.own_calls import is_ready
from leitstand.settings import Settings, quiet_environment
from models.packaging import BentoRecord

__all__ = ["packaged", "served_once"]

STOP_S = 30


def packaged(settings: Settings, use_case: str, version: int) -> Sequence[BentoRecord]:
    """The Bentos of a version in the local store, newest first."""
    found = []
    for path in (settings.root / "bentoml" / "records").glob(f"{use_case}-v{version}-*.json"):
        with contextlib.suppress(ValidationError):
            found.append(BentoRecord.model_validate_json(path.read_bytes()))
    return sorted(found, key=lambda record: record.built_at, reverse=True)


@contextlib.contextmanager
def served_once(
    settings: Settings, use_case: str, version: int, command: Callable[[str, int], list[str]] | None = None
) -> Iterator[str]:
    """Yields the URL of the version's newest Bento, served on a free port of this machine.

    Args:
        settings: Where the store is.
        use_case: Its name.
        version: The version.
        command: Makes the command line from tag and port; ``bentoml serve`` unless given.

    Raises:
        NotFoundError: The version was not packaged here.
        PermanentBackendError: The Bento did not become ready.
    """
    bentos = packaged(settings, use_case, version)
    if not bentos:
        raise NotFoundError(
            f"{use_case}:{version} is not packaged on this machine",
            hint=f"leitstand package {use_case} --version {version}",
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = settings.root / "run" / "logs" / f"replay-{use_case}-v{version}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = (command or _bentoml_serve)(bentos[0].tag, port)
    with log.open("wb") as out:
        process = subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT, env=quiet_environment(settings))
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(
            lambda: is_ready(url), timeout_s=settings.local.ready_timeout_s, what=f"{bentos[0].tag} to be ready",
            give_up=lambda: _ended(process, log),
        )  # fmt: skip
        yield url
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ended(process: "subprocess.Popen[bytes]", log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] or "it ended" if process.poll() is not None else ""


def _bentoml_serve(tag: str, port: int) -> list[str]:
    return [sys.executable, "-m", "bentoml", "serve", tag, "--host", "127.0.0.1", "--port", str(port)]
