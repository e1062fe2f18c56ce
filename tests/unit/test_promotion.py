"""Promotion refuses what the gates did not let through, and says in the ledger what was forced."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from leitstand.errors import ConfigurationError, InsufficientEvidence, NotFoundError, PromotionRejected
from leitstand.files import digest_bytes
from leitstand.types import GateOutcome, GateReport, GateResult, ModelRef, ModelVersion
from models.promotion import attached_gate_report, previous_holder, promote, roll_back
from tests.fakes import InMemoryRegistry
from tests.models_for_tests import candidate

NOW = datetime(2026, 11, 24, tzinfo=UTC)
WHY = {"actor": "ada", "reason": "better on typos"}


def verdict(version: ModelVersion, outcome: GateOutcome, **changes: object) -> GateReport:
    result = GateResult(
        gate="accuracy", metric="accuracy", outcome=outcome, value=0.9, bound=0.92, bound_kind="floor",
        examples=3080, reason="0.9000 is below the floor 0.9200 by 0.0200",
    )  # fmt: skip
    facts = {"use_case": version.name, "weights_digest": version.weights_digest, "data_digest": version.data_digest}
    return GateReport(decided_at=NOW, outcome=outcome, results=(result,), **facts | changes)


@pytest.fixture
def registry() -> InMemoryRegistry:
    return InMemoryRegistry()


@pytest.fixture
def version(registry: InMemoryRegistry, tmp_path: Path) -> ModelVersion:
    return registry.register(candidate(tmp_path / "model"))


def attach(registry: InMemoryRegistry, version: ModelVersion, report: GateReport, folder: Path) -> bytes:
    path = folder / "gate_report.json"
    path.write_text(report.model_dump_json(indent=1))
    registry.attach(version.ref, {"gate_report.json": path})
    return path.read_bytes()


def test_a_version_without_a_gate_report_is_rejected(registry: InMemoryRegistry, version: ModelVersion):
    with pytest.raises(PromotionRejected, match=r"support:1.*no gate report"):
        promote(registry, version.ref, "champion", **WHY)
    assert registry.moves == []


def test_the_attached_report_is_the_evidence(registry: InMemoryRegistry, version: ModelVersion, tmp_path: Path):
    content = attach(registry, version, verdict(version, GateOutcome.PASS), tmp_path)
    entry = promote(registry, version.ref, "champion", **WHY)
    assert (entry.version, entry.evidence, entry.reason) == (1, digest_bytes(content), "better on typos")


def test_another_verdict_is_attached_beside_the_first(
    registry: InMemoryRegistry, version: ModelVersion, tmp_path: Path
):
    attach(registry, version, verdict(version, GateOutcome.FAIL), tmp_path)
    entry = promote(registry, version.ref, "champion", gate_report=verdict(version, GateOutcome.PASS), **WHY)
    name = f"gate_report-{entry.evidence[7:19]}.json"
    assert registry.get(version.ref).attachments == (name, "gate_report.json")
    assert digest_bytes(registry.attachment(version.ref, name, tmp_path).read_bytes()) == entry.evidence


@pytest.mark.parametrize(
    ("outcome", "error"),
    [(GateOutcome.FAIL, PromotionRejected), (GateOutcome.INSUFFICIENT, InsufficientEvidence)],
)
def test_gates_that_did_not_pass_are_named(registry, version, outcome: GateOutcome, error: type[Exception]):
    with pytest.raises(error, match=r"accuracy: .* by 0\.0200"):
        promote(registry, version.ref, "champion", gate_report=verdict(version, outcome), **WHY)
    assert registry.moves == []


def test_a_report_on_other_weights_is_rejected(registry: InMemoryRegistry, version: ModelVersion):
    other = verdict(version, GateOutcome.PASS, weights_digest=digest_bytes(b"other"))
    with pytest.raises(PromotionRejected, match="judged"):
        promote(registry, version.ref, "champion", gate_report=other, **WHY)


def test_a_forced_move_says_so_in_the_ledger(registry: InMemoryRegistry, version: ModelVersion):
    failed = verdict(version, GateOutcome.FAIL)
    entry = promote(registry, version.ref, "champion", gate_report=failed, force=True, **WHY)
    assert entry.reason.startswith("forced although: 1 of 1 gates failed")
    assert entry.reason.endswith("Reason: better on typos")


def test_a_reason_is_needed_even_by_force(registry: InMemoryRegistry, version: ModelVersion):
    with pytest.raises(ConfigurationError, match="reason"):
        promote(registry, version.ref, "champion", force=True, actor="ada", reason="  ")


def test_rolling_back_twice_goes_back_two_promotions(registry: InMemoryRegistry, tmp_path: Path):
    for weights in (b"1", b"2", b"3"):
        version = registry.register(candidate(tmp_path / weights.decode(), weights=weights))
        registry.set_alias(version.ref, "champion", **WHY)
    for expected in (2, 1):
        entry = roll_back(registry, registry.moves, "support", "champion", actor="ada", reason="errors")
        assert (entry.version, entry.reason) == (expected, "rolled back: errors")
    with pytest.raises(NotFoundError, match="support@champion"):
        roll_back(registry, registry.moves, "support", "champion", actor="ada", reason="errors")


def test_the_holder_before_a_removal_can_be_restored(registry: InMemoryRegistry, version: ModelVersion):
    registry.set_alias(version.ref, "champion", **WHY)
    registry.remove_alias("support", "champion", **WHY)
    assert previous_holder(registry.moves, "support", "champion") == 1


def test_a_version_without_a_report_has_none(registry: InMemoryRegistry, version: ModelVersion):
    assert attached_gate_report(registry, registry.get(ModelRef.parse("support:1"))) is None
