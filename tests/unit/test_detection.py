"""Calibrated detectors: quiet without drift at the promised rate, loud with it, clear about bad input."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError, ValidationFailed
from leitstand.usecase import DriftSpec
from monitors.calibration import pareto_tail
from monitors.detection import DetectorSet, fit_detectors
from monitors.detector_store import load_detectors, save_detectors
from monitors.features import Columns
from tests.windows_for_tests import LABELS, START, packed, window

POLICY = DriftSpec(min_window_rows=100)
MINUTES = DriftSpec(min_window_rows=100, false_alarms_per_month=1, check_every=timedelta(days=1.5))  # 1 in 20


@pytest.fixture(scope="module")
def detectors() -> DetectorSet:
    reference = window(np.random.default_rng(1), 900, feedback=1.0)
    return fit_detectors(reference, POLICY, labels=LABELS, resamples=1000)


def _replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_a_window_like_the_reference_is_quiet_and_its_numbers_are_reported(detectors):
    report = detectors.judge(window(np.random.default_rng(2), 400, feedback=0.5))
    assert not report.drifted and report.insufficient == "" and report.shift == ""
    assert (report.use_case, report.version, report.rows, report.reference_rows) == ("support", 7, 400, 900)
    assert report.window_start == START and report.window_end == START + timedelta(seconds=399)
    assert report.reference_accuracy == pytest.approx(0.97, abs=0.03)
    assert report.estimated_accuracy.interval.low <= report.measured_accuracy.value
    assert report.latency_p99_ms == pytest.approx(66, rel=0.3)
    assert {score.family for score in report.scores} == {"input", "embedding", "prediction", "label", "quality"}
    assert all(score.value < score.threshold and 0 < score.p_value <= 1 for score in report.scores)


@pytest.mark.parametrize(
    ("change", "column", "shift"),
    [
        ({"moved": 0.7}, "embedding", "other"),
        ({"longer": 8.0}, "characters", "none"),
        ({"prior": (0.6, 0.2, 0.1, 0.1)}, "label", "prior"),
    ],
)
def test_drift_is_seen_where_it_is(detectors, change, column, shift):
    report = detectors.judge(window(np.random.default_rng(3), 500, **change))
    assert report.drifted
    assert column in {score.column for score in report.scores if score.drifted}
    assert report.shift == shift
    for score in report.scores:
        if score.drifted and score.detector != "domain_auc":
            assert score.value >= score.threshold * (1 - 1e-9)


def test_scores_grow_with_the_shift(detectors):
    found = []
    for moved in (0.0, 0.3, 0.6, 1.2):
        report = detectors.judge(window(np.random.default_rng(4), 500, moved=moved))
        found.append({s.detector: s.value for s in report.scores if s.column == "embedding"})
    for name in ("mmd", "centroid", "frechet", "domain_auc", "ood_ks"):
        values = [scores[name] for scores in found]
        assert values == sorted(values)


def test_missing_values_and_unseen_columns_values_are_drift_and_no_error(detectors):
    table = window(np.random.default_rng(5), 400)
    holes = pa.array(np.where(np.arange(400) % 5 == 0, np.nan, 30.0), pa.float32())
    found = detectors.judge(_replaced(table, "upper_share", holes))
    assert "upper_share" in {score.column for score in found.scores if score.drifted}
    empty = detectors.judge(_replaced(table, "words", pa.nulls(400, pa.int32())))
    assert "words" in {score.column for score in empty.scores if score.drifted}


def test_one_strange_row_in_a_constant_column_is_no_drift(detectors):
    values = np.zeros(400)
    values[7] = 0.3
    table = _replaced(window(np.random.default_rng(2), 400), "non_ascii_share", pa.array(values, pa.float32()))
    assert not detectors.judge(table).drifted
    values[:60] = 0.3
    table = _replaced(table, "non_ascii_share", pa.array(values, pa.float32()))
    assert detectors.judge(table).drifted


def test_a_column_that_is_sampled_more_sparsely_is_no_drift(detectors):
    table = window(np.random.default_rng(2), 400)
    sparse = pa.array(["en" if i % 50 == 0 else "" for i in range(400)])
    report = detectors.judge(_replaced(table, "language", sparse))
    assert not report.drifted
    assert "language" not in {score.column for score in report.scores}  # too few rows to judge


def test_small_and_empty_windows_are_insufficient(detectors):
    report = detectors.judge(window(np.random.default_rng(6), 99, moved=5.0))
    assert not report.drifted and report.scores == ()
    assert report.insufficient == "99 rows; at least 100 are needed"
    nothing = window(np.random.default_rng(6), 5).slice(0, 0)
    with pytest.raises(ConfigurationError, match="without rows"):
        detectors.judge(nothing)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert detectors.judge(nothing, start=at, end=at).insufficient.startswith("0 rows")


def test_batches_hours_and_one_table_give_the_same_report(detectors):
    table = window(np.random.default_rng(7), 500, moved=0.2)
    whole = detectors.judge(table)
    parts = detectors.judge(iter(table.to_batches(max_chunksize=77)))
    for a, b in zip(whole.scores, parts.scores, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-3, abs=1e-5)
    assert whole.drifted == parts.drifted


def test_a_window_of_another_kind_is_refused(detectors):
    table = window(np.random.default_rng(8), 200)
    with pytest.raises(ValidationFailed, match="words: missing"):
        detectors.judge(table.drop_columns(["words"]))
    with pytest.raises(ValidationFailed, match="words: string"):
        detectors.judge(_replaced(table, "words", pa.array(["a"] * 200)))
    with pytest.raises(ValidationFailed, match="holds vectors of 3"):
        detectors.judge(_replaced(table, "embedding", packed(np.ones((200, 3)))))
    with pytest.raises(ValidationFailed, match="probabilities"):
        detectors.judge(_replaced(table, "probabilities", packed(np.ones((200, 9)))))
    with pytest.raises(ValidationFailed, match="loans"):
        detectors.judge(_replaced(table, "label", pa.array(["loans"] * 200)))


def test_a_reference_of_another_kind_is_refused():
    table = window(np.random.default_rng(9), 400)
    with pytest.raises(ConfigurationError, match="labels that the model does not have"):
        fit_detectors(table, POLICY, labels=("card",))
    with pytest.raises(ValidationFailed, match="at least 300"):
        fit_detectors(table.slice(0, 50), POLICY, labels=LABELS)
    with pytest.raises(ValidationFailed, match="words"):
        fit_detectors(table.drop_columns(["words"]), POLICY, labels=LABELS)
    with pytest.raises(ConfigurationError, match="block_rows"):
        fit_detectors(table, POLICY, labels=LABELS, block_rows=0)


def test_a_reference_without_embeddings_and_with_other_columns_is_enough():
    columns = Columns(
        numeric=("x0", "x1"), categorical=(), sampled=(), embedding=None, probabilities=None, score=None, label=None
    )
    found = fit_detectors(
        window(np.random.default_rng(1), 600, extra=2), POLICY, labels=(), columns=columns, resamples=600
    )
    table = window(np.random.default_rng(2), 300, extra=2)
    report = found.judge(table)
    assert not report.drifted and len(report.scores) == 6
    assert report.estimated_accuracy is None and report.measured_accuracy is None
    assert found.judge(_replaced(table, "x1", pa.array(np.full(300, 2.0), pa.float32()))).drifted


def test_detectors_come_back_from_their_folder_as_they_were(detectors, tmp_path: Path):
    digest = save_detectors(detectors, tmp_path / "detectors")
    assert save_detectors(detectors, tmp_path / "again") == digest
    loaded = load_detectors(tmp_path / "detectors")
    table = window(np.random.default_rng(10), 300, moved=0.3)
    assert loaded.judge(table) == detectors.judge(table)


def test_changed_detectors_are_not_loaded(detectors, tmp_path: Path):
    save_detectors(detectors, tmp_path)
    file = tmp_path / "detectors.json"
    file.write_text(file.read_text().replace('"min_rows": 100', '"min_rows": 1'))
    with pytest.raises(IntegrityError):
        load_detectors(tmp_path)
    (tmp_path / "arrays.npz").write_bytes(b"PK")
    with pytest.raises(IntegrityError):
        load_detectors(tmp_path)
    with pytest.raises(NotFoundError):
        load_detectors(tmp_path / "nowhere")


def test_the_family_alarms_at_the_promised_rate():
    """Over references and windows of a world without drift; the policy allows one alarm in 20 checks."""
    alarms = checks = 0
    columns = Columns(numeric=("score", "characters", "upper_share"), categorical=("label",), sampled=())
    for seed in range(12):
        rng = np.random.default_rng(1000 + seed)
        fitted = fit_detectors(window(rng, 400), MINUTES, labels=LABELS, columns=columns, resamples=600, seed=seed)
        for _ in range(10):
            alarms += fitted.judge(window(rng, 150)).drifted
            checks += 1
    assert stats.binomtest(alarms, checks, 0.05).pvalue > 1e-3


def test_neighbouring_rows_that_are_alike_alarm_less_when_redrawn_in_blocks():
    columns = Columns(
        numeric=("x0",), categorical=(), sampled=(), embedding=None, probabilities=None, score=None, label=None
    )

    def clustered(rng, rows):
        return pa.table({"x0": np.repeat(rng.normal(size=rows // 10), 10) + 0.1 * rng.normal(size=rows)})

    alarms = {}
    for block in (1, 10):
        rng = np.random.default_rng(5)
        fitted = fit_detectors(
            clustered(rng, 3000), MINUTES, labels=(), columns=columns, resamples=600, block_rows=block
        )
        at = datetime(2026, 1, 1, tzinfo=UTC)
        alarms[block] = sum(fitted.judge(clustered(rng, 300), start=at, end=at).drifted for _ in range(40))
    assert alarms[1] > 20
    assert alarms[10] < 10


@pytest.mark.parametrize("draw", ["exponential", "normal", "uniform"])
def test_the_tail_fit_extrapolates(draw):
    rng = np.random.default_rng(3)
    level = 1e-4
    found = np.mean([pareto_tail(getattr(rng, draw)(size=5000), 0.05, np.array([level]))[0] for _ in range(20)])
    exact = {"exponential": stats.expon.isf(level), "normal": stats.norm.isf(level), "uniform": 1 - level}[draw]
    assert found == pytest.approx(exact, rel=0.05)
