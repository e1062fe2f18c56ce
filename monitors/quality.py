"""How often a model is right: estimated from its own confidence, and measured on the labels that came late.

The estimates need no labels and hold only while the scores stay calibrated, so they follow covariate and prior
shift that the model notices, and are blind to concept drift: read them together with the drift scores. The
measured accuracy needs no such belief, but its rows choose themselves.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from leitstand.types import Interval, Metric

__all__ = [
    "MeasuredAccuracy",
    "average_threshold",
    "estimated_accuracy",
    "estimated_accuracy_by_threshold",
    "estimated_accuracy_from_sums",
    "measured_accuracy",
    "measured_accuracy_from_counts",
    "wilson_interval",
]

FloatArray = npt.NDArray[np.floating]

LEVEL = 0.95


@dataclass(frozen=True)
class MeasuredAccuracy:
    """Accuracy on rows whose labels arrived, and what it says of the rest.

    Attributes:
        raw: On the labelled rows, with its Wilson interval.
        corrected: For all rows, labelled rows weighted to the window's scores; None with fewer than 2 labels.
        bounds: What the window's accuracy can be whatever the unlabelled rows hold (Manski 2003): no assumption.
        labelled: Rows with a label.
        rows: Rows of the window.
    """

    raw: Metric
    corrected: Metric | None
    bounds: Interval
    labelled: int
    rows: int


def wilson_interval(hits: float, rows: float, level: float = LEVEL) -> Interval:
    """Wilson score interval of a share; [0, 1] for no rows. Wilson 1927, JASA 22. O(1)."""
    if rows <= 0:
        return Interval(low=0.0, high=1.0, level=level)
    z = float(stats.norm.ppf((1 + level) / 2))
    share, room = hits / rows, z * z / rows
    centre = (share + room / 2) / (1 + room)
    half = z / (1 + room) * float(np.sqrt(share * (1 - share) / rows + room / (4 * rows)))
    return Interval(low=max(0.0, centre - half), high=min(1.0, centre + half), level=level)


def estimated_accuracy(
    scores: FloatArray, *, offset: float = 0.0, offset_variance: float = 0.0, level: float = LEVEL
) -> Metric:
    """Confidence-based performance estimation (CBPE): the mean calibrated score, plus `offset`. O(n).

    The interval covers the accuracy on exactly these rows: given the scores, the number of right answers is
    Poisson-binomial. NannyML's CBPE; Guillory et al. 2021, ICCV (differences of confidences).

    Args:
        scores: Calibrated probability of each answer; NaN is left out.
        offset: Accuracy minus mean score on a labelled reference: what calibration got wrong on average.
        offset_variance: Squared standard error of `offset`.
        level: Of the interval.
    """
    known = np.asarray(scores, np.float64)
    known = known[np.isfinite(known)]
    sums = float(known.sum()), float((known * (1 - known)).sum())
    return estimated_accuracy_from_sums(*sums, len(known), offset=offset, offset_variance=offset_variance, level=level)


def estimated_accuracy_from_sums(
    total: float, variance: float, rows: int, *, offset: float = 0.0, offset_variance: float = 0.0,
    level: float = LEVEL,
) -> Metric:  # fmt: skip
    """`estimated_accuracy` from ``sum s``, ``sum s (1 - s)`` and the number of scores. O(1)."""
    if not rows:
        return Metric(name="estimated_accuracy", value=None, examples=0)
    value = float(np.clip(total / rows + offset, 0, 1))
    half = float(stats.norm.ppf((1 + level) / 2) * np.sqrt(max(variance, 0) / rows**2 + offset_variance))
    interval = Interval(low=max(0.0, value - half), high=min(1.0, value + half), level=level)
    return Metric(name="estimated_accuracy", value=value, examples=rows, interval=interval)


def average_threshold(scores: FloatArray, correct: npt.ArrayLike) -> float:
    """The score below which as many labelled reference rows lie as are wrong. O(n log n).

    Average thresholded confidence (ATC), Garg et al. 2022, ICLR.
    """
    wrong = 1 - float(np.mean(np.asarray(correct, bool)))
    return float(np.quantile(scores, wrong)) if wrong > 0 else float(np.min(scores))


def estimated_accuracy_by_threshold(scores: FloatArray, threshold: float, *, level: float = LEVEL) -> Metric:
    """ATC: the share of scores at or above `average_threshold`, with its Wilson interval. O(n).

    The interval covers sampling of the window, and neither the error of the threshold nor that of the idea.
    """
    known = np.asarray(scores, np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return Metric(name="estimated_accuracy_atc", value=None, examples=0)
    hits = int((known >= threshold).sum())
    return Metric(
        name="estimated_accuracy_atc", value=hits / len(known), examples=len(known),
        interval=wilson_interval(hits, len(known), level),
    )  # fmt: skip


def measured_accuracy(
    correct: npt.ArrayLike, labelled: npt.ArrayLike, scores: FloatArray, *, strata: int = 5, level: float = LEVEL
) -> MeasuredAccuracy:
    """`measured_accuracy_from_counts` over `strata` quantile cells of the score. O(n log n).

    Args:
        correct: (n,) bool; meaningful where `labelled`.
        labelled: (n,) bool.
        scores: (n,) calibrated scores of all rows.
        strata: Most score strata.
        level: Of the intervals.
    """
    known = np.asarray(labelled, bool)
    right = np.asarray(correct, bool) & known
    values = np.asarray(scores, np.float64)
    edges = np.unique(np.nanquantile(values, np.linspace(0, 1, strata + 1)[1:-1])) if len(values) else np.zeros(0)
    cells = np.searchsorted(edges, values)
    rows, labels, hits = (np.bincount(cells[mask], minlength=len(edges) + 1) for mask in (known | True, known, right))
    return measured_accuracy_from_counts(rows, labels, hits, level=level)


def measured_accuracy_from_counts(
    rows: npt.ArrayLike, labelled: npt.ArrayLike, right: npt.ArrayLike, *, level: float = LEVEL
) -> MeasuredAccuracy:
    """Accuracy on the labelled rows; corrected for labels that depend on the score; and bounds without beliefs.

    People correct answers they doubt, so labelled rows are not like the rest. Post-stratification by score
    (Little 1993, JASA 88) corrects what depends on the score alone. It cannot correct labels that arrive because
    an answer was wrong, at the same score: nothing can, and `bounds` says how far that could reach. Strata with
    fewer than 2 labels are merged with their neighbour. O(strata).

    Args:
        rows: Rows per score stratum, in the order of the score.
        labelled: Rows with a label, per stratum.
        right: Rows whose label is the predicted one, per stratum.
        level: Of the intervals.
    """
    cells = [np.asarray(x, np.float64) for x in (rows, labelled, right)]
    total, count, hits = (int(x.sum()) for x in cells)
    raw = Metric(
        name="measured_accuracy", value=hits / count if count else None, examples=count,
        interval=wilson_interval(hits, count, level) if count else None,
    )  # fmt: skip
    low, high = (hits / total, (hits + total - count) / total) if total else (0.0, 1.0)
    corrected = _stratified(_merged(*cells), level) if count > 1 else None
    return MeasuredAccuracy(raw, corrected, Interval(low=low, high=high, level=1.0), count, total)


def _stratified(cells: list[npt.NDArray], level: float) -> Metric:
    rows, labelled, right = cells
    share = rows / rows.sum()
    rate = (right + 0.5) / (labelled + 1)  # no stratum is perfect for want of rows
    value = float((share * right / labelled).sum())
    half = float(stats.norm.ppf((1 + level) / 2) * np.sqrt((share**2 * rate * (1 - rate) / labelled).sum()))
    interval = Interval(low=max(0.0, value - half), high=min(1.0, value + half), level=level)
    return Metric(name="measured_accuracy_corrected", value=value, examples=int(labelled.sum()), interval=interval)


def _merged(*cells: npt.NDArray) -> list[npt.NDArray]:
    """The strata, merged with the next (the last with the one before) until each holds at least 2 labels."""
    _, labelled, _ = cells
    target, open_labels, current = np.zeros(len(labelled), np.intp), 0.0, 0
    for cell, labels in enumerate(labelled):
        target[cell] = current
        open_labels += labels
        if open_labels >= 2:  # noqa: PLR2004
            current, open_labels = current + 1, 0.0
    target[target == current] = max(current - 1, 0)
    return [np.bincount(target, values) for values in cells]
