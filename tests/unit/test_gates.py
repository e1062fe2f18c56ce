"""Each gate passes, fails or lacks evidence, and says why with its numbers."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leitstand import usecase
from leitstand.errors import (
    ConfigurationError,
    InsufficientEvidence,
    IntegrityError,
    NotFoundError,
    PromotionRejected,
)
from leitstand.files import digest_bytes
from leitstand.types import EvaluationReport, GateOutcome, GateReport, Interval, Metric
from models import metrics
from models.gates import check_gates, decide, require_pass

NOW = datetime(2026, 11, 24, tzinfo=UTC)
PASS, FAIL, OPEN = GateOutcome.PASS, GateOutcome.FAIL, GateOutcome.INSUFFICIENT


def gated(project: Path, *gates: dict[str, object]) -> usecase.UseCase:
    support = usecase.load(project / "usecases" / "support" / "usecase.yaml")
    return support.model_copy(update={"gates": tuple(usecase.GateSpec.model_validate(gate) for gate in gates)})


def report(
    folder: Path,
    right: np.ndarray,
    *extra: Metric,
    weights: str = "a",
    data: str = "d",
    flips: np.ndarray | None = None,
) -> EvaluationReport:
    """A report of a model with two labels that is right where `right` is 1."""
    folder.mkdir(parents=True, exist_ok=True)
    n, labels = len(right), np.arange(len(right)) % 2
    predicted = np.where(right == 1, labels, 1 - labels)
    rows = {"row": np.arange(n), "label": labels, "predicted": predicted, "score": np.full(n, 0.9, np.float32)}
    rows = {k: [str(x) for x in v] if k in ("label", "predicted") else v for k, v in rows.items()}
    pq.write_table(pa.table({**rows, "abstain": np.zeros(n, dtype=bool)}), folder / "p.parquet")
    parts = [("accuracy", "", right)] + ([("counterfactual_flip_rate", "", flips)] if flips is not None else [])
    units = {
        "metric": np.concatenate([np.repeat(name, len(v)) for name, _, v in parts]),
        "slice": np.concatenate([np.repeat(at, len(v)) for _, at, v in parts]),
        "unit": np.concatenate([np.arange(len(v)) for _, _, v in parts]),
        "value": np.concatenate([np.asarray(v, dtype=np.float64) for _, _, v in parts]),
    }
    pq.write_table(pa.table(units), folder / "u.parquet")
    shares = [("accuracy", right)] + ([("counterfactual_flip_rate", flips)] if flips is not None else [])
    measured = [
        Metric(name=name, value=float(v.mean()), examples=len(v), interval=metrics.clustered_rate(v)[1])
        for name, v in shares
    ]
    f1 = metrics.f1(labels, predicted, 2)
    measured.append(Metric(name="macro_f1", value=f1, examples=n, interval=Interval(low=f1 - 0.01, high=f1 + 0.01)))
    return EvaluationReport(
        use_case="support", weights_digest=digest_bytes(weights.encode()), data_digest=digest_bytes(data.encode()),
        split="test", evaluated_at=NOW, engine="fake", metrics=(*measured, *extra),
        predictions=folder / "p.parquet", units=folder / "u.parquet", spec_digest="same",
    )  # fmt: skip


def outcomes(*rights: tuple[int, int]) -> np.ndarray:
    """0/1 per row from (value, count) pairs."""
    return np.concatenate([np.full(count, value) for value, count in rights])


def only(found: GateReport) -> tuple[GateOutcome, str]:
    (result,) = found.results
    return result.outcome, result.reason


# --- against the bound ---------------------------------------------------------------------------


def test_a_value_on_the_floor_passes(project: Path, tmp_path: Path) -> None:
    case = gated(project, {"metric": "accuracy", "floor": 0.92})
    found = decide(case, report(tmp_path, outcomes((1, 920), (0, 80))), now=NOW)
    assert only(found) == (PASS, "0.9200 is within the floor 0.9200, 0.0000 to spare")
    require_pass(found)


def test_a_value_below_the_floor_fails_and_says_by_how_much(project: Path, tmp_path: Path) -> None:
    case = gated(project, {"metric": "accuracy", "floor": 0.92}, {"metric": "macro_f1", "floor": 0.5})
    found = decide(case, report(tmp_path, outcomes((1, 912), (0, 88))), now=NOW)
    assert found.outcome is FAIL
    assert found.results[0].missed_by == pytest.approx(0.008)
    assert found.results[1].outcome is PASS
    with pytest.raises(PromotionRejected, match=r"accuracy: 0\.9120 is below the floor 0\.9200 by 0\.0080") as caught:
        require_pass(found)
    assert "1 of 2 gates failed for 'support'" in str(caught.value)
    assert caught.value.exit_code == 3


def test_too_few_rows_are_no_evidence(project: Path, tmp_path: Path) -> None:
    few = Metric(name="accuracy", slice="length:long", value=0.9, examples=20, interval=metrics.wilson(18, 20))
    case = gated(project, {"metric": "accuracy", "slice": "length:long", "floor": 0.85, "min_examples": 50})
    found = decide(case, report(tmp_path, outcomes((1, 100)), few), now=NOW)
    assert only(found) == (OPEN, "0.9000 rests on 20 rows; 50 are needed")
    assert found.results[0].rows_needed == 50
    with pytest.raises(InsufficientEvidence, match=r"accuracy\[length:long\]: 0\.9000 rests on 20 rows") as caught:
        require_pass(found)
    assert caught.value.exit_code == 4


def test_a_slice_that_is_certainly_bad_fails_even_on_few_rows(project: Path, tmp_path: Path) -> None:
    few = Metric(name="accuracy", slice="length:long", value=0.1, examples=20, interval=metrics.wilson(2, 20))
    case = gated(project, {"metric": "accuracy", "slice": "length:long", "floor": 0.85, "min_examples": 50})
    assert decide(case, report(tmp_path, outcomes((1, 100)), few), now=NOW).outcome is FAIL


def test_a_slice_without_rows_or_a_metric_not_measured_is_no_evidence(project: Path, tmp_path: Path) -> None:
    empty = Metric(name="accuracy", slice="typos", value=None, examples=0)
    case = gated(
        project, {"metric": "accuracy", "slice": "typos", "floor": 0.8}, {"metric": "latency_p99_ms", "ceiling": 50}
    )
    found = decide(case, report(tmp_path, outcomes((1, 100)), empty), now=NOW)
    assert [r.outcome for r in found.results] == [OPEN, OPEN]
    assert found.results[0].reason == "no row to measure it on; 50 are needed"


def test_a_fact_needs_no_rows(project: Path, tmp_path: Path) -> None:
    case = gated(project, {"metric": "size_mb", "ceiling": 120})
    size = Metric(name="size_mb", value=151.25, examples=1)
    found = decide(case, report(tmp_path, outcomes((1, 10)), size), now=NOW)
    assert only(found) == (FAIL, "151.2 is above the ceiling 120.0 by 31.2")


def test_deciding_by_interval_asks_for_proof(project: Path, tmp_path: Path) -> None:
    gate = {"metric": "counterfactual_flip_rate", "ceiling": 0.05, "decide_by": "interval"}
    case = gated(project, gate)
    right = outcomes((1, 100))
    clear = report(tmp_path / "a", right, flips=outcomes((1, 1), (0, 299)).astype(float))
    unclear = report(tmp_path / "b", right, flips=outcomes((1, 12), (0, 288)).astype(float))
    bad = report(tmp_path / "c", right, flips=outcomes((1, 60), (0, 240)).astype(float))
    assert only(decide(case, clear, now=NOW))[0] is PASS
    outcome, reason = only(decide(case, unclear, now=NOW))
    assert outcome is OPEN
    assert "0.0400 may lie on either side of 0.0500" in reason
    assert "rows would decide" in reason
    assert only(decide(case, bad, now=NOW))[0] is FAIL


# --- against the champion ------------------------------------------------------------------------

CHAMPION = {"test": "mcnemar", "margin": 0.01}


def against(project: Path, tmp_path: Path, mine: np.ndarray, theirs: np.ndarray, **gate: object) -> GateReport:
    case = gated(project, {"metric": "accuracy", "floor": 0.5, "champion": CHAMPION} | gate)
    candidate = report(tmp_path / "candidate", mine)
    champion = report(tmp_path / "champion", theirs, weights="b")
    return decide(case, candidate, champion=champion, champion_ref="support:3", now=NOW)


def test_a_candidate_as_good_as_the_champion_passes(project: Path, tmp_path: Path) -> None:
    mine = outcomes((1, 2800), (0, 40), (1, 40), (0, 200))
    theirs = outcomes((1, 2800), (1, 40), (0, 40), (0, 200))
    found = against(project, tmp_path, mine, theirs)
    result = found.results[0]
    assert found.champion == "support:3"
    assert result.outcome is PASS
    assert result.champion_test == "Tango score"
    assert result.champion_value == pytest.approx(theirs.mean())
    assert result.p_value is not None
    assert result.p_value < 0.05


def test_a_clearly_worse_candidate_fails_although_it_reaches_the_floor(project: Path, tmp_path: Path) -> None:
    mine, theirs = outcomes((1, 2700), (0, 380)), outcomes((1, 2860), (0, 220))
    found = against(project, tmp_path, mine, theirs)
    outcome, reason = only(found)
    assert outcome is FAIL
    assert reason.startswith("0.0519 worse than the champion (margin 0.0100, Tango score, p of inferiority=")
    assert "within the floor" in reason
    with pytest.raises(PromotionRejected, match=r"0\.0519 worse than the champion"):
        require_pass(found)


def test_a_small_test_set_cannot_decide_and_says_how_many_rows_would(project: Path, tmp_path: Path) -> None:
    mine = outcomes((1, 180), (0, 6), (1, 5), (0, 9))
    theirs = outcomes((1, 180), (1, 6), (0, 5), (0, 9))
    found = against(project, tmp_path, mine, theirs)
    result = found.results[0]
    assert result.outcome is OPEN
    assert result.rows_needed is not None
    assert result.rows_needed > 200
    assert f"about {result.rows_needed:,} rows would decide" in result.reason
    with pytest.raises(InsufficientEvidence, match="not proven"):
        require_pass(found)


def test_macro_f1_is_compared_by_the_bootstrap(project: Path, tmp_path: Path) -> None:
    rule = {"test": "bootstrap", "margin": 0.01}
    theirs = outcomes((1, 920), (0, 80))
    equal = against(project, tmp_path / "x", np.roll(theirs, 2), theirs, metric="macro_f1", champion=rule)
    worse = against(project, tmp_path / "y", outcomes((1, 860), (0, 140)), theirs, metric="macro_f1", champion=rule)
    assert equal.results[0].champion_test == "paired bootstrap"
    assert equal.outcome is PASS
    assert worse.outcome is FAIL


def test_more_flips_than_the_champion_fail_a_ceiling(project: Path, tmp_path: Path) -> None:
    rule = {"metric": "counterfactual_flip_rate", "ceiling": 0.9, "champion": {"test": "bootstrap", "margin": 0.02}}
    case, right = gated(project, rule), outcomes((1, 100))
    rng = np.random.default_rng(2)
    calm, nervous = rng.random(300) * 0.05, rng.random(300) * 0.4
    few, many = (
        report(tmp_path / "few", right, flips=calm),
        report(tmp_path / "many", right, flips=nervous, weights="b"),
    )
    assert decide(case, few, champion=many, now=NOW).outcome is PASS
    assert decide(case, many, champion=few, now=NOW).outcome is FAIL


def test_the_champion_itself_passes_without_a_test(project: Path, tmp_path: Path) -> None:
    case = gated(project, {"metric": "accuracy", "floor": 0.5, "champion": {"test": "mcnemar", "margin": 0.0}})
    same = report(tmp_path, outcomes((1, 90), (0, 10)))
    found = decide(case, same, champion=same, champion_ref="support:3", now=NOW)
    assert only(found) == (
        PASS, "0.9000 is within the floor 0.5000, 0.4000 to spare; the champion has the same weights"
    )  # fmt: skip


def test_the_first_model_is_judged_by_its_bounds_alone(project: Path, tmp_path: Path) -> None:
    case = gated(project, {"metric": "accuracy", "floor": 0.5, "champion": CHAMPION})
    found = decide(case, report(tmp_path, outcomes((1, 90), (0, 10))), now=NOW)
    assert found.outcome is PASS
    assert found.champion is None
    assert "there is no champion" in found.results[0].reason


@pytest.mark.parametrize("change", [{"data_digest": digest_bytes(b"other")}, {"spec_digest": "other"}, {"split": "x"}])
def test_reports_on_other_data_are_not_compared(project: Path, tmp_path: Path, change: dict[str, str]) -> None:
    case = gated(project, {"metric": "accuracy", "floor": 0.5, "champion": CHAMPION})
    mine = report(tmp_path, outcomes((1, 90), (0, 10)))
    champion = mine.model_copy(update={"weights_digest": digest_bytes(b"b")} | change)
    with pytest.raises(ConfigurationError, match="evaluate the champion again"):
        decide(case, mine, champion=champion, champion_ref="support:3", now=NOW)


# --- gates that cannot be decided ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (
            {"metric": "acuracy", "floor": 0.9},
            r"gates\.0 \(acuracy\): unknown metric 'acuracy'; did you mean 'accuracy'",
        ),
        (
            {"metric": "accuracy", "slice": "typo", "floor": 0.9},
            "unknown slice 'typo' of accuracy; did you mean 'typos'",
        ),
        ({"metric": "accuracy", "slice": "group:gone", "floor": 0.9}, "there are: .*group:card"),
        ({"metric": "macro_f1", "slice": "typos", "floor": 0.9}, "'macro_f1' has no slices; remove `slice: typos`"),
        (
            {"metric": "counterfactual_accuracy", "floor": 0.9},
            "measured on slices only; add `slice:` with one of: women",
        ),
        ({"metric": "accuracy", "floor": 92}, "a share lies between 0 and 1"),
        ({"metric": "accuracy", "ceiling": 0.9}, "more is better here; use `floor`"),
        ({"metric": "ece", "floor": 0.1}, "less is better here; use `ceiling`"),
        ({"metric": "latency_p99_ms", "ceiling": 9, "champion": {}}, "cannot be compared with the champion row by row"),
        ({"metric": "macro_f1", "floor": 0.9, "champion": {"test": "mcnemar"}}, "McNemar's test needs a yes or no"),
    ],
)
def test_a_gate_that_can_never_be_decided_is_named(project: Path, gate: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_gates(gated(project, gate))


def test_all_wrong_gates_are_reported_at_once(project: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_gates(gated(project, {"metric": "a", "floor": 0.9}, {"metric": "ece", "floor": 0.9}))
    assert "gates.0" in str(caught.value)
    assert "gates.1" in str(caught.value)


def test_the_gates_of_every_use_case_in_the_project_can_be_decided(project: Path) -> None:
    for name in usecase.names(project / "usecases"):
        check_gates(usecase.load(usecase.find(name, project / "usecases")))


def test_missing_or_damaged_answers_are_named(project: Path, tmp_path: Path) -> None:
    case = gated(project, {"metric": "accuracy", "floor": 0.5})
    found = report(tmp_path, outcomes((1, 90), (0, 10)))
    found.predictions.write_bytes(b"PAR1 not really")
    with pytest.raises(IntegrityError, match=r"p\.parquet"):
        decide(case, found, now=NOW)
    found.predictions.unlink()
    with pytest.raises(NotFoundError, match=r"p\.parquet"):
        decide(case, found, now=NOW)


def test_a_report_of_another_use_case_is_refused(project: Path, tmp_path: Path) -> None:
    case = gated(project, {"metric": "accuracy", "floor": 0.5})
    other = report(tmp_path, outcomes((1, 90))).model_copy(update={"use_case": "finance"})
    with pytest.raises(ConfigurationError, match="of use case 'finance'"):
        decide(case, other, now=NOW)
