"""Numbers that describe a classifier's answers, each with an interval.

Pure functions over arrays: ``labels`` and ``predicted`` are (n,) int64 indices into the label set,
``probabilities`` (n, labels) float, ``scores`` (n,) the largest of each row. Nothing here loads a model
or reads a file. Resampling takes a seed, so the same answers always give the same numbers.
"""

from collections.abc import Callable
from math import sqrt

import numpy as np
from scipy import stats

from leitstand.types import Interval, ReliabilityBin

__all__ = [
    "bootstrap_weights",
    "brier",
    "clustered_rate",
    "confusion",
    "ece",
    "f1",
    "nll",
    "percentile_interval",
    "quantile_interval",
    "reliability",
    "weighted_ece",
    "weighted_f1_scores",
    "wilson",
]

LEVEL = 0.95
BINS = 15
Weights = np.ndarray


def wilson(hits: float, n: float, level: float = LEVEL) -> Interval:
    """The score interval of a share `hits / n` (Wilson 1927, J. Am. Stat. Assoc. 22). `n` may be fractional."""
    if n <= 0:
        return Interval(low=0.0, high=1.0, level=level)
    z = float(stats.norm.ppf(0.5 + level / 2))
    share = hits / n
    centre = share + z * z / (2 * n)
    spread = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return Interval(low=max(0.0, min(low, share)), high=min(1.0, max(high, share)), level=level)


def clustered_rate(values: np.ndarray, level: float = LEVEL) -> tuple[float, Interval]:
    """The mean of shares in [0, 1], one per independent cluster, and an interval for it.

    Wilson's interval with the clusters as its n. The variance of a mean p of values in [0, 1] is at most
    p (1 - p) / n, so this is conservative for shares and Wilson's own for 0 and 1. Unlike a bootstrap it
    does not collapse to a point when no cluster shows the event.

    Args:
        values: (clusters,) share of the event within each cluster.
        level: Confidence level.
    """
    if len(values) == 0:
        return 0.0, Interval(low=0.0, high=1.0, level=level)
    rate = float(np.mean(values))
    return rate, wilson(rate * len(values), len(values), level)


def confusion(labels: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """(count, count) int64: rows are true labels, columns are predicted ones."""
    return np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)


def weighted_f1_scores(
    labels: np.ndarray, predicted: np.ndarray, count: int, weights: Weights, average: str
) -> np.ndarray:
    """F1 of every resample: (samples,) from `weights` (samples, n), how often each row was drawn.

    `average` is ``macro`` or ``weighted``. Labels that neither occur nor are predicted do not count, as
    in scikit-learn.
    """
    rows = np.arange(len(labels))
    truth = np.zeros((len(labels), count), dtype=np.float32)
    answer = np.zeros((len(labels), count), dtype=np.float32)
    truth[rows, labels], answer[rows, predicted] = 1, 1
    hits = weights @ (truth * answer)
    support, answered = weights @ truth, weights @ answer
    total = support + answered
    scores = np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0)
    if average == "macro":
        return scores.sum(axis=1) / np.maximum((total > 0).sum(axis=1), 1)
    return (scores * support).sum(axis=1) / np.maximum(support.sum(axis=1), 1)


def f1(labels: np.ndarray, predicted: np.ndarray, count: int, average: str = "macro") -> float:
    """Macro or weighted F1 as scikit-learn defines them."""
    ones = np.ones((1, len(labels)), dtype=np.float32)
    return float(weighted_f1_scores(labels, predicted, count, ones, average)[0])


def reliability(scores: np.ndarray, correct: np.ndarray, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """The reliability diagram: equal-width bins over [0, 1] with count, mean score and accuracy.

    Empty bins have no score and no accuracy (DeGroot & Fienberg 1983, The Statistician 32).
    """
    where = _bin(scores, bins)
    found = []
    for index in range(bins):
        inside = where == index
        count = int(inside.sum())
        found.append(
            ReliabilityBin(
                low=index / bins,
                high=(index + 1) / bins,
                count=count,
                score=float(scores[inside].mean()) if count else None,
                accuracy=float(correct[inside].mean()) if count else None,
            )
        )
    return tuple(found)


def weighted_ece(scores: np.ndarray, correct: np.ndarray, weights: Weights, bins: int = BINS) -> np.ndarray:
    """Expected calibration error of every resample: (samples,) from `weights` (samples, n)."""
    member = np.zeros((len(scores), bins))
    member[np.arange(len(scores)), _bin(scores, bins)] = 1
    gap = weights @ (member * (scores - correct)[:, None])
    return np.abs(gap).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)


def ece(scores: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of the top label over equal-width bins (Guo et al. 2017, ICML)."""
    if len(scores) == 0:
        return 0.0
    return float(weighted_ece(scores, correct, np.ones((1, len(scores))), bins)[0])


def brier(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) squared distance of each row to the one-hot truth, in [0, 2] (Brier 1950)."""
    rows = np.arange(len(labels))
    truth = probabilities[rows, labels]
    return np.square(probabilities).sum(axis=1) - 2 * truth + 1


def nll(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) negative natural log of the probability given to the truth; probabilities below 1e-12 count as that."""
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels].astype(np.float64), 1e-12))


def bootstrap_weights(n: int, samples: int, seed: int) -> np.ndarray:
    """(samples, n) float32: how often each row stands in each resample of size `n`."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=samples).astype(np.float32)


def percentile_interval(
    statistic: Callable[[Weights], np.ndarray],
    value: float,
    n: int,
    samples: int,
    seed: int,
    *,
    reflected: bool = False,
) -> Interval | None:
    """A bootstrap interval of `statistic`, which maps weights (samples, n) to values (samples,).

    Percentiles of the resamples, or with `reflected` the basic bootstrap ``2 value - percentile``
    (Davison & Hinkley 1997, section 5.2), which corrects statistics that resampling biases upwards, as
    it does the calibration error. The interval always holds `value` and stays at or above 0. None when all
    resamples agree: a perfect score on few rows is no proof of perfection.
    """
    drawn = statistic(bootstrap_weights(n, samples, seed))
    if np.ptp(drawn) == 0:
        return None
    tail = (1 - LEVEL) / 2
    low, high = (float(x) for x in np.quantile(drawn, [tail, 1 - tail]))
    if reflected:
        low, high = 2 * value - high, 2 * value - low
    return Interval(low=max(0.0, min(low, value)), high=max(high, value), level=LEVEL)


def quantile_interval(values: np.ndarray, q: float, level: float = LEVEL) -> Interval | None:
    """Order-statistic interval of a quantile, without a distribution assumption; None when `n` is too small.

    Source: Hahn & Meeker 1991, Statistical Intervals, section 5.2.
    """
    ordered, n = np.sort(values), len(values)
    low = int(stats.binom.ppf((1 - level) / 2, n, q))
    high = int(stats.binom.ppf(0.5 + level / 2, n, q)) + 1
    if low < 1 or high > n:
        return None
    return Interval(low=float(ordered[low - 1]), high=float(ordered[high - 1]), level=level)


def _bin(scores: np.ndarray, bins: int) -> np.ndarray:
    return np.clip((scores * bins).astype(np.int64), 0, bins - 1)
