"""`leitstand audit` and `leitstand explain` as a person uses them, on a trail and a registry of this machine."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from governance.audit.chain import Chain
from governance.audit.keys import open_keys
from governance.audit.opening import prune_trail
from governance.audit.reading import Reader
from governance.audit.retention import prune
from governance.audit.signing import open_signer
from governance.audit.verify_standalone import segments
from leitstand.commands import audit, explain
from leitstand.errors import ConfigurationError, ConflictError, IntegrityError, NotFoundError
from leitstand.settings import AuditSettings, Settings
from leitstand.types import GateOutcome, GateReport, utc_now
from models.decision_record import explain as walk
from models.ledger import SqliteLedger
from models.promotion import GATE_REPORT
from tests.audit_for_tests import NOW, append, entry, only_chain, verify, write_trail
from tests.fakes import InMemoryRegistry
from tests.models_for_tests import candidate

Run = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with an empty registry and a trail; the environment is put back afterwards: commands change it."""
    home = tmp_path / "home"
    (home / "mlflow").mkdir(parents=True)
    (home / "mlflow" / "registry.db").write_bytes(mlflow_database.read_bytes())
    write_trail(home / "audit", [entry(1), entry(2, subject="bob"), entry(3, subject=""), entry(4, status=403,
        problem="a guard", version=0)])  # fmt: skip
    before = dict(os.environ)
    monkeypatch.setenv("LEITSTAND_HOME", str(home))
    yield home
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture
def run(home: Path) -> Run:
    return lambda *arguments, app=audit.app: CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_a_record_is_shown_in_the_clear_and_the_newest_are_listed(run: Run) -> None:
    (row,) = json.loads(run("show", "r-1", "--json").stdout)
    assert (row["input"], row["output"]["labels"], row["who"]["caller"]) == (["text 1"], ["card"], "svc")
    assert row["erased"] is False and row["sequence"] == 2
    (sealed,) = json.loads(run("show", "r-1", "--json", "--sealed").stdout)
    assert "text 1" not in json.dumps(sealed) and sealed["input"]["bytes"] == len('["text 1"]')
    assert "text 1" in run("show", "r-1").stdout
    table = run("show").stdout
    assert [line.split()[2] for line in table.splitlines()[1:]] == ["r-1", "r-2", "r-3", "r-4"]
    assert "a guard" in table
    with pytest.raises(NotFoundError, match="r-9"):
        run("show", "r-9")


def test_an_erased_subject_can_never_be_read_again_and_the_chain_holds(run: Run, home: Path) -> None:
    before = json.loads(run("show", "r-1", "--json").stdout)[0]
    assert "2 records" in run("erase-subject", "ann", "--tenant", "bank", "--reason", "asked", "--dry-run").stderr
    assert "text 1" in run("show", "r-1").stdout
    run("erase-subject", "ann", "--tenant", "bank", "--reason", "asked")
    shown = run("show", "r-1").stdout
    assert "erased" in shown and "text 1" not in shown and "svc" not in shown
    assert "text 2" in run("show", "r-2").stdout and "text 3" in run("show", "r-3").stdout
    assert run("verify").exit_code == 0
    keys = b"".join(path.read_bytes() for path in (home / "audit").glob("keys.db*"))
    assert keys.count(before["subject"].encode()) == 1  # in the list of erasures: the key and the way to it are gone
    (noted,) = [line for line in Reader(home / "audit").lines() if line.kind == "erasing"]
    assert noted.details["subject"] == before["subject"] and noted.details["reason"] == "asked"
    with pytest.raises(NotFoundError, match="no subject"):
        run("erase-subject", "ann", "--tenant", "bank", "--reason", "again")


def test_verify_names_the_first_bad_record_and_fails(run: Run, home: Path) -> None:
    assert "holds: 6 records" in run("verify").stdout
    (file,) = segments(only_chain(home / "audit"))
    content = bytearray(file.read_bytes())
    content[content.index(b'"r-2"') + 1] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"record 3 \(.*changed"):
        run("verify")
    with pytest.raises(NotFoundError, match="No audit trail"):
        run("verify", "--folder", str(home / "nothing"))


def test_anchors_in_a_folder_are_written_once_and_compared(run: Run, home: Path, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    assert "record 6" in run("anchor", "--to", str(place)).stdout
    assert "0 new" in run("anchor", "--to", str(place)).stderr
    assert run("verify", "--anchors", str(place)).exit_code == 0
    (file,) = segments(only_chain(home / "audit"))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]))
    for name in ("heads.jsonl", "head.json"):  # whoever cuts records off removes the heads, too
        (only_chain(home / "audit") / name).unlink()
    assert run("verify").exit_code == 0
    with pytest.raises(IntegrityError, match=r"record 4 .*missing at the end"):
        run("verify", "--anchors", str(place))
    with pytest.raises(ConfigurationError, match="No place for anchors"):
        run("anchor")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_exports_hold_every_record(run: Run, tmp_path: Path, kind: str) -> None:
    target = tmp_path / f"all.{kind}"
    assert "4 records" in run("export", str(target), "--format", kind, "--clear").stderr
    rows = pq.read_table(target).to_pylist() if kind == "parquet" else [
        json.loads(line) for line in target.read_text().splitlines()
    ]  # fmt: skip
    texts = [json.loads(row["input"]) if kind == "parquet" else row["input"] for row in rows]
    assert texts == [[f"text {number}"] for number in (1, 2, 3, 4)]
    assert [row["status"] for row in rows] == [200, 200, 200, 403]
    run("export", str(target), "--format", kind, "--since", "2026-11-25")
    left = pq.read_table(target).num_rows if kind == "parquet" else len(target.read_text())
    assert left == 0
    with pytest.raises(ConfigurationError, match="csv"):
        run("export", str(target), "--format", "csv")


def old_trail(folder: Path, days: int) -> None:
    """Segments of two records, one per day, the oldest first."""
    keys = open_keys(folder)
    chain = Chain.take(folder, open_signer(folder), segment_bytes=1500)
    append(chain, keys, (entry(n, at=utc_now() - timedelta(days=days - n)) for n in range(days)))
    chain.close(0.0)
    keys.close()


def test_retention_removes_old_segments_only_and_the_rest_still_verifies(tmp_path: Path) -> None:
    old_trail(tmp_path / "audit", 20)
    settings = Settings(home=tmp_path, audit=AuditSettings(retention_days=10))
    planned = prune_trail(settings, now=utc_now(), dry_run=True)
    total = verify(tmp_path / "audit").records
    done = prune_trail(settings, now=utc_now())
    assert done.segments == planned.segments and done.records >= 8
    result = verify(tmp_path / "audit")
    assert result.all_problems == []
    assert result.records == total - done.records + 3  # `opened`, `pruned`, `closed`
    kept = [record.ended_at for record in Reader(tmp_path / "audit").records()]
    assert len([at for at in kept if at > utc_now() - timedelta(days=10)]) == 9 or len(kept) >= 10
    assert prune_trail(settings, now=utc_now()).segments == ()
    (only_chain(tmp_path / "audit") / "checkpoints.jsonl").unlink()
    (problem,) = verify(tmp_path / "audit").all_problems
    assert "no signed checkpoint" in problem.what


def test_pruning_that_was_interrupted_leaves_a_trail_that_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_trail(tmp_path, 12)
    removed: list[Path] = []

    def killed(path: Path) -> None:
        if len(removed) == 2:
            raise KeyboardInterrupt
        removed.append(path)
        os.unlink(path)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, open_signer(tmp_path), None, days=3, now=utc_now())
    monkeypatch.undo()
    assert len(removed) == 2 and verify(tmp_path).all_problems == []


def test_a_bundle_is_verified_without_the_program(run: Run, home: Path, tmp_path: Path) -> None:
    target = tmp_path / "evidence.zip"
    run("bundle", str(target), "--from", "2026-11-24", "--to", "2026-11-25", "--clear")
    with zipfile.ZipFile(target) as packed:
        packed.extractall(tmp_path)
    folder = tmp_path / "evidence"
    command = [sys.executable, "-P", "verify.py", "trail", "--anchors", "trail/anchors"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "holds: 6 records" in done.stdout
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(listed) == names - {"manifest.json"}
    page = (folder / "index.html").read_text()
    assert "19 (1), 26 (6)" in page and "does not say that a system is high-risk" in page
    assert "text 1" in (folder / "records.jsonl").read_text()
    with pytest.raises(ConflictError):
        run("bundle", str(target), "--from", "2026-11-24", "--to", "2026-11-25")
    with pytest.raises(NotFoundError, match="Nothing was recorded"):
        run("bundle", str(tmp_path / "b"), "--from", "2020-01-01", "--to", "2020-01-02")


def test_a_bundle_may_begin_in_the_middle_of_a_chain(home: Path, tmp_path: Path, run: Run) -> None:
    old_trail(tmp_path / "more" / "audit", 12)
    home_of = {"LEITSTAND_AUDIT__FOLDER": str(tmp_path / "more" / "audit")}
    begin = (datetime.now(UTC) - timedelta(days=6)).isoformat()
    end = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in home_of.items():
            patch.setenv(name, value)
        run("bundle", str(tmp_path / "part"), "--from", begin, "--to", end)
    result = verify(tmp_path / "part" / "trail")
    assert result.all_problems == [] and result.chains[0].first > 1
    assert result.records < 14


def test_an_answer_leads_to_its_version_data_code_gates_and_approver(home: Path, tmp_path: Path, run: Run) -> None:
    registry = InMemoryRegistry()
    for number in (1, 2, 3):
        one = candidate(tmp_path / f"model{number}", weights=b"%d" % number)
        report = GateReport(
            use_case="support", weights_digest=one.weights_digest, data_digest=one.data_digest, decided_at=NOW,
            outcome=GateOutcome.PASS, results=(),
        )  # fmt: skip
        (tmp_path / GATE_REPORT).write_text(report.model_dump_json())
        registry.register(one.model_copy(update={"attachments": {GATE_REPORT: tmp_path / GATE_REPORT}}))
    ledger = SqliteLedger(tmp_path / "ledger.db")
    ledger.append(name="support", alias="champion", version=3, previous=None, actor="eve", reason="gates passed",
        evidence="sha256:1", at=NOW - timedelta(hours=1))  # fmt: skip
    record = Reader(home / "audit").find("r-1")[0]
    found = walk(record, registry, ledger)
    assert found.missing == () and found.version is not None and found.holder is not None
    assert (found.version.version, found.holder.actor) == (3, "eve")
    assert found.gate_report is not None and found.gate_report["outcome"] == "pass"
    refused = walk(Reader(home / "audit").find("r-4")[0], registry, ledger)
    assert refused.version is None and "no version answered" in refused.missing[0]
    said = run("r-1", app=explain.app).stdout
    assert "support:3 as stable" in said and "missing   version support:3" in said
    (shown,) = json.loads(run("r-1", "--json", app=explain.app).stdout)
    assert shown["record"]["request_id"] == "r-1"


def test_the_nightly_check_verifies_anchors_and_prunes(tmp_path: Path) -> None:
    from types import SimpleNamespace
    from typing import Any

    from flows.nightly import _audit

    place = tmp_path / "anchors"
    settings = Settings(home=tmp_path, audit=AuditSettings(retention_days=10, anchors=str(place)))
    loop: Any = SimpleNamespace(adapters=SimpleNamespace(settings=settings))
    assert _audit(loop, utc_now()).outcome == "skipped"
    old_trail(tmp_path / "audit", 20)
    first = _audit(loop, utc_now())
    assert first.outcome == "ok" and "1 heads anchored" in first.text and " 0 records past" not in first.text
    assert _audit(loop, utc_now()).outcome == "ok"
    file = segments(only_chain(tmp_path / "audit"))[0]
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    assert _audit(loop, utc_now()).outcome == "degraded"
