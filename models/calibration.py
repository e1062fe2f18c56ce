"""Temperature scaling and the expected calibration error; pure numbers.

One temperature divides all logits (Guo et al. 2017, "On Calibration of Modern Neural Networks"). It
changes no decision, only how sure a score sounds.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

__all__ = ["expected_calibration_error", "fit_temperature", "negative_log_likelihood", "softmax"]

BOUNDS = (0.05, 20.0)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (n, labels) float64 from logits (n, labels)."""
    return np.exp(log_softmax(logits.astype(np.float64) / temperature, axis=1))


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log p(label), in nats; `labels` (n,) int64."""
    log_p = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return float(-np.mean(log_p[np.arange(len(labels)), labels]))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least negative log likelihood on held-out logits.

    The likelihood has one minimum in 1/T; it is searched in log T between 0.05 and 20.
    """
    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits, labels, float(np.exp(log_t))),
        bounds=tuple(np.log(BOUNDS)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over equal-width bins of confidence, weighted by bin size.

    Args:
        probabilities: (n, labels).
        labels: (n,) int64.
        bins: 15 in Guo et al. 2017, whose definition this is.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    gap = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / max(count.sum(), 1))
