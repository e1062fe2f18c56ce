"""Two small charts of a use case's windows, as numbers for an inline SVG: scores over thresholds, and accuracy.

Scores of different detectors have different units, so each is shown as a multiple of its own threshold on
a logarithmic axis. Whether large or small values mean drift is read off the detector's own verdict.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from leitstand.types import DriftScore
from monitors.report_record import WindowReport

__all__ = ["Chart", "accuracy_chart", "excess", "score_chart", "strongest"]

FAMILIES = ("input", "embedding", "prediction", "label", "quality")
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 960, 210, 50, 10, 26
_LOWEST, _HIGHEST = 1 / 8, 8.0
_MARKS = ((1 / 8, "⅛"), (1 / 4, "¼"), (1 / 2, "½"), (2, "2"), (4, "4"), (8, "8"))


@dataclass(frozen=True)
class Chart:
    """Coordinates of one SVG.

    Attributes:
        label: What it shows, for readers who cannot see it.
        lines: Height, text and CSS class of each horizontal line.
        dates: Position, text and anchor of each date.
        series: Name, CSS class, polylines and dots of each curve.
        has_reference: Whether a reference line is drawn.
    """

    label: str
    lines: Sequence[tuple[float, str, str]]
    dates: Sequence[tuple[float, str, str]]
    series: Sequence[dict[str, Any]]
    has_reference: bool = False
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT


@dataclass(frozen=True)
class _Spot:
    at: datetime
    version: int
    value: float
    beyond: bool
    text: str


def excess(score: DriftScore) -> float | None:
    """How far a score is beyond its threshold, as a factor: 1 at the threshold, larger is worse.

    None when the two have no ratio (zero, negative, not finite).
    """
    if not (score.value > 0 and score.threshold > 0 and math.isfinite(score.value / score.threshold)):
        return None
    ratio = score.value / score.threshold
    return ratio if (ratio >= 1) == score.drifted else 1 / ratio


def strongest(report: WindowReport) -> DriftScore | None:
    """The score farthest beyond (or nearest to) its threshold."""
    scores = report.drift.scores if report.drift else ()
    return max(scores, key=lambda score: (score.drifted, excess(score) or 0.0), default=None)


def score_chart(reports: Sequence[WindowReport]) -> Chart | None:
    """The strongest score of each family in each window (`reports` oldest first); None without scores."""
    spots: dict[str, list[_Spot]] = {}
    for report in reports:
        for family in FAMILIES:
            scores = [s for s in (report.drift.scores if report.drift else ()) if s.family == family]
            rated = [(e, s) for s in scores if (e := excess(s)) is not None]
            if rated:
                times, score = max(rated, key=lambda pair: (pair[1].drifted, pair[0]))
                text = f"{score.detector} of {score.column}, {times:.2f} × threshold"
                spots.setdefault(family, []).append(_spot(report, times, text, beyond=score.drifted))
    if not spots:
        return None
    marks = [(float(times), text, "grid") for times, text in _MARKS] + [(1.0, "1 ×", "limit")]
    return _chart(
        "Drift scores as multiples of their thresholds",
        spots,
        [family for family in FAMILIES if family in spots],
        marks,
        lambda value: math.log2(min(max(value, _LOWEST), _HIGHEST) / _LOWEST) / math.log2(_HIGHEST / _LOWEST),
    )


def accuracy_chart(reports: Sequence[WindowReport]) -> Chart | None:
    """Estimated and measured accuracy of each window (`reports` oldest first); None without any."""
    spots: dict[str, list[_Spot]] = {}
    reference = None
    for report in reports:
        if report.drift is None:
            continue
        reference = report.drift.reference_accuracy if report.drift.reference_accuracy is not None else reference
        pairs = (("estimated", report.drift.estimated_accuracy), ("measured", report.drift.measured_accuracy))
        for name, metric in pairs:
            if metric is not None and metric.value is not None:
                text = f"{name} {metric.value:.4f} on {metric.examples:,} rows"
                spots.setdefault(name, []).append(_spot(report, metric.value, text))
    if not spots:
        return None
    values = [spot.value for each in spots.values() for spot in each] + ([reference] if reference is not None else [])
    low = math.floor(min(values) * 20 - 0.5) / 20
    high = min(1.0, math.ceil(max(values) * 20 + 0.5) / 20)
    low, span = max(low, 0.0), max(high - max(low, 0.0), 0.05)
    marks = [(low + span * part, f"{low + span * part:.2f}", "grid") for part in (0.0, 0.5, 1.0)]
    if reference is not None:
        marks.append((reference, "", "limit"))
    names = [name for name in ("estimated", "measured") if name in spots]
    chart = _chart("Accuracy by window", spots, names, marks, lambda v: (v - low) / span)
    return Chart(chart.label, chart.lines, chart.dates, chart.series, has_reference=reference is not None)


def _spot(report: WindowReport, value: float, text: str, *, beyond: bool = False) -> _Spot:
    text = f"{report.window_start:%Y-%m-%d %H:%M}, version {report.version}: {text}"
    return _Spot(report.window_end, report.version, value, beyond, text)


def _chart(
    label: str,
    spots: Mapping[str, Sequence[_Spot]],
    names: Sequence[str],
    marks: Sequence[tuple[float, str, str]],
    height_of: Callable[[float], float],
) -> Chart:
    """Lays points out by time, one line per version; `height_of` maps a value to [0, 1], from bottom to top."""
    times = [spot.at for each in spots.values() for spot in each]
    first, last = min(times), max(times)
    seconds = (last - first).total_seconds() or 1.0
    right = _WIDTH - 10

    def x(at: datetime) -> float:
        share = (at - first).total_seconds() / seconds if last > first else 0.5
        return round(_LEFT + 8 + share * (right - _LEFT - 16), 1)

    def y(value: float) -> float:
        return round(_TOP + (1 - height_of(value)) * (_HEIGHT - _TOP - _BOTTOM), 1)

    series = [
        {
            "name": name,
            "css": f"c{number}",
            "runs": [
                " ".join(f"{x(spot.at)},{y(spot.value)}" for spot in spots[name] if spot.version == version)
                for version in sorted({spot.version for spot in spots[name]})
            ],
            "dots": [(x(spot.at), y(spot.value), spot.beyond, spot.text) for spot in spots[name]],
        }
        for number, name in enumerate(names)
    ]
    dates = [(x(first), f"{first:%Y-%m-%d %H:%M}", "start"), (x(last), f"{last:%Y-%m-%d %H:%M}", "end")]
    return Chart(
        label=label,
        lines=[(y(value), text, kind) for value, text, kind in marks],
        dates=dates if last > first else [(x(first), f"{first:%Y-%m-%d %H:%M}", "middle")],
        series=series,
    )
