"""A retraining runs once per trigger, and whatever goes wrong with it the champion stays and people are told."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import stages
from flows.backup import back_up, backups, restore
from flows.loop import Loop, loop_state, open_loop
from flows.nightly import run_checks
from flows.retraining import PlainSteps, notice_crashes, plan, retrain
from flows.rollout import Controller
from governance.input_store import open_input_store
from leitstand.errors import IntegrityError, PermanentBackendError, PromotionRejected
from leitstand.files import digest_bytes
from leitstand.settings import ChecksSettings
from leitstand.types import (
    EvaluationReport,
    Feedback,
    GateOutcome,
    GateReport,
    GateResult,
    ModelRef,
    ModelVersion,
    RunRecord,
    Snapshot,
)
from leitstand.usecase import FeedbackSpec, UseCase
from models.ledger import open_ledger
from monitors.health import Health
from monitors.retrainings import Retraining
from monitors.rollout_rules import Phase
from tests.loop_for_tests import NOW, Trained, World, normal_texts, registered, trained, withheld_texts, world
from tests.rollout_for_tests import InMemoryChampion, InMemoryDeployer

HOUR = timedelta(hours=1)
LEARNS = FeedbackSpec(new_labels="allow", min_rows_per_new_label=10, max_source_share=0.9)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    made = trained(tmp_path_factory.mktemp("shared"))
    spec = made.use_case.retraining.model_copy(update={"min_new_rows": 20})
    return replace(made, use_case=made.use_case.model_copy(update={"feedback": LEARNS, "retraining": spec}))


@dataclass
class Steps:
    """Trains nothing: the candidate is the shared model. The gates say `verdict`, training raises `broken`."""

    world: World
    run: RunRecord
    folder: Path
    verdict: GateOutcome = GateOutcome.PASS
    broken: BaseException | None = None
    entered: int = 0
    proceed: threading.Event | None = None

    def ingest(self, use_case: UseCase) -> Snapshot:
        return self.world.snapshot

    def promote(self, version: ModelVersion, verdict: GateReport, reason: str) -> None:
        PlainSteps(self.world.adapters).promote(version, verdict, reason)

    def train(self, use_case: UseCase, snapshot: Snapshot, profile: str, warm_start: Path | None) -> RunRecord:
        self.entered += 1
        if self.proceed:
            assert self.proceed.wait(30)
        if self.broken:
            raise self.broken
        return self.run

    def evaluate(self, use_case: UseCase, snapshot: Snapshot, run: RunRecord) -> EvaluationReport:
        return EvaluationReport(
            use_case="tiny", weights_digest=run.weights_digest, data_digest=snapshot.digest, split="test",
            evaluated_at=NOW, engine="fake", metrics=(), predictions=self.folder / "none",
        )  # fmt: skip

    def gate(
        self, use_case: UseCase, snapshot: Snapshot, report: EvaluationReport
    ) -> tuple[GateReport, dict[str, Path]]:  # fmt: skip
        verdict = GateReport(
            use_case="tiny", weights_digest=report.weights_digest, data_digest=snapshot.digest, decided_at=NOW,
            outcome=self.verdict, results=(judged(self.verdict),),
        )  # fmt: skip
        file = self.folder / "gate_report.json"
        file.write_text(verdict.model_dump_json())
        return verdict, {"gate_report.json": file}

    def register(
        self, use_case: UseCase, snapshot: Snapshot, run: RunRecord, report: EvaluationReport, verdict: GateReport,
        files: dict[str, Path],
    ) -> ModelVersion:  # fmt: skip
        version = registered(self.world.adapters.registry, run, snapshot, key="candidate")  # type: ignore[arg-type]
        self.world.adapters.registry.attach(version.ref, files)
        return version


def judged(outcome: GateOutcome) -> GateResult:
    return GateResult(
        gate="accuracy", metric="accuracy", outcome=outcome, value=0.5, bound=0.9, bound_kind="floor", missed_by=0.4,
        examples=9, reason="0.5 where 0.9 is needed",
    )  # fmt: skip


@dataclass
class Scene:
    world: World
    steps: Steps
    control: Controller

    def retrain(self, trigger: str = "sha256:1", steps: Steps | None = None) -> Retraining | None:
        return retrain(
            self.world.loop, self.control, self.world.use_case, trigger=trigger, reason="a test",
            steps=steps or self.steps, clock=lambda: NOW,
        )  # fmt: skip

    def label(self, count: int = 60) -> None:
        """A queue appears, its texts are kept, and an agent names it."""
        settings = self.world.adapters.settings
        store = open_input_store(settings)
        for place, text in enumerate(withheld_texts(count, 3)):
            store.put("tiny", f"w{place}", [f"{text} {place}"], NOW)
            said = Feedback(
                feedback_id=f"w{place}", request_id=f"w{place}", use_case="tiny", label="delay", source="ann", at=NOW
            )
            self.world.loop.feedback.record(said)

    @property
    def troubles(self) -> dict[str, str]:
        return {alert.key: alert.body for alert in self.world.loop.alerts.troubles()}


@pytest.fixture
def scene(shared: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(stages, "package", lambda *_: SimpleNamespace(tag="tiny:candidate"))
    home = tmp_path / "home"
    made = world(shared, home)
    (home / "data" / "tiny").unlink()
    shutil.copytree(shared.home / "data" / "tiny", home / "data" / "tiny")
    monitoring = made.adapters.settings.monitoring.model_copy(update={"keep_texts_days": 10})
    settings = made.adapters.settings.model_copy(update={"monitoring": monitoring})
    made.loop = replace(made.loop, adapters=replace(made.adapters, settings=settings))
    control = Controller(
        store=made.adapters.rollouts, routes=made.adapters.routes, deployer=InMemoryDeployer(), counts=made.counts,
        champion=InMemoryChampion(), use_case=lambda _: made.use_case, lock=made.adapters.lock, clock=lambda: NOW,
    )  # fmt: skip
    return Scene(made, Steps(made, shared.run, tmp_path), control)


def champion(scene: Scene) -> int:
    return scene.world.adapters.registry.get(ModelRef(name="tiny", alias="champion")).version


def test_labelled_feedback_becomes_a_challenger_in_a_rollout(scene: Scene) -> None:
    scene.label()
    planned = plan(scene.world.loop, scene.world.use_case, scene.steps)
    assert planned.snapshot.new_labels == ("delay",)
    assert (planned.feedback_rows, planned.without_text) == (60, 0)
    assert planned.new_rows == planned.train_rows > 20
    assert planned.warm_start is not None
    done = scene.retrain()
    assert done is not None
    assert (done.outcome, done.version, done.rollout) == ("rollout started", 2, "tiny-r1")
    rollout = scene.world.adapters.rollouts.running("tiny")
    assert rollout is not None
    assert (rollout.version, rollout.phase, rollout.previous) == (2, Phase.DEPLOYING, 1)
    assert scene.world.adapters.registry.get(ModelRef(name="tiny", alias="challenger")).version == 2
    assert champion(scene) == 1
    assert loop_state(scene.world.loop, "tiny", Health(), now=NOW).retraining
    assert scene.troubles == {}


def test_two_events_at_once_start_one_retraining(scene: Scene) -> None:
    scene.label()
    scene.steps.proceed = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(scene.retrain) for _ in range(2)]
        second = next(done for done in iter(lambda: [f for f in both if f.done()], None) if done)
        assert second[0].result() is None
        scene.steps.proceed.set()
        outcomes = [future.result() for future in both]
    assert sorted(each.outcome if each else "" for each in outcomes) == ["", "rollout started"]
    assert scene.steps.entered == 1
    assert scene.retrain() is None, "the same trigger comes late"
    assert len(scene.world.loop.retrainings.recent("tiny")) == 1


def test_a_training_that_crashes_leaves_the_champion_raises_an_alert_and_counts(scene: Scene) -> None:
    scene.label()
    scene.steps.broken = RuntimeError("out of memory")
    with pytest.raises(RuntimeError):
        scene.retrain()
    assert champion(scene) == 1
    assert scene.world.adapters.rollouts.running("tiny") is None
    assert "out of memory" in scene.troubles["tiny/retraining-failed"]
    state = loop_state(scene.world.loop, "tiny", Health(), now=NOW)
    assert (state.retrains_this_week, state.last_retrain_at, state.retraining) == (1, NOW, False)
    scene.steps.broken = None
    assert scene.retrain("sha256:2") is not None, "the next trigger may try again"


def test_a_candidate_that_fails_its_gate_gets_no_alias_and_no_traffic(scene: Scene) -> None:
    scene.label()
    scene.steps.verdict = GateOutcome.FAIL
    with pytest.raises(PromotionRejected):
        scene.retrain()
    assert champion(scene) == 1
    assert scene.world.adapters.registry.get(ModelRef(name="tiny", version=2)).aliases == ()
    assert scene.world.adapters.rollouts.running("tiny") is None
    assert scene.world.loop.retrainings.recent("tiny")[0].outcome == "gates failed"
    assert "tiny/retraining-failed" in scene.troubles


def test_too_little_feedback_asks_for_labels_and_names_the_queue(scene: Scene) -> None:
    scene.world.answer(normal_texts(40, 4)[0], NOW - HOUR, HOUR)
    done = scene.retrain()
    assert done is not None
    assert done.outcome == "too little feedback"
    (queue,) = (scene.world.loop.home / "labelling" / "tiny").glob("*.parquet")
    assert str(queue) in scene.troubles["tiny/retraining-failed"]
    assert loop_state(scene.world.loop, "tiny", Health(), now=NOW).retrains_this_week == 0
    scene.label(20)
    few = scene.retrain("sha256:2")
    assert few is not None
    assert "20 are needed" in few.detail
    assert scene.steps.entered == 0


def test_a_retraining_whose_process_died_is_noticed(scene: Scene) -> None:
    retrainings = scene.world.loop.retrainings
    assert retrainings.claim("tiny", "sha256:0", "killed", now=NOW)
    assert loop_state(scene.world.loop, "tiny", Health(), now=NOW).retraining
    with scene.world.adapters.lock("retrain-tiny"):
        assert notice_crashes(scene.world.loop, "tiny", now=NOW) == [], "it is alive"
    (dead,) = notice_crashes(scene.world.loop, "tiny", now=NOW + HOUR)
    assert dead.outcome == "crashed"
    assert "tiny/retraining-failed" in scene.troubles
    assert not loop_state(scene.world.loop, "tiny", Health(), now=NOW).retraining


def test_nightly_checks_keep_a_record_and_tell_what_degraded(scene: Scene, tmp_path: Path) -> None:
    scene.world.answer(normal_texts(20, 4)[0], NOW - 50 * HOUR, HOUR)
    record = run_checks(scene.world.loop, scene.world.use_case, now=NOW)
    said = {check.name: check for check in record.checks}
    assert said["requests"].outcome == "degraded"
    assert said["backup"].outcome == said["retention"].outcome == "ok", said
    assert said["golden set"].outcome == said["inference log"].outcome == "skipped"
    assert "requests" in scene.troubles["tiny/sanity-check-failed"]
    (kept,) = (scene.world.loop.home / "monitors" / "nightly" / "tiny").glob("*.json")
    assert json.loads(kept.read_text())["use_case"] == "tiny"
    (note,) = open_ledger(scene.world.adapters.settings).entries("tiny")[-1:]
    assert (note.alias, note.version, note.actor) == ("", 1, "nightly checks")
    assert "requests" in note.reason and note.evidence == digest_bytes(kept.read_bytes())
    scene.world.adapters.registry.verify_moves("tiny")


def test_a_backup_restores_the_state_and_a_damaged_one_is_refused(scene: Scene, tmp_path: Path) -> None:
    scene.world.loop.retrainings.claim("tiny", "sha256:0", "kept", now=NOW)
    checks = ChecksSettings(keep_backups=2)
    settings = scene.world.adapters.settings.model_copy(update={"checks": checks})
    made = [back_up(settings, now=NOW + hours * HOUR) for hours in (0, 1, 2)]
    assert list(backups(settings)) == made[1:]
    record = restore(made[-1], tmp_path / "restored")
    assert "monitors/retrainings.db" in {file.path for file in record.files}
    copy = opened(scene, tmp_path / "restored")
    assert [each.trigger for each in copy.retrainings.recent("tiny")] == ["sha256:0"]
    with pytest.raises(PermanentBackendError, match="there already"):
        restore(made[-1], tmp_path / "restored")
    file = made[-1] / "monitors" / "retrainings.db"
    file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    with pytest.raises(IntegrityError):
        restore(made[-1], tmp_path / "again")


def opened(scene: Scene, home: Path) -> Loop:
    settings = scene.world.adapters.settings.model_copy(update={"home": home})
    return open_loop(replace(scene.world.adapters, settings=settings))
