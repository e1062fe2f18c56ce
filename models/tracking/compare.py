"""Runs side by side on one self-contained HTML page.

Shows what differs in the configuration, the metrics with the best marked, overlaid curves, per-slice tables,
the confusions that differ most, and where each run came from. Reads nothing itself: it is given runs.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leitstand.errors import ConfigurationError
from leitstand.pages import write_page
from leitstand.types import utc_now
from models.tracking.curves import Chart, chart
from models.tracking.reading import LoggedRun, LoggedTable
from models.tracking.tables import confusion_rows, keyed_table, pivoted

__all__ = ["MAX_RUNS", "best_index", "compare", "config_rows", "flatten", "lower_is_better", "metric_rows"]

MAX_RUNS = 8
LOWER = frozenset(
    ["loss", "ece", "latency", "ms", "seconds", "size", "brier", "nll", "flip", "error", "errors", "perplexity", "gap"]
)
HIGHER = frozenset(
    ["accuracy", "f1", "precision", "recall", "auc", "auroc", "throughput", "agreement", "coverage", "consistency"]
)
PROGRESS = ("epoch", "learning_rate", "lr")  # where a run was, not how good it is: their last value says nothing
FACTS = ("profile", "seed", "commit", "data_digest", "weights_digest", "base_model", "base_digest")


def compare(runs: Sequence[LoggedRun], out: Path) -> Path:
    """Writes the page and returns its path.

    Args:
        runs: In the order of the page's columns.
        out: The HTML file to write.

    Raises:
        ConfigurationError: No run, more than eight, or one run twice.
    """
    if not 1 <= len(runs) <= MAX_RUNS or len({run.run_id for run in runs}) < len(runs):
        raise ConfigurationError(
            f"a comparison shows 1 to {MAX_RUNS} different runs, not {len(runs)}", hint="name each run once"
        )
    charts = _charts(runs)
    tables, confusion = _tables(runs)
    return write_page(
        out,
        "compare.html",
        search=Path(__file__).parent / "templates",
        title=f"{', '.join(dict.fromkeys(run.use_case for run in runs))}: {len(runs)} runs compared",
        runs=runs,
        made=utc_now(),
        facts=_facts(runs),
        config=config_rows(runs),
        metrics=metric_rows(runs),
        charts=charts,
        data=_script_json([plot.data for group in charts.values() for plot in group]),
        names_json=_script_json([run.run_id for run in runs]),
        tables=tables,
        confusion=confusion,
    )


def lower_is_better(metric: str) -> bool | None:
    """The direction of a metric by its name; None when neither end is better (epoch, learning rate, counts)."""
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    if words & LOWER:
        return True
    return False if words & HIGHER else None


def best_index(metric: str, values: Sequence[float | None]) -> int | None:
    """Position of the best value; None when there is no direction, no contest, or a tie."""
    lower = lower_is_better(metric)
    known = [value for value in values if value is not None and value == value]  # noqa: PLR0124  -- drops NaN
    if lower is None or len(known) < 2:  # noqa: PLR2004
        return None
    best = min(known) if lower else max(known)
    return None if known.count(best) > 1 else list(values).index(best)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def config_rows(runs: Sequence[LoggedRun]) -> list[dict[str, Any]]:
    """One row per configuration key: ``name``, ``values`` as text (None: not set), ``differs``."""
    configs = [flatten(run.config) for run in runs]
    rows = []
    for name in sorted({key for config in configs for key in config}):
        values = [_text(config[name]) if name in config else None for config in configs]
        rows.append({"name": name, "values": values, "differs": len(set(values)) > 1})
    return rows


def metric_rows(runs: Sequence[LoggedRun]) -> list[dict[str, Any]]:
    """One row per number of the summaries: ``name``, ``values``, ``best`` (index or None), ``lower``."""
    numbers = [
        {name: value for name, value in flatten(run.summary).items() if _is_number(value) and name not in PROGRESS}
        for run in runs
    ]
    names = sorted({name for values in numbers for name in values}, key=_metric_order)
    rows = []
    for name in names:
        values = [values.get(name) for values in numbers]
        rows.append({"name": name, "values": values, "best": best_index(name, values), "lower": lower_is_better(name)})
    return rows


def _metric_order(name: str) -> tuple[int, str]:
    parts = ("test", "val", "best", "train")
    return next((i for i, part in enumerate(parts) if name.startswith(part)), len(parts)), name


def _charts(runs: Sequence[LoggedRun]) -> dict[str, list[Chart]]:
    """Curves of one measure (`train/loss`, `val/loss`) share a plot; measures of quality come first."""
    measures: dict[str, dict[tuple[int, str], list[tuple[int, float]]]] = {}
    system: dict[str, dict[tuple[int, str], list[tuple[float, float]]]] = {}
    for index, run in enumerate(runs):
        for name, points in run.history.items():
            part, _, measure = name.rpartition("/")
            measures.setdefault(measure, {})[index, part] = points
        for name, samples in run.system.items():
            if name in SYSTEM_NAMES or name.startswith("gpu.0."):
                system.setdefault(SYSTEM_NAMES.get(name, name), {})[index, ""] = samples
    measures.pop("epoch", None)
    order = sorted(measures, key=lambda name: (lower_is_better(name) is None, "loss" not in name, name))
    plots = [chart(name, measures[name]) for name in order if any(len(p) > 1 for p in measures[name].values())]
    resources = [chart(name, system[name], x_label="seconds") for name in sorted(system)]
    groups = {"Curves": [plot for plot in plots if plot], "Machine": [plot for plot in resources if plot]}
    return {name: group for name, group in groups.items() if group}


SYSTEM_NAMES = {
    "cpu": "process CPU, % of one core",
    "proc.memory.rssMB": "process memory, MB",
    "memory_percent": "machine memory, %",
}


def _tables(runs: Sequence[LoggedRun]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Merged tables, and the confusion table's rows."""
    merged, confusion = [], []
    for name in dict.fromkeys(name for run in runs for name in run.tables):
        tables: list[LoggedTable | None] = [run.tables.get(name) for run in runs]
        if rows := confusion_rows(tables):
            confusion = rows
        elif table := keyed_table([table and pivoted(table) for table in tables]):
            merged.append({"name": name, **table})
    for table in merged:
        for row in table["rows"]:
            for cell in row["cells"]:
                cell["best"] = best_index(cell["column"], cell["values"])
    return merged, confusion


def _facts(runs: Sequence[LoggedRun]) -> list[tuple[str, list[str]]]:
    known = [flatten(run.config) | flatten(run.summary) for run in runs]
    facts: list[tuple[str, list[str]]] = [
        ("state", [run.state + ("" if run.complete else ", file cut off") for run in runs]),
        ("started", [f"{run.started:%Y-%m-%d %H:%M:%S} UTC" for run in runs]),
        ("duration", [_duration(run.duration_s) for run in runs]),
    ]
    facts += [(name.replace("_", " "), [_text(values.get(name, "–")) for values in known]) for name in FACTS]
    facts += [
        ("tags", [", ".join(run.tags) or "–" for run in runs]),
        ("host", [run.host or "–" for run in runs]),
        ("mean process CPU", [_statistic(run, "cpu", "mean", "%") for run in runs]),
        ("peak process memory", [_statistic(run, "proc.memory.rssMB", "max", " MB") for run in runs]),
        ("mean GPU use", [_statistic(run, "gpu.0.gpu", "mean", "%") for run in runs]),
        ("artifacts", [", ".join(f"{a.name} ({a.size_bytes / 1e6:.1f} MB)" for a in run.artifacts) for run in runs]),
    ]
    return [(name, values) for name, values in facts if any(value not in ("–", "") for value in values)]


def _statistic(run: LoggedRun, name: str, kind: str, unit: str) -> str:
    values = [value for _, value in run.system.get(name, [])]
    if not values:
        return "–"
    return f"{max(values) if kind == 'max' else sum(values) / len(values):,.0f}{unit}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _script_json(value: Any) -> str:
    """JSON that is safe inside a script element, whatever the names hold."""
    return json.dumps(value).replace("<", "\\u003c")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
