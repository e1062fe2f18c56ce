"""Is the canary harmful, harmless within the margin, or not yet known? Pure: counts and a policy in, a verdict out.

The counts may be looked at after every request; `monitors.sequential` keeps the error rates whatever the moment:

- *harm* (the canary is worse than stable by more than the margin) is tested per metric and step at
  ``alpha / (metrics * steps)``, so that a whole rollout rolls back a harmless canary with chance at most alpha.
- *no harm* must be proven for every metric of ``policy.prove``, each at alpha: an intersection-union test (Berger
  1982, Technometrics 24) needs no correction, and a canary worse than a margin passes with chance at most alpha.

Counts are those of the running step: start them at zero when the weight changes, because a load that changes over
time would otherwise weigh the two arms differently. Rolled back is as soon as harm is proven. Nothing here moves
traffic or reads a clock.
"""

import math
from datetime import timedelta
from enum import StrEnum
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from leitstand.usecase import CanaryMetric, RolloutSpec
from monitors.sequential import log_evidence_harm, log_evidence_noninferior

__all__ = [
    "ArmCounts",
    "CanaryEvidence",
    "CanaryOutcome",
    "CanaryVerdict",
    "MetricVerdict",
    "harm_alpha",
    "judge_canary",
    "step_margin",
]

METRICS: tuple[CanaryMetric, ...] = ("errors", "slow", "blocked", "negative", "doubt")
_PARTS: dict[CanaryMetric, tuple[str, str]] = {
    "errors": ("errors", "requests"),
    "slow": ("slow", "requests"),
    "blocked": ("blocked", "guarded"),
    "negative": ("negative", "rated"),
    "doubt": ("doubt", "scored"),
}
_GROWTH = np.geomspace(1.0, 1000.0, 61)
_FULL = 100

FollowUp = Literal["step up", "roll back", "wait", "ask a person"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArmCounts(_Record):
    """What one arm did since the step began. Sums stay at or below the count that they belong to."""

    requests: int = Field(default=0, ge=0)
    errors: int = Field(default=0, ge=0, description="requests that failed by the arm's fault (5xx, time-out)")
    slow: int = Field(default=0, ge=0, description="requests slower than the threshold that both arms share")
    guarded: int = Field(default=0, ge=0, description="answers that a guard looked at")
    blocked: int = Field(default=0, ge=0)
    rated: int = Field(default=0, ge=0, description="answers with feedback")
    negative: int = Field(default=0, ge=0, description="of these: rated bad, or labelled otherwise")
    scored: int = Field(default=0, ge=0, description="texts answered with a confidence")
    doubt: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="sum of 1 - confidence")

    @model_validator(mode="after")
    def _parts_of_wholes(self) -> Self:
        for part, whole in _PARTS.values():
            if getattr(self, part) > getattr(self, whole) + 1e-6:
                raise ValueError(f"{part} {getattr(self, part)} exceeds {whole} {getattr(self, whole)}")
        return self

    def of(self, metric: CanaryMetric) -> tuple[float, int]:
        """(sum, count) of a metric."""
        part, whole = _PARTS[metric]
        count = int(getattr(self, whole))
        return min(float(getattr(self, part)), float(count)), count


class CanaryEvidence(_Record):
    """Both arms of one step."""

    stable: ArmCounts
    canary: ArmCounts
    percent: float = Field(gt=0, lt=100, description="the canary's weight")
    elapsed: timedelta = Field(description="since the step began")


class CanaryOutcome(StrEnum):
    """What the evidence says; what the policy makes of it is the verdict's `follow_up`."""

    STEP_UP = "step up"
    ROLL_BACK = "roll back"
    CONTINUE = "continue"
    INSUFFICIENT = "insufficient evidence"


class MetricVerdict(_Record):
    """One metric: shares in [0, 1], None without observations; p-values hold at any time of looking."""

    metric: CanaryMetric
    stable: float | None
    canary: float | None
    stable_count: int
    canary_count: int
    margin: float
    step_margin: float
    p_harm: float
    p_noninferior: float
    harmful: bool
    proven: bool
    required: bool
    more_needed: int | None = Field(
        default=None, description="canary observations that would prove no harm at these shares; None: no number would"
    )
    reason: str


class CanaryVerdict(_Record):
    """The verdict on one step. ``follow_up`` is what the policy makes of it."""

    schema_version: Literal[1] = 1
    outcome: CanaryOutcome
    follow_up: FollowUp
    percent: float
    metrics: tuple[MetricVerdict, ...]
    reasons: tuple[str, ...]


def judge_canary(evidence: CanaryEvidence, policy: RolloutSpec) -> CanaryVerdict:
    """The verdict on a step, from its running counts; may be asked after every request.

    Returns:
        *roll back* as soon as one metric proves harm on at least ``min_requests_harm`` canary requests;
        *step up* when every metric of ``prove`` is proven within its margin on at least ``min_requests``;
        *insufficient evidence* when the step's deadline passes before; else *continue*.
    """
    margins = policy.margins
    judged: list[tuple[CanaryMetric, float]] = [
        (metric, margin) for metric in METRICS if (margin := getattr(margins, metric)) is not None
    ]
    found = tuple(_judge_metric(metric, margin, evidence, policy) for metric, margin in judged)
    requests = evidence.canary.requests
    harmful = [f.reason for f in found if f.harmful]
    missing = [f.reason for f in found if f.required and not f.proven]
    if requests < policy.min_requests:
        missing.insert(0, f"{requests} canary requests of the {policy.min_requests} that a step needs")
    if harmful:
        outcome, follow_up, reasons = CanaryOutcome.ROLL_BACK, "roll back", harmful
    elif not missing:
        outcome, follow_up, reasons = CanaryOutcome.STEP_UP, "step up", [f.reason for f in found if f.required]
    elif evidence.elapsed >= policy.step_deadline:
        outcome, follow_up, reasons = CanaryOutcome.INSUFFICIENT, _at_deadline(policy), missing
    else:
        outcome, follow_up, reasons = CanaryOutcome.CONTINUE, "wait", missing
    return CanaryVerdict(
        outcome=outcome, follow_up=follow_up, percent=evidence.percent, metrics=found, reasons=tuple(reasons)
    )


def harm_alpha(policy: RolloutSpec) -> float:
    """The level of one harm test: alpha shared by the judged metrics and the steps below 100 %."""
    metrics = sum(getattr(policy.margins, metric) is not None for metric in METRICS)
    steps = sum(step < _FULL for step in policy.canary_percent)
    return policy.alpha / max(1, metrics * steps)


def step_margin(margin: float, percent: float, policy: RolloutSpec) -> float:
    """The margin that must be proven to leave a step: the excess harm over *all* traffic at the next weight.

    A canary that is worse by d adds d times its weight to the service as a whole. To go from 1 to 5 % it is enough
    that d * 0.05 stays within the margin; `margin_widening` bounds how far that goes. Before 100 % it is the margin.
    """
    following = next((step for step in policy.canary_percent if step > percent), _FULL)
    return min(margin * min(policy.margin_widening, _FULL / following), 0.99)


def _judge_metric(metric: CanaryMetric, margin: float, evidence: CanaryEvidence, policy: RolloutSpec) -> MetricVerdict:
    stable, canary = evidence.stable.of(metric), evidence.canary.of(metric)
    wide = step_margin(margin, evidence.percent, policy)
    against_harmless = float(log_evidence_harm(stable, canary, min(margin, 0.99)))
    against_harmful = float(log_evidence_noninferior(stable, canary, wide))
    enough = evidence.canary.requests >= policy.min_requests_harm
    harmful = enough and against_harmless >= -math.log(harm_alpha(policy))
    proven = against_harmful >= -math.log(policy.alpha)
    draft = MetricVerdict(
        metric=metric,
        stable=stable[0] / stable[1] if stable[1] else None,
        canary=canary[0] / canary[1] if canary[1] else None,
        stable_count=stable[1],
        canary_count=canary[1],
        margin=margin,
        step_margin=wide,
        p_harm=math.exp(-max(against_harmless, 0.0)),
        p_noninferior=math.exp(-max(against_harmful, 0.0)),
        harmful=harmful,
        proven=proven,
        required=metric in policy.prove,
        more_needed=0 if proven else _more_needed(stable, canary, wide, policy.alpha),
        reason="",
    )
    return draft.model_copy(update={"reason": _reason(draft)})


def _more_needed(stable: tuple[float, int], canary: tuple[float, int], margin: float, alpha: float) -> int | None:
    """Canary observations until the proof, if both arms went on at the shares seen so far."""
    grown = log_evidence_noninferior(
        (stable[0] * _GROWTH, stable[1] * _GROWTH), (canary[0] * _GROWTH, canary[1] * _GROWTH), margin
    )
    enough = np.flatnonzero(grown >= -math.log(alpha))
    return math.ceil(canary[1] * (_GROWTH[enough[0]] - 1)) if len(enough) else None


def _reason(found: MetricVerdict) -> str:
    if found.canary is None or found.stable is None:
        return f"{found.metric}: not observed on {'the canary' if found.canary is None else 'stable'}"
    shares = (
        f"{found.metric}: canary {found.canary:.2%} of {found.canary_count}, "
        f"stable {found.stable:.2%} of {found.stable_count}"
    )
    if found.harmful:
        return f"{shares}: worse by more than {found.margin:.2%} (p = {found.p_harm:.2g})"
    if found.proven:
        return f"{shares}: not worse by more than {found.step_margin:.2%} (p = {found.p_noninferior:.2g})"
    more = f"about {found.more_needed} more would prove it" if found.more_needed else "no number at these shares would"
    return f"{shares}: not shown to be within {found.step_margin:.2%} (p = {found.p_noninferior:.2g}); {more}"


def _at_deadline(policy: RolloutSpec) -> FollowUp:
    after: dict[str, FollowUp] = {"hold": "ask a person", "roll_back": "roll back", "proceed": "step up"}
    return after[policy.on_insufficient]
