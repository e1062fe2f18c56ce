"""The tutorial is true: its commands are executed as printed, in order, in one shell."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers import free_ports

UNDECIDED = 4  # a seed change on a small test split may end in insufficient evidence, as the tutorial says


def test_every_command_of_the_first_tutorial_works(tmp_path: Path, project: Path) -> None:
    text = (project / "docs/tutorials/first-model.md").read_text()
    commands = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert len(commands) >= 12
    shutil.copytree(project / "usecases", tmp_path / "usecases")
    shutil.copy(project / "prefect.yaml", tmp_path)
    script = ["set -u", "trap 'leitstand down' EXIT"]
    for command in commands:
        script += [f"echo '$ {command}'", command]
        allowed = f"[ $code -eq 0 ] || [ $code -eq {UNDECIDED} ]" if "--seed" in command else "[ $code -eq 0 ]"
        script.append(f'code=$?; {allowed} || {{ echo "exit code $code"; exit 1; }}')
        if command.startswith("leitstand init"):
            script.append(f"sed -i 's/port: 3001/port: {free_ports(1)[0]}/' usecases/triage/usecase.yaml")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LEITSTAND_HOME": str(tmp_path / ".leitstand"),
        "LEITSTAND_LOCAL__PREFECT_PORT": str(free_ports(1)[0]),
        "LEITSTAND_GATEWAY__PORT": str(free_ports(1)[0]),
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "no training" in done.stdout + done.stderr
    assert "activate_my_card" in done.stdout
    assert (tmp_path / "compare.html").stat().st_size > 10_000
    assert "triage" in done.stdout.split("$ bentoml list")[1]
