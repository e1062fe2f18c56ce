"""The paired tests keep their error rates, agree with statsmodels, and know which way is better."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as reference

from models import paired

ALPHA = 0.05
margins = st.one_of(st.just(0.0), st.floats(1e-6, 0.2))
counts = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 300))


def pair(better: int, worse: int, same: int) -> tuple[np.ndarray, np.ndarray]:
    candidate = np.repeat([1, 0, 1], [better, worse, same])
    champion = np.repeat([0, 1, 1], [better, worse, same])
    return candidate, champion


@given(counts)
def test_mcnemar_without_margin_is_that_of_statsmodels(case: tuple[int, int, int]) -> None:
    better, worse, same = case
    found = paired.mcnemar(*pair(better, worse, same), margin=0.0)
    table = [[same, better], [worse, 0]]
    two_sided = reference(table, exact=True).pvalue if better + worse else 1.0
    assert min(1.0, 2 * min(found.p_noninferior, found.p_inferior)) == pytest.approx(two_sided)


@given(counts)
def test_score_test_approaches_mcnemar_as_the_margin_vanishes(case: tuple[int, int, int]) -> None:
    better, worse, same = case
    if better + worse == 0:
        return
    found = paired.mcnemar(*pair(better, worse, same), margin=1e-12)
    statistic = reference([[same, better], [worse, 0]], exact=False, correction=False).statistic
    from scipy.stats import norm

    assert norm.isf(found.p_noninferior) ** 2 == pytest.approx(statistic, rel=1e-4, abs=1e-6)


@given(counts, margins)
def test_more_right_answers_never_make_non_inferiority_less_likely(case: tuple[int, int, int], margin: float) -> None:
    better, worse, same = case
    before = paired.mcnemar(*pair(better, worse, same), margin=margin)
    after = paired.mcnemar(*pair(better + 1, worse, same - 1), margin=margin)
    assert after.p_noninferior <= before.p_noninferior + 1e-12
    assert after.p_inferior >= before.p_inferior - 1e-12


@given(counts, st.floats(1e-6, 0.2), st.floats(1e-6, 0.2))
def test_a_larger_margin_never_makes_non_inferiority_harder(
    case: tuple[int, int, int], one: float, other: float
) -> None:
    small, large = sorted((one, other))
    # margin 0 is another, exact test
    strict = paired.mcnemar(*pair(*case), margin=small).p_noninferior
    loose = paired.mcnemar(*pair(*case), margin=large).p_noninferior
    assert loose <= strict + 1e-9


@given(counts, margins)
def test_flips_count_against_the_candidate(case: tuple[int, int, int], margin: float) -> None:
    candidate, champion = pair(*case)
    as_right = paired.mcnemar(candidate, champion, margin)
    as_flips = paired.mcnemar(1 - candidate, 1 - champion, margin, sign=-1)
    assert as_right == as_flips


@pytest.mark.parametrize(
    ("n", "margin", "discordant"), [(200, 0.02, 0.05), (1000, 0.01, 0.012), (3080, 0.01, 0.06), (100, 0.05, 0.1)]
)
def test_score_test_lets_a_worse_candidate_pass_at_most_alpha_of_the_time(
    n: int, margin: float, discordant: float
) -> None:
    """At the boundary, exactly `margin` worse: the hardest case."""
    trials = 2000
    worse = (discordant + margin) / 2
    draws = np.random.default_rng(11).multinomial(
        n, [worse - margin, worse, 1 - discordant], size=trials
    )  # better, worse, same
    passed = np.mean([paired.mcnemar(*pair(*draw), margin=margin).p_noninferior < ALPHA for draw in draws])
    assert passed <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / trials)


def test_exact_test_lets_an_equal_candidate_pass_at_most_alpha_of_the_time_without_margin() -> None:
    draws = np.random.default_rng(12).multinomial(500, [0.03, 0.03, 0.94], size=1000)
    passed = np.mean([paired.mcnemar(*pair(*draw), margin=0.0).p_noninferior < ALPHA for draw in draws])
    assert passed <= ALPHA


def test_paired_bootstrap_keeps_alpha_at_the_boundary() -> None:
    rng, trials, n, margin = np.random.default_rng(13), 400, 400, 0.02
    passed = 0
    for trial in range(trials):
        candidate, champion = pair(*rng.multinomial(n, [0.02, 0.04, 0.94]))
        passed += _bootstrap(candidate, champion, margin, seed=trial).p_noninferior < ALPHA
    assert passed / trials <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / trials)


def test_bootstrap_and_score_test_agree_on_a_large_sample() -> None:
    candidate, champion = pair(60, 75, 2945)
    score = paired.mcnemar(candidate, champion, 0.01)
    resampled = _bootstrap(candidate, champion, 0.01, seed=1, samples=4000)
    assert resampled.difference == pytest.approx(score.difference, abs=1e-6)
    assert resampled.p_noninferior == pytest.approx(score.p_noninferior, abs=0.015)
    assert resampled.deviation == pytest.approx(score.deviation, rel=0.05)


@settings(max_examples=20)
@given(st.integers(0, 2**16))
def test_identical_answers_are_non_inferior_with_a_margin_and_undecided_without(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2, size=300)
    assert _bootstrap(values, values, 0.01, seed=seed).p_noninferior < ALPHA
    without = paired.mcnemar(values, values, 0.0)
    assert without.p_noninferior == 1.0
    assert without.p_inferior == 1.0
    assert paired.rows_needed(without, 0.0, ALPHA) is None


def test_rows_needed_give_the_power_they_promise() -> None:
    found = paired.mcnemar(*pair(15, 18, 467), margin=0.01)
    n = paired.rows_needed(found, 0.01, ALPHA)
    assert n is not None
    assert n > 500
    better, worse = 15 / 500, 18 / 500
    draws = np.random.default_rng(14).multinomial(n, [better, worse, 1 - better - worse], size=500)
    proven = np.mean([paired.mcnemar(*pair(*draw), margin=0.01).p_noninferior < ALPHA for draw in draws])
    assert proven == pytest.approx(0.8, abs=0.06)


def _bootstrap(
    candidate: np.ndarray, champion: np.ndarray, margin: float, seed: int, samples: int = 500
) -> paired.Comparison:
    n = len(candidate)
    return paired.bootstrap(
        lambda weights: weights @ candidate / n, lambda weights: weights @ champion / n, n,
        margin=margin, sign=1, samples=samples, seed=seed,
    )  # fmt: skip
