"""Metrics agree with hand-worked examples and with the libraries that define them."""

import numpy as np
import pytest
from sklearn.metrics import f1_score
from statsmodels.stats.proportion import proportion_confint

from models import metrics


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 7, size=400)
    return labels, np.where(rng.random(400) < 0.8, labels, rng.integers(0, 9, size=400))


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_f1_is_that_of_scikit_learn(answers: tuple[np.ndarray, np.ndarray], average: str) -> None:
    labels, predicted = answers
    assert metrics.f1(labels, predicted, 9, average) == pytest.approx(
        f1_score(labels, predicted, average=average), abs=1e-6
    )


def test_resampled_f1_is_that_of_the_repeated_rows(answers: tuple[np.ndarray, np.ndarray]) -> None:
    labels, predicted = answers
    weights = metrics.bootstrap_weights(len(labels), 3, seed=1)
    drawn = metrics.weighted_f1_scores(labels, predicted, 9, weights, "macro")
    for row, score in zip(weights.astype(int), drawn, strict=True):
        expected = f1_score(np.repeat(labels, row), np.repeat(predicted, row), average="macro")
        assert score == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (7, 20), (20, 20), (2864, 3080)])
def test_wilson_is_that_of_statsmodels(hits: int, n: int) -> None:
    found = metrics.wilson(hits, n)
    assert (found.low, found.high) == pytest.approx(proportion_confint(hits, n, method="wilson"), abs=1e-9)


def test_calibration_error_of_a_worked_example() -> None:
    scores = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5])
    right = np.array([1, 1, 1, 0, 1, 0])
    # (4/6) * |0.9 - 0.75| + (2/6) * |0.5 - 0.5|
    assert metrics.ece(scores, right) == pytest.approx(0.1)


def test_reliability_bins_hold_every_row_once() -> None:
    scores = np.array([0.0, 1 / 15, 0.5, 0.999, 1.0])
    bins = metrics.reliability(scores, np.ones(5))
    assert len(bins) == 15
    assert sum(b.count for b in bins) == 5
    assert bins[-1].count == 2
    assert next(b for b in bins if b.count == 0).accuracy is None


def test_brier_and_log_loss_of_a_worked_example() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])
    labels = np.array([0, 2])
    assert metrics.brier(probabilities, labels) == pytest.approx([0.09 + 0.04 + 0.01, 0.0])
    assert metrics.nll(probabilities, labels) == pytest.approx([-np.log(0.7), 0.0])


def test_no_event_in_any_cluster_still_leaves_an_interval() -> None:
    rate, interval = metrics.clustered_rate(np.zeros(200))
    assert rate == 0
    assert interval.low == 0
    assert 0.01 < interval.high < 0.03


def test_interval_over_clusters_covers_the_true_rate() -> None:
    """Clusters that flip all together are the hardest case; those that flip evenly are covered too."""
    rng = np.random.default_rng(4)
    for concentration in (0.05, 20.0):
        draws = rng.beta(0.06 * concentration, 0.94 * concentration, size=(500, 300))
        found = [metrics.clustered_rate(values)[1] for values in draws]
        assert np.mean([i.low <= 0.06 <= i.high for i in found]) >= 0.93


def test_interval_of_the_calibration_error_is_not_shifted_by_resampling() -> None:
    rng = np.random.default_rng(5)
    scores = rng.uniform(0.3, 1.0, size=2000)
    right = (rng.random(2000) < scores).astype(float)
    value = metrics.ece(scores, right)
    interval = metrics.percentile_interval(
        lambda weights: metrics.weighted_ece(scores, right, weights), value, 2000, 300, 1, reflected=True
    )
    assert interval is not None
    assert interval.low < value <= interval.high
    assert interval.low < 0.01, "the scores are calibrated, so zero must be near"


def test_a_tail_quantile_of_few_calls_has_no_interval() -> None:
    assert metrics.quantile_interval(np.arange(50.0), 0.99) is None
    found = metrics.quantile_interval(np.arange(1000.0), 0.99)
    assert found is not None
    assert found.low < 990 < found.high


def test_a_perfect_score_has_no_bootstrap_interval() -> None:
    labels = np.arange(40) % 4
    found = metrics.percentile_interval(
        lambda weights: metrics.weighted_f1_scores(labels, labels, 4, weights, "macro"), 1.0, 40, 100, 1
    )
    assert found is None
