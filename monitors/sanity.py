"""What the nightly checks say, as pure functions: numbers in, a `Check` with a sentence out.

A check that cannot be made (nothing configured, nothing there yet) is *skipped* and says why; it never counts as
passed. Not a number counts as degraded.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from leitstand.types import Alert, Metric, Severity
from leitstand.usecase import GateSpec, PromptSpec, SafetySpec
from monitors.alerts import AlertChange, make_alert

__all__ = [
    "Check", "behaviour", "canary_prompts", "changes", "disk_space", "dropped_rows", "expiry", "freshness",
    "golden_accuracy", "safety", "skipped",
]  # fmt: skip

GB = 1e9
LISTED = 3


@dataclass(frozen=True)
class Check:
    """One outcome.

    Attributes:
        name: Of the check, like ``golden set``.
        outcome: ``ok``, ``degraded`` or ``skipped``.
        text: A sentence with the numbers.
    """

    name: str
    outcome: Literal["ok", "degraded", "skipped"]
    text: str


def skipped(name: str, why: str) -> Check:
    """A check that could not be made."""
    return Check(name, "skipped", why)


def golden_accuracy(expected: Sequence[str], answers: Sequence[str], measured: float | None, tolerance: float) -> Check:
    """Whether the served version is as right on the golden set as its evaluation was.

    Args:
        expected: The label of each text.
        answers: What was answered.
        measured: Accuracy on the same rows when the version was evaluated; None: unknown.
        tolerance: How far below that it may be.
    """
    name = "golden set"
    if not expected:
        return skipped(name, "the golden set has no rows that the version can answer")
    if len(answers) != len(expected):
        return Check(name, "degraded", f"{len(answers)} answers to {len(expected)} texts")
    value = sum(a == b for a, b in zip(expected, answers, strict=True)) / len(expected)
    if measured is None or not math.isfinite(measured):
        return skipped(
            name, f"accuracy {value:.4f}; the version's evaluation did not measure it, so nothing to compare"
        )
    text = f"accuracy {value:.4f} on {len(expected)} rows; its evaluation measured {measured:.4f}"
    return _judged(name, value < measured - tolerance, f"{text}, {tolerance:g} below it is tolerated")


def canary_prompts(prompts: Sequence[PromptSpec], answers: Sequence[str]) -> Check:
    """Whether texts with a known answer get it."""
    name = "canary prompts"
    if not prompts:
        return skipped(name, "none are named under nightly.prompts")
    if len(answers) != len(prompts):
        return Check(name, "degraded", f"{len(answers)} answers to {len(prompts)} texts")
    wrong = [(prompt, said) for prompt, said in zip(prompts, answers, strict=True) if said != prompt.label]
    shown = "; ".join(f"{prompt.text[:60]!r}: '{said}', not '{prompt.label}'" for prompt, said in wrong[:LISTED])
    text = f"{len(prompts) - len(wrong)} of {len(prompts)} answered as they must be"
    return _judged(name, bool(wrong), f"{text}: {shown}" if wrong else text)


def behaviour(gates: Sequence[GateSpec], measured: Sequence[Metric]) -> Check:
    """Whether what serves still passes the gates that were measured again.

    A bound counts as broken when the whole confidence interval lies beyond it: fewer texts are asked every night than
    were at the gate, and chance must not wake anybody.

    Args:
        gates: Of the use case; those on other metrics are left alone.
        measured: The probes' metrics.
    """
    name = "bias and robustness"
    found = {(metric.name, metric.slice): metric for metric in measured}
    judged = [(gate, found[gate.metric, gate.slice]) for gate in gates if (gate.metric, gate.slice) in found]
    known = [(gate, metric) for gate, metric in judged if metric.value is not None and metric.examples]
    if not known:
        return skipped(name, "no gate is on a metric that the probes measure")
    broken = [(gate, metric) for gate, metric in known if _breaks(gate, metric)]
    told = broken or known
    text = "; ".join(f"{gate.name} {metric.value:.3f} ({_bound(gate)})" for gate, metric in told)
    return _judged(name, bool(broken), f"{'beyond the bound: ' if broken else ''}{text}")


def safety(expected: Sequence[SafetySpec], found: Sequence[Collection[str]]) -> Check:
    """Whether the guards still find what they must, and nothing where nothing is.

    Args:
        expected: The texts, each with a reason code or none.
        found: The reason codes that the guards gave to each.
    """
    name = "safety"
    if not expected:
        return skipped(name, "no texts are named under nightly.safety")
    if len(found) != len(expected):
        return Check(name, "degraded", f"{len(found)} verdicts on {len(expected)} texts")
    wrong = [
        (each, codes) for each, codes in zip(expected, found, strict=True)
        if (each.reason not in codes if each.reason else codes)
    ]  # fmt: skip
    shown = "; ".join(
        f"{each.text[:60]!r}: {', '.join(sorted(codes)) or 'nothing'}, not {each.reason or 'nothing'}"
        for each, codes in wrong[:LISTED]
    )
    text = f"{len(expected) - len(wrong)} of {len(expected)} judged as they must be"
    return _judged(name, bool(wrong), f"{text}: {shown}" if wrong else text)


def freshness(name: str, last: datetime | None, limit: timedelta | None, *, now: datetime) -> Check:
    """Whether something came lately. A time in the future counts as now, and is told."""
    if limit is None:
        return skipped(name, "no limit is set")
    if last is None:
        return skipped(name, "nothing ever came")
    age = now - last
    text = f"the last one is from {last:%Y-%m-%d %H:%M} UTC"
    if age < -timedelta(minutes=5):
        return Check(name, "degraded", f"{text}, in the future: a clock is ahead")
    return _judged(name, age > limit, f"{text}; the limit is {_span(limit)}")


def disk_space(free_bytes: int, least_gb: float) -> Check:
    """Whether there is room for another day."""
    text = f"{free_bytes / GB:.1f} GB are free; {least_gb:g} are needed"
    return _judged("disk space", free_bytes < least_gb * GB, text)


def expiry(name: str, ends: datetime | None, within: timedelta, *, now: datetime) -> Check:
    """Whether a certificate or token stays valid for long enough; None: it cannot be read."""
    if ends is None:
        return Check(name, "degraded", "it cannot be read")
    left = ends - now
    said = "it has expired" if left <= timedelta() else f"valid for {_span(left)}"
    return _judged(name, left < within, f"{said}, until {ends:%Y-%m-%d %H:%M} UTC")


def dropped_rows(before: float | None, after: float | None) -> Check:
    """Whether answers were left out of the inference log since the last look; counters that fell began anew."""
    name = "inference log"
    if after is None:
        return skipped(name, "the gateway's counters cannot be read")
    dropped = after if before is None or after < before else after - before
    return _judged(name, dropped > 0, f"{dropped:.0f} answers are missing in the log since the last look")


def changes(checks: Sequence[Check], use_case: str, *, now: datetime, runbooks: str) -> AlertChange:
    """What the alert centre is told: one alert for what degraded, and one of its own for a log that drops rows."""
    raised: list[Alert] = []
    cleared: list[str] = []
    for kind, mine in (
        ("sanity-check-failed", [check for check in checks if check.name != "inference log"]),
        ("inference-log-dropping", [check for check in checks if check.name == "inference log"]),
    ):
        bad = [check for check in mine if check.outcome == "degraded"]
        if bad:
            title = f"Nightly checks: {', '.join(check.name for check in bad)}"
            body = "\n".join(f"{check.name}: {check.text}" for check in bad)
            raised.append(make_alert(kind, use_case, Severity.WARNING, title, body, now=now, runbooks=runbooks))
        elif any(check.outcome == "ok" for check in mine):
            cleared.append(f"{use_case}/{kind}")
    return AlertChange(tuple(raised), tuple(cleared))


def _judged(name: str, degraded: bool, text: str) -> Check:
    return Check(name, "degraded" if degraded else "ok", text)


def _breaks(gate: GateSpec, metric: Metric) -> bool:
    low = high = metric.value or 0.0
    if metric.interval is not None:
        low, high = metric.interval.low, metric.interval.high
    return high < gate.floor if gate.floor is not None else low > (gate.ceiling or 0.0)


def _bound(gate: GateSpec) -> str:
    return f"floor {gate.floor:g}" if gate.floor is not None else f"ceiling {gate.ceiling:g}"


def _span(span: timedelta) -> str:
    hours = span.total_seconds() / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.1f} h"  # noqa: PLR2004
