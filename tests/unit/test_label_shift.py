"""Label shift is estimated with an interval that holds, and told apart from other drift."""

import numpy as np
import pytest

from leitstand.errors import ConfigurationError
from monitors import label_shift as ls

LABELS = 4
CENTRES = np.eye(LABELS) * 3.0


def _sample(rng, rows, prior, shift=0.0):
    """Rows of a world where the posterior is known: labels, features, calibrated probabilities for equal priors."""
    truth = rng.choice(LABELS, rows, p=prior)
    features = CENTRES[truth] + rng.normal(size=(rows, LABELS)) + shift
    likelihood = np.exp(-((features[:, None] - CENTRES) ** 2).sum(axis=2) / 2)
    return truth, features, likelihood / likelihood.sum(axis=1, keepdims=True)


EQUAL = np.full(LABELS, 1 / LABELS)
SHIFTED = np.array([0.55, 0.15, 0.15, 0.15])


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_black_box_estimation_finds_the_new_shares_within_its_intervals(rng):
    truth, _, p = _sample(rng, 3000, EQUAL)
    confusion = ls.joint_confusion(truth, p.argmax(axis=1), LABELS)
    _, _, window = _sample(rng, 2000, SHIFTED)
    counts = np.bincount(window.argmax(axis=1), minlength=LABELS)
    found = ls.black_box_shift(confusion, 3000, counts, level=0.999)
    assert found.prior == pytest.approx(SHIFTED, abs=0.05)
    assert all(i.low <= share <= i.high for i, share in zip(found.intervals, SHIFTED, strict=True))
    assert found.distance == pytest.approx(0.3, abs=0.05)
    assert found.distance_interval.low > 0.2
    assert found.weights[0] == pytest.approx(2.2, rel=0.15)


def test_maximum_likelihood_finds_the_new_shares(rng):
    _, _, p = _sample(rng, 3000, SHIFTED)
    assert ls.expectation_maximisation(p, EQUAL) == pytest.approx(SHIFTED, abs=0.04)


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ConfigurationError, match="do not fit"):
        ls.black_box_shift(np.eye(3) / 3, 100, [1, 2])
    with pytest.raises(ConfigurationError):
        ls.black_box_shift(np.eye(2) / 2, 100, [0, 0])


def test_a_label_never_seen_in_the_reference_does_not_break_the_estimate():
    confusion = np.diag([0.5, 0.5, 0.0])
    found = ls.black_box_shift(confusion, 100, [40, 40, 20], samples=20)
    assert found.prior.sum() == pytest.approx(1)
    assert np.isfinite(found.weights).all()


def test_predicted_labels_show_the_shift():
    test, divergence = ls.predicted_label_shift([100, 100, 100], [100, 40, 40])
    assert test.p_value < 1e-4 and divergence > 0.01
    assert ls.predicted_label_shift([10, 20], [10, 20])[0].p_value == pytest.approx(1)


@pytest.mark.parametrize(
    ("prior", "shift", "kind"), [(EQUAL, 0.0, "none"), (SHIFTED, 0.0, "prior"), (EQUAL, 1.0, "other")]
)
def test_triage_tells_a_changed_mix_from_changed_texts(rng, prior, shift, kind):
    _, x, p = _sample(rng, 2000, EQUAL)
    _, y, q = _sample(rng, 800, prior, shift)
    verdict = ls.explain_by_prior_shift(x, p, y, q, samples=300)
    assert verdict.kind == kind
