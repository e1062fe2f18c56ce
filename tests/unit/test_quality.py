"""Accuracy without labels and with late ones: values, intervals, and what selection can do to them."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from monitors import quality


def _world(rng, rows):
    scores = rng.beta(5, 2, rows)
    return scores, rng.random(rows) < scores


@pytest.fixture
def rng():
    return np.random.default_rng(2)


@pytest.mark.parametrize(("hits", "rows"), [(0, 10), (10, 10), (45, 60)])
def test_the_wilson_interval_is_the_one_of_statsmodels(hits, rows):
    interval = quality.wilson_interval(hits, rows)
    assert (interval.low, interval.high) == pytest.approx(proportion_confint(hits, rows, method="wilson"))


def test_no_rows_give_no_number():
    assert quality.wilson_interval(0, 0).high == 1
    assert quality.estimated_accuracy(np.array([])).value is None
    assert quality.estimated_accuracy_by_threshold(np.array([np.nan]), 0.5).value is None
    nothing = quality.measured_accuracy([], [], np.array([]))
    assert nothing.raw.value is None and nothing.corrected is None and nothing.bounds.high == 1


def test_estimates_from_calibrated_scores_cover_the_accuracy(rng):
    covered = 0
    for _ in range(200):
        scores, correct = _world(rng, 300)
        interval = quality.estimated_accuracy(scores).interval
        covered += interval.low <= correct.mean() <= interval.high
    assert stats.binomtest(covered, 200, 0.95).pvalue > 0.001


def test_an_offset_corrects_scores_that_are_wrong_on_average(rng):
    scores, correct = _world(rng, 4000)
    too_sure = np.minimum(scores + 0.05, 1)
    offset = float(correct.mean() - too_sure.mean())
    estimate = quality.estimated_accuracy(too_sure, offset=offset, offset_variance=1e-4)
    assert estimate.value == pytest.approx(correct.mean())
    assert estimate.interval.high - estimate.interval.low > 2 * 1.9 * 0.01


def test_the_threshold_estimate_follows_a_drop(rng):
    scores, correct = _world(rng, 5000)
    threshold = quality.average_threshold(scores, correct)
    same = quality.estimated_accuracy_by_threshold(scores, threshold)
    lower = quality.estimated_accuracy_by_threshold(scores * 0.8, threshold)
    assert same.value == pytest.approx(correct.mean(), abs=0.001)
    assert lower.value < same.value
    assert quality.average_threshold(scores, np.ones(5000)) == scores.min()


def test_labels_that_depend_on_the_score_are_corrected_and_bounded(rng):
    scores, correct = _world(rng, 20_000)
    labelled = rng.random(20_000) < np.where(scores < 0.6, 0.5, 0.02)  # doubtful answers are looked at
    found = quality.measured_accuracy(correct, labelled, scores, strata=20)
    assert found.raw.value < correct.mean() - 0.1
    assert found.corrected.value == pytest.approx(correct.mean(), abs=0.03)
    assert found.corrected.interval.low <= correct.mean() <= found.corrected.interval.high
    assert found.bounds.low <= correct.mean() <= found.bounds.high


def test_few_labels_are_merged_into_fewer_strata(rng):
    scores, correct = _world(rng, 500)
    labelled = np.zeros(500, bool)
    labelled[:3] = True
    found = quality.measured_accuracy(correct, labelled, scores)
    assert 0 <= found.corrected.value <= 1
    assert found.labelled == 3 and found.rows == 500
