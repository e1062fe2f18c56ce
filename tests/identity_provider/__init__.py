"""A real identity provider for tests: npm's `oidc-provider`, installed once into the user's cache."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from filelock import FileLock

from tests.servers import running, system_tool, wait_until

FOLDER = Path(__file__).parent
SECRET = "only-for-this-machine"


@dataclass(frozen=True)
class IdentityProvider:
    """A running provider."""

    url: str

    def token(self, algorithm: str = "ES256", *, resource: str, scope: str = "support:predict") -> str:
        """An access token for the client of that algorithm, by the client-credentials grant."""
        response = httpx.post(
            f"{self.url}/token", auth=(f"worker-{algorithm}", SECRET),
            data={"grant_type": "client_credentials", "resource": resource, "scope": scope},
        )  # fmt: skip
        assert response.status_code == 200, response.text
        return response.json()["access_token"]


def modules() -> Path:
    """The folder with `node_modules`; installs the pinned version when it is not there."""
    wanted = (FOLDER / "package.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leitstand-tests" / "identity-provider"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):
        stamp = cache / "installed.json"
        if not stamp.is_file() or stamp.read_bytes() != wanted:
            shutil.copy(FOLDER / "package.json", cache)
            command = [
                system_tool("npm"),
                "install",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--no-package-lock",
            ]
            done = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr[-2000:]
            stamp.write_bytes(wanted)
    return cache


@contextmanager
def identity_provider(folder: Path, port: int, keys: Mapping[str, Any]) -> Iterator[IdentityProvider]:
    """The provider on `port` with the private keys of a JWKS document."""
    jwks, log = folder / "private-jwks.json", folder / "provider.log"
    jwks.write_text(json.dumps(keys))
    command = [system_tool("node"), str(FOLDER / "provider.mjs"), str(port), str(jwks), str(modules())]
    with running(command, log) as process:
        wait_until(lambda: b"ready" in log.read_bytes(), process, log, "the identity provider")
        yield IdentityProvider(f"http://127.0.0.1:{port}")
