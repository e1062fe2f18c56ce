"""The page on audit records is true: its commands are executed as printed, in order, in one shell."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from leitstand.specs.audit import AuditSpec
from tests.integration.test_gateway import Gateway, Upstream, gateway_running
from tests.servers import free_ports


@pytest.fixture
def page(project: Path) -> str:
    return (project / "docs" / "how-to" / "read-an-audit-record.md").read_text()


@pytest.fixture
def gateway(tmp_path: Path, mlflow_database: Path) -> Iterator[Gateway]:
    home = tmp_path / "home"
    (home / "mlflow").mkdir(parents=True)
    shutil.copyfile(mlflow_database, home / "mlflow" / "registry.db")
    upstream = Upstream(1, free_ports(1)[0], tmp_path)
    upstream.start()
    with gateway_running(home) as running:
        running.route(upstream)
        yield running
    upstream.kill()


def test_its_commands_work_in_their_order(page: str, gateway: Gateway, tmp_path: Path) -> None:
    commands = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(commands) >= 17
    script = ["set -eu"]
    for command in commands:
        shown = command.replace("'", "")
        script += [f"echo '$ {shown}'", command.replace("localhost:8080", gateway.url.removeprefix("http://"))]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LEITSTAND_HOME": str(gateway.home),
        "LEITSTAND_USECASES": str(gateway.home / "usecases"),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Where is my card?" in done.stdout.split("$ leitstand audit show ticket-4711 ")[1]
    assert "identical" in done.stdout and "erased" in done.stdout.split("$ leitstand audit erase-subject")[-1]
    assert done.stdout.count("holds: ") == 4


def test_its_use_case_keys_are_understood(page: str) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert AuditSpec.model_validate(yaml.safe_load(block)["audit"]) == AuditSpec(mode="strict")
