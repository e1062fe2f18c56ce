"""Evidently's default drift decisions on tables of the inference log."""

import json
import warnings
from typing import Any

import pyarrow as pa

NUMERIC = ("score", "characters", "words", "tokens", "digit_share", "upper_share", "non_ascii_share")


def evidently_decides(reference: pa.Table, window: pa.Table) -> dict[str, bool]:
    """Its preset's two readings: half of the columns drifted (its default for a data set), or any column."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    columns = [*NUMERIC, "label"]
    definition = DataDefinition(numerical_columns=list(NUMERIC), categorical_columns=["label"])
    with warnings.catch_warnings(action="ignore"):
        sides = [
            Dataset.from_pandas(t.select(columns).to_pandas(), data_definition=definition) for t in (window, reference)
        ]
        found: Any = json.loads(Report([DataDriftPreset()]).run(*sides).json())
    drifted = next(m["value"] for m in found["metrics"] if "DriftedColumnsCount" in str(m.get("metric_name", m)))
    return {"evidently preset": drifted["share"] >= 0.5, "evidently any column": drifted["count"] > 0}
