"""A champion that lacks labels is wrong on their rows; that neither hides forgetting nor blocks a good candidate."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leitstand import usecase
from leitstand.files import digest_bytes
from leitstand.types import EvaluationReport, GateOutcome, GateResult, Metric
from models import metrics
from models.gates import decide
from models.measurement import Samples, measure
from tests.fakes import KeywordClassifier

NOW = datetime(2026, 11, 24, tzinfo=UTC)
KNOWN, NEW = 1000, 100
NAMES = ("card", "cash", "wire")


def report(folder: Path, right: np.ndarray, *, weights: str, knows_new: bool, extra: tuple[Metric, ...] = ()):
    """1,000 rows of two old labels, then 100 of the new one; right where `right` is 1."""
    folder.mkdir(parents=True)
    labels = np.concatenate([np.arange(KNOWN) % 2, np.full(NEW, 2)])
    predicted = np.where(right == 1, labels, (labels + 1) % 2)
    rows = {
        "row": np.arange(KNOWN + NEW), "label": [NAMES[i] for i in labels], "predicted": [NAMES[i] for i in predicted],
        "score": np.full(KNOWN + NEW, 0.9, np.float32), "abstain": np.zeros(KNOWN + NEW, bool),
    }  # fmt: skip
    units = {
        "metric": ["accuracy"] * len(right), "slice": [""] * len(right), "unit": np.arange(len(right)),
        "value": right.astype(np.float64), "known": np.full(len(right), True) if knows_new else labels != 2,
    }  # fmt: skip
    pq.write_table(pa.table(rows), folder / "p.parquet")
    pq.write_table(pa.table(units), folder / "u.parquet")
    accuracy = Metric(name="accuracy", value=float(right.mean()), examples=len(right),
        interval=metrics.clustered_rate(right)[1])  # fmt: skip
    f1 = Metric(name="macro_f1", value=metrics.f1(labels, predicted, 3), examples=len(right))
    return EvaluationReport(
        use_case="support", weights_digest=digest_bytes(weights.encode()), data_digest=digest_bytes(b"d"), split="test",
        evaluated_at=NOW, engine="fake", metrics=(accuracy, f1, *extra), predictions=folder / "p.parquet",
        units=folder / "u.parquet", spec_digest="same", unknown_labels=() if knows_new else ("wire",),
    )  # fmt: skip


def right(known_wrong: int, new_wrong: int, first: int = 0) -> np.ndarray:
    found = np.ones(KNOWN + NEW)
    found[first : first + known_wrong] = 0
    found[KNOWN : KNOWN + new_wrong] = 0
    return found


def judged(project: Path, tmp_path: Path, candidate: np.ndarray, *gates: dict[str, object], extra=()):
    support = usecase.load(project / "usecases" / "support" / "usecase.yaml")
    case = support.model_copy(update={"gates": tuple(usecase.GateSpec.model_validate(gate) for gate in gates)})
    champion = report(tmp_path / "champion", right(50, NEW), weights="a", knows_new=False)
    mine = report(tmp_path / "candidate", candidate, weights="b", knows_new=True, extra=extra)
    return decide(case, mine, champion=champion, champion_ref="support:1", now=NOW)


def only(verdict) -> GateResult:
    (result,) = verdict.results
    return result


MCNEMAR = {"metric": "accuracy", "floor": 0.5, "champion": {"test": "mcnemar", "margin": 0.01}}
F1 = {"metric": "macro_f1", "floor": 0.5, "champion": {"test": "bootstrap", "margin": 0.02}}


@pytest.mark.parametrize("gate", [MCNEMAR, F1], ids=["accuracy", "macro_f1"])
def test_a_candidate_that_learned_the_new_label_and_forgot_little_passes(
    project: Path, tmp_path: Path, gate: dict[str, object]
) -> None:
    result = only(judged(project, tmp_path, right(56, 10), gate))
    assert result.outcome is GateOutcome.PASS, result.reason
    assert "100 of 1,100 rows have labels that the champion lacks" in result.reason
    assert "on the other rows" in result.reason


@pytest.mark.parametrize("gate", [MCNEMAR, F1], ids=["accuracy", "macro_f1"])
def test_a_candidate_that_gained_on_new_rows_and_forgot_old_ones_fails(
    project: Path, tmp_path: Path, gate: dict[str, object]
) -> None:
    candidate = right(120, 0, first=0)
    assert candidate.sum() > right(50, NEW).sum()  # better on all rows together
    result = only(judged(project, tmp_path, candidate, gate))
    assert result.outcome is GateOutcome.FAIL
    assert "on the 1,000 rows whose labels it knows, proven" in result.reason


@pytest.mark.parametrize(
    ("value", "examples", "outcome"),
    [(0.8, 50, GateOutcome.PASS), (0.3, 50, GateOutcome.FAIL), (0.8, 3, GateOutcome.INSUFFICIENT),
     (None, 0, GateOutcome.INSUFFICIENT)],
)  # fmt: skip
def test_new_labels_must_reach_their_floor_on_held_out_rows(
    project: Path, tmp_path: Path, value: float | None, examples: int, outcome: GateOutcome
) -> None:
    held_out = Metric(name="accuracy", value=value, examples=examples, slice="labels:new")
    verdict = judged(project, tmp_path, right(50, 10), MCNEMAR, extra=(held_out,))
    assert [result.slice for result in verdict.results] == [None, "labels:new"]
    assert verdict.results[1].outcome is outcome


def test_a_classifier_without_a_label_is_wrong_on_its_rows_and_the_golden_units_come_after_the_rows(
    project: Path,
) -> None:
    case = usecase.load(project / "usecases" / "support" / "usecase.yaml")
    spec = case.evaluation.model_copy(update={"label_groups": {}, "counterfactuals": None})
    texts = ["a card", "some cash", "a wire", "the card"]
    golden = (["my card", "one wire"], np.array([0, 2]))
    book, answers = measure(
        case.model_copy(update={"evaluation": spec}), texts, np.array([0, 1, 2, 0]), NAMES,
        KeywordClassifier({"card": "card", "cash": "cash"}), np.array([0, 1, -1]), Samples(latency_calls=2),
        golden=golden, new_labels=("wire",),
    )  # fmt: skip
    assert (answers.predicted == [0, 1, 2, 0]).tolist()[:2] == [True, True]
    assert answers.probabilities[:, 2].tolist() == [0, 0, 0, 0]
    assert book.unknown == {2, 5}
    found = {(m.name, m.slice): m.value for m in book.metrics}
    assert (found["accuracy", None], found["accuracy", "golden"], found["accuracy", "labels:new"]) == (0.75, 0.5, 0.0)
