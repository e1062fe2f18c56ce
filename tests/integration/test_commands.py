"""The command line as a user meets it: exit codes, stdout for data, stderr for messages."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from leitstand.usecase import load


@pytest.fixture
def workspace(tmp_path: Path, project: Path) -> Path:
    """A folder with the support use case, as a fresh checkout has it."""
    shutil.copytree(project / "usecases", tmp_path / "usecases")
    shutil.copy(project / "prefect.yaml", tmp_path)
    return tmp_path


def leitstand(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "leitstand.cli", *arguments],
        cwd=folder,
        env=os.environ | {"LEITSTAND_HOME": str(folder / ".leitstand")} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_init_writes_a_use_case_that_loads(workspace: Path) -> None:
    done = leitstand(workspace, "init", "triage", "--owner", "night shift")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "usecases/triage/usecase.yaml\n"
    use_case = load(workspace / "usecases/triage/usecase.yaml")
    assert (use_case.name, use_case.owner, use_case.serving.port) == ("triage", "night shift", 3001)
    assert (workspace / "usecases/triage/data/LICENSE").is_file()
    assert "use_case: triage" in (workspace / "usecases/triage/prefect.yaml").read_text()


def test_init_takes_files_of_the_user(workspace: Path) -> None:
    for split in ("a", "b"):
        (workspace / f"{split}.csv").write_text("question,queue\nwhere is it?,delivery\nhow much?,price\n")
    arguments = ["init", "shop", "--train", "a.csv", "--test", "b.csv", "--text-column", "question"]
    wrong = leitstand(workspace, *arguments)
    assert wrong.returncode == 2
    assert "no column 'label'" in wrong.stderr
    assert "question, queue" in wrong.stderr
    assert not (workspace / "usecases/shop").exists()
    assert leitstand(workspace, *arguments, "--label-column", "queue").returncode == 0
    assert json.loads((workspace / "usecases/shop/data/labels.json").read_text()) == ["delivery", "price"]


def test_init_overwrites_nothing_and_refuses_odd_names(workspace: Path) -> None:
    again = leitstand(workspace, "init", "support")
    assert again.returncode == 1
    assert "exists already" in again.stderr
    odd = leitstand(workspace, "init", "../evil")
    assert odd.returncode == 2
    assert "lower-case" in odd.stderr


def test_a_mistake_in_a_use_case_ends_with_the_usage_code_and_no_traceback(workspace: Path) -> None:
    file = workspace / "usecases/support/usecase.yaml"
    file.write_text(file.read_text().replace("max_tokens: 128", "max_tokens: many"))
    done = leitstand(workspace, "run", "support")
    assert done.returncode == 2
    assert "model.max_tokens" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_use_case_is_answered_with_the_known_ones(workspace: Path) -> None:
    done = leitstand(workspace, "run", "suport")
    assert done.returncode == 1
    assert "did you mean 'support'?" in done.stderr


def test_status_and_down_are_quiet_when_nothing_runs(workspace: Path) -> None:
    assert "Nothing runs" in leitstand(workspace, "status").stderr
    assert json.loads(leitstand(workspace, "status", "--json").stdout) == []
    assert leitstand(workspace, "down").returncode == 0


def test_doctor_names_what_is_wrong_and_how_to_mend_it(workspace: Path) -> None:
    well = leitstand(workspace, "doctor", "--json")
    findings = json.loads(well.stdout)
    assert well.returncode == 0, [f for f in findings if f["status"] == "wrong"]
    assert any("chain intact" in finding["what"] for finding in findings)
    (workspace / "usecases/support/usecase.yaml").write_text("name: support\n")
    ill = leitstand(workspace, "doctor", "--json")
    assert ill.returncode == 1
    wrong = [finding for finding in json.loads(ill.stdout) if finding["status"] == "wrong"]
    assert any("required key is missing" in finding["what"] for finding in wrong)
    assert all(finding["fix"] for finding in wrong)
