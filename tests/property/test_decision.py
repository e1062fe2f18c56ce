"""Decisions: each row of the table, and what no history may ever bring about."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leitstand.types import Action, Decision, DriftReport, DriftScore, Finding, Metric
from leitstand.usecase import DriftSpec
from monitors.decision import RANK, LoopState, decide
from monitors.triage import Quality, triage, wilson

START = datetime(2026, 11, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
POLICY = DriftSpec()
IDLE = LoopState()
SHIFT = DriftScore(
    detector="psi", column="words", family="input", value=0.4, threshold=0.1, drifted=True, rows=2000
)  # fmt: skip


def accuracy(value: float | None, examples: int = 4000) -> Metric | None:
    return None if value is None else Metric(name="accuracy", value=value, examples=examples)


def window(
    hour: int = 0, *, drifted: bool = False, measured: float | None = None, estimated: float | None = 0.93,
    labels: int = 4000, rows: int = 2000, version: int = 3, **more: Any,
) -> DriftReport:  # fmt: skip
    facts = {"reference_accuracy": 0.93, "error_rate": 0.0, **more}
    return DriftReport(
        use_case="support", version=version, window_start=START + hour * HOUR, window_end=START + (hour + 1) * HOUR,
        rows=rows, reference_rows=3000, reference_digest="", scores=(SHIFT,) if drifted else (), drifted=drifted,
        measured_accuracy=accuracy(measured, labels), estimated_accuracy=accuracy(estimated), **facts,
    )  # fmt: skip


def run(
    windows: Sequence[DriftReport], state: LoopState = IDLE, policy: DriftSpec = POLICY, before: Sequence[Decision] = ()
) -> list[Decision]:
    """Decides window after window, each at its end, with the history so far."""
    history = list(before)
    for each in windows:
        history.append(decide(each, history, policy, state, now=each.window_end))
    return history[len(before) :]


def actions(windows: Sequence[DriftReport], state: LoopState = IDLE, policy: DriftSpec = POLICY) -> list[Action]:
    return [decision.action for decision in run(windows, state, policy)]


def test_a_quiet_window_asks_for_nothing():
    (found,) = run([window()])
    assert (found.action, found.finding) == (Action.NOTHING, Finding.HEALTHY)
    assert found.reasons == (
        "estimated accuracy 0.930 [0.922, 0.938] on 4000 rows is on or above 0.910 (reference 0.930)",
    )


def test_harmless_drift_warns_with_a_hint_and_never_retrains():
    found = run([window(hour, drifted=True, measured=0.935) for hour in range(30)])
    assert {d.action for d in found} == {Action.WARN} and {d.finding for d in found} == {Finding.HARMLESS}
    assert "psi of words 0.4 > 0.1" in found[0].reasons[-2] and "refresh the reference" in found[0].reasons[-1]


def test_a_loss_is_trained_upon_when_the_next_window_confirms_it():
    found = run([window(hour, drifted=True, estimated=0.87) for hour in range(2)])
    assert [d.action for d in found] == [Action.WARN, Action.RETRAIN]
    assert "1 of 2 windows in a row" in found[0].reasons[-2] and "held for 2 windows" in found[1].reasons[-1]


def test_a_large_loss_needs_no_confirmation():
    assert actions([window(estimated=0.70)]) == [Action.RETRAIN]


def test_a_loss_that_goes_away_begins_to_count_anew():
    lost = [True, False, True, False, True]
    windows = [window(hour, estimated=0.87 if bad else 0.93) for hour, bad in enumerate(lost)]
    assert Action.RETRAIN not in actions(windows)


def test_a_window_too_small_to_judge_neither_confirms_nor_refutes():
    windows = [window(0, estimated=0.87), window(1, rows=20, estimated=0.93), window(2, estimated=0.87)]
    assert actions(windows) == [Action.WARN, Action.NOTHING, Action.RETRAIN]


def test_an_old_loss_confirms_nothing():
    assert actions([window(0, estimated=0.87), window(48, estimated=0.87)]) == [Action.WARN, Action.WARN]


def test_no_automatic_action_on_fewer_rows_than_the_minimum():
    small = window(rows=499, drifted=True, estimated=0.2, measured=0.2)
    (found,) = run([small])
    assert (found.action, found.finding) == (Action.WARN, Finding.UNJUDGED)
    assert "499 rows of the 500" in " ".join(found.reasons)


def test_few_labels_are_no_measurement():
    assert triage(window(measured=0.1, labels=99, estimated=None), POLICY).quality is Quality.UNKNOWN
    assert triage(window(measured=0.1, labels=100, estimated=None), POLICY).quality is Quality.LOST


def test_labels_that_contradict_the_estimate_ask_a_person_in_the_end():
    windows = [window(hour, drifted=True, measured=0.95, estimated=0.80) for hour in range(3)]
    assert actions(windows) == [Action.WARN, Action.WARN, Action.ASK]


def test_drift_without_evidence_on_quality_asks_for_labels_when_it_stays():
    found = run([window(hour, drifted=True, estimated=None) for hour in range(3)])
    assert [d.action for d in found] == [Action.WARN, Action.WARN, Action.ASK]
    assert "leitstand label" in found[-1].reasons[-1]


@pytest.mark.parametrize("cause", [{"estimated": 0.7}, {"error_rate": 0.5}])
def test_sudden_harm_after_a_promotion_is_rolled_back(cause: dict[str, float]):
    fresh = LoopState(promoted_at=START - HOUR, previous_version=2, serving=3)
    (found,) = run([window(**cause)], fresh)
    assert found.action is Action.ROLL_BACK and "back to version 2" in found.reasons[-1]


def test_a_small_loss_after_a_promotion_is_confirmed_before_it_is_rolled_back():
    fresh = LoopState(promoted_at=START, previous_version=2)
    assert actions([window(hour, estimated=0.87) for hour in range(2)], fresh) == [Action.WARN, Action.ROLL_BACK]


@pytest.mark.parametrize(
    "state",
    [
        LoopState(promoted_at=START),
        LoopState(promoted_at=START, previous_version=2, last_rollback_at=START - HOUR),
    ],
)
def test_a_person_is_asked_when_there_is_nothing_good_to_go_back_to(state: LoopState):
    assert actions([window(estimated=0.5)], state) == [Action.ASK]


def test_long_after_a_promotion_a_loss_is_no_longer_its_fault():
    state = LoopState(promoted_at=START - 3 * 24 * HOUR, previous_version=2)
    assert actions([window(estimated=0.5)], state) == [Action.RETRAIN]


def test_errors_without_a_promotion_ask_a_person_even_in_a_tiny_window():
    (found,) = run([window(rows=3, error_rate=0.99)], LoopState(requests=900))
    assert (found.action, found.finding) == (Action.ASK, Finding.FAILING)
    assert "99.0% of 900 requests failed" in found.reasons[0]


def test_slow_answers_count_when_the_policy_limits_them():
    policy = DriftSpec(max_latency_p99_ms=200)
    assert actions([window(latency_p99_ms=900)], policy=policy) == [Action.ASK]
    assert actions([window(latency_p99_ms=900)]) == [Action.NOTHING]


def test_one_retraining_at_a_time():
    found = run([window(estimated=0.5)], LoopState(retraining=True))
    assert found[0].action is Action.WARN and "runs already" in found[0].reasons[-2]


def test_after_an_action_the_loop_rests_and_asks_when_the_loss_is_large():
    recent = LoopState(last_retrain_at=START - HOUR)
    assert actions([window(hour, estimated=0.87) for hour in range(2)], recent)[-1] is Action.WARN
    assert actions([window(estimated=0.5)], recent) == [Action.ASK]


def test_a_spent_budget_asks_a_person():
    (found,) = run([window(estimated=0.5)], LoopState(retrains_this_week=2))
    assert found.action is Action.ASK and "2 retrainings in 7 days; the budget is 2" in found.reasons[-1]
    policy = DriftSpec(max_retrain_cost_per_week=50)
    assert actions([window(estimated=0.5)], LoopState(cost_this_week=40, next_cost=11), policy) == [Action.ASK]
    assert actions([window(estimated=0.5)], LoopState(cost_this_week=40, next_cost=10), policy) == [Action.RETRAIN]


def test_two_drift_events_at_once_are_one_action():
    first = decide(window(estimated=0.5), [], POLICY, IDLE, now=START + HOUR)
    again = decide(window(estimated=0.4), [first], POLICY, IDLE, now=START + 2 * HOUR)
    assert again == first  # the same window, judged anew
    other = window(estimated=0.5).model_copy(update={"window_end": START + HOUR + timedelta(minutes=5)})
    assert decide(other, [first], POLICY, IDLE, now=START + HOUR).action is not Action.RETRAIN


def test_a_clock_that_went_back_lets_only_people_act():
    later = decide(window(100), [], POLICY, IDLE, now=START + 101 * HOUR)
    (found,) = run([window(0, estimated=0.5)], before=[later])
    assert found.action is Action.ASK and "the clock went back" in found.reasons[-1]
    fresh = LoopState(promoted_at=START + 50 * HOUR, previous_version=2)
    assert run([window(0, estimated=0.5)], fresh, before=[later])[0].action is Action.ASK


def test_a_version_that_was_replaced_meanwhile_starts_nothing():
    (found,) = run([window(estimated=0.5)], LoopState(serving=4))
    assert found.action is Action.NOTHING and found.reasons[-1] == "version 3 does not serve any more"


def test_vanished_traffic_and_lasting_blindness_warn():
    assert actions([window()], LoopState(requests=20, usual_requests=4000)) == [Action.WARN]
    assert actions([window(hour, rows=10) for hour in range(7)]) == [Action.NOTHING] * 5 + [Action.WARN] * 2


def test_numbers_that_are_none_are_no_evidence():
    nan = window(drifted=True, measured=math.nan, estimated=math.nan, error_rate=math.nan, reference_accuracy=0.93)
    (found,) = run([nan])
    assert (found.action, found.finding) == (Action.WARN, Finding.UNCERTAIN)


def test_wilson_agrees_with_published_values():
    low, high = wilson(0.3, 10)  # Newcombe 1998, Statistics in Medicine 17, method 3
    assert (round(low, 4), round(high, 4)) == (0.1078, 0.6032)
    assert wilson(0.5, 0) == (0.0, 1.0)


shares = st.floats(0, 1)
moments = st.integers(-200, 200).map(lambda hours: START + hours * HOUR)
states = st.builds(
    LoopState,
    serving=st.sampled_from([None, 3]), previous_version=st.sampled_from([None, 2]),
    promoted_at=st.none() | moments, retraining=st.booleans(), retrains_this_week=st.integers(0, 3),
    last_retrain_at=st.none() | moments, last_rollback_at=st.none() | moments,
    requests=st.none() | st.integers(0, 5000), usual_requests=st.none() | st.floats(0, 5000),
)  # fmt: skip
pasts = st.lists(
    st.builds(
        lambda hour, action, finding, at: Decision(
            use_case="support", version=3, at=START + at * HOUR, action=action, reasons=("generated",), finding=finding,
            window_start=START + (hour - 300) * HOUR, window_end=START + (hour - 299) * HOUR,
        ),
        st.integers(0, 200), st.sampled_from(Action), st.sampled_from(Finding), st.integers(-200, 5),
    ),
    max_size=6,
)  # fmt: skip


@settings(max_examples=400)
@given(
    past=pasts, state=states, drifted=st.booleans(), better=st.tuples(shares, shares), worse=st.tuples(shares, shares),
    known=st.sampled_from([(True, True), (True, False), (False, True)]), labels=st.integers(50, 4000),
    errors=st.tuples(shares, shares), rows=st.sampled_from([10, 800]),
)  # fmt: skip
def test_worse_quality_never_gives_a_milder_action(
    past: list[Decision], state: LoopState, drifted: bool, better: tuple[float, float], worse: tuple[float, float],
    known: tuple[bool, bool], labels: int, errors: tuple[float, float], rows: int,
):  # fmt: skip
    def action(measured: float, estimated: float, rate: float) -> Action:
        report = window(
            200, drifted=drifted, measured=measured if known[0] else None, estimated=estimated if known[1] else None,
            labels=labels, error_rate=rate, rows=rows,
        )  # fmt: skip
        return decide(report, past, POLICY, state, now=START + 3 * HOUR).action

    pairs = [sorted(pair) for pair in zip(better, worse, strict=True)]
    mild = action(pairs[0][1], pairs[1][1], min(errors))
    strong = action(pairs[0][0], pairs[1][0], max(errors))
    assert RANK[strong] >= RANK[mild]


events = st.lists(
    st.tuples(st.integers(-30, 60), st.sampled_from([0.93, 0.87, 0.5]), st.booleans(), st.integers(0, 40)), max_size=40
)


@settings(max_examples=200)
@given(events=events, budget=st.integers(0, 3), state=states)
def test_no_history_holds_more_retrainings_than_the_budget(
    events: list[tuple[int, float, bool, int]], budget: int, state: LoopState
):
    """Events come with jumping clocks, repeated windows, and a state that knows nothing of what was begun."""
    policy = DriftSpec(max_retrains_per_week=budget, cool_down=timedelta(hours=2))
    state = LoopState(retraining=state.retraining, previous_version=2)
    history: list[Decision] = []
    now = START
    for jump, quality, drifted, hour in events:
        now += jump * HOUR
        found = decide(window(hour, drifted=drifted, estimated=quality), history, policy, state, now=now)
        if found not in history:
            history.append(found)
    begun = [d.at for d in history if d.action is Action.RETRAIN]
    for at in begun:
        assert sum(timedelta() <= other - at < timedelta(days=7) for other in begun) <= budget


@settings(max_examples=100)
@given(past=pasts, state=states, quality=shares, data=st.data())
def test_decisions_are_deterministic_idempotent_and_blind_to_the_order_of_history(
    past: list[Decision], state: LoopState, quality: float, data: st.DataObject
):
    report, now = window(200, estimated=quality, drifted=True), START + 3 * HOUR
    found = decide(report, past, POLICY, state, now=now)
    assert decide(report, past, POLICY, state, now=now) == found
    assert decide(report, [*past, found], POLICY, state, now=now + data.draw(st.integers(-99, 99)) * HOUR) == found
    unique = list({d.at: d for d in past}.values())
    shuffled = data.draw(st.permutations(unique))
    assert decide(report, shuffled, POLICY, state, now=now) == decide(report, unique, POLICY, state, now=now)
    assert found.reasons
