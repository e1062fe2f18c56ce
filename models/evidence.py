"""The answers behind an evaluation report, read back for paired tests."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leitstand.errors import IntegrityError, NotFoundError
from leitstand.types import EvaluationReport
from models import metrics
from models.paired import Statistic

__all__ = ["Evidence", "load_evidence"]


@dataclass(frozen=True)
class Evidence:
    """One model's answers.

    Attributes:
        labels: (n,) int64 true labels, indices into the sorted names.
        predicted: (n,) int64.
        scores: (n,) float64 score of the predicted label.
        answered: (n,) float64, 1 where the model did not abstain.
        count: Number of different labels.
        units: Per (metric, slice): unit ids and values, ordered by id.
        unknown: Ids of units (a row's number is its id) whose true label the model cannot predict.
    """

    labels: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    answered: np.ndarray
    count: int
    units: dict[tuple[str, str | None], tuple[np.ndarray, np.ndarray]]
    unknown: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def rows(self, chosen: np.ndarray) -> "Evidence":
        """The answers to some rows, (k,) int64; units stay as they are."""
        parts = {name: getattr(self, name)[chosen] for name in ("labels", "predicted", "scores", "answered")}
        return replace(self, **parts)

    def statistic(self, metric: str) -> Statistic:
        """`metric` of the whole test set as a function of how often each row is drawn.

        Raises:
            KeyError: The metric is not computed from rows.
        """
        right = (self.predicted == self.labels).astype(np.float64)

        def score(weights: np.ndarray) -> np.ndarray:
            average = "macro" if metric == "macro_f1" else "weighted"
            return metrics.weighted_f1_scores(self.labels, self.predicted, self.count, weights, average)

        def answered(weights: np.ndarray) -> np.ndarray:
            return weights @ (right * self.answered) / np.maximum(weights @ self.answered, 1)

        return {
            "macro_f1": score,
            "weighted_f1": score,
            "ece": lambda weights: metrics.weighted_ece(self.scores, right, weights),
            "accuracy_answered": answered,
        }[metric]


def load_evidence(report: EvaluationReport, names: tuple[str, ...] | None = None) -> Evidence:
    """Reads the Parquet files that `report` names.

    Args:
        report: An evaluation.
        names: Label names in order; the sorted names found in the file when not given.

    Raises:
        NotFoundError: A file is missing.
        IntegrityError: A file lacks a column, or cannot be read.
    """
    rows = _read(report.predictions, ["row", "label", "predicted", "score", "abstain"]).sort_by("row")
    labels, predicted = rows["label"].to_pylist(), rows["predicted"].to_pylist()
    names = names or tuple(sorted({*labels, *predicted}))
    place = {name: index for index, name in enumerate(names)}
    units, unknown = _read_units(report.units) if report.units else ({}, np.empty(0, dtype=np.int64))
    return Evidence(
        labels=np.array([place[name] for name in labels], dtype=np.int64),
        predicted=np.array([place[name] for name in predicted], dtype=np.int64),
        scores=rows["score"].to_numpy().astype(np.float64),
        answered=1.0 - rows["abstain"].to_numpy().astype(np.float64),
        count=len(names),
        units=units,
        unknown=unknown,
    )


def _read_units(path: Path) -> tuple[dict[tuple[str, str | None], tuple[np.ndarray, np.ndarray]], np.ndarray]:
    table = _read(path, ["metric", "slice", "unit", "value"])
    keys = np.array([f"{m}\n{at}" for m, at in zip(*(table[c].to_pylist() for c in ("metric", "slice")), strict=True)])
    ids, values, found = table["unit"].to_numpy(), table["value"].to_numpy(), {}
    for key in np.unique(keys):
        metric, at = str(key).split("\n")
        inside = np.flatnonzero(keys == key)
        ordered = inside[np.argsort(ids[inside], kind="stable")]
        found[metric, at or None] = (ids[ordered], values[ordered])
    if "known" not in table.column_names:  # reports from before label sets could differ
        return found, np.empty(0, dtype=np.int64)
    return found, np.unique(ids[~table["known"].to_numpy()])


def _read(path: Path, columns: list[str]) -> pa.Table:
    hint = "evaluate the model again"
    try:
        table = pq.read_table(path)
        return table.select([*columns, *(name for name in table.column_names if name not in columns)])
    except FileNotFoundError as error:
        raise NotFoundError(f"The evaluation's file {path} is missing", hint=hint) from error
    except (OSError, pa.ArrowException, KeyError) as error:
        raise IntegrityError(f"{path} is not an evaluation's Parquet file: {error}", hint=hint) from error
