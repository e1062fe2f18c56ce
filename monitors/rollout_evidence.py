"""What the counts of a phase say about the candidate: `monitors.canary` decides, here counts become its evidence.

A shadow's answers reach nobody, so it need not be proven harmless: enough answers without proof of harm move
on, and the canary is judged anew. Harm is the same as a canary's (it fails, is slow, or is unsure more often than
stable by more than the margin), and agreeing with stable less than the policy asks.
"""

import math

from monitors.canary import ArmCounts, CanaryEvidence, CanaryOutcome, CanaryVerdict, harm_alpha, judge_canary
from monitors.gateway_counts import Arm, Tally, arm
from monitors.rollout_rules import Judgement, Phase, Rollout
from monitors.sequential import log_mixture

__all__ = ["arms", "judge"]


def arms(rollout: Rollout, tally: Tally) -> tuple[Arm, Arm]:
    """Stable's counts and the candidate's, of the running phase or step."""
    stable = arm(tally, rollout.previous, rollout.slow_ms) if rollout.previous is not None else Arm()
    return stable, arm(tally, rollout.version, rollout.slow_ms, shadow=rollout.in_force is Phase.SHADOW)


def judge(rollout: Rollout, tally: Tally) -> Judgement:
    """The judgement on the running phase; ``undecided`` where nothing is watched."""
    stable, candidate = arms(rollout, tally)
    match rollout.phase:
        case Phase.SHADOW:
            return _shadow(rollout, stable, candidate)
        case Phase.CANARY:
            return _canary(rollout, stable, candidate)
        case _:
            return Judgement("undecided")


def _canary(rollout: Rollout, stable: Arm, candidate: Arm) -> Judgement:
    verdict = _verdict(rollout, stable, candidate, rollout.percent)
    missing = max(0, rollout.policy.min_requests - round(candidate.requests))
    wanted = [metric.more_needed for metric in verdict.metrics if metric.required and not metric.proven]
    needed = max([missing, *(count for count in wanted if count)]) if None not in wanted else None
    match verdict.outcome:
        case CanaryOutcome.ROLL_BACK:
            return Judgement("broken", verdict.reasons)
        case CanaryOutcome.STEP_UP:
            return Judgement("healthy", verdict.reasons)
        case _:
            return Judgement("undecided", verdict.reasons, needed)


def _shadow(rollout: Rollout, stable: Arm, candidate: Arm) -> Judgement:
    policy = rollout.policy
    verdict = _verdict(rollout, stable, candidate, policy.canary_percent[0])
    agreement = f"{candidate.agree:.0f} of {candidate.compared:.0f} shadow answers agree with stable"
    if verdict.outcome is CanaryOutcome.ROLL_BACK:
        return Judgement("broken", (*verdict.reasons, agreement))
    below = candidate.agree < policy.min_agreement * candidate.compared
    evidence = float(log_mixture(candidate.agree, candidate.compared, policy.min_agreement))
    if below and candidate.compared >= policy.min_requests_harm and evidence >= -math.log(harm_alpha(policy)):
        return Judgement("broken", (f"{agreement}, fewer than {policy.min_agreement:.0%}",))
    missing = math.ceil(max(0.0, policy.min_requests - candidate.requests))
    return Judgement("undecided" if missing else "healthy", (agreement,), missing or None)


def _verdict(rollout: Rollout, stable: Arm, candidate: Arm, percent: float) -> CanaryVerdict:
    evidence = CanaryEvidence(
        stable=_counts(stable),
        canary=_counts(candidate),
        percent=min(percent, 99.0),
        elapsed=rollout.at - rollout.since,
    )
    return judge_canary(evidence, rollout.policy)


def _counts(mine: Arm) -> ArmCounts:
    return ArmCounts(
        requests=round(mine.requests),
        errors=round(mine.failed),
        slow=min(round(mine.slow), round(mine.requests - mine.failed)),
        guarded=round(mine.guarded),
        blocked=round(mine.blocked),
        rated=round(mine.rated),
        negative=round(mine.negative),
        scored=round(mine.texts),
        doubt=min(max(mine.doubt, 0.0), mine.texts),
    )
