"""Which rows belong to which slice, and which metrics exist for a use case.

`catalog` is the authority: evaluation measures exactly these, and a gate may name exactly these.
"""

import numpy as np

from leitstand.usecase import UseCase

__all__ = [
    "GOLDEN", "LONG_FROM", "NEW_LABELS", "PERTURBATIONS", "PII_KINDS", "SHORT_UP_TO", "catalog", "group_masks",
    "length_masks",
]  # fmt: skip

GOLDEN = "golden"
NEW_LABELS = "labels:new"
"""Rows of labels that only feedback brought: measured on retraining snapshots, judged by `feedback.new_label_floor`."""
SHORT_UP_TO = 7
LONG_FROM = 17
PERTURBATIONS = ("lower_case", "no_punctuation", "extra_spaces", "polite_prefix")
PII_KINDS = ("name", "email", "phone", "iban", "card")

_ROW_METRICS = ("accuracy", "coverage", "accuracy_answered")
_WHOLE = ("macro_f1", "weighted_f1", "ece", "brier", "nll", "latency_p50_ms", "latency_p99_ms", "throughput", "size_mb")


def length_masks(texts: list[str]) -> dict[str, np.ndarray]:
    """Rows by number of words: up to 7 are short, from 17 on long, medium between."""
    words = np.array([len(text.split()) for text in texts], dtype=np.int64)
    short, long = words <= SHORT_UP_TO, words >= LONG_FROM
    return {"length:short": short, "length:medium": ~short & ~long, "length:long": long}


def group_masks(
    labels: np.ndarray, names: tuple[str, ...], groups: dict[str, tuple[str, ...]]
) -> dict[str, np.ndarray]:
    """Rows by the group of their true label: ``group:NAME``."""
    place = {name: index for index, name in enumerate(names)}
    return {
        f"group:{group}": np.isin(labels, [place[member] for member in members if member in place])
        for group, members in groups.items()
    }


def catalog(use_case: UseCase) -> dict[str, tuple[str | None, ...]]:
    """Every metric that an evaluation of `use_case` holds, with its slices; None is the whole test set."""
    groups = tuple(f"group:{name}" for name in use_case.evaluation.label_groups)
    perturbed = ("typos", "no_pii", "pii", *(f"pii:{kind}" for kind in PII_KINDS))
    sliced = (None, "length:short", "length:medium", "length:long", *groups, *perturbed)
    sliced += (GOLDEN,) if use_case.data.golden else ()
    known: dict[str, tuple[str | None, ...]] = {name: sliced for name in _ROW_METRICS}
    known |= {name: (None,) for name in _WHOLE}
    known["robustness_flip_rate"] = (None, *PERTURBATIONS, "any")
    if use_case.evaluation.counterfactuals:
        names = tuple(use_case.evaluation.counterfactuals.groups)
        pairs = tuple(f"{a}/{b}" for i, a in enumerate(names) for b in names[i + 1 :])
        known["counterfactual_flip_rate"] = (None, *pairs, *(f"within:{name}" for name in names))
        known["counterfactual_misroute_rate"] = (None, *pairs)
        known["counterfactual_bias"] = (None,)
        known["counterfactual_accuracy"] = names
        known["counterfactual_accuracy_gap"] = (None,)
    return known
