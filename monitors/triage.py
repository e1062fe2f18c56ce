"""What one window showed: harmless shift, quality loss, a failing service, or too little to tell. Pure.

Quality is judged by intervals. With a floor of reference accuracy minus the policy's tolerance, accuracy *holds* when
its whole 95 % interval lies on or above the floor, is *lost* when all of it lies below, and is *open* otherwise:

| measured (feedback) | estimated (confidences) | quality |
|---|---|---|
| lost | any | lost |
| open | lost | lost |
| holds | lost | unknown: they contradict each other |
| holds | holds, open or missing | holds |
| open, point on or above the floor | holds | holds |
| open | otherwise | unknown |
| missing, or fewer labels than `min_labelled_rows` | X | X; open or missing: unknown |

Labels outrank the estimate, which is blind to a changed meaning of the inputs (Garg et al. 2022, ICLR: no estimate
without labels is right under every shift). An interval that a report does not give is Wilson's (1927).
"""

import math
from dataclasses import dataclass
from enum import Enum

from leitstand.types import DriftReport, Finding, Metric
from leitstand.usecase import DriftSpec

__all__ = ["Quality", "Triage", "triage", "wilson"]

_Z = 1.959963984540054


class Quality(Enum):
    """Whether accuracy is on its reference."""

    HOLDS = "holds"
    UNKNOWN = "unknown"
    LOST = "lost"


class _Side(Enum):
    HOLDS = "on or above"
    OPEN = "around"
    LOST = "below"


@dataclass(frozen=True)
class Triage:
    """The facts of one window that decisions are made from.

    Attributes:
        finding: The one word for it.
        judged: Whether the window had enough rows.
        drifted: Whether the detectors said so, family-wise.
        quality: Of the answers.
        large: Whether the loss is proven larger than `large_loss`.
        failing: Whether errors or latency are proven above the policy's limits.
        reasons: Sentences with the numbers.
    """

    finding: Finding
    judged: bool
    drifted: bool
    quality: Quality
    large: bool
    failing: bool
    reasons: tuple[str, ...]


def triage(report: DriftReport, policy: DriftSpec, *, requests: int | None = None) -> Triage:
    """Sorts a window.

    Args:
        report: Scores, estimated and measured quality, errors and latency.
        policy: Limits and tolerances.
        requests: Requests of the window, failed ones included; None: as many as rows.
    """
    failing, reasons = _health(report, policy, report.rows if requests is None else requests)
    judged = not report.insufficient and report.rows >= policy.min_window_rows
    if not judged:
        why = report.insufficient or f"{report.rows} rows of the {policy.min_window_rows} that a window needs"
        reasons.append(f"window not judged: {why}")
    quality, large, accuracy = _quality(report, policy)
    reasons += accuracy
    if report.drifted:
        reasons.append(_drift_reason(report))
    finding = _finding(judged, report.drifted, quality, failing)
    return Triage(finding, judged, report.drifted, quality, large, failing, tuple(reasons))


def wilson(share: float, count: float) -> tuple[float, float]:
    """95 % interval of a share over `count` observations; (0, 1) for none (Wilson 1927, JASA 22)."""
    if count <= 0:
        return 0.0, 1.0
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    reach = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def _finding(judged: bool, drifted: bool, quality: Quality, failing: bool) -> Finding:
    if judged and quality is Quality.LOST:
        return Finding.LOSS
    if failing:
        return Finding.FAILING
    if not judged:
        return Finding.UNJUDGED
    if not drifted:
        return Finding.HEALTHY
    return Finding.HARMLESS if quality is Quality.HOLDS else Finding.UNCERTAIN


def _health(report: DriftReport, policy: DriftSpec, requests: int) -> tuple[bool, list[str]]:
    reasons = []
    rate = _finite(report.error_rate)
    if rate is not None and wilson(min(max(rate, 0.0), 1.0), requests)[0] > policy.max_error_rate:
        reasons.append(f"{rate:.1%} of {requests} requests failed; the limit is {policy.max_error_rate:.1%}")
    latency, limit = _finite(report.latency_p99_ms), policy.max_latency_p99_ms
    if latency is not None and limit is not None and latency > limit:
        reasons.append(f"p99 latency is {latency:.0f} ms; the limit is {limit:.0f} ms")
    return bool(reasons), reasons


def _quality(report: DriftReport, policy: DriftSpec) -> tuple[Quality, bool, list[str]]:
    reference = _finite(report.reference_accuracy)
    if reference is None:
        return Quality.UNKNOWN, False, ["no reference accuracy to compare with"] if report.drifted else []
    floor = reference - policy.quality_tolerance
    sources = []
    for name, metric, minimum in (
        ("measured", report.measured_accuracy, policy.min_labelled_rows),
        ("estimated", report.estimated_accuracy, 1),
    ):
        known = _usable(metric, minimum)
        sources.append(None if known is None else _Source.of(name, known, floor, reference - policy.large_loss))
    measured, estimated = sources
    quality = _combined(measured, estimated, floor)
    reasons = [s.sentence(reference, floor) for s in (measured, estimated) if s is not None]
    large = quality is Quality.LOST and any(s.large for s in (measured, estimated) if s is not None)
    if large:
        reasons.append(f"the loss is proven larger than {policy.large_loss:.1%}")
    if measured is not None and estimated is not None and measured.side is _Side.HOLDS and estimated.side is _Side.LOST:
        reasons.append("labels and estimate contradict each other")
    return quality, large, reasons


@dataclass(frozen=True)
class _Source:
    name: str
    value: float
    low: float
    high: float
    examples: int
    side: _Side
    large: bool

    @classmethod
    def of(cls, name: str, metric: Metric, floor: float, large_floor: float) -> "_Source":
        value = min(max(metric.value or 0.0, 0.0), 1.0)
        interval = metric.interval
        low, high = (interval.low, interval.high) if interval else wilson(value, metric.examples)
        side = _Side.HOLDS if low >= floor else _Side.LOST if high < floor else _Side.OPEN
        return cls(name, value, low, high, metric.examples, side, high < large_floor)

    def sentence(self, reference: float, floor: float) -> str:
        return (
            f"{self.name} accuracy {self.value:.3f} [{self.low:.3f}, {self.high:.3f}] on {self.examples} rows is "
            f"{self.side.value} {floor:.3f} (reference {reference:.3f})"
        )


def _combined(measured: _Source | None, estimated: _Source | None, floor: float) -> Quality:
    if measured is None or estimated is None:
        only = measured or estimated
        if only is None:
            return Quality.UNKNOWN
        return {_Side.HOLDS: Quality.HOLDS, _Side.OPEN: Quality.UNKNOWN, _Side.LOST: Quality.LOST}[only.side]
    if measured.side is _Side.LOST:
        return Quality.LOST
    if measured.side is _Side.HOLDS:
        return Quality.UNKNOWN if estimated.side is _Side.LOST else Quality.HOLDS
    if estimated.side is _Side.LOST:
        return Quality.LOST
    return Quality.HOLDS if estimated.side is _Side.HOLDS and measured.value >= floor else Quality.UNKNOWN


def _usable(metric: Metric | None, minimum: int) -> Metric | None:
    if metric is None or _finite(metric.value) is None or metric.examples < minimum:
        return None
    interval = metric.interval
    broken = interval is not None and not (math.isfinite(interval.low) and math.isfinite(interval.high))
    return metric.model_copy(update={"interval": None}) if broken else metric


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _drift_reason(report: DriftReport) -> str:
    raised = sorted((s for s in report.scores if s.drifted), key=lambda s: s.threshold - s.value)
    if not raised:
        return f"drift on {report.rows} rows"
    shown = ", ".join(f"{s.detector} of {s.column} {s.value:.3g} > {s.threshold:.3g}" for s in raised[:3])
    more = f" and {len(raised) - 3} more" if len(raised) > 3 else ""  # noqa: PLR2004
    return f"drift on {report.rows} rows: {shown}{more}"
