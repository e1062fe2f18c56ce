"""The rollout's state machine under any sequence of verdicts, commands and pauses."""

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from leitstand.errors import ConflictError
from leitstand.usecase import RolloutSpec
from monitors.rollout_rules import Command, Judgement, Phase, Request, Rollout, next_step, obey

START = datetime(2026, 1, 1, tzinfo=UTC)

policies = st.builds(
    lambda steps, shadow, approval, after: RolloutSpec(
        canary_percent=(*sorted(steps), 100), shadow_minutes=shadow, approval=approval, on_insufficient=after
    ),
    st.sets(st.integers(1, 99), max_size=4),
    st.sampled_from([0, 10]),
    st.sampled_from(["automatic", "manual"]),
    st.sampled_from(["hold", "roll_back", "proceed"]),
)
looks = st.tuples(st.sampled_from(["healthy", "broken", "undecided", "undecided"]), st.integers(0, 45))
moves = st.lists(st.one_of(looks, st.sampled_from(list(Command))), max_size=30)


def rollout(policy: RolloutSpec) -> Rollout:
    return Rollout(
        rollout_id="support-r1", use_case="support", version=2, tag="support:2", previous=1, policy=policy,
        actor="test", started_at=START, since=START, at=START,
    )  # fmt: skip


def walk(policy: RolloutSpec, moves: list[object]) -> list[Rollout]:
    states, now = [rollout(policy)], START
    for number, move in enumerate(moves, start=1):
        last = states[-1]
        if isinstance(move, Command):
            try:
                states.append(obey(last, Request(number, move, "ann", "", now), now))
            except ConflictError:
                continue
        else:
            outcome, minutes = move  # type: ignore[misc]
            now += timedelta(minutes=minutes)
            states.append(next_step(last, Judgement(outcome), now) or last)
    return states


@given(policies, moves)
def test_weights_rise_through_the_listed_steps_only_or_fall_to_nothing(
    policy: RolloutSpec, moves: list[object]
) -> None:
    states = walk(policy, moves)
    allowed = [0, *policy.canary_percent[:-1]]
    for before, after in itertools.pairwise(states):
        assert after.percent in allowed
        if after.percent != before.percent and after.percent:
            assert allowed.index(int(after.percent)) == allowed.index(int(before.percent)) + 1
        if before.percent and not after.percent:
            assert after.phase in (Phase.PROMOTING, Phase.ROLLING_BACK)


@given(policies, moves)
def test_a_broken_verdict_or_an_abort_always_leads_back_and_a_final_state_is_final(
    policy: RolloutSpec, moves: list[object]
) -> None:
    last = walk(policy, moves)[-1]
    judged = next_step(last, Judgement("broken", ("it fails",)), last.at)
    if last.phase in (Phase.SHADOW, Phase.CANARY):
        assert judged is not None
        assert (judged.phase, judged.ends_as, judged.reason) == (Phase.ROLLING_BACK, Phase.ROLLED_BACK, "it fails")
    if last.finished:
        assert judged is None
    if last.phase not in (Phase.PROMOTING, Phase.ROLLING_BACK) and not last.finished:
        aborted = obey(last, Request(99, Command.ABORT, "ann", "no", last.at), last.at)
        done = next_step(aborted, Judgement("undecided"), last.at)
        assert done is not None
        assert done.phase is Phase.ABORTED


@given(policies, moves)
def test_no_traffic_moves_before_a_person_approved_where_the_policy_asks_for_one(
    policy: RolloutSpec, moves: list[object]
) -> None:
    for state in walk(policy, moves):
        if policy.approval == "manual" and (state.percent or state.phase is Phase.PROMOTING):
            assert state.approved_by == "ann"


@given(policies, moves)
def test_time_alone_never_moves_a_held_or_waiting_rollout(policy: RolloutSpec, moves: list[object]) -> None:
    last = walk(policy, moves)[-1]
    if last.phase is Phase.HELD or (last.phase is Phase.AWAITING_APPROVAL and not last.approved_by):
        assert next_step(last, Judgement("healthy"), last.at + timedelta(days=30)) is None


@given(policies, moves)
def test_every_state_survives_the_store_unchanged(policy: RolloutSpec, moves: list[object]) -> None:
    for state in walk(policy, moves):
        assert Rollout.model_validate_json(state.model_dump_json()) == state
