"""`leitstand models` and `leitstand bundle` as a person uses them, on a real registry."""

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from leitstand.commands import bundle, models
from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError, PromotionRejected
from leitstand.ports import ModelRegistry
from leitstand.settings import Settings
from leitstand.types import GateOutcome, GateReport, ModelRef
from models.ledger import open_ledger
from models.registry.opening import open_registry
from tests.models_for_tests import candidate

Run = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with an empty registry, and the environment put back afterwards: commands change it."""
    home = tmp_path / "home"
    (home / "mlflow").mkdir(parents=True)
    (home / "mlflow" / "registry.db").write_bytes(mlflow_database.read_bytes())
    before = dict(os.environ)
    monkeypatch.setenv("LEITSTAND_HOME", str(home))
    yield home
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture
def registry(home: Path, tmp_path: Path) -> ModelRegistry:
    """Two versions, both with a gate report that passed, a third with one that failed."""
    registry = open_registry(Settings(home=home))
    for number, outcome in enumerate((GateOutcome.PASS, GateOutcome.PASS, GateOutcome.FAIL), start=1):
        one = candidate(tmp_path / f"model{number}", weights=b"%d" % number)
        report = GateReport(
            use_case="support", weights_digest=one.weights_digest, data_digest=one.data_digest,
            decided_at=datetime(2026, 11, 24, tzinfo=UTC), outcome=outcome, results=(),
        )  # fmt: skip
        folder = tmp_path / f"reports{number}"
        folder.mkdir()
        (folder / "gate_report.json").write_text(report.model_dump_json(indent=1))
        (folder / "model_card.html").write_text("<h1>Card</h1>")
        (folder / "model_card.md").write_text("# Card")
        attachments = {path.name: path for path in folder.iterdir()}
        if outcome is GateOutcome.FAIL:
            del attachments["gate_report.json"]
        registry.register(one.model_copy(update={"attachments": attachments}))
    return registry


@pytest.fixture
def run(registry: ModelRegistry) -> Run:
    def invoke(*arguments: str, app: object = models.app, check: bool = True) -> Result:
        result = CliRunner().invoke(app, arguments)  # type: ignore[arg-type]
        if check and result.exception:
            raise result.exception
        return result

    return invoke


def champion(registry: ModelRegistry) -> int:
    return registry.get(ModelRef.parse("support@champion")).version


def test_promote_history_who_and_rollback_tell_one_story(run: Run, registry: ModelRegistry, home: Path):
    run("promote", "support:1", "--reason", "first", "--actor", "ada")
    between = datetime.now(UTC)
    run("promote", "support:2", "--reason", "better", "--actor", "bob")
    assert champion(registry) == 2
    assert "1 → 2" in run("history", "support").stdout
    assert run("who", "support").stdout.strip() == "support:2"
    assert run("who", "support", "--at", between.isoformat()).stdout.strip() == "support:1"

    run("rollback", "support", "--reason", "errors", "--actor", "ada")
    assert champion(registry) == 1
    entries = json.loads(run("history", "support", "--json").stdout)
    assert [(entry["version"], entry["actor"], entry["reason"]) for entry in entries] == [
        (1, "ada", "first"), (2, "bob", "better"), (1, "ada", "rolled back: errors"),
    ]  # fmt: skip
    assert all(entry["evidence"].startswith("sha256:") for entry in entries[:2])
    assert "leitstand.model.promoted" in (home / "logs" / "leitstand.jsonl").read_text()


def test_nobody_held_the_alias_before_the_first_promotion(run: Run):
    early = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    run("promote", "support:1", "--reason", "first")
    with pytest.raises(NotFoundError, match="support@champion"):
        run("who", "support", "--at", early)
    with pytest.raises(ConfigurationError, match="2026-11-24T14:03"):
        run("who", "support", "--at", "yesterday")


def test_a_dry_run_changes_nothing(run: Run, home: Path):
    run("promote", "support:1", "--reason", "first", "--dry-run")
    assert list(open_ledger(Settings(home=home)).entries()) == []
    run("promote", "support:1", "--reason", "first")
    run("promote", "support:2", "--reason", "better")
    said = run("rollback", "support", "--reason", "errors", "--dry-run").stderr
    assert "would point support@champion at support:1" in said
    assert len(open_ledger(Settings(home=home)).entries()) == 2


def test_a_version_without_evidence_is_refused_unless_forced(run: Run, registry: ModelRegistry):
    for more in ([], ["--dry-run"]):
        with pytest.raises(PromotionRejected, match="no gate report"):
            run("promote", "support:3", "--reason", "please", *more)
    run("promote", "support:3", "--reason", "incident 7", "--force")
    assert champion(registry) == 3
    assert "forced although" in run("history", "support").stdout


def test_list_and_show_say_the_same_to_people_and_machines(run: Run):
    run("promote", "support:2", "--reason", "better")
    found = json.loads(run("list", "support", "--json").stdout)
    assert [(version["version"], version["aliases"]) for version in found] == [(3, []), (2, ["champion"]), (1, [])]
    assert run("list").stdout.splitlines()[2].split()[:4] == ["support:2", "champion", "quick", "0.9300"]
    shown = json.loads(run("show", "support@champion", "--json").stdout)
    assert shown == found[1]
    assert "gate_report.json, model_card.html, model_card.md" in run("show", "support:2").stdout


def test_verify_names_what_does_not_hold(run: Run, home: Path):
    run("promote", "support:1", "--reason", "first")
    assert "1 entries, chain intact" in run("verify").stdout
    stored = next((home / "mlflow" / "artifacts").rglob("model_card.md")).resolve()
    stored.write_text("# Card, but nicer")
    with pytest.raises(IntegrityError, match=r"model_card\.md"):
        run("verify", "support:1")


def test_card_and_fetch_copy_files_out(run: Run, tmp_path: Path):
    printed = run("card", "support:1", "--out", str(tmp_path / "card")).stdout.split()
    assert [Path(path).name for path in printed] == ["model_card.html", "model_card.md"]
    run("fetch", "support:1", str(tmp_path / "fetched"))
    assert (tmp_path / "fetched" / "model.safetensors").read_bytes() == b"1"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(ConfigurationError, match="something else"):
        run("fetch", "support:1", str(tmp_path / "mine"))


def test_a_bundle_goes_to_a_folder_and_back(run: Run, tmp_path: Path):
    place = str(tmp_path / "stick")
    pushed = run("push", "support:1", place, app=bundle.app)
    assert pushed.stdout.strip() == f"{place}/versions/support/1.json"
    assert run("pull", place, "support:1", app=bundle.app).stdout.strip() == "support:1"
    with pytest.raises(ConfigurationError, match="aliases do not travel"):
        run("pull", place, "support@champion", app=bundle.app)
    assert "would push" in run("push", "support:1", place, "--dry-run", app=bundle.app).stderr
