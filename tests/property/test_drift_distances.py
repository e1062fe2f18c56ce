"""Distances on counts and samples: what must hold for any data, and agreement with scipy where it has the same."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.spatial import distance

from leitstand.errors import ConfigurationError
from monitors import drift
from monitors.drift import Bins, Categories

quick = settings(max_examples=60, deadline=None)
counts = arrays(np.int64, 7, elements=st.integers(0, 500))
numbers = arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6, allow_subnormal=False))
DISTANCES = (drift.psi, drift.kl_divergence, drift.jensen_shannon, drift.ks_binned)


@quick
@given(counts, counts)
def test_distances_are_never_negative_and_zero_between_equal_counts(p, q):
    for measure in DISTANCES:
        assert measure(p, q) >= 0
        assert measure(p, p) == pytest.approx(0, abs=1e-12)
    statistic, _ = drift.chi_square(p, q)
    assert statistic >= 0
    assert drift.chi_square(p, p)[0] == pytest.approx(0, abs=1e-12)


@quick
@given(counts, counts)
def test_symmetric_measures_do_not_care_which_side_is_the_reference(p, q):
    for measure in (drift.psi, drift.jensen_shannon, drift.ks_binned):
        assert measure(p, q) == pytest.approx(measure(q, p), abs=1e-12)
    centres = np.arange(6.0)
    assert drift.wasserstein_binned(p, q, centres) == pytest.approx(drift.wasserstein_binned(q, p, centres))


@quick
@given(counts, counts)
def test_psi_is_the_sum_of_both_kl_divergences_and_js_is_bounded_by_log_two(p, q):
    both = drift.kl_divergence(p, q) + drift.kl_divergence(q, p)
    assert drift.psi(p, q) == pytest.approx(both, abs=1e-9)
    assert drift.jensen_shannon(p, q) <= math.log(2) + 1e-12


@quick
@given(counts, counts)
def test_kl_and_js_agree_with_scipy_on_smoothed_shares(p, q):
    left, right = drift.smoothed(p), drift.smoothed(q)
    assert drift.kl_divergence(p, q) == pytest.approx(stats.entropy(right, left), abs=1e-9)
    assert drift.jensen_shannon(p, q) == pytest.approx(distance.jensenshannon(left, right) ** 2, abs=1e-9)


@quick
@given(arrays(np.int64, (2, 5), elements=st.integers(30, 500)))
def test_chi_square_agrees_with_scipy_when_no_cell_is_small(table):
    expected = stats.chi2_contingency(table, correction=False)
    result = drift.chi_square_test(table[0], table[1])
    assert result.statistic == pytest.approx(expected.statistic, abs=1e-8)
    assert result.p_value == pytest.approx(expected.pvalue, abs=1e-8)


def test_chi_square_pools_cells_that_expect_fewer_than_five_rows():
    reference, current = [500, 400, 3, 2, 4, 5], [50, 40, 0, 3, 1, 0]
    pooled = stats.chi2_contingency(np.array([[500, 400, 14], [50, 40, 4]]), correction=False)
    statistic, freedom = drift.chi_square(reference, current)
    assert freedom == 2
    assert statistic <= pooled.statistic + 1e-9  # the pooled cell expects 1.8 rows, so it is trusted less


@quick
@given(numbers, numbers)
def test_sample_statistics_agree_with_scipy(x, y):
    assert drift.wasserstein(x, y) == pytest.approx(stats.wasserstein_distance(x, y))
    statistic, p_value = drift.ks_test(x, y)
    with warnings.catch_warnings(action="ignore"):
        expected = stats.ks_2samp(x, y)
    assert (statistic, p_value) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))


@quick
@given(numbers, numbers, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(x, y, random):
    shuffled = y.copy()
    random.shuffle(shuffled)
    bins = Bins.fit(x, 5)
    assert np.array_equal(bins.counts(y), bins.counts(shuffled))
    assert drift.wasserstein(x, y) == pytest.approx(drift.wasserstein(x, shuffled))


@quick
@given(numbers, numbers)
def test_a_rising_transform_of_both_sides_leaves_ks_and_psi_alone(x, y):
    both = np.concatenate([x, y])
    stretched = np.unique(both) * 3.0
    assume(len(stretched) == len(np.unique(both)))
    plain, changed = Bins.fit(x, 6), Bins.fit(x * 3.0, 6)
    left = (plain.counts(x), plain.counts(y))
    right = (changed.counts(x * 3.0), changed.counts(y * 3.0))
    assert drift.psi(*left) == pytest.approx(drift.psi(*right))
    assert drift.ks_binned(*left) == pytest.approx(drift.ks_binned(*right))


@quick
@given(numbers, numbers)
def test_binned_ks_never_exceeds_that_of_the_samples(x, y):
    bins = Bins.fit(x, 6)
    assert drift.ks_binned(bins.counts(x), bins.counts(y)) <= drift.ks_test(x, y).statistic + 1e-9


def test_distances_grow_with_the_shift():
    rng = np.random.default_rng(5)
    reference, noise = rng.normal(size=4000), rng.normal(size=2000)
    bins = Bins.fit(reference)
    base = bins.counts(reference)
    for measure in (*DISTANCES, lambda p, q: drift.wasserstein_binned(p, q, bins.centres)):
        values = [float(measure(base, bins.counts(noise + shift))) for shift in (0.0, 0.25, 0.5, 1.0, 2.0)]
        assert values == sorted(values)


def test_binned_wasserstein_is_close_to_that_of_the_samples():
    rng = np.random.default_rng(5)
    reference, current = rng.normal(size=5000), rng.normal(0.5, 1, size=5000)
    bins = Bins.fit(reference, 50)
    binned = drift.wasserstein_binned(bins.counts(reference), bins.counts(current), bins.centres)
    assert binned == pytest.approx(stats.wasserstein_distance(reference, current), rel=0.1)


@quick
@given(arrays(np.float64, st.integers(0, 40), elements=st.floats(allow_nan=True, allow_infinity=True, width=32)))
def test_every_value_has_exactly_one_cell(values):
    bins = Bins.fit(values, 4)
    assert np.array_equal(bins.counts(values), np.bincount(bins.codes(values), minlength=bins.cells))
    assert bins.counts(values).sum() == len(values)
    assert bins.counts(values)[-1] == np.isnan(values).sum()
    assert (np.diff(bins.centres) >= 0).all()
    assert len(bins.centres) == bins.cells - 1


def test_a_constant_column_sees_values_below_above_and_missing():
    bins = Bins.fit([3.0] * 10)
    assert bins.counts([2.9, 3.0, 3.1, np.nan]).tolist() == [1, 1, 1, 1]
    assert drift.psi(bins.counts([3.0] * 10), bins.counts([3.0] * 10)) == 0


def test_an_all_missing_column_is_a_column():
    bins = Bins.fit([np.nan] * 5)
    assert bins.counts([np.nan, 1.0]).tolist()[-1] == 1
    assert drift.ks_test([np.nan], [1.0]) == (0.0, 1.0)
    assert drift.wasserstein([np.nan], [1.0]) == 0.0


def test_a_share_of_missing_values_is_drift():
    bins = Bins.fit(np.arange(100.0))
    base = bins.counts(np.arange(100.0))
    holes = np.arange(100.0)
    holes[::4] = np.nan
    assert drift.ks_binned(base, bins.counts(holes)) == pytest.approx(0.25, abs=0.02)
    assert drift.psi(base, bins.counts(holes)) > 0.5


def test_unseen_and_missing_categories_have_their_own_cells():
    categories = Categories.fit(["a", "a", "b", None])
    assert categories.counts(["a", "b", "c", "d", None]).tolist() == [1, 1, 2, 1]
    assert Categories.fit(["a"] * 99 + ["b"], min_share=0.05).values == ("a",)


def test_comparisons_broadcast_over_many_windows():
    rng = np.random.default_rng(0)
    reference, windows = rng.integers(0, 50, 6), rng.integers(0, 50, (3, 6))
    for measure in DISTANCES:
        together = measure(reference, windows)
        assert together == pytest.approx([float(measure(reference, window)) for window in windows])


def test_holm_and_benjamini_hochberg_on_a_worked_example():
    p = [0.01, 0.04, 0.03, 0.005]
    assert drift.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert drift.benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    with pytest.raises(ConfigurationError):
        drift.holm([0.5, 1.5])


@quick
@given(arrays(np.float64, st.integers(0, 20), elements=st.floats(0, 1)))
def test_adjusted_p_values_are_never_smaller_and_keep_the_order(p):
    holm, bh = drift.holm(p), drift.benjamini_hochberg(p)
    assert (holm >= p - 1e-12).all() and (holm >= bh - 1e-12).all() and (holm <= 1).all()
    order = np.argsort(p)
    assert (np.diff(holm[order]) >= 0).all() and (np.diff(bh[order]) >= 0).all()
