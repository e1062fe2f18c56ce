"""Thresholds from resampling the reference, so that a family of detectors raises false alarms at a given rate.

For each window size of a grid, references and windows are redrawn many times from the reference's own rows, both
sides, because the reference is a sample too; all statistics of one redraw are kept together, so their dependence
is. The level per detector at which the family alarms at the wanted rate is the quantile of the smallest p-value
(min-P; Westfall & Young 1993, "Resampling-Based Multiple Testing"). A rate of one in 720 checks lies in the
tails, so each tail is smoothed with a generalised Pareto distribution (Pickands 1975, Annals of Statistics 3) by
probability-weighted moments (Hosking & Wallis 1987, Technometrics 29), never below what the redraws showed; the
quantile of the smallest p-value is counted on redraws that the tails were not fitted to.

A cell that no reference row is in would make the first row in it infinitely surprising; its share is drawn from
its posterior under a Jeffreys prior instead. Rows that depend on their neighbours are redrawn in blocks of
consecutive rows (Carlstein 1986, Annals of Statistics 14).

Cost per window size: resamples × population × features multiply-adds; memory: resamples × features × 8 bytes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monitors.family import family, statistics
from monitors.features import FeaturePlan

__all__ = ["Calibration", "calibrate", "pareto_tail"]

FloatArray = npt.NDArray[np.float64]

CHUNK = 250
TAIL = 0.05
LEVELS = np.concatenate([np.linspace(1, TAIL, 39), np.geomspace(TAIL, 1e-9, 48)[1:]])
SUPPORT = 20
JEFFREYS = 0.5
SHAPE_BOUNDS = (-0.3, 0.5)
GAUSSIAN_ABOVE = 16.0


@dataclass(frozen=True)
class Calibration:
    """Null distributions per window size.

    Attributes:
        sizes: (G,) rising window sizes.
        reference_rows: Rows of the reference that windows are compared with.
        quantiles: (G, K, levels) statistics, divided by ``(1/n + 1/m) ** exponent``, exceeded with probability
            `LEVELS` when nothing changed.
        exponents: (K,).
        smallest: (G, levels): the level per detector at which the family alarms with probability `LEVELS`.
    """

    sizes: npt.NDArray[np.int64]
    reference_rows: int
    quantiles: FloatArray
    exponents: FloatArray
    smallest: FloatArray

    def p_values(self, values: FloatArray, rows: FloatArray) -> FloatArray:
        """p-value per detector, for (K,) statistics of windows that each had `rows` rows; at least 1e-9. O(K)."""
        scaled = values / self._scale(rows)
        tables = [self._table(k, rows[k]) for k in range(len(values))]
        found = [np.interp(x, table, np.log(LEVELS)) for x, table in zip(scaled, tables, strict=True)]
        return np.exp(np.asarray(found))

    def thresholds(self, level: float, rows: FloatArray) -> FloatArray:
        """(K,) statistics whose p-value is `level`. O(K)."""
        at = np.log(max(level, LEVELS[-1]))
        found = [np.interp(at, np.log(LEVELS)[::-1], self._table(k, size)[::-1]) for k, size in enumerate(rows)]
        return np.asarray(found) * self._scale(rows)

    def level(self, alpha: float, rows: float, *, others: int = 0) -> float:
        """The level per detector at which the family of a window of `rows` alarms with probability `alpha`.

        Args:
            alpha: Wanted rate of the family per check.
            rows: Of the window.
            others: Further tests with exact p-values that join the family (Bonferroni).
        """
        table = np.log(self._between(self.smallest, rows))
        low, high = np.log(LEVELS[-1]), np.log(alpha)
        for _ in range(60):
            middle = (low + high) / 2
            rate = np.exp(np.interp(middle, table[::-1], np.log(LEVELS)[::-1])) + others * np.exp(middle)
            low, high = (middle, high) if rate < alpha else (low, middle)
        return float(np.exp(low))

    def _scale(self, rows: FloatArray) -> FloatArray:
        return (1 / self.reference_rows + 1 / np.maximum(rows, 1)) ** self.exponents

    def _table(self, detector: int, rows: float) -> FloatArray:
        return _rising(self._between(self.quantiles[:, detector], rows))

    def _between(self, tables: FloatArray, rows: float) -> FloatArray:
        """Linear in the logarithm of the size; the nearest size's table outside the grid."""
        place = np.interp(np.log(max(rows, 1)), np.log(self.sizes), np.arange(len(self.sizes)))
        low = int(place)
        high = min(low + 1, len(self.sizes) - 1)
        return tables[low] + (place - low) * (tables[high] - tables[low])


def calibrate(
    plan: FeaturePlan, population: npt.NDArray[np.float32], reference_rows: int, sizes: npt.NDArray[np.int64], *,
    resamples: int, block_rows: int, seed: int,
) -> Calibration:  # fmt: skip
    """Null distributions of all detectors of `plan` for windows of each of `sizes`.

    Args:
        plan: Layout of the features.
        population: (N, features) reference rows to draw from, in the order of time; not those that the plan was
            fitted on.
        reference_rows: Rows of the compared reference; at least N.
        sizes: Window sizes, rising.
        resamples: Redraws per size.
        block_rows: 1 for independent rows, else how many neighbours are redrawn together.
        seed: Of the redraws.
    """
    detectors = family(plan)
    exponents = np.array([detector.exponent for detector in detectors])
    blocks = len(population) // block_rows
    grouped = population[: blocks * block_rows].reshape(blocks, block_rows, -1).sum(axis=1)
    empty = _empty_cells(plan, population)
    references = _redraw(grouped, reference_rows / block_rows, resamples, np.random.default_rng([seed, 0]))
    tables, smallest = [], []
    for index, size in enumerate(sizes.tolist()):
        rng = np.random.default_rng([seed, index + 1])
        windows = _redraw(grouped, size / block_rows, resamples, rng)
        share = rng.gamma(JEFFREYS, 1 / (len(grouped) + 1), (resamples, len(empty)))
        windows[:, empty] = rng.poisson(share * size)
        scaled = _statistics(plan, references, windows) / (1 / reference_rows + 1 / size) ** exponents
        table, least = _tables(scaled)
        tables.append(table)
        smallest.append(least)
    return Calibration(sizes, reference_rows, np.stack(tables), exponents, np.stack(smallest))


def pareto_tail(values: FloatArray, share: float, levels: FloatArray) -> FloatArray:
    """Values exceeded with the probabilities `levels` <= `share`, from a Pareto fit to the top `share`. O(n log n).

    The shape is kept within [-0.3, 0.5]: a tail is neither cut short nor made endless by a few redraws.
    """
    ordered = np.sort(values)
    count = max(int(len(ordered) * share), 2)
    start, excess = ordered[-count - 1], ordered[-count:] - ordered[-count - 1]
    mean = excess.mean()
    if mean <= 0:
        return np.full(len(levels), start)
    weights = (count - np.arange(1, count + 1)) / (count - 1)
    moment = (weights * excess).mean()
    ratio = mean / (mean - 2 * moment) if mean > 2 * moment else np.inf
    shape = float(np.clip(2 - ratio, *SHAPE_BOUNDS))
    scale = mean * (1 - shape)
    rest = np.asarray(levels) / share
    growth = -np.log(rest) if abs(shape) < 1e-6 else (rest**-shape - 1) / shape  # noqa: PLR2004
    return np.asarray(start + scale * growth, np.float64)


def _quantiles(values: FloatArray) -> FloatArray:
    body = LEVELS >= TAIL
    seen = np.asarray(np.quantile(values, 1 - LEVELS, method="higher"), np.float64)
    tail = np.maximum(seen[~body], pareto_tail(values, TAIL, LEVELS[~body]))
    return np.asarray(np.concatenate([seen[body], tail]), np.float64)


def _tables(scaled: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Tails per detector from one half of the redraws; how small their smallest p-value gets, from the other.

    On the other half, an error of a tail shows as too many small p-values and is made up for by the level.
    """
    half = len(scaled) // 2
    table = np.stack([_quantiles(column) for column in scaled[:half].T])
    pairs = zip(scaled[half:].T, table, strict=True)
    logs = np.min([np.interp(column, _rising(row), np.log(LEVELS)) for column, row in pairs], axis=0)
    return table, _smallest(np.exp(logs))


def _smallest(least: FloatArray) -> FloatArray:
    """Levels below which the smallest p-value falls with probability `LEVELS`, from its redraws.

    Beyond what `SUPPORT` redraws show it is taken to be proportional, as it is for a union of rare events.
    """
    known = min(SUPPORT / len(least), 1.0)
    levels = np.maximum(LEVELS, known)
    return np.asarray(np.quantile(least, levels, method="lower") * (LEVELS / levels), np.float64)


def _rising(table: FloatArray) -> FloatArray:
    """Strictly rising, so that a value is above a threshold exactly when its p-value is below the level."""
    steps = np.arange(len(table)) * 1e-12 * max(1e-3, float(np.abs(table).max()))
    return np.asarray(np.maximum.accumulate(table) + steps, np.float64)


def _empty_cells(plan: FeaturePlan, population: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    cells = np.concatenate([np.arange(part.start, part.stop) for key, part in plan.slices.items() if "cells" in key])
    return cells[population[:, cells].sum(axis=0) == 0]


def _redraw(
    grouped: npt.NDArray[np.float32], draws: float, resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """(resamples, features) sums over `draws` redrawn rows of `grouped`."""
    sums = np.empty((resamples, grouped.shape[1]), np.float32)
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        sums[start : start + count] = _weights(rng, count, len(grouped), draws) @ grouped
    return sums


def _statistics(plan: FeaturePlan, references: npt.NDArray[np.float32], windows: npt.NDArray[np.float32]) -> FloatArray:
    parts = (
        statistics(plan, references[i : i + CHUNK].astype(np.float64), windows[i : i + CHUNK].astype(np.float64))
        for i in range(0, len(windows), CHUNK)
    )
    return np.concatenate(list(parts))


def _weights(rng: np.random.Generator, count: int, rows: int, draws: float) -> npt.NDArray[np.float32]:
    """(count, rows) how often each row is drawn; multinomial, or its Gaussian limit for many draws per row."""
    mean = draws / rows
    if mean > GAUSSIAN_ABOVE:
        noise = rng.standard_normal((count, rows), np.float32)
        noise -= noise.mean(axis=1, keepdims=True)
        return np.maximum(np.float32(mean) + np.float32(np.sqrt(mean)) * noise, 0)
    whole = max(round(draws), 1)
    picks = rng.integers(0, rows, (count, whole), np.int32) + (np.arange(count, dtype=np.int64) * rows)[:, None]
    return np.bincount(picks.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float32)
