"""What a rollout may do next: a pure state machine. Effects (deploy, route, promote) are `flows.rollout`'s.

    deploying ──> shadow ──> awaiting approval ──> canary 1 % ──> … ──> canary 50 % ──> promoting ──> promoted
        │            │        (policy: manual)         │                                 (100 %)
        │            └──────────────┬──────────────────┘
        │                           ├── held: weights stay, until `approve` or `abort`
        └───────────────────────────┴── rolling back ──> rolled back | aborted

The state names what the world must look like; effects make it so and may be repeated. Weights only rise,
through the steps of the policy, or fall to nothing. The last step, 100 %, is the promotion itself: without traffic
on stable there is nothing to compare with. No clock is read and nothing is stored here.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from leitstand.errors import ConflictError
from leitstand.usecase import RolloutSpec

__all__ = ["Command", "Judgement", "Phase", "Request", "Rollout", "deadline", "next_step", "obey"]


class Phase(StrEnum):
    """Where a rollout stands; the last three are final."""

    DEPLOYING = "deploying"
    SHADOW = "shadow"
    AWAITING_APPROVAL = "awaiting_approval"
    CANARY = "canary"
    HELD = "held"
    PROMOTING = "promoting"
    ROLLING_BACK = "rolling_back"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"


FINAL = frozenset({Phase.PROMOTED, Phase.ROLLED_BACK, Phase.ABORTED})
ENDING = FINAL | {Phase.PROMOTING, Phase.ROLLING_BACK}
WATCHED = frozenset({Phase.SHADOW, Phase.CANARY})


class Command(StrEnum):
    """What a person may ask of a rollout."""

    APPROVE = "approve"
    HOLD = "hold"
    ABORT = "abort"


@dataclass(frozen=True)
class Request:
    """A command with its author. `number` rises with every request of the store."""

    number: int
    command: Command
    actor: str
    reason: str
    at: datetime


@dataclass(frozen=True)
class Judgement:
    """What the evidence says about the candidate so far.

    Attributes:
        outcome: ``healthy``: enough evidence, and no worse than stable; ``broken``: worse, with the error
            rate that the policy promises; ``undecided``: not enough evidence yet.
        reasons: Each in one sentence with its numbers.
        needed: Requests of the candidate that are still missing for a decision; None when unknown.
    """

    outcome: Literal["healthy", "broken", "undecided"]
    reasons: tuple[str, ...] = ()
    needed: int | None = None

    @property
    def text(self) -> str:
        """The reasons in one line."""
        return "; ".join(self.reasons) or self.outcome


class Rollout(BaseModel):
    """The state of one rollout; every change is a new revision in the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    rollout_id: str = Field(description="use case and a number that rises: support-r3")
    use_case: str
    version: int = Field(description="the candidate")
    tag: str = Field(description="Bento of the candidate")
    previous: int | None = Field(default=None, description="version that was stable when the rollout began")
    policy: RolloutSpec = Field(description="as it was when the rollout began; later edits change nothing")
    actor: str
    started_at: AwareDatetime
    phase: Phase = Phase.DEPLOYING
    step: int = Field(default=-1, description="index of the canary step in force; -1 before the first")
    since: AwareDatetime = Field(description="when this phase or step began")
    at: AwareDatetime = Field(description="when this revision was written")
    url: str = Field(default="", description="where the candidate answers, once it is deployed")
    slow_ms: float = Field(default=1000.0, gt=0, description="slower answers count as slow, on both sides")
    approved_by: str = ""
    held_from: Phase | None = None
    ends_as: Phase = Field(default=Phase.PROMOTED, description="final phase that the effects in progress lead to")
    reason: str = Field(default="", description="why this revision was written")
    by: str = Field(default="controller", description="who caused this revision")
    revision: int = Field(default=0, ge=0)
    requests_seen: int = Field(default=0, description="number of the last request that was obeyed or refused")

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.phase in FINAL

    @property
    def in_force(self) -> Phase:
        """The phase whose routes hold: a held rollout keeps those of the phase it was held in."""
        return self.held_from or self.phase

    @property
    def percent(self) -> float:
        """Share of requests that the candidate answers."""
        return float(self.policy.canary_percent[self.step]) if self.in_force is Phase.CANARY else 0.0


def next_step(rollout: Rollout, judgement: Judgement, now: datetime) -> Rollout | None:
    """The next state of a rollout whose present effects are done, or None to stay.

    Args:
        rollout: The present state.
        judgement: On all evidence since the phase began; looked at in ``shadow`` and ``canary`` only.
        now: The present moment.
    """
    match rollout.phase:
        case Phase.DEPLOYING:
            return _after_deploying(rollout, now)
        case Phase.SHADOW | Phase.CANARY:
            return _watched(rollout, judgement, now)
        case Phase.AWAITING_APPROVAL:
            return _step_up(rollout, f"approved by {rollout.approved_by}", now) if rollout.approved_by else None
        case Phase.PROMOTING | Phase.ROLLING_BACK:
            return _to(rollout, rollout.ends_as, rollout.reason, now, by=rollout.by)
        case _:
            return None


def obey(rollout: Rollout, request: Request, now: datetime) -> Rollout:
    """The state after a person's command.

    Raises:
        ConflictError: The command makes no sense in this phase.
    """
    said = f"{request.actor}: {request.reason}" if request.reason else f"asked by {request.actor}"
    after: Rollout | None = None
    if rollout.phase not in ENDING:
        match request.command:
            case Command.ABORT:
                after = _end(rollout, Phase.ABORTED, f"aborted by {said}", now)
            case Command.HOLD if rollout.phase is not Phase.HELD:
                after = _hold(rollout, f"held by {said}", now)
            case Command.APPROVE if rollout.held_from:
                update = {"held_from": None, "approved_by": request.actor}
                after = _to(rollout, rollout.held_from, f"continued by {said}", now, **update)
            case Command.APPROVE if not rollout.approved_by:
                after = _to(rollout, rollout.phase, f"approved by {said}", rollout.since, approved_by=request.actor)
    if after is None:
        raise ConflictError(
            f"Rollout {rollout.rollout_id} is {rollout.phase.replace('_', ' ')}: it cannot {request.command}",
            hint=f"see `leitstand rollout status {rollout.use_case}`",
        )
    return after.model_copy(update={"by": request.actor, "requests_seen": request.number, "at": now})


def deadline(rollout: Rollout) -> datetime | None:
    """When the present phase or step must be decided; None where nothing waits for evidence."""
    return rollout.since + rollout.policy.step_deadline if rollout.phase in WATCHED else None


def _after_deploying(rollout: Rollout, now: datetime) -> Rollout:
    if rollout.policy.shadow_minutes:
        return _to(rollout, Phase.SHADOW, f"answers at {rollout.url}", now)
    return _toward_traffic(rollout, f"answers at {rollout.url}", now)


def _watched(rollout: Rollout, judgement: Judgement, now: datetime) -> Rollout | None:
    if judgement.outcome == "broken":
        return _end(rollout, Phase.ROLLED_BACK, judgement.text, now)
    waited = now - rollout.since
    if rollout.phase is Phase.SHADOW and waited < timedelta(minutes=rollout.policy.shadow_minutes):
        return None
    if judgement.outcome == "healthy":
        return _onward(rollout, judgement.text, now)
    return _without_evidence(rollout, judgement, now) if waited >= rollout.policy.step_deadline else None


def _without_evidence(rollout: Rollout, judgement: Judgement, now: datetime) -> Rollout:
    missing = f", about {judgement.needed} more requests needed" if judgement.needed else ""
    reason = f"insufficient evidence at the deadline{missing}: {judgement.text}"
    match rollout.policy.on_insufficient:
        case "hold":
            return _hold(rollout, reason, now)
        case "roll_back":
            return _end(rollout, Phase.ROLLED_BACK, reason, now)
        case "proceed":
            return _onward(rollout, f"proceeds by policy; {reason}", now)


def _onward(rollout: Rollout, reason: str, now: datetime) -> Rollout:
    if rollout.phase is Phase.SHADOW:
        return _toward_traffic(rollout, reason, now)
    return _step_up(rollout, reason, now)


def _toward_traffic(rollout: Rollout, reason: str, now: datetime) -> Rollout:
    if rollout.policy.approval == "manual" and not rollout.approved_by:
        return _to(rollout, Phase.AWAITING_APPROVAL, reason, now)
    return _step_up(rollout, reason, now)


def _step_up(rollout: Rollout, reason: str, now: datetime) -> Rollout:
    step = rollout.step + 1
    if step >= len(rollout.policy.canary_percent) - 1:
        return _to(rollout, Phase.PROMOTING, reason, now, ends_as=Phase.PROMOTED)
    return _to(rollout, Phase.CANARY, reason, now, step=step)


def _hold(rollout: Rollout, reason: str, now: datetime) -> Rollout:
    return _to(rollout, Phase.HELD, reason, now, held_from=rollout.phase)


def _end(rollout: Rollout, final: Phase, reason: str, now: datetime) -> Rollout:
    return _to(rollout, Phase.ROLLING_BACK, reason, now, ends_as=final, held_from=None)


def _to(rollout: Rollout, phase: Phase, reason: str, now: datetime, **update: object) -> Rollout:
    change = {"phase": phase, "reason": reason, "since": now, "at": now, "by": "controller"}
    return rollout.model_copy(update=change | update)
