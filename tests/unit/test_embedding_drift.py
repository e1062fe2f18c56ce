"""Distances of embeddings: zero without change, growing with it, and p-values that hold."""

import numpy as np
import pytest
from scipy import stats

from monitors import embedding_drift as ed


def _rows(rng: np.random.Generator, n: int, shift: float = 0.0, d: int = 8) -> np.ndarray:
    return (rng.normal(size=(n, d)) + shift).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_unbiased_mmd_is_what_the_definition_says(rng):
    x, y, width = _rows(rng, 6), _rows(rng, 5, 0.5), 2.0

    def kernel(a, b):
        return np.exp(-(np.linalg.norm(a - b) ** 2) / (2 * width**2))

    xx = np.mean([kernel(x[i], x[j]) for i in range(6) for j in range(6) if i != j])
    yy = np.mean([kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    xy = np.mean([kernel(a, b) for a in x for b in y])
    assert ed.mmd_squared(x, y, width) == pytest.approx(xx + yy - 2 * xy, abs=1e-6)


def test_the_permutation_test_sees_a_shift_and_keeps_its_level(rng):
    width = ed.median_bandwidth(_rows(rng, 200))
    assert ed.mmd_permutation_test(_rows(rng, 60), _rows(rng, 60, 1.0), width).p_value == pytest.approx(1 / 201)
    p = [ed.mmd_permutation_test(_rows(rng, 20), _rows(rng, 15), width, permutations=39).p_value for _ in range(200)]
    assert stats.binomtest(sum(value <= 0.2 for value in p), 200, 0.2).pvalue > 0.001


def test_linear_and_random_feature_mmd_agree_with_the_quadratic_one(rng):
    x, y = _rows(rng, 3000), _rows(rng, 3000, 0.5)
    width = ed.median_bandwidth(x)
    exact = ed.mmd_squared(x[:1000], y[:1000], width)
    features = ed.RandomFeatures.draw(8, width, features=2000)
    mean_x, mean_y = (features.transform(rows).mean(axis=0) for rows in (x, y))
    assert float(features.mmd_squared(mean_x, mean_y)) == pytest.approx(exact, rel=0.25)
    linear = ed.mmd_linear_test(x, y, width)
    assert linear.statistic == pytest.approx(exact, rel=0.5)
    assert linear.p_value < 0.001


def test_the_domain_classifier_keeps_its_level_and_sees_a_shift(rng):
    p = [ed.domain_classifier(_rows(rng, 40), _rows(rng, 60), seed=i).p_value for i in range(200)]
    assert stats.binomtest(sum(value <= 0.2 for value in p), 200, 0.2).pvalue > 0.001
    found = ed.domain_classifier(_rows(rng, 300), _rows(rng, 200, 0.7))
    assert found.statistic > 0.8 and found.p_value < 1e-6


def test_frechet_and_centroid_distance_of_known_gaussians(rng):
    x, y = rng.normal(size=(20_000, 3)), rng.normal(size=(20_000, 3)) * 2 + 1
    assert ed.frechet_distance(x, y) == pytest.approx(3 * (1 + 1), rel=0.05)
    assert ed.centroid_distance(x, y) == pytest.approx(np.sqrt(3), rel=0.05)
    assert ed.frechet_distance(x, x) == pytest.approx(0, abs=1e-8)
    assert ed.centroid_distance(x, x) == 0


def test_distances_do_not_depend_on_the_order_of_rows(rng):
    x, y = _rows(rng, 50), _rows(rng, 40, 0.3)
    again = y[rng.permutation(40)]
    for measure in (ed.frechet_distance, ed.centroid_distance, lambda a, b: ed.mmd_squared(a, b, 2.0)):
        assert measure(x, y) == pytest.approx(measure(x, again), rel=1e-4)


def test_rows_outside_the_reference_are_far(rng):
    low = rng.normal(size=(2000, 4)) @ rng.normal(size=(4, 16))
    reference = (low + 0.05 * rng.normal(size=low.shape)).astype(np.float32)
    whitening = ed.Whitening.fit(reference[:1000], 4)
    assert whitening.transform(reference[:1000]).std(axis=0) == pytest.approx(np.ones(4), rel=1e-3)
    held_out, strange = reference[1000:], rng.normal(size=(300, 16)).astype(np.float32) * 3
    near, far = whitening.distance(held_out), whitening.distance(strange)
    assert ed.share_above(near, near) == pytest.approx(0.05, abs=0.005)
    assert ed.share_above(near, far) > 0.9
    nearest = ed.knn_distance(strange, reference[:1000]).mean()
    assert nearest > ed.knn_distance(held_out, reference[:1000]).mean() * 2


def test_equal_constant_and_tiny_inputs_are_answered(rng):
    same = np.ones((10, 4), np.float32)
    assert ed.median_bandwidth(same) == 1.0
    assert ed.mmd_squared(same, same, 1.0) == pytest.approx(0, abs=1e-12)
    assert ed.mmd_squared(same[:1], same, 1.0) == 0
    assert ed.mmd_linear_test(same, same, 1.0).p_value == 1
    assert ed.domain_classifier(same[:3], same).p_value == 1
    assert ed.domain_classifier(same, same).p_value == pytest.approx(1, abs=0.6)
    whitening = ed.Whitening.fit(same, 3)
    assert np.isfinite(whitening.distance(_rows(rng, 5, d=4))).all()
    assert ed.share_above([1.0], []) == 0
