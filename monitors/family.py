"""The family of detectors whose false alarms are controlled together, each a function of summed features.

`statistics` compares windows with references on the last axis of their sums, many at once. A larger value is
always more drift; what is large is learned by `monitors.calibration` from the same function.

| family | column | detectors |
|---|---|---|
| input, prediction | numeric | psi, ks, wasserstein |
| input, prediction | categorical | jensen_shannon, chi_square |
| embedding | embedding | mmd, centroid, frechet, ood_share (rise only), ood_ks; domain_auc (`monitors.detection`) |
| label | probabilities | label_shift |
| quality | score | confidence_drop (fall only) |
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from monitors import drift
from monitors.embedding_drift import RandomFeatures, gaussian_frechet
from monitors.features import EmbeddingPlan, FeaturePlan

__all__ = ["Detector", "family", "observed_rows", "statistics"]

FloatArray = npt.NDArray[np.float64]
Kind = Literal["input", "embedding", "prediction", "label", "quality"]


@dataclass(frozen=True)
class Detector:
    """One member of the family.

    Attributes:
        name: Of the statistic.
        column: That it looks at.
        family: What it speaks of.
        rows: Group of features whose sum is the number of rows it was computed on.
        exponent: Without drift the statistic shrinks like ``(1/n + 1/m) ** exponent``.
    """

    name: str
    column: str
    family: Kind
    rows: str
    exponent: float


def family(plan: FeaturePlan) -> tuple[Detector, ...]:
    """All detectors that the reference supports, in the order of `statistics`."""
    found: list[Detector] = []

    def add(column: str, kind: Kind, rows: str, *names: tuple[str, float]) -> None:
        found.extend(Detector(name, column, kind, rows, exponent) for name, exponent in names)

    for column in plan.bins:
        kind: Kind = "prediction" if column in plan.columns.prediction else "input"
        add(column, kind, f"cells:{column}", ("psi", 1.0), ("ks", 0.5), ("wasserstein", 0.5))
    for column in plan.categories:
        kind = "prediction" if column in plan.columns.prediction else "input"
        add(column, kind, f"cells:{column}", ("jensen_shannon", 1.0), ("chi_square", 0.0))
    if plan.embedding:
        names = (("mmd", 1.0), ("centroid", 0.5), ("frechet", 1.0), ("ood_share", 0.5), ("ood_ks", 0.5))
        add("embedding", "embedding", "embedding:rows", *names)
    if plan.probabilities:
        add("probabilities", "label", "probabilities:rows", ("label_shift", 0.5))
    if plan.columns.score:
        add(plan.columns.score, "quality", "score:rows", ("confidence_drop", 0.5))
    return tuple(found)


def observed_rows(plan: FeaturePlan, detectors: tuple[Detector, ...], sums: FloatArray) -> FloatArray:
    """Rows (..., detectors) that each one had: a column may be empty where nobody looked."""
    return np.stack([sums[..., plan.slices[detector.rows]].sum(axis=-1) for detector in detectors], axis=-1)


def statistics(plan: FeaturePlan, reference: FloatArray, current: FloatArray) -> FloatArray:
    """(..., detectors) statistics of `current` sums against `reference` sums, both (..., features).

    O(features) per pair, and O(k³) for the Fréchet distance of k whitened coordinates.
    """
    values: list[FloatArray] = []
    for column, bins in plan.bins.items():
        r, c = _both(plan, f"cells:{column}", reference, current)
        values += [drift.psi(r, c), drift.ks_binned(r, c), drift.wasserstein_binned(r, c, bins.centres)]
    for column in plan.categories:
        r, c = _both(plan, f"cells:{column}", reference, current)
        values += [drift.jensen_shannon(r, c), drift.chi_square(r, c)[0]]
    if plan.embedding:
        values += _embedding(plan, plan.embedding, reference, current)
    if plan.probabilities:
        r, c = _means(plan, "probabilities", reference, current)
        values.append(np.abs(r - c).sum(axis=-1) / 2)
    if plan.columns.score:
        r, c = _means(plan, "score", reference, current)
        values.append((r - c)[..., 0])
    return np.stack(np.broadcast_arrays(*values), axis=-1) if values else np.zeros((0,))


def _embedding(plan: FeaturePlan, fitted: EmbeddingPlan, r: FloatArray, c: FloatArray) -> list[FloatArray]:
    random = _means(plan, "embedding", r, c, "random")
    centre = _means(plan, "embedding", r, c, "mean")
    gaussians = [_gaussian(plan, fitted, sums) for sums in (r, c)]
    cells = _both(plan, "cells:distance", r, c)
    # The last quantile bin, and what lies above the reference's largest distance.
    far = [x[..., -3:-1].sum(axis=-1) / np.maximum(x.sum(axis=-1), 1) for x in cells]
    return [
        RandomFeatures.mmd_squared(*random),
        np.linalg.norm(centre[0] - centre[1], axis=-1),
        gaussian_frechet(*gaussians[0], *gaussians[1]),
        far[1] - far[0],
        drift.ks_binned(*cells),
    ]


def _gaussian(plan: FeaturePlan, fitted: EmbeddingPlan, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
    rows = np.maximum(sums[..., plan.slices["embedding:rows"]], 1)
    mean = sums[..., plan.slices["embedding:white"]] / rows
    i, j = np.triu_indices(fitted.moments)
    second = np.empty((*mean.shape, fitted.moments))
    second[..., i, j] = second[..., j, i] = sums[..., plan.slices["embedding:moments"]] / rows
    return mean, second - mean[..., :, None] * mean[..., None, :]


def _both(plan: FeaturePlan, key: str, r: FloatArray, c: FloatArray) -> tuple[FloatArray, FloatArray]:
    return r[..., plan.slices[key]], c[..., plan.slices[key]]


def _means(
    plan: FeaturePlan, group: str, r: FloatArray, c: FloatArray, part: str = "mean"
) -> tuple[FloatArray, FloatArray]:
    rows = [np.maximum(x[..., plan.slices[f"{group}:rows"]], 1) for x in (r, c)]
    values = _both(plan, f"{group}:{part}", r, c)
    return values[0] / rows[0], values[1] / rows[1]
