"""The report page shows the verdict with its numbers, stands alone, and escapes what it is given."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from leitstand import usecase
from leitstand.files import digest_bytes
from leitstand.types import EvaluationReport, GateReport
from models import metrics
from models.evaluation import method_digest, write_report
from models.gate_report import write_gate_report
from models.gates import decide
from models.measurement import Samples, measure
from tests.fakes import KeywordClassifier
from tests.unit.test_gates import report as stub_report

NOW = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
KEYWORDS = {"card<b>": "card", "cash": "cash"}


@pytest.fixture
def evaluated(project: Path, tmp_path: Path) -> tuple[usecase.UseCase, EvaluationReport, GateReport]:
    case = usecase.load(project / "usecases" / "support" / "usecase.yaml")
    gates = [{"metric": "accuracy", "floor": 0.9}, {"metric": "accuracy", "slice": "typos", "floor": 0.99}]
    case = case.model_copy(update={"gates": tuple(usecase.GateSpec.model_validate(gate) for gate in gates)})
    texts = [f"where is my {word}" for _ in range(60) for word in ("card", "cash")]
    labels, samples = np.tile([0, 1], 60), Samples(pii=20, robustness=20, counterfactual_texts=5, latency_calls=10)
    fake = KeywordClassifier(KEYWORDS, wrong_for={"Ayse": "cash"})
    book, answers = measure(case, texts, labels, tuple(KEYWORDS), fake, np.arange(2), samples)
    confusion = tmp_path / "confusion.csv"
    confusion.write_text("label,predicted,count\ncard<b>,cash,7\ncash,cash,60\n")
    stub = stub_report(tmp_path / "answers", np.ones(120), weights="a")
    report = stub.model_copy(
        update={
            "metrics": tuple(book.metrics),
            "confusion": confusion,
            "samples": book.samples,
            "reliability": metrics.reliability(answers.scores, answers.predicted == labels),
        }
    )
    return case, report, decide(case, report, now=NOW)


def test_the_page_shows_verdict_gates_bias_and_confusions(
    evaluated: tuple[usecase.UseCase, EvaluationReport, GateReport], tmp_path: Path
) -> None:
    case, report, decision = evaluated
    files = write_gate_report(decision, report, case, tmp_path / "page")
    page = files["gate_report.html"].read_text(encoding="utf-8")
    assert 'class="badge verdict fail">fail<' in page
    assert decision.results[1].reason in page
    assert "women/turkish" in page
    assert "Counterfactual bias" in page
    assert "2026-11-24 09:30 UTC" in page
    assert "card&lt;b&gt;" in page
    assert "card<b>" not in page


def test_the_page_needs_nothing_from_outside(
    evaluated: tuple[usecase.UseCase, EvaluationReport, GateReport], tmp_path: Path
) -> None:
    case, report, decision = evaluated
    page = write_gate_report(decision, report, case, tmp_path)["gate_report.html"].read_text(encoding="utf-8")
    assert not [word for word in ("http://", "https://", "<script", "src=", "@import") if word in page]


def test_the_record_reads_back_as_it_was(
    evaluated: tuple[usecase.UseCase, EvaluationReport, GateReport], tmp_path: Path
) -> None:
    case, report, decision = evaluated
    record = write_gate_report(decision, report, case, tmp_path)["gate_report.json"]
    assert GateReport.model_validate_json(record.read_bytes()) == decision
    assert json.loads(record.read_text())["outcome"] == "fail"


def test_an_evaluation_without_extras_still_gives_a_page(project: Path, tmp_path: Path) -> None:
    """Older reports hold no reliability bins, units or confusion."""
    case = usecase.load(project / "usecases" / "support" / "usecase.yaml")
    case = case.model_copy(update={"gates": (usecase.GateSpec(metric="accuracy", floor=0.9),)})
    old = stub_report(tmp_path / "old", np.ones(100)).model_copy(update={"units": None, "spec_digest": ""})
    page = write_gate_report(decide(case, old, now=NOW), old, case, tmp_path)["gate_report.html"].read_text()
    assert 'class="badge verdict pass">pass<' in page


def test_an_evaluation_reads_back_as_it_was(tmp_path: Path) -> None:
    report = stub_report(tmp_path / "x", np.ones(10))
    assert EvaluationReport.model_validate_json(write_report(report, tmp_path).read_bytes()) == report
    assert report.weights_digest == digest_bytes(b"a")


def test_the_method_digest_changes_with_what_is_asked_and_with_nothing_else(project: Path) -> None:
    case = usecase.load(project / "usecases" / "support" / "usecase.yaml")
    other = case.evaluation.model_copy(update={"typo_rate": 0.5})
    assert method_digest(case) == method_digest(case.model_copy(update={"title": "x", "gates": ()}))
    assert method_digest(case) != method_digest(case.model_copy(update={"evaluation": other}))
    assert method_digest(case) != method_digest(case, Samples(pii=10))
