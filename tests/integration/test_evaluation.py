"""A trained model is opened, measured, judged and reported, with the engine that serves it."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from leitstand.errors import ConfigurationError, IntegrityError
from leitstand.settings import S3Settings
from leitstand.types import EvaluationReport, GateOutcome, RunRecord, Snapshot, utc_now
from leitstand.usecase import ChampionRule, CounterfactualSpec, EvaluationSpec, GateSpec, UseCase
from models.evaluation import Samples, evaluate
from models.gate_report import write_gate_report
from models.gates import comparable, decide
from models.training import train
from tests.fakes import InMemoryTracker
from tests.training_for_tests import tiny_base, tiny_snapshot, tiny_use_case

SMALL = Samples(latency_calls=20)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[UseCase, Snapshot, RunRecord]:
    folder = tmp_path_factory.mktemp("evaluation")
    people = CounterfactualSpec(
        templates=("please {person} {text}",), groups={"a": ("my", "the"), "b": ("why", "late")}
    )
    case = tiny_use_case(tiny_base(folder / "base")).model_copy(
        update={
            "evaluation": EvaluationSpec(label_groups={"money": ("cash", "transfer")}, counterfactuals=people),
            "gates": (
                GateSpec(
                    metric="accuracy", floor=0.5, min_examples=5, champion=ChampionRule(test="mcnemar", margin=0.01)
                ),
                GateSpec(metric="size_mb", ceiling=10),
            ),
        }
    )
    snapshot = tiny_snapshot(folder / "data")
    record = train(
        case, snapshot, profile=None, home=folder, tracker=InMemoryTracker(), commit="0" * 40, s3=S3Settings()
    )
    snapshot.splits["train"].path.unlink()  # evaluation must do without it
    return case, snapshot, record


def test_a_trained_model_is_measured_judged_and_reported(
    trained: tuple[UseCase, Snapshot, RunRecord], tmp_path: Path
) -> None:
    case, snapshot, record = trained
    report = evaluate(case, snapshot, record.model_dir, out=tmp_path, samples=SMALL)
    again = evaluate(case, snapshot, record.model_dir, out=tmp_path / "again", samples=SMALL)
    rows = pq.read_table(report.predictions).to_pylist()
    accuracy = sum(row["label"] == row["predicted"] for row in rows) / len(rows)
    measured = report.metric("accuracy")
    assert measured is not None
    assert measured.value == pytest.approx(accuracy)
    assert measured.examples == len(rows) == 9
    assert report.weights_digest == record.weights_digest
    assert report.engine.startswith("openvino")
    assert EvaluationReport.model_validate_json((tmp_path / "evaluation.json").read_bytes()) == report
    assert comparable(report, again)
    timed = ("latency_p50_ms", "latency_p99_ms", "throughput")
    stable = [[m for m in r.metrics if m.name not in timed] for r in (report, again)]
    assert stable[0] == stable[1]

    decision = decide(case, report, champion=again, champion_ref="tiny:1", now=utc_now())
    assert decision.outcome is GateOutcome.PASS
    files = write_gate_report(decision, report, case, tmp_path)
    assert sorted(files) == ["gate_report.html", "gate_report.json"]
    assert all(path.stat().st_size > 500 for path in files.values())


def test_both_engines_give_the_same_answers(trained: tuple[UseCase, Snapshot, RunRecord], tmp_path: Path) -> None:
    case, snapshot, record = trained
    answers = [
        pq.read_table(evaluate(case, snapshot, record.model_dir, out=tmp_path / e, engine=e, samples=SMALL).predictions)
        for e in ("openvino", "torch")
    ]
    assert answers[0]["predicted"].to_pylist() == answers[1]["predicted"].to_pylist()
    assert answers[0]["score"].to_pylist() == pytest.approx(answers[1]["score"].to_pylist(), abs=1e-3)


def test_a_truncated_model_is_refused(trained: tuple[UseCase, Snapshot, RunRecord], tmp_path: Path) -> None:
    case, snapshot, record = trained
    broken = tmp_path / "model"
    shutil.copytree(record.model_dir, broken)
    with (broken / "model.safetensors").open("rb+") as file:
        file.truncate(1000)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        evaluate(case, snapshot, broken, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_for_other_labels_is_refused(trained: tuple[UseCase, Snapshot, RunRecord], tmp_path: Path) -> None:
    case, snapshot, record = trained
    other = snapshot.model_copy(update={"labels": ("card", "cash", "transfer", "wire")})
    with pytest.raises(ConfigurationError, match=r"different labels: 1 only in the data \(wire\)"):
        evaluate(case, other, record.model_dir, out=tmp_path / "out", samples=SMALL)
