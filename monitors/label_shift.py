"""Changed label frequencies: estimated without labels, tested, and told apart from other drift.

When only the mix of labels changes (prior shift: more refunds after Christmas), each label still looks as it
did, and a model is not wrong for it; when the texts of a label change, it may be. `explain_by_prior_shift` asks
whether the first explains a window. It cannot see a label whose texts stay while their right answer changes
(concept drift): no method without labels can.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize

from leitstand.errors import ConfigurationError
from leitstand.types import Interval
from monitors.drift import Significance, chi_square_test, jensen_shannon

__all__ = [
    "LabelShift",
    "PriorShiftVerdict",
    "black_box_shift",
    "expectation_maximisation",
    "explain_by_prior_shift",
    "joint_confusion",
    "predicted_label_shift",
]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelShift:
    """Estimated label frequencies of a window.

    Attributes:
        weights: Per label: its share in the window over its share in the reference.
        prior: Per label: its share in the window; sums to 1.
        intervals: Bootstrap interval of each share in `prior`.
        distance: Total variation between `prior` and the reference's shares, in [0, 1].
        distance_interval: Bootstrap interval of `distance`; its low end is above what sampling alone gives only
            when labels shifted.
        condition: Of the confusion matrix; above about 100 the estimate is unstable and the intervals show it.
    """

    weights: FloatArray
    prior: FloatArray
    intervals: tuple[Interval, ...]
    distance: float
    distance_interval: Interval
    condition: float


@dataclass(frozen=True)
class PriorShiftVerdict:
    """What a changed label mix leaves unexplained.

    Attributes:
        kind: ``none``: nothing moved; ``prior``: the label mix moved and explains the rest; ``other``: texts
            moved in a way that no label mix explains (covariate or concept drift, new labels).
        prior: The window's estimated label shares.
        before: Feature distance of window and reference, with its p-value.
        after: The same with the reference reweighted to the window's label mix.
    """

    kind: Literal["none", "prior", "other"]
    prior: FloatArray
    before: Significance
    after: Significance


def joint_confusion(truth: npt.ArrayLike, predicted: npt.ArrayLike, labels: int) -> FloatArray:
    """Shares (predicted, true) of reference rows, as label numbers; rows must be held out from training. O(n)."""
    codes = np.asarray(predicted, np.intp) * labels + np.asarray(truth, np.intp)
    counts = np.bincount(codes, minlength=labels * labels).reshape(labels, labels)
    return counts / max(counts.sum(), 1)


def black_box_shift(
    confusion: FloatArray, reference_rows: int, predicted: npt.ArrayLike, *, level: float = 0.95,
    samples: int = 200, seed: int = 0,
) -> LabelShift:  # fmt: skip
    """Black-box shift estimation: solves ``confusion @ weights = predicted shares`` with weights >= 0.

    Lipton, Wang & Smola 2018, ICML; non-negative least squares keeps an ill-conditioned matrix usable (in the
    spirit of the regularised estimate of Azizzadenesheli et al. 2019, ICLR). Intervals resample the reference
    and the window (parametric bootstrap), so they widen with few rows of either. O(samples k³).

    Args:
        confusion: From `joint_confusion`.
        reference_rows: Rows that it was counted on.
        predicted: Rows of the window per predicted label.
        level: Of the intervals.
        samples: Bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ConfigurationError: Shapes differ, or the window is empty.
    """
    counts = np.asarray(predicted, np.int64)
    if confusion.shape != (len(counts), len(counts)) or counts.sum() == 0:
        raise ConfigurationError(
            f"A confusion matrix {confusion.shape} and {counts.sum()} predictions over {len(counts)} labels do not fit",
            hint="give both over the same labels, and at least one prediction",
        )
    rng = np.random.default_rng(seed)
    truth = confusion.sum(axis=0)
    weights = _solve(confusion, counts / counts.sum())
    prior = _normalised(weights * truth)
    drawn, distances = np.empty((samples, len(counts))), np.empty(samples)
    for sample in range(samples):
        again = rng.multinomial(reference_rows, confusion.ravel()).reshape(confusion.shape) / reference_rows
        window = rng.multinomial(counts.sum(), counts / counts.sum()) / counts.sum()
        drawn[sample] = _normalised(_solve(again, window) * again.sum(axis=0))
        distances[sample] = np.abs(drawn[sample] - again.sum(axis=0)).sum() / 2
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    near, far = np.quantile(distances, [tail, 1 - tail])
    return LabelShift(
        weights=weights, prior=prior,
        intervals=tuple(Interval(low=float(a), high=float(b), level=level) for a, b in zip(low, high, strict=True)),
        distance=float(np.abs(prior - truth).sum() / 2),
        distance_interval=Interval(low=float(near), high=float(far), level=level),
        condition=float(np.linalg.cond(confusion)),
    )  # fmt: skip


def expectation_maximisation(
    probabilities: npt.ArrayLike, reference_prior: npt.ArrayLike, *, most: int = 1000, tolerance: float = 1e-6
) -> FloatArray:
    """The window's label shares from calibrated probabilities (n, k), by maximum likelihood. O(n k) per step.

    Saerens, Latinne & Decaestecker 2002, Neural Computation 14; with calibration it beats black-box estimation
    (Alexandari, Kundaje & Shrikumar 2020, ICML). Biased when the probabilities are not calibrated.
    """
    p = np.asarray(probabilities, np.float64)
    base = np.maximum(np.asarray(reference_prior, np.float64), 1e-12)
    prior = base / base.sum()
    for _ in range(most):
        posterior = p * (prior / base)
        updated = (posterior / np.maximum(posterior.sum(axis=1, keepdims=True), 1e-300)).mean(axis=0)
        if np.abs(updated - prior).sum() < tolerance:
            return updated
        prior = updated
    return prior


def predicted_label_shift(reference: npt.ArrayLike, current: npt.ArrayLike) -> tuple[Significance, float]:
    """Chi-square test on counts per predicted label, and their Jensen-Shannon divergence. O(k).

    Predictions shift exactly when labels do, if only labels shift (Lipton, Wang & Smola 2018, section 5).
    """
    return chi_square_test(reference, current), float(jensen_shannon(reference, current))


def explain_by_prior_shift(
    reference_features: npt.NDArray[np.floating], reference_probabilities: npt.NDArray[np.floating],
    features: npt.NDArray[np.floating], probabilities: npt.NDArray[np.floating], *,
    alpha: float = 0.01, samples: int = 500, seed: int = 0,
) -> PriorShiftVerdict:  # fmt: skip
    """Whether a changed label mix alone explains how a window differs from the reference.

    If only the label mix changed, the window's texts are distributed like the reference's with row i weighted by
    ``sum_y p(y|x_i) prior(y) / reference_prior(y)``, for calibrated p. The distance of mean features (random
    Fourier features: MMD) is tested before and after that weighting; the null distribution resamples reference
    and window from the weighted reference. O((n + m) samples d).

    The estimated prior absorbs part of any other drift, so a small p-value afterwards is strong evidence of
    other drift, and a large one is weak evidence of none.

    Args:
        reference_features: (n, d) features of held-out reference rows, such as `RandomFeatures.transform`.
        reference_probabilities: (n, k) their calibrated probabilities.
        features: (m, d) of the window.
        probabilities: (m, k) of the window.
        alpha: Level of each of the two tests.
        samples: Resamples.
        seed: Of the resampling.
    """
    base = reference_probabilities.mean(axis=0, dtype=np.float64)
    prior = expectation_maximisation(probabilities, base)
    weights = np.asarray(reference_probabilities @ (prior / np.maximum(base, 1e-12)), np.float64)
    rng = np.random.default_rng(seed)
    target = features.mean(axis=0, dtype=np.float64)
    rows = len(features)
    before = _distance_test(reference_features, np.ones(len(weights)), target, rows, samples, rng)
    after = _distance_test(reference_features, weights, target, rows, samples, rng)
    kind = "none" if before.p_value > alpha else "prior" if after.p_value > alpha else "other"
    return PriorShiftVerdict(kind, prior, before, after)


def _distance_test(
    reference: npt.NDArray[np.floating], weights: FloatArray, target: FloatArray, rows: int, samples: int,
    rng: np.random.Generator,
) -> Significance:  # fmt: skip
    """Squared distance of the weighted mean to `target`, against redrawn references and windows."""
    n = len(reference)
    share = weights / weights.sum()
    data = np.asarray(reference, np.float64)
    observed = ((share @ data - target) ** 2).sum()
    window = rng.multinomial(rows, share, size=samples) / rows
    again = rng.multinomial(n, np.full(n, 1 / n), size=samples) * weights
    again = again / again.sum(axis=1, keepdims=True)
    null = (((window - again) @ data) ** 2).sum(axis=1)
    return Significance(float(observed), float((1 + (null >= observed).sum()) / (1 + samples)))


def _solve(confusion: FloatArray, shares: FloatArray) -> FloatArray:
    return optimize.nnls(confusion, shares, maxiter=50 * len(shares))[0]


def _normalised(values: FloatArray) -> FloatArray:
    total = values.sum()
    return values / total if total > 0 else np.full(len(values), 1 / len(values))
