"""The gate report: one JSON record for machines, one self-contained HTML page for people.

It shows what was decided and what was measured. It decides nothing.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leitstand.files import write_text
from leitstand.pages import write_page
from leitstand.types import EvaluationReport, GateOutcome, GateReport, Metric, ReliabilityBin
from leitstand.usecase import UseCase
from models.gate_rules import show

__all__ = ["write_gate_report"]

_TEMPLATES = Path(__file__).parent / "templates"
_CLASS = {GateOutcome.PASS: "pass", GateOutcome.FAIL: "fail", GateOutcome.INSUFFICIENT: "open"}
_SIDE = 260
_CONFUSIONS = 12


@dataclass(frozen=True)
class _Bar:
    """A number with its interval as percentages of a bar's width."""

    value: float
    low: float
    high: float


def write_gate_report(
    gate_report: GateReport, evaluation: EvaluationReport, use_case: UseCase, out: Path
) -> dict[str, Path]:
    """Writes ``gate_report.json`` and ``gate_report.html`` into `out` and returns them by name.

    Args:
        gate_report: The decision.
        evaluation: The candidate's numbers.
        use_case: Gives title, and groups of the counterfactual test.
        out: Folder; made when missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    record = write_text(out / "gate_report.json", gate_report.model_dump_json(indent=1))
    page = write_page(
        out / "gate_report.html",
        "gate_report.html",
        search=_TEMPLATES,
        title=f"Gates: {use_case.title}",
        report=gate_report,
        evaluation=evaluation,
        css=_CLASS,
        show=show,
        tiles=_tiles(evaluation),
        slices=_slices(evaluation),
        robustness=_rates(evaluation, "robustness_flip_rate"),
        bias=_bias(evaluation, use_case),
        diagram=_diagram(evaluation.reliability),
        confusions=_confusions(evaluation),
    )
    return {"gate_report.json": record, "gate_report.html": page}


def _tiles(evaluation: EvaluationReport) -> list[tuple[str, str]]:
    units = {"latency_p50_ms": " ms", "latency_p99_ms": " ms", "throughput": " texts/s", "size_mb": " MB"}
    names = {
        "accuracy": "accuracy", "macro_f1": "macro F1", "weighted_f1": "weighted F1", "ece": "calibration error",
        "brier": "Brier score", "nll": "log loss", "coverage": "answered", "accuracy_answered": "accuracy if answered",
        "latency_p50_ms": "latency p50", "latency_p99_ms": "latency p99", "throughput": "batch throughput",
        "size_mb": "size",
    }  # fmt: skip
    found = [(title, evaluation.metric(name), name) for name, title in names.items()]
    return [(title, show(name, m.value) + units.get(name, "")) for title, m, name in found if m]


def _slices(evaluation: EvaluationReport) -> list[dict[str, Any]]:
    """Accuracy of every slice with a bar, and what else was measured on it."""
    rows = [m for m in evaluation.metrics if m.name == "accuracy"]
    lowest = min((m.interval.low for m in rows if m.interval and m.value is not None), default=0.0)
    start = max(0.0, min(0.9, int(lowest * 10) / 10))
    return [
        {
            "name": m.slice or "all test rows",
            "metric": m,
            "bar": _bar(m, start, 1.0),
            "coverage": _value(evaluation, "coverage", m.slice),
            "answered": _value(evaluation, "accuracy_answered", m.slice),
            "start": start,
        }
        for m in rows
    ]


def _rates(evaluation: EvaluationReport, name: str) -> list[dict[str, Any]]:
    rows = sorted((m for m in evaluation.metrics if m.name == name), key=lambda m: m.slice is not None)
    top = max((m.interval.high for m in rows if m.interval), default=1.0) or 1.0
    return [{"name": m.slice or "overall", "metric": m, "bar": _bar(m, 0.0, top)} for m in rows]


def _bias(evaluation: EvaluationReport, use_case: UseCase) -> dict[str, Any] | None:
    """Rates between and within groups, and each group's accuracy and words."""
    spec = use_case.evaluation.counterfactuals
    overall = evaluation.metric("counterfactual_flip_rate")
    if spec is None or overall is None:
        return None
    rates = _rates(evaluation, "counterfactual_flip_rate")
    return {
        "overall": overall,
        "between": [r for r in rates if not r["name"].startswith("within:")],
        "within": [r | {"name": r["name"].removeprefix("within:")} for r in rates if r["name"].startswith("within:")],
        "groups": [
            {"name": name, "words": ", ".join(words), "metric": evaluation.metric("counterfactual_accuracy", name)}
            for name, words in spec.groups.items()
        ],
        "excess": evaluation.metric("counterfactual_bias"),
        "misrouted": evaluation.metric("counterfactual_misroute_rate"),
        "gap": evaluation.metric("counterfactual_accuracy_gap"),
        "templates": spec.templates,
    }


def _value(evaluation: EvaluationReport, name: str, at: str | None) -> float | None:
    found = evaluation.metric(name, at)
    return found.value if found else None


def _bar(metric: Metric, start: float, end: float) -> _Bar | None:
    if metric.value is None or metric.interval is None:
        return None
    value, low, high = (
        100 * min(1.0, max(0.0, (x - start) / (end - start)))
        for x in (metric.value, metric.interval.low, metric.interval.high)
    )
    return _Bar(value, low, high)


def _diagram(bins: tuple[ReliabilityBin, ...]) -> dict[str, Any]:
    """The reliability diagram in the coordinates of a square of `_SIDE` units, origin at the top left."""
    most = max((b.count for b in bins), default=0) or 1
    bars = [
        {
            "x": b.low * _SIDE,
            "width": (b.high - b.low) * _SIDE - 1,
            "y": _SIDE * (1 - b.accuracy),
            "height": _SIDE * b.accuracy,
            "point_x": _SIDE * b.score,
            "share": 34 * b.count / most,
            "title": f"score {b.low:.2f} to {b.high:.2f}: {b.count} answers, "
            f"mean score {b.score:.3f}, right {b.accuracy:.3f}",
        }
        for b in bins
        if b.accuracy is not None and b.score is not None
    ]
    return {"side": _SIDE, "bars": bars}


def _confusions(evaluation: EvaluationReport) -> list[tuple[str, str, int]]:
    """The most frequent wrong answers: true label, answer, how often."""
    if evaluation.confusion is None:
        return []
    with evaluation.confusion.open(encoding="utf-8", newline="") as file:
        cells = [(row["label"], row["predicted"], int(row["count"])) for row in csv.DictReader(file)]
    wrong = [cell for cell in cells if cell[0] != cell[1]]
    return sorted(wrong, key=lambda cell: (-cell[2], cell[0], cell[1]))[:_CONFUSIONS]
