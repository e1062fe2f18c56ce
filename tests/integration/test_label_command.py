"""`leitstand label` as a user meets it: export, fill in, import; and the terminal, driven through a pipe."""

import csv
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from governance.feedback_log import open_feedback_log
from governance.inference_log import open_inference_log
from governance.input_store import open_input_store
from leitstand.settings import MonitoringSettings, Settings
from leitstand.types import WindowRow, utc_now

KEPT = {"LEITSTAND_MONITORING__KEEP_TEXTS_DAYS": "14"}


def leitstand(folder: Path, *arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "leitstand.cli", "label", *arguments],
        cwd=folder,
        env=os.environ | {"LEITSTAND_HOME": str(folder / "home"), "USER": "ann"} | KEPT | environment,
        capture_output=True,
        text=True,
        input=given,
        check=False,
        timeout=120,
    )


@pytest.fixture
def workspace(tmp_path: Path, project: Path) -> Path:
    """A use case with six answers in the log and their texts in the store."""
    target = tmp_path / "usecases" / "support"
    (target / "data").mkdir(parents=True)
    for name in ("usecase.yaml", "data/categories.json"):
        shutil.copy(project / "usecases/support" / name, target / name)
    settings = _settings(tmp_path)
    log, store = open_inference_log(settings), open_input_store(settings)
    at = utc_now() - timedelta(hours=1)
    for number in range(6):
        store.put("support", f"r{number}", [f"=why is my card late {number}"], at)
    log.append(
        [
            WindowRow(
                request_id=f"r{n}", index=0, at=at, use_case="support", version=1, route="stable", subject="",
                label="card_arrival", score=0.4 + n / 20, abstain=False, probabilities=b"", embedding=b"",
                characters=20, words=5, tokens=9, digit_share=0, upper_share=0, non_ascii_share=0, language="en",
                latency_ms=4.0,
            )
            for n in range(6)
        ]
    )  # fmt: skip
    log.close()
    store.close()
    return tmp_path


def _settings(folder: Path) -> Settings:
    return Settings(home=folder / "home", monitoring=MonitoringSettings(keep_texts_days=14))


def labels_in(folder: Path) -> dict[str, tuple[str | None, str]]:
    entries = open_feedback_log(_settings(folder)).entries("support")
    return {entry.request_id: (entry.label, entry.source) for entry in entries}


def test_a_queue_goes_out_as_csv_and_its_labels_come_back_once(workspace: Path) -> None:
    done = leitstand(workspace, "export", "support", "--out", "queue.csv", "--count", "4")
    assert done.returncode == 0, done.stderr
    with (workspace / "queue.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert rows[0]["text"].startswith("'=why")  # no spreadsheet runs it
    assert rows[0]["predicted"] == "card_arrival"
    assert len(list((workspace / "home/labelling/support").glob("*.parquet"))) == 1
    for row, label in zip(rows, ("card_linking", "card_arrival", "", "age_limit"), strict=True):
        row["label"] = label
    with (workspace / "queue.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    first = leitstand(workspace, "import", "queue.csv", "--as", "bob")
    assert first.stderr.strip() == "3 labels recorded, 0 were known", first.stderr
    assert (
        leitstand(workspace, "import", "queue.csv", "--as", "bob").stderr.strip() == "0 labels recorded, 3 were known"
    )
    found = labels_in(workspace)
    assert set(found.values()) == {("card_linking", "bob"), ("card_arrival", "bob"), ("age_limit", "bob")}


def test_a_wrong_line_is_named_and_nothing_is_imported(workspace: Path) -> None:
    lines = [
        "use_case,request_id,index,label", "support,r1,0,card_arrival", "support,r2,0,card_arival",
        "support,r3,minus,age_limit", "suport,r4,0,age_limit", "support,,0,age_limit", "support,r1,0,age_limit",
    ]  # fmt: skip
    (workspace / "bad.csv").write_text("\n".join(lines) + "\n")
    done = leitstand(workspace, "import", "bad.csv")
    assert done.returncode == 5
    for said in ("line 3: unknown label 'card_arival'; did you mean 'card_arrival'?", "line 4: index 'minus'",
        "line 5: No use case 'suport'", "line 6: no request_id", "line 7: 'age_limit', but line 2"):  # fmt: skip
        assert said in done.stderr
    assert labels_in(workspace) == {}
    (workspace / "columns.csv").write_text("request_id,label\nr1,age_limit\n")
    assert leitstand(workspace, "import", "columns.csv").returncode == 2


def test_a_label_that_is_really_new_is_taken_when_it_is_named(workspace: Path) -> None:
    (workspace / "new.csv").write_text("use_case,request_id,index,label,source\nsupport,r1,0,crypto,carl\n")
    assert leitstand(workspace, "import", "new.csv").returncode == 5
    assert leitstand(workspace, "import", "new.csv", "--new-label", "crypto").returncode == 0
    assert labels_in(workspace) == {"r1": ("crypto", "carl")}


def test_the_terminal_shows_texts_takes_labels_and_undoes(workspace: Path) -> None:
    done = leitstand(workspace, "support", "--as", "dora", given="1\nage_l\nu\ns\nq\n")
    assert done.returncode == 0, done.stderr
    assert "why is my card late" in done.stdout
    assert "1  card_arrival" in done.stdout
    assert "1 labels recorded" in done.stderr
    assert sorted(str(value) for value in labels_in(workspace).values()) == [
        "('card_arrival', 'dora')",
        "(None, 'dora')",
    ]


def test_without_kept_texts_the_command_says_what_to_set(workspace: Path) -> None:
    done = leitstand(workspace, "support", LEITSTAND_MONITORING__KEEP_TEXTS_DAYS="0")
    assert done.returncode == 2
    assert "LEITSTAND_MONITORING__KEEP_TEXTS_DAYS" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_to_label_is_said(workspace: Path) -> None:
    shutil.rmtree(workspace / "home")
    done = leitstand(workspace, "export", "support")
    assert done.returncode == 1
    assert "0 answers in the log" in done.stderr
    assert not (workspace / "queue.csv").exists()
