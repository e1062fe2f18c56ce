"""The page about OpenAI-compatible APIs is true: its blocks run as printed, in order, against a real model."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.servers import free_ports


def test_every_command_of_the_page_works(tmp_path: Path, project: Path) -> None:
    page = (project / "docs/how-to/put-an-openai-api-behind-the-gateway.md").read_text()
    model, gateway = free_ports(2)
    script = ["set -eu", "trap 'kill $(jobs -p)' EXIT"]
    blocks = re.findall(r"```(bash|python)\n(.*?)```", page, re.S)
    assert len(blocks) >= 5
    for kind, block in blocks:
        run = block.replace("8000", str(model)).replace("8080", str(gateway))
        script.append(run if kind == "bash" else f"python - <<'PYTHON'\n{run}PYTHON")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(project),
        "LEITSTAND_HOME": str(tmp_path), "LEITSTAND_GATEWAY__PORT": str(gateway),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "helper@1 " in done.stdout
    assert "data: [DONE]" in done.stdout
    assert '"object":"list"' in done.stdout
