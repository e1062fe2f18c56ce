"""The canary's verdict keeps its error rates however often one looks, and decides a broken canary at once."""

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import integrate, stats

from leitstand.usecase import CanaryMargins, RolloutSpec
from monitors.canary import ArmCounts, CanaryEvidence, CanaryOutcome, harm_alpha, judge_canary, step_margin
from monitors.sequential import log_evidence_harm, log_evidence_noninferior, log_mixture

POLICY = RolloutSpec()
shares = st.floats(0.0, 1.0)


def evidence(canary: ArmCounts, stable: ArmCounts, percent: float = 1, minutes: float = 1) -> CanaryEvidence:
    return CanaryEvidence(stable=stable, canary=canary, percent=percent, elapsed=timedelta(minutes=minutes))


def healthy(requests: int, errors: int = 0, doubt: float = 0.1, **more: Any) -> ArmCounts:
    return ArmCounts(
        requests=requests, errors=errors, slow=requests // 100, scored=requests, doubt=doubt * requests, **more
    )


def paths(
    share: tuple[float, float], weight: float, *, runs: int, length: int, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Running (sums, counts) of stable and canary, (runs, length), each request routed at random."""
    generator = np.random.default_rng(seed)
    routed = generator.random((runs, length)) < weight
    bad = generator.random((runs, length)) < np.where(routed, share[1], share[0])
    return (
        (np.cumsum(bad & ~routed, 1), np.cumsum(~routed, 1)),
        (np.cumsum(bad & routed, 1), np.cumsum(routed, 1)),
    )


@pytest.mark.parametrize("weight", [0.05, 0.5])
@pytest.mark.parametrize(("stable", "gap"), [(0.01, 0.02), (0.2, 0.05)])
def test_a_canary_exactly_at_the_margin_is_called_harmful_or_proven_at_most_alpha_often(
    stable: float, gap: float, weight: float
):
    arms = paths((stable, stable + gap), weight, runs=200, length=1000, seed=5)
    threshold = np.log(1 / 0.1)
    for test in (log_evidence_harm, log_evidence_noninferior):
        wrong = int(np.sum((test(*arms, gap) >= threshold).any(axis=1)))
        assert stats.binom.sf(wrong - 1, 200, 0.1) > 0.001, (test.__name__, wrong)


def test_confidences_of_any_spread_keep_the_error_rate():
    generator = np.random.default_rng(3)
    counts = np.arange(1, 1001)
    stable, canary = (np.cumsum(generator.beta(a, b, (200, 1000)), 1) for a, b in ((1, 9), (0.15, 0.85)))
    for test in (log_evidence_harm, log_evidence_noninferior):  # means 0.10 and 0.15, the gap is the margin
        wrong = int(np.sum((test((stable, counts), (canary, counts), 0.05) >= np.log(10)).any(axis=1)))
        assert wrong <= 200 * 0.1


def test_a_worse_canary_is_caught_and_an_equal_one_is_proven():
    alpha = harm_alpha(POLICY)
    arms = paths((0.01, 0.10), 0.25, runs=100, length=3000, seed=9)
    assert np.mean((log_evidence_harm(*arms, 0.02) >= -np.log(alpha)).any(axis=1)) > 0.95
    arms = paths((0.01, 0.01), 0.5, runs=60, length=6000, seed=9)
    assert np.mean((log_evidence_noninferior(*arms, 0.02) >= -np.log(0.05)).any(axis=1)) > 0.9


@given(n=st.integers(0, 40), mean=st.floats(0.01, 0.99))
def test_the_mixture_expects_one_under_its_mean(n: int, mean: float):
    k = np.arange(n + 1)
    assert np.sum(stats.binom.pmf(k, n, mean) * np.exp(log_mixture(k, n, mean))) == pytest.approx(1, rel=1e-6)


@given(n=st.integers(1, 30), data=st.data(), mean=st.floats(0.05, 0.95))
def test_the_mixture_is_the_integral_over_the_prior(n: int, data: st.DataObject, mean: float):
    k = data.draw(st.integers(0, n))
    ratio = lambda p: (p / mean) ** k * ((1 - p) / (1 - mean)) ** (n - k) * stats.beta.pdf(p, 0.5, 0.5)  # noqa: E731
    expected, _ = integrate.quad(lambda t: ratio(np.sin(t) ** 2) * np.sin(2 * t), 1e-9, np.pi / 2 - 1e-9)
    assert float(np.exp(log_mixture(k, n, mean))) == pytest.approx(expected, rel=1e-3)


@settings(max_examples=50)
@given(
    stable=st.tuples(st.integers(1, 500), shares), canary=st.tuples(st.integers(1, 200), shares),
    margin=st.sampled_from([0.0, 0.02, 0.2]),
)  # fmt: skip
def test_the_evidence_is_the_minimum_over_the_hypothesis(
    stable: tuple[int, float], canary: tuple[int, float], margin: float
):
    arms = [(round(n * share), n) for n, share in (stable, canary)]
    grid = np.linspace(0.0005, 0.9995, 400)
    q, p = np.meshgrid(grid, grid)
    product = log_mixture(*arms[0], q) + log_mixture(*arms[1], p)
    harm, noninferior = log_evidence_harm(*arms, margin), log_evidence_noninferior(*arms, margin)
    assert harm <= product[p <= q + margin].min() + 1e-6
    assert noninferior <= product[p >= q + margin].min() + 1e-6
    assert min(harm, noninferior) <= 0  # never both


@given(
    n=st.integers(2, 300), k=st.integers(0, 299), stable=st.tuples(st.integers(1, 2000), shares),
    margin=st.sampled_from([0.0, 0.02, 0.1]),
)  # fmt: skip
def test_one_more_error_never_speaks_for_the_canary(n: int, k: int, stable: tuple[int, float], margin: float):
    k = min(k, n - 2)  # the very last success is left out: without any, an error rate of 1 is possible, too
    arm = (round(stable[0] * stable[1]), stable[0])
    harm, other = (t(arm, ([k, k + 1], [n, n]), margin) for t in (log_evidence_harm, log_evidence_noninferior))
    if harm[1] > 0:
        assert harm[1] >= harm[0] - 1e-6
    if other[0] > 0:
        assert other[1] <= other[0] + 1e-6


@pytest.mark.parametrize(("errors_of_stable", "needed"), [(0, 5), (5, 5), (25, 5), (50, 6)])
def test_a_canary_of_errors_only_is_rolled_back_within_a_few_requests(errors_of_stable: int, needed: int):
    verdicts = [
        judge_canary(evidence(ArmCounts(requests=n, errors=n), healthy(500, errors_of_stable)), POLICY).outcome
        for n in range(1, needed + 1)
    ]
    assert verdicts == [CanaryOutcome.CONTINUE] * (needed - 1) + [CanaryOutcome.ROLL_BACK]


def test_sixty_seconds_at_twenty_requests_a_second_and_one_percent_decide_a_broken_canary():
    assert stats.binom.sf(POLICY.min_requests_harm - 1, 60 * 20, 0.01) > 0.99


def test_an_equal_canary_steps_up_only_after_the_minimum_sample():
    few = judge_canary(evidence(healthy(40), healthy(4000)), POLICY.model_copy(update={"alpha": 0.4}))
    assert few.outcome is CanaryOutcome.CONTINUE and "40 canary requests of the 50" in few.reasons[0]
    enough = judge_canary(evidence(healthy(300, 3), healthy(30_000, 300)), POLICY)
    assert enough.outcome is CanaryOutcome.STEP_UP and enough.follow_up == "step up"


def test_a_margin_widens_at_small_weights_and_is_whole_before_full_traffic():
    assert [round(step_margin(0.02, percent, POLICY), 4) for percent in (1, 5, 25, 50)] == [0.1, 0.08, 0.04, 0.02]
    narrow = POLICY.model_copy(update={"margin_widening": 1})
    assert step_margin(0.02, 1, narrow) == 0.02


@pytest.mark.parametrize(
    ("policy", "follow_up"), [("hold", "ask a person"), ("roll_back", "roll back"), ("proceed", "step up")]
)
def test_a_deadline_without_evidence_is_an_outcome_of_its_own(policy: Any, follow_up: str):
    rules = POLICY.model_copy(update={"on_insufficient": policy})
    found = judge_canary(evidence(healthy(60), healthy(200), percent=50, minutes=31), rules)
    assert (found.outcome, found.follow_up) == (CanaryOutcome.INSUFFICIENT, follow_up)
    assert any("more would prove it" in reason for reason in found.reasons)


def test_harm_after_the_deadline_is_still_rolled_back():
    found = judge_canary(evidence(ArmCounts(requests=9, errors=9), healthy(900), minutes=99), POLICY)
    assert found.outcome is CanaryOutcome.ROLL_BACK and "worse by more than 2.00%" in found.reasons[0]


def test_bad_feedback_alone_stops_a_canary_and_its_absence_does_not_hold_it_up():
    fine, stable = healthy(2000, 20), healthy(2000, 20, rated=300, negative=15)
    assert judge_canary(evidence(fine, stable, percent=50), POLICY).outcome is CanaryOutcome.STEP_UP
    disliked = fine.model_copy(update={"rated": 100, "negative": 60})
    found = judge_canary(evidence(disliked, stable, percent=50), POLICY)
    assert found.outcome is CanaryOutcome.ROLL_BACK and found.reasons[0].startswith("negative: canary 60.00% of 100")


def test_a_metric_that_must_be_proven_and_was_not_observed_keeps_the_step():
    unscored = ArmCounts(requests=5000)
    found = judge_canary(evidence(unscored, healthy(5000), percent=50), POLICY)
    assert found.outcome is CanaryOutcome.CONTINUE and found.reasons == ("doubt: not observed on the canary",)


def test_without_stable_traffic_nothing_is_decided():
    found = judge_canary(evidence(ArmCounts(requests=99, errors=99), ArmCounts(), percent=50), POLICY)
    assert found.outcome is CanaryOutcome.CONTINUE


@given(st.builds(
    lambda n, e, m, f: (ArmCounts(requests=n, errors=round(n * e)), ArmCounts(requests=m, errors=round(m * f))),
    st.integers(0, 3000), shares, st.integers(0, 3000), shares,
))  # fmt: skip
def test_any_counts_give_a_verdict_with_reasons_and_valid_p_values(arms: tuple[ArmCounts, ArmCounts]):
    found = judge_canary(evidence(*arms, percent=25), POLICY)
    assert found.reasons
    assert all(0 <= p <= 1 for m in found.metrics for p in (m.p_harm, m.p_noninferior))
    assert not any(m.harmful and m.p_noninferior < 1 and m.step_margin == m.margin for m in found.metrics)


def test_a_metric_without_a_margin_is_not_judged_and_leaves_its_alpha_to_the_others():
    rules = RolloutSpec(margins=CanaryMargins(blocked=None, negative=None, slow=None), prove=("errors", "doubt"))
    assert harm_alpha(rules) == pytest.approx(0.05 / (2 * 4))
    assert [m.metric for m in judge_canary(evidence(healthy(9), healthy(9)), rules).metrics] == ["errors", "doubt"]


def test_counts_that_contradict_themselves_are_refused():
    with pytest.raises(ValidationError, match="errors 3 exceeds requests 2"):
        ArmCounts(requests=2, errors=3)
    with pytest.raises(ValidationError):
        ArmCounts(scored=2, doubt=float("nan"))


def test_policies_that_could_never_step_up_are_refused():
    with pytest.raises(ValidationError, match="prove names slow"):
        RolloutSpec(margins=CanaryMargins(slow=None))
