"""Evidence about two shares that may be looked at after every observation: anytime-valid, from counts alone.

Two arms, stable and canary, each give observations in [0, 1] (1: an error, a slow answer) with a constant mean.
The beta mixture of likelihood ratios against a mean p,

    M_n(p) = B(a + S, b + n - S) / B(a, b) / (p^S (1 - p)^(n - S)),     a = b = 1/2,

is a non-negative martingale of expectation 1 when p is the true mean of 0/1 observations (Robbins 1970, Annals of
Mathematical Statistics 41; Johari et al. 2022, Operations Research 70, call it mSPRT), and a supermartingale for any
observations in [0, 1] of mean p, because exp(x t) is convex ("sub-Bernoulli": Hoeffding 1963; Howard et al. 2021,
Annals of Statistics 49). So is the product over two arms, in whatever order and at whatever weights they
are observed. For a composite hypothesis H the smallest product over the points of H,

    E = min over (p_stable, p_canary) in H of M_stable(p_stable) * M_canary(p_canary),

never exceeds the product at the true point; by Ville's inequality P(E >= 1/alpha at any time) <= alpha under H.
The minimum is a convex problem in one variable, solved by bisection. Everything is in natural logarithms and takes
arrays; cost about 0.1 ms per call, O(1) in the number of observations.

Limits: the mean of an arm is constant while it is counted (restart the counts when weights change), and
observations are independent within an arm (many requests of one caller are fewer observations than they seem).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln

__all__ = ["log_evidence_harm", "log_evidence_noninferior", "log_mixture"]

_PRIOR = 0.5
_EDGE = 1e-12
_HALVINGS = 44
"""Bisection steps: the interval shrinks below 1e-13."""


def log_mixture(total: ArrayLike, count: ArrayLike, mean: ArrayLike) -> np.ndarray:
    """Log of M_n(mean) of `count` observations that sum to `total`; 0 for no observation."""
    total, count = np.asarray(total, float), np.asarray(count, float)
    mixed = betaln(_PRIOR + total, _PRIOR + count - total) - betaln(_PRIOR, _PRIOR)
    return mixed - _log_likelihood(total, count, np.asarray(mean, float))


def log_evidence_harm(
    stable: tuple[ArrayLike, ArrayLike], canary: tuple[ArrayLike, ArrayLike], margin: float
) -> np.ndarray:
    """Log of E against "the canary's mean is at most the stable's plus `margin`"; large proves harm.

    Args:
        stable: (sum, count) of its observations, scalars or arrays of one shape.
        canary: The same.
        margin: In [0, 1).
    """
    return _log_evidence(stable, canary, margin, lambda gap: gap > margin)


def log_evidence_noninferior(
    stable: tuple[ArrayLike, ArrayLike], canary: tuple[ArrayLike, ArrayLike], margin: float
) -> np.ndarray:
    """Log of E against "the canary's mean is at least the stable's plus `margin`"; large proves non-inferiority.

    Args:
        stable: (sum, count) of its observations, scalars or arrays of one shape.
        canary: The same.
        margin: In [0, 1).
    """
    return _log_evidence(stable, canary, margin, lambda gap: gap < margin)


def _log_evidence(
    stable: tuple[ArrayLike, ArrayLike],
    canary: tuple[ArrayLike, ArrayLike],
    margin: float,
    contradicts: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """The minimum lies on the hypothesis' edge where the observed gap contradicts it, else at the observed means."""
    (s_sum, s_count), (c_sum, c_count) = (np.asarray(v, float) for v in stable), (np.asarray(v, float) for v in canary)
    s_sum, s_count, c_sum, c_count = np.broadcast_arrays(s_sum, s_count, c_sum, c_count)
    s_mean, c_mean = s_sum / np.maximum(s_count, 1), c_sum / np.maximum(c_count, 1)
    edge = _edge_minimum(s_sum, s_count, c_sum, c_count, margin)
    outside = contradicts(c_mean - s_mean) & (s_count > 0) & (c_count > 0)
    at_stable, at_canary = np.where(outside, edge, s_mean), np.where(outside, edge + margin, c_mean)
    return log_mixture(s_sum, s_count, at_stable) + log_mixture(c_sum, c_count, at_canary)


def _edge_minimum(
    s_sum: np.ndarray, s_count: np.ndarray, c_sum: np.ndarray, c_count: np.ndarray, margin: float
) -> np.ndarray:
    """The stable mean q that maximises the likelihood on the line canary = q + margin; its slope falls in q."""
    low = np.full(s_sum.shape, _EDGE)
    high = np.full(s_sum.shape, 1 - margin - _EDGE)
    for _ in range(_HALVINGS):
        q = (low + high) / 2
        p = q + margin
        slope = s_sum / q - (s_count - s_sum) / (1 - q) + c_sum / p - (c_count - c_sum) / (1 - p)
        low, high = np.where(slope > 0, q, low), np.where(slope > 0, high, q)
    return (low + high) / 2


def _log_likelihood(total: np.ndarray, count: np.ndarray, mean: np.ndarray) -> np.ndarray:
    mean = np.clip(mean, _EDGE, 1 - _EDGE)
    return total * np.log(mean) + (count - total) * np.log1p(-mean)
