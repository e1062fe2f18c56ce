"""How far two distributions of one column lie apart: pure functions on counts, and on samples.

Functions on counts work on the last axis and broadcast over the others, so that thousands of resampled windows
are compared in one call; calibration and decision run the same code. Counts come from `Bins` or `Categories`,
which are fitted on the reference: "not a number" and categories never seen there have cells of their own, so
that both are drift and neither is an error. Nothing here decides: a distance has no meaning without the
threshold that `monitors.detection` calibrates for it.

Costs are per column, for n rows and k cells.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from leitstand.errors import ConfigurationError

__all__ = [
    "Bins",
    "Categories",
    "Significance",
    "benjamini_hochberg",
    "chi_square",
    "chi_square_test",
    "holm",
    "jensen_shannon",
    "kl_divergence",
    "ks_binned",
    "ks_test",
    "psi",
    "smoothed",
    "wasserstein",
    "wasserstein_binned",
]

FloatArray = npt.NDArray[np.float64]

JEFFREYS = 0.5
MIN_EXPECTED = 5.0


class Significance(NamedTuple):
    """A statistic and the probability of one at least as large when nothing changed."""

    statistic: float
    p_value: float


@dataclass(frozen=True)
class Bins:
    """Cells of a numeric column: below the reference's smallest value, between its quantiles, above, missing.

    Attributes:
        edges: Rising; cell i holds ``edges[i-1] < x <= edges[i]``. The last cell is for NaN (and null).
        centres: One value per finite cell, where its mass is taken to lie (`wasserstein_binned`).
    """

    edges: FloatArray
    centres: FloatArray

    @classmethod
    def fit(cls, reference: npt.ArrayLike, bins: int = 20) -> "Bins":
        """Edges at the reference's quantiles; a value that fills several bins gets one. O(n log n).

        A constant column has the three cells below, at and above its value. No finite value at all: one edge at 0.
        """
        values = np.asarray(reference, np.float64)
        values = values[np.isfinite(values)]
        if not len(values):
            return cls(np.zeros(1), np.zeros(2))
        inner = np.quantile(values, np.linspace(0, 1, bins + 1), method="inverted_cdf")
        edges = np.unique(np.concatenate([[np.nextafter(inner[0], -np.inf)], inner]))
        cells = np.searchsorted(edges, values)
        count = np.bincount(cells, minlength=len(edges) + 1)
        total = np.bincount(cells, values / len(values), minlength=len(edges) + 1) * len(values)
        outer = np.concatenate([edges[:1], edges])
        centres = np.where(count > 0, total / np.maximum(count, 1), np.concatenate([outer[:-1], edges[-1:]]))
        return cls(edges, np.maximum.accumulate(centres))

    @property
    def cells(self) -> int:
        """How many cells there are, the one for NaN included."""
        return len(self.edges) + 2

    def codes(self, values: npt.ArrayLike) -> npt.NDArray[np.intp]:
        """The cell of each value. O(n log k)."""
        array = np.asarray(values, np.float64)
        codes = np.searchsorted(self.edges, array)
        codes[np.isnan(array)] = self.cells - 1
        return codes

    def counts(self, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Rows per cell. O(n log k)."""
        array = np.asarray(values)
        found = np.bincount(np.searchsorted(self.edges, array), minlength=self.cells)
        missing = int(np.isnan(array).sum())
        found[-2] -= missing  # NaN sorts above every edge
        found[-1] += missing
        return found


@dataclass(frozen=True)
class Categories:
    """Cells of a categorical column: its frequent values, all others (unseen ones included), missing."""

    values: tuple[str, ...]

    @classmethod
    def fit(cls, reference: Sequence[str | None], *, min_share: float = 0.0, most: int = 500) -> "Categories":
        """The values with at least `min_share` of the rows, at most `most` of them. O(n)."""
        present = [value for value in reference if value is not None]
        values, counts = np.unique(np.asarray(present, dtype=str), return_counts=True)
        order = np.argsort(-counts, kind="stable")[:most]
        kept = [str(values[i]) for i in order if counts[i] >= min_share * max(len(reference), 1)]
        return cls(tuple(sorted(kept)))

    @property
    def cells(self) -> int:
        """How many cells there are, those for other and missing values included."""
        return len(self.values) + 2

    def codes(self, values: Sequence[str | None]) -> npt.NDArray[np.intp]:
        """The cell of each value. O(n)."""
        known = {value: code for code, value in enumerate(self.values)}
        other, missing = len(self.values), len(self.values) + 1
        return np.array([missing if value is None else known.get(value, other) for value in values], np.intp)

    def counts(self, values: Sequence[str | None]) -> npt.NDArray[np.int64]:
        """Rows per cell. O(n)."""
        return np.bincount(self.codes(values), minlength=self.cells)


def smoothed(counts: npt.ArrayLike, smoothing: float = JEFFREYS) -> FloatArray:
    """Shares of the last axis, with `smoothing` added to every cell (0.5: the Jeffreys prior). O(k).

    An empty sample (all counts 0) gives equal shares. Krichevsky & Trofimov 1981, IEEE Trans. Inf. Theory 27.
    """
    array = np.asarray(counts, np.float64) + smoothing
    return array / array.sum(axis=-1, keepdims=True)


def psi(reference: npt.ArrayLike, current: npt.ArrayLike, smoothing: float = JEFFREYS) -> FloatArray:
    """Population stability index, ``sum (q - p) ln(q / p)``: the symmetric KL divergence, in nats. O(k).

    With Jeffreys smoothing on both sides. The custom of alarming at 0.2 ignores the sample size: without any
    change PSI is about ``(k - 1)(1/n + 1/m)`` (Yurdakul & Naranjo 2020, Journal of Risk Model Validation).
    Siddiqi 2006, "Credit Risk Scorecards".
    """
    p, q = smoothed(reference, smoothing), smoothed(current, smoothing)
    return ((q - p) * np.log(q / p)).sum(axis=-1)


def kl_divergence(reference: npt.ArrayLike, current: npt.ArrayLike, smoothing: float = JEFFREYS) -> FloatArray:
    """Kullback-Leibler divergence of the current window from the reference, ``sum q ln(q / p)``, in nats. O(k).

    Not symmetric; with Jeffreys smoothing on both sides it is finite. Kullback & Leibler 1951.
    """
    p, q = smoothed(reference, smoothing), smoothed(current, smoothing)
    return np.maximum((q * np.log(q / p)).sum(axis=-1), 0.0)


def jensen_shannon(reference: npt.ArrayLike, current: npt.ArrayLike, smoothing: float = JEFFREYS) -> FloatArray:
    """Jensen-Shannon divergence in nats, between 0 and ln 2; its square root is a metric. O(k).

    With Jeffreys smoothing on both sides. Lin 1991, IEEE Trans. Inf. Theory 37.
    """
    p, q = smoothed(reference, smoothing), smoothed(current, smoothing)
    middle = np.log((p + q) / 2)
    return np.maximum(((p * (np.log(p) - middle) + q * (np.log(q) - middle)) / 2).sum(axis=-1), 0.0)


def ks_binned(reference: npt.ArrayLike, current: npt.ArrayLike) -> FloatArray:
    """Largest difference of the cumulative shares over the cells' order. O(k).

    A lower bound of the Kolmogorov-Smirnov statistic of the samples, equal to it when the largest difference
    lies on an edge. The cell for NaN is last, so a change of its share counts in full.
    """
    return np.abs(np.cumsum(_shares(current) - _shares(reference), axis=-1)).max(axis=-1)


def wasserstein_binned(reference: npt.ArrayLike, current: npt.ArrayLike, centres: npt.ArrayLike) -> FloatArray:
    """Wasserstein-1 distance of the finite values, with each cell's mass at its centre. O(k).

    The last cell (NaN) is left out. In the column's unit. Ramdas, Garcia Trillos & Cuturi 2017, Entropy 19.
    """
    steps = np.diff(np.asarray(centres, np.float64))
    p, q = _shares(np.asarray(reference)[..., :-1]), _shares(np.asarray(current)[..., :-1])
    return (np.abs(np.cumsum(q - p, axis=-1))[..., :-1] * steps).sum(axis=-1)


def chi_square(reference: npt.ArrayLike, current: npt.ArrayLike) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Chi-square statistic of homogeneity, and its degrees of freedom. O(k).

    Cells that expect fewer than 5 rows on the smaller side are pooled into one (Cochran 1954, Biometrics 10);
    if that one still expects fewer than 5, its part is shrunk accordingly rather than trusted.
    """
    r, c = np.broadcast_arrays(np.asarray(reference, np.float64), np.asarray(current, np.float64))
    n, m = r.sum(axis=-1, keepdims=True), c.sum(axis=-1, keepdims=True)
    share = (r + c) / np.maximum(n + m, 1)
    small = share * np.minimum(n, m) < MIN_EXPECTED
    r, c, share = (
        np.concatenate([np.where(small, 0, x), np.where(small, x, 0).sum(axis=-1, keepdims=True)], axis=-1)
        for x in (r, c, share)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        part = (r - n * share) ** 2 / (n * share) + (c - m * share) ** 2 / (m * share)
    part = np.where((share > 0) & (n > 0) & (m > 0), part, 0.0)
    part[..., -1] *= np.minimum(share * np.minimum(n, m) / MIN_EXPECTED, 1.0)[..., -1]
    return part.sum(axis=-1), np.maximum((share > 0).sum(axis=-1) - 1, 0)


def chi_square_test(reference: npt.ArrayLike, current: npt.ArrayLike) -> Significance:
    """`chi_square` of one pair of count vectors with its asymptotic p-value (Pearson 1900). O(k)."""
    statistic, freedom = chi_square(reference, current)
    p_value = float(stats.chi2.sf(statistic, freedom)) if freedom > 0 else 1.0
    return Significance(float(statistic), p_value)


def ks_test(reference: npt.ArrayLike, current: npt.ArrayLike) -> Significance:
    """Two-sample Kolmogorov-Smirnov test on the values that are numbers (Smirnov 1939). O(n log n).

    An empty side is no evidence: statistic 0, p-value 1.
    """
    x, y = _finite(reference), _finite(current)
    if not len(x) or not len(y):
        return Significance(0.0, 1.0)
    exact = max(len(x), len(y)) <= 10_000  # noqa: PLR2004
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # exact failed: asymptotic instead
        found: tuple[float, float] = tuple(stats.ks_2samp(x, y, method="auto" if exact else "asymp"))
    statistic, p_value = found
    return Significance(float(statistic), float(p_value))


def wasserstein(reference: npt.ArrayLike, current: npt.ArrayLike) -> float:
    """Wasserstein-1 distance of the values that are numbers, in the column's unit; 0 with an empty side. O(n log n)."""
    x, y = _finite(reference), _finite(current)
    return float(stats.wasserstein_distance(x, y)) if len(x) and len(y) else 0.0


def holm(p_values: npt.ArrayLike) -> FloatArray:
    """Adjusted p-values that control the family-wise error under any dependence. O(k log k).

    Holm 1979, Scandinavian Journal of Statistics 6.
    """
    p = _probabilities(p_values)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return _unsorted(np.minimum(adjusted, 1.0), order)


def benjamini_hochberg(p_values: npt.ArrayLike) -> FloatArray:
    """Adjusted p-values that control the false discovery rate under positive dependence. O(k log k).

    Benjamini & Hochberg 1995, JRSS B 57.
    """
    p = _probabilities(p_values)
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    return _unsorted(np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0), order)


def _shares(counts: npt.ArrayLike) -> FloatArray:
    array = np.asarray(counts, np.float64)
    return array / np.maximum(array.sum(axis=-1, keepdims=True), 1)


def _finite(values: npt.ArrayLike) -> FloatArray:
    array = np.asarray(values, np.float64)
    return array[np.isfinite(array)]


def _probabilities(p_values: npt.ArrayLike) -> FloatArray:
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or np.isnan(p).any() or ((p < 0) | (p > 1)).any():
        raise ConfigurationError("p-values must be one row of numbers in [0, 1]")
    return p


def _unsorted(values: FloatArray, order: npt.NDArray[np.intp]) -> FloatArray:
    result = np.empty_like(values)
    result[order] = values
    return result
