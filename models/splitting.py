"""Holds out a validation split from the training rows; pure, by seed."""

import numpy as np

__all__ = ["stratified_split"]


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on and to hold out, both sorted; each label gives about `fraction` of its rows.

    A label with two rows or more gives at least one and keeps at least one.

    Args:
        labels: (n,) int64.
        fraction: In (0, 1).
        seed: Equal seeds give equal splits.
    """
    random = np.random.default_rng([seed, 0x5711])
    held_out: list[np.ndarray] = []
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            held_out.append(rows[: min(max(round(fraction * len(rows)), 1), len(rows) - 1)])
    validation = np.sort(np.concatenate(held_out)) if held_out else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), validation), validation
