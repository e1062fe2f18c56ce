"""What the counts of a phase say about the candidate: `judge_canary` for the canary, simpler tests for the shadow.

A shadow's answers reach nobody, so it is stopped for two things only, each proven at any time of looking: it
fails more often than stable by more than the policy's margin, or it agrees with stable less than the policy
asks. Enough shadow answers without proof of harm are what moves on; the canary is judged anew.
"""

import math

from leitstand.usecase import RolloutSpec
from monitors.canary import ArmCounts, CanaryEvidence, CanaryOutcome, harm_alpha, judge_canary
from monitors.gateway_counts import Arm, Tally, arm
from monitors.rollout_rules import Judgement, Phase, Rollout
from monitors.sequential import log_evidence_harm, log_mixture

__all__ = ["arms", "judge"]


def arms(rollout: Rollout, tally: Tally) -> tuple[Arm, Arm]:
    """Stable's counts and the candidate's, of the running phase or step."""
    stable = arm(tally, rollout.previous, rollout.slow_ms) if rollout.previous is not None else Arm()
    return stable, arm(tally, rollout.version, rollout.slow_ms)


def judge(rollout: Rollout, tally: Tally) -> Judgement:
    """The judgement on the running phase; ``undecided`` where nothing is watched."""
    stable, candidate = arms(rollout, tally)
    match rollout.phase:
        case Phase.SHADOW:
            return _shadow(stable, candidate, rollout.policy)
        case Phase.CANARY:
            return _canary(rollout, stable, candidate)
        case _:
            return Judgement("undecided")


def _canary(rollout: Rollout, stable: Arm, candidate: Arm) -> Judgement:
    evidence = CanaryEvidence(
        stable=_counts(stable), canary=_counts(candidate), percent=rollout.percent, elapsed=rollout.at - rollout.since
    )
    verdict = judge_canary(evidence, rollout.policy)
    missing = max(0, rollout.policy.min_requests - evidence.canary.requests)
    wanted = [metric.more_needed for metric in verdict.metrics if metric.required and not metric.proven]
    needed = max([missing, *(count for count in wanted if count)]) if None not in wanted else None
    match verdict.outcome:
        case CanaryOutcome.ROLL_BACK:
            return Judgement("broken", verdict.reasons)
        case CanaryOutcome.STEP_UP:
            return Judgement("healthy", verdict.reasons)
        case _:
            return Judgement("undecided", verdict.reasons, needed)


def _shadow(stable: Arm, candidate: Arm, policy: RolloutSpec) -> Judgement:
    asked = candidate.compared + candidate.shadow_failed
    shares = (
        f"{asked:.0f} shadow answers: {candidate.shadow_failed:.0f} failed, "
        f"{candidate.agree:.0f} of {candidate.compared:.0f} agree with stable"
    )
    harm = []
    if asked >= policy.min_requests_harm:
        limit = -math.log(harm_alpha(policy))
        if policy.margins.errors is not None and limit <= float(
            log_evidence_harm((stable.failed, stable.requests), (candidate.shadow_failed, asked), policy.margins.errors)
        ):
            harm.append(f"it fails more often than stable by more than {policy.margins.errors:.2%}")
        below = candidate.agree < policy.min_agreement * candidate.compared
        if below and float(log_mixture(candidate.agree, candidate.compared, policy.min_agreement)) >= limit:
            harm.append(f"it agrees with stable on less than {policy.min_agreement:.0%}")
    if harm:
        return Judgement("broken", (shares, *harm))
    missing = math.ceil(max(0.0, policy.min_requests - asked))
    return Judgement("undecided" if missing else "healthy", (shares,), missing or None)


def _counts(mine: Arm) -> ArmCounts:
    return ArmCounts(
        requests=round(mine.requests),
        errors=round(mine.failed),
        slow=min(round(mine.slow), round(mine.requests - mine.failed)),
        scored=round(mine.texts),
        doubt=min(max(mine.doubt, 0.0), mine.texts),
    )
