"""From a judged window to one action, with reasons. Pure: the same arguments give the same decision.

Each rule proposes an action; the strongest proposal wins (nothing < warn < ask a person < retrain < roll back), so
worse quality never leads to a milder action. The table of rules is in ``docs/explanation/decisions.md``.

Safe against repetition: a window that was decided before is answered with that decision, and retrainings in
`history` count for budget and cool-down even when `state` does not know of them yet. Safe against clocks: a decision
that seems to lie in the future counts as made just now, and nothing but a person acts until the clock is right again.
To decide concurrently, call this within `DecisionLog.settle`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from leitstand.files import digest_json
from leitstand.types import Action, Decision, DriftReport, Finding
from leitstand.usecase import DriftSpec
from monitors.triage import Quality, Triage, triage

__all__ = ["RANK", "LoopState", "decide", "report_digest"]

RANK = {Action.NOTHING: 0, Action.WARN: 1, Action.ASK: 2, Action.RETRAIN: 3, Action.ROLL_BACK: 4}
"""Which action is stronger; a test checks that worse quality never gives a weaker one."""
WEEK = timedelta(days=7)
_LITTLE_TRAFFIC = 0.1
_UNSEEN_WINDOWS = 6
_Proposal = tuple[Action, str]


@dataclass(frozen=True, kw_only=True)
class LoopState:
    """What runs and what ran lately.

    Attributes:
        serving: Version that answers now; None: the report's.
        previous_version: Version that a roll back would return to; None: there is none.
        promoted_at: When `serving` was promoted; None: long ago.
        retraining: Whether a retraining or a rollout of the use case is in progress.
        retrains_this_week: Started in the last seven days, by whomever.
        last_retrain_at: Start of the last one.
        last_rollback_at: Of the use case.
        requests: Requests of the window, failed ones included; None: as many as rows.
        usual_requests: What such a window usually brings; None: unknown.
        cost_this_week: Of retrainings, in the policy's unit.
        next_cost: Expected cost of one more.
    """

    serving: int | None = None
    previous_version: int | None = None
    promoted_at: datetime | None = None
    retraining: bool = False
    retrains_this_week: int = 0
    last_retrain_at: datetime | None = None
    last_rollback_at: datetime | None = None
    requests: int | None = None
    usual_requests: float | None = None
    cost_this_week: float = 0.0
    next_cost: float = 0.0


def report_digest(report: DriftReport) -> str:
    """Names the evidence of a decision; not-a-number in a score counts as its text."""
    return digest_json(report.model_dump_json())


def decide(
    report: DriftReport, history: Sequence[Decision], policy: DriftSpec, state: LoopState, *, now: datetime
) -> Decision:
    """The action that a window asks for.

    Args:
        report: Of one window of one version.
        history: Decisions of the last week or more, in any order; those of other use cases are passed over.
        policy: The use case's.
        state: What runs and what ran lately.
        now: The present moment, with time zone.

    Returns:
        The decision; when `history` holds one on the same window and version already, that one, unchanged.
    """
    own = sorted((d for d in history if d.use_case == report.use_case), key=lambda d: d.at)
    before = next((d for d in reversed(own) if _same_window(d, report)), None)
    if before is not None:
        return before
    seen = triage(report, policy, requests=state.requests)
    past = _Past.read(own, report, policy, state, now)
    rules = (_after_promotion, _on_loss, _on_failure, _on_drift, _on_blindness, _on_volume)
    proposals = [p for p in (rule(seen, past, policy, state) for rule in rules) if p is not None]
    if past.retired:
        proposals = [(Action.NOTHING, f"version {report.version} does not serve any more")]
    action = max((action for action, _ in proposals), key=RANK.__getitem__, default=Action.NOTHING)
    told = [why for proposed, why in proposals if RANK[proposed] >= min(RANK[action], RANK[Action.ASK])]
    reasons = [*seen.reasons, *told] or [f"no drift and no loss on {report.rows} rows"]
    return Decision(
        use_case=report.use_case,
        version=report.version,
        at=now,
        action=action,
        reasons=tuple(reasons),
        report_digest=report_digest(report),
        finding=seen.finding,
        window_start=report.window_start,
        window_end=report.window_end,
    )


@dataclass(frozen=True)
class _Past:
    """What history and state say at `now`. Ages are never negative: the future counts as just now."""

    losses: int
    unresolved: int
    unseen: int
    retrains: int
    since_action: timedelta | None
    since_rollback: timedelta | None
    since_promotion: timedelta | None
    retired: bool
    clock: str

    @classmethod
    def read(
        cls, own: Sequence[Decision], report: DriftReport, policy: DriftSpec, state: LoopState, now: datetime
    ) -> "_Past":
        retrained = [d.at for d in own if d.action is Action.RETRAIN]
        rolled_back = [d.at for d in own if d.action is Action.ROLL_BACK]
        retrained += [state.last_retrain_at] if state.last_retrain_at else []
        rolled_back += [state.last_rollback_at] if state.last_rollback_at else []
        this_week = sum(d.action is Action.RETRAIN and now - d.at < WEEK for d in own)
        reach = 3 * (policy.confirm_windows + 1) * policy.check_every
        same = [d for d in own if d.version == report.version and now - d.at <= reach]
        return cls(
            losses=_streak(same, {Finding.LOSS}, {Finding.UNJUDGED}),
            unresolved=_streak(same, {Finding.LOSS, Finding.UNCERTAIN, Finding.FAILING}, {Finding.UNJUDGED}),
            unseen=_streak([d for d in own if d.version == report.version], {Finding.UNJUDGED}, set()),
            retrains=max(state.retrains_this_week, this_week),
            since_action=_since([*retrained, *rolled_back], now),
            since_rollback=_since(rolled_back, now),
            since_promotion=_since([state.promoted_at] if state.promoted_at else [], now),
            retired=state.serving is not None and state.serving != report.version,
            clock=_clock([d.at for d in own] + [report.window_end], now, policy.check_every),
        )

    def cooling(self, policy: DriftSpec) -> bool:
        return self.since_action is not None and self.since_action < policy.cool_down

    def fresh(self, policy: DriftSpec) -> bool:
        return self.since_promotion is not None and self.since_promotion < policy.rollback_within


def _after_promotion(seen: Triage, past: _Past, policy: DriftSpec, state: LoopState) -> _Proposal | None:
    """A loss or failure right after a promotion is undone, not trained upon."""
    lost = seen.finding is Finding.LOSS
    if not past.fresh(policy) or not (lost or seen.failing):
        return None
    age = _hours(past.since_promotion)
    if not (seen.failing or seen.large or past.losses + 1 >= policy.confirm_windows):
        return Action.WARN, f"a loss {age} after the promotion, seen in {_windows(past.losses + 1, policy)}"
    if state.previous_version is None:
        return Action.ASK, f"the promotion {age} ago did harm, and there is no earlier version to go back to"
    if past.since_rollback is not None and past.since_rollback < policy.cool_down:
        return Action.ASK, f"rolled back {_hours(past.since_rollback)} ago, and version {state.serving or ''} fails too"
    if past.clock:
        return Action.ASK, past.clock
    return Action.ROLL_BACK, f"promoted {age} ago: back to version {state.previous_version}"


def _on_loss(seen: Triage, past: _Past, policy: DriftSpec, state: LoopState) -> _Proposal | None:
    """A confirmed or large loss is trained upon, within budget and one at a time."""
    if seen.finding is not Finding.LOSS or past.fresh(policy):
        return None
    if not (seen.large or past.losses + 1 >= policy.confirm_windows):
        return Action.WARN, f"the loss is seen in {_windows(past.losses + 1, policy)}; the next one decides"
    if state.retraining:
        return Action.WARN, "a retraining runs already"
    if past.cooling(policy):
        ago = f"the last action was {_hours(past.since_action)} ago, the cool-down is {_hours(policy.cool_down)}"
        return (Action.ASK, f"large loss, but {ago}") if seen.large else (Action.WARN, ago)
    obstacle = past.clock or _spent(past, policy, state)
    if obstacle:
        return Action.ASK, obstacle
    return Action.RETRAIN, "large loss" if seen.large else f"the loss held for {past.losses + 1} windows"


def _spent(past: _Past, policy: DriftSpec, state: LoopState) -> str:
    """Which budget forbids one more retraining; empty: none does."""
    if past.retrains >= policy.max_retrains_per_week:
        return f"{past.retrains} retrainings in 7 days; the budget is {policy.max_retrains_per_week}"
    limit, cost = policy.max_retrain_cost_per_week, state.cost_this_week + state.next_cost
    return (
        f"one more would cost {cost:g} this week; the budget is {limit:g}" if limit is not None and cost > limit else ""
    )


def _on_failure(seen: Triage, past: _Past, policy: DriftSpec, state: LoopState) -> _Proposal | None:
    """Retraining cures neither errors nor latency."""
    if not seen.failing or past.fresh(policy):
        return None
    return Action.ASK, "the service fails, and no recent promotion explains it"


def _on_drift(seen: Triage, past: _Past, policy: DriftSpec, state: LoopState) -> _Proposal | None:
    """Harmless drift is worth knowing; drift of unknown effect is worth labels, and in the end a person's look."""
    if not seen.judged:
        if seen.drifted or seen.quality is Quality.LOST:
            return Action.WARN, "there are signs of trouble, but too few rows to act on"
        return None
    if seen.finding is Finding.HARMLESS:
        return Action.WARN, "harmless so far: quality holds; refresh the reference if this is the new normal"
    if not (seen.drifted and seen.quality is Quality.UNKNOWN) and seen.finding is not Finding.LOSS:
        return None
    resting = state.retraining or past.cooling(policy)
    if past.unresolved + 1 > policy.confirm_windows and not resting:
        count = past.unresolved + 1
        return Action.ASK, f"{count} windows in a row without proof of quality; label some with `leitstand label`"
    return Action.WARN, "whether quality suffers is not proven; labels would tell"


def _on_blindness(seen: Triage, past: _Past, policy: DriftSpec, state: LoopState) -> _Proposal | None:
    if seen.finding is Finding.UNJUDGED and past.unseen + 1 >= _UNSEEN_WINDOWS:
        return Action.WARN, f"{past.unseen + 1} windows in a row could not be judged; lengthen `check_every`"
    return None


def _on_volume(seen: Triage, past: _Past, policy: DriftSpec, state: LoopState) -> _Proposal | None:
    if state.requests is None or not state.usual_requests or state.requests >= _LITTLE_TRAFFIC * state.usual_requests:
        return None
    return Action.WARN, f"{state.requests} requests where {state.usual_requests:.0f} are usual"


def _same_window(decision: Decision, report: DriftReport) -> bool:
    return (decision.version, decision.window_start, decision.window_end) == (
        report.version,
        report.window_start,
        report.window_end,
    )


def _streak(decisions: Sequence[Decision], counted: set[Finding], passed: set[Finding]) -> int:
    """The newest decisions in a row whose finding is `counted`; those `passed` neither count nor end it."""
    count = 0
    for decision in reversed(decisions):
        if decision.finding in counted:
            count += 1
        elif decision.finding not in passed:
            break
    return count


def _since(moments: Sequence[datetime], now: datetime) -> timedelta | None:
    return max(now - max(moments), timedelta()) if moments else None


def _clock(moments: Sequence[datetime], now: datetime, tolerance: timedelta) -> str:
    ahead = max(moments) - now
    return f"the clock went back: something lies {_hours(ahead)} in the future" if ahead > tolerance else ""


def _hours(span: timedelta | None) -> str:
    return f"{(span or timedelta()).total_seconds() / 3600:.1f} h"


def _windows(count: int, policy: DriftSpec) -> str:
    return f"{count} of {policy.confirm_windows} windows in a row"
