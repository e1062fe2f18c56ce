"""How far two sets of embeddings lie apart: pure functions on arrays (rows, dimensions).

Quadratic ones are for samples of a few thousand rows; `RandomFeatures`, centroid and Fréchet distance need only
sums, so a window of any size is compared from a sketch. Distances that are fitted on the reference (`Whitening`)
must be judged against rows that they were not fitted on, or every window looks far away:
`monitors.detection` splits the reference for that.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.spatial.distance import pdist
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from monitors.drift import Significance

__all__ = [
    "RandomFeatures",
    "Whitening",
    "centroid_distance",
    "domain_classifier",
    "frechet_distance",
    "gaussian_frechet",
    "knn_distance",
    "median_bandwidth",
    "mmd_linear_test",
    "mmd_permutation_test",
    "mmd_squared",
    "share_above",
]

FloatArray = npt.NDArray[np.floating]


def median_bandwidth(reference: FloatArray, *, most: int = 1000, seed: int = 0) -> float:
    """Median distance of two rows, the usual bandwidth of an RBF kernel; 1.0 when all rows are equal. O(most² d).

    Garreau, Jitkrittum & Kanagawa 2017, "Large sample analysis of the median heuristic".
    """
    rows = np.asarray(reference, np.float64)
    if len(rows) > most:
        rows = rows[np.random.default_rng(seed).choice(len(rows), most, replace=False)]
    median = float(np.median(pdist(rows))) if len(rows) > 1 else 0.0
    return median if median > 0 else 1.0


def mmd_squared(x: FloatArray, y: FloatArray, bandwidth: float) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel ``exp(-|a-b|² / 2 bandwidth²)``. O((n+m)² d).

    May be slightly negative. Gretton et al. 2012, JMLR 13, eq. 3. Needs two rows on each side; else 0.
    """
    kernel = _rbf(np.concatenate([x, y]), bandwidth)
    member = np.zeros((1, len(kernel)))
    member[0, : len(x)] = 1
    return float(_mmd_of(kernel, member)[0])


def mmd_permutation_test(
    x: FloatArray, y: FloatArray, bandwidth: float, *, permutations: int = 200, seed: int = 0
) -> Significance:
    """`mmd_squared` and the share of relabellings at least as large, ``(1 + hits) / (1 + permutations)``.

    Exact when rows are exchangeable; the kernel is computed once. O((n+m)² (d + permutations)).
    Gretton et al. 2012, JMLR 13; the added one: Phipson & Smyth 2010.
    """
    kernel = _rbf(np.concatenate([x, y]), bandwidth)
    member = np.zeros((permutations + 1, len(kernel)))
    member[:, : len(x)] = 1
    member[1:] = np.random.default_rng(seed).permuted(member[1:], axis=1)
    values = _mmd_of(kernel, member)
    hits = int((values[1:] >= values[0] - 1e-12).sum())
    return Significance(float(values[0]), (1 + hits) / (1 + permutations))


def mmd_linear_test(x: FloatArray, y: FloatArray, bandwidth: float, *, seed: int = 0) -> Significance:
    """Linear-time MMD² over disjoint quadruples, and its normal p-value. O((n+m) d), little memory.

    For windows too large for the quadratic test; per row it is much less powerful.
    Gretton et al. 2012, JMLR 13, section 6.
    """
    rng = np.random.default_rng(seed)
    pairs = min(len(x), len(y)) // 2
    if pairs < 2:  # noqa: PLR2004
        return Significance(0.0, 1.0)
    a, b = (rows[rng.permutation(len(rows))[: 2 * pairs]].astype(np.float64) for rows in (x, y))
    left = _kernel(a[::2], a[1::2], bandwidth) + _kernel(b[::2], b[1::2], bandwidth)
    terms = left - _kernel(a[::2], b[1::2], bandwidth) - _kernel(a[1::2], b[::2], bandwidth)
    spread = terms.std(ddof=1)
    if spread == 0:
        return Significance(float(terms.mean()), 1.0)
    return Significance(float(terms.mean()), float(stats.norm.sf(terms.mean() / (spread / np.sqrt(pairs)))))


@dataclass(frozen=True)
class RandomFeatures:
    """Random Fourier features: the difference of their means estimates MMD² of an RBF kernel from sums alone.

    Rahimi & Recht 2007, NeurIPS; as a two-sample test: Zhao & Meng 2015, Neural Computation 27.

    Attributes:
        frequencies: (dimensions, half the features), float32.
    """

    frequencies: npt.NDArray[np.float32]

    @classmethod
    def draw(cls, dimensions: int, bandwidth: float, *, features: int = 256, seed: int = 0) -> "RandomFeatures":
        """`features` of them (an even number), half cosines and half sines."""
        normal = np.random.default_rng(seed).standard_normal((dimensions, features // 2))
        return cls((normal / bandwidth).astype(np.float32))

    def transform(self, rows: FloatArray) -> npt.NDArray[np.float32]:
        """(rows, features); the scalar product of two rows estimates their kernel. O(n d features)."""
        angle = np.asarray(rows, np.float32) @ self.frequencies
        scale = np.float32(1 / np.sqrt(self.frequencies.shape[1]))
        return np.concatenate([np.cos(angle), np.sin(angle)], axis=1) * scale

    @staticmethod
    def mmd_squared(mean_x: FloatArray, mean_y: FloatArray) -> npt.NDArray[np.float64]:
        """Squared distance of mean features on the last axis; biased upwards by about ``1/n + 1/m``."""
        return ((np.asarray(mean_x, np.float64) - mean_y) ** 2).sum(axis=-1)


def domain_classifier(x: FloatArray, y: FloatArray, *, seed: int = 0, strength: float = 1.0) -> Significance:
    """AUC of a classifier that tells window from reference, on rows it did not see, and its one-sided p-value.

    Logistic regression (inverse L2 penalty `strength`) on standardised columns, fitted on one half of both
    sides and judged on the other. That split makes the p-value valid: given the fitted half, the scores of the
    other half are exchangeable when nothing changed, so the AUC is a Mann-Whitney statistic. Folds of a full
    cross-validation share rows, and their mean AUC has no such law. Classifier two-sample tests: Lopez-Paz &
    Oquab 2017, ICLR; Kim et al. 2021, Annals of Statistics 49. Cost: one fit, O((n+m) d²).

    Fewer than 4 rows on a side: 0.5 and p-value 1.
    """
    if min(len(x), len(y)) < 4:  # noqa: PLR2004
        return Significance(0.5, 1.0)
    rng = np.random.default_rng(seed)
    x, y = x[rng.permutation(len(x))], y[rng.permutation(len(y))]
    half_x, half_y = len(x) // 2, len(y) // 2
    train, test = np.concatenate([x[:half_x], y[:half_y]]), np.concatenate([x[half_x:], y[half_y:]])
    centre, scale = train.mean(axis=0), train.std(axis=0)
    scale[scale == 0] = 1.0
    model = LogisticRegression(C=strength, class_weight="balanced", solver="newton-cholesky", max_iter=50, tol=1e-3)
    model.fit((train - centre) / scale, np.repeat([0, 1], [half_x, half_y]))
    scores = model.decision_function((test - centre) / scale)
    split = len(x) - half_x
    result = stats.mannwhitneyu(scores[split:], scores[:split], alternative="greater", method="asymptotic")
    return Significance(float(result.statistic) / (split * (len(y) - half_y)), float(result.pvalue))


def centroid_distance(x: FloatArray, y: FloatArray) -> float:
    """Euclidean distance of the means. O((n+m) d)."""
    return float(np.linalg.norm(x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)))


def frechet_distance(x: FloatArray, y: FloatArray) -> float:
    """Squared Fréchet (Wasserstein-2) distance of the Gaussians fitted to both sides. O((n+m) d² + d³).

    Its bias grows with ``d/n``: compare it only with a threshold for the same sizes. Dowson & Landau 1982,
    J. Multivariate Analysis 12; for embeddings: Heusel et al. 2017, NeurIPS.
    """
    (mean_x, cov_x), (mean_y, cov_y) = ((r.mean(axis=0), np.cov(r, rowvar=False, bias=True)) for r in (x, y))
    return float(gaussian_frechet(mean_x, np.atleast_2d(cov_x), mean_y, np.atleast_2d(cov_y)))


def gaussian_frechet(mean_x: FloatArray, cov_x: FloatArray, mean_y: FloatArray, cov_y: FloatArray) -> npt.NDArray:
    """`frechet_distance` from means (..., d) and covariances (..., d, d). O(d³)."""
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(np.maximum(values, 0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_y @ root), 0)).sum(axis=-1)
    trace = np.trace(cov_x, axis1=-2, axis2=-1) + np.trace(cov_y, axis1=-2, axis2=-1)
    return np.maximum(((mean_x - mean_y) ** 2).sum(axis=-1) + trace - 2 * cross, 0.0)


@dataclass(frozen=True)
class Whitening:
    """Principal components of the reference at unit variance, and the distance of a row from that reference.

    Attributes:
        centre: (d,) mean.
        projection: (d, k); `rows - centre` times it has unit variance on the rows it was fitted on.
        residual_variance: Mean variance per dimension outside the k components.
    """

    centre: npt.NDArray[np.float32]
    projection: npt.NDArray[np.float32]
    residual_variance: float

    @classmethod
    def fit(cls, rows: FloatArray, components: int) -> "Whitening":
        """At most `components`, at most as many as the rows support. O(n d² + d³)."""
        data = np.asarray(rows, np.float64)
        centre = data.mean(axis=0)
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(data, rowvar=False, bias=True)))
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        count = max(1, min(components, (len(data) - 1) // 4, int((values > 1e-9 * max(values[0], 1e-12)).sum())))
        rest = float(values[count:].mean()) if count < len(values) else 0.0
        scale = 1 / np.sqrt(np.maximum(values[:count], 1e-12))
        return cls(centre.astype(np.float32), (vectors[:, :count] * scale).astype(np.float32), rest)

    def transform(self, rows: FloatArray) -> npt.NDArray[np.float32]:
        """(rows, k) whitened coordinates. O(n d k)."""
        return np.asarray((np.asarray(rows, np.float32) - self.centre) @ self.projection, np.float32)

    def distance(self, rows: FloatArray, whitened: FloatArray | None = None) -> npt.NDArray[np.float32]:
        """Mahalanobis distance per row, with one variance for all directions outside the components. O(n d).

        Lee et al. 2018, NeurIPS (Mahalanobis); probabilistic PCA: Tipping & Bishop 1999, JRSS B 61.
        """
        centred = np.asarray(rows, np.float32) - self.centre
        z = centred @ self.projection if whitened is None else whitened
        variance = 1 / np.maximum((self.projection**2).sum(axis=0), 1e-12)
        inside = (z**2) @ variance
        outside = np.maximum(np.einsum("ij,ij->i", centred, centred) - inside, 0)
        floor = max(self.residual_variance, 1e-3 * float(variance.min()), 1e-9)
        return np.asarray(np.sqrt((z**2).sum(axis=1) + outside / floor), np.float32)


def knn_distance(rows: FloatArray, reference: FloatArray, neighbours: int = 10) -> npt.NDArray[np.float64]:
    """Distance of each row to its k-th nearest reference row: large for what the reference does not cover.

    Sun et al. 2022, ICML. The rows must not be among the reference's. O(n m d) by brute force.
    """
    index = NearestNeighbors(n_neighbors=min(neighbours, len(reference)), algorithm="brute").fit(reference)
    return index.kneighbors(rows)[0][:, -1]


def share_above(reference_scores: npt.ArrayLike, scores: npt.ArrayLike, quantile: float = 0.95) -> float:
    """Share of `scores` above that quantile of the reference's; ``1 - quantile`` when nothing changed. O(n log n).

    Both must be out-of-sample scores. 0 for an empty window.
    """
    reference, window = np.asarray(reference_scores, np.float64), np.asarray(scores, np.float64)
    return float((window > np.quantile(reference, quantile)).mean()) if len(window) else 0.0


def _kernel(a: FloatArray, b: FloatArray, bandwidth: float) -> npt.NDArray[np.float64]:
    return np.exp(-((a - b) ** 2).sum(axis=1) / (2 * bandwidth**2))


def _rbf(rows: FloatArray, bandwidth: float) -> npt.NDArray[np.float64]:
    data = np.asarray(rows, np.float64)
    squares = (data**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * data @ data.T, 0)
    return np.exp(-distances / (2 * bandwidth**2))


def _mmd_of(kernel: npt.NDArray[np.float64], member: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """MMD² of each row of `member` (1: first side, 0: second), all sides of equal sizes."""
    n = int(member[0].sum())
    m = len(kernel) - n
    if min(n, m) < 2:  # noqa: PLR2004
        return np.zeros(len(member))
    product = member @ kernel
    inside = np.einsum("ij,ij->i", product, member)
    row_sums = kernel.sum(axis=0)
    cross = member @ row_sums - inside
    outside = kernel.sum() - inside - 2 * cross
    return (inside - n) / (n * (n - 1)) + (outside - m) / (m * (m - 1)) - 2 * cross / (n * m)
