"""Is a candidate worse than the champion by more than a margin? Paired, one-sided tests.

Both models answered the same units (rows, sentences). With d the candidate's mean minus the champion's
(turned so that more is better), two hypotheses are tested at the same level:

    inferior by more than the margin:  d < -margin     rejected: the candidate is *non-inferior*
    not inferior:                      d >= -margin    rejected: the candidate is *inferior*

When neither is rejected, the data do not decide. A gate list in which every gate must prove
non-inferiority is an intersection-union test, so its chance to let a worse candidate pass is at most
alpha without any correction (Berger 1982, Technometrics 24). Pure functions over counts and arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, isclose, sqrt

import numpy as np
from scipy import stats

from models.metrics import bootstrap_weights

__all__ = ["Comparison", "bootstrap", "mcnemar", "rows_needed"]

_POWER = 0.8
Statistic = Callable[[np.ndarray], np.ndarray]
"""Maps weights (samples, n), how often each unit was drawn, to values (samples,)."""


@dataclass(frozen=True)
class Comparison:
    """What a paired test found.

    Attributes:
        test: Name of the test.
        difference: Candidate minus champion; positive is better.
        p_noninferior: Small when the candidate is not worse than the champion by more than the margin.
        p_inferior: Small when it is.
        deviation: Standard deviation of the difference of one unit.
        units: Units that both models answered.
    """

    test: str
    difference: float
    p_noninferior: float
    p_inferior: float
    deviation: float
    units: int


def mcnemar(candidate: np.ndarray, champion: np.ndarray, margin: float, sign: int = 1) -> Comparison:
    """Compares two (n,) arrays of 0 and 1, unit by unit.

    Margin 0: McNemar's exact conditional test on the discordant pairs (McNemar 1947, Psychometrika 12).
    Margin above 0: the score test with the variance restricted to the margin (Tango 1998, Statistics in
    Medicine 17; Liu et al. 2002, Statistics in Medicine 21, recommend it for non-inferiority).

    Args:
        candidate: 1 where the candidate shows the event.
        champion: The same for the champion.
        margin: How much worse the candidate may be, at least 0.
        sign: 1 when the event is good (right answer), -1 when it is bad (flip).
    """
    n = len(candidate)
    better = int(np.sum(candidate > champion)) if sign > 0 else int(np.sum(candidate < champion))
    worse = int(np.sum(candidate != champion)) - better
    difference = (better - worse) / n
    deviation = sqrt(max((better + worse) / n - difference**2, 0.0))
    if margin == 0:
        fair = stats.binom(better + worse, 0.5)
        p_noninferior, p_inferior = float(fair.sf(better - 1)), float(fair.cdf(better))
        return Comparison("McNemar exact", difference, p_noninferior, p_inferior, deviation, n)
    z = _tango(better, worse, n, margin)
    return Comparison(
        "Tango score", difference, float(stats.norm.sf(z)), float(stats.norm.cdf(z)), deviation, n
    )  # fmt: skip


def bootstrap(
    candidate: Statistic, champion: Statistic, n: int, *, margin: float, sign: int, samples: int, seed: int
) -> Comparison:
    """Compares two statistics over the same resamples of the n units.

    The p-value of a hypothesis is the share of resamples on its side of ``-margin``, counting the
    observed one (Efron & Tibshirani 1993, chapters 13 and 15; paired as in Koehn 2004, EMNLP).

    Args:
        candidate: The statistic of the candidate's answers.
        champion: The statistic of the champion's.
        n: Units.
        margin: How much worse the candidate may be, at least 0.
        sign: 1 when more is better, -1 when less is.
        samples: Resamples.
        seed: Of the resamples.
    """
    ones = np.ones((1, n), dtype=np.float32)
    observed = sign * float((candidate(ones) - champion(ones))[0])
    weights = bootstrap_weights(n, samples, seed)
    drawn = sign * (candidate(weights) - champion(weights)).astype(np.float64)
    p_noninferior = (1 + int(np.sum(drawn <= -margin))) / (samples + 1)
    p_inferior = (1 + int(np.sum(drawn >= -margin))) / (samples + 1)
    return Comparison("paired bootstrap", observed, p_noninferior, p_inferior, float(drawn.std()) * sqrt(n), n)


def rows_needed(found: Comparison, margin: float, alpha: float) -> int | None:
    """Units with which the difference found would decide with 80 % power; None when no number would.

    Source: the sample size of a paired one-sided z-test, ``((z_alpha + z_power) sd / distance)^2``.
    """
    distance = abs(found.difference + margin)
    if isclose(distance, 0.0, abs_tol=1e-6) or found.deviation == 0:
        return None
    z = float(stats.norm.isf(alpha) + stats.norm.ppf(_POWER))
    return max(ceil((z * found.deviation / distance) ** 2), found.units + 1)


def _tango(better: int, worse: int, n: int, margin: float) -> float:
    """Tango's score statistic of the hypothesis that the difference is exactly `-margin`."""
    null = -margin
    b = -better - worse + (2 * n - better + worse) * null
    c = -worse * null * (1 - null)
    share = (sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * share + null * (1 - null))
    shift = better - worse - n * null
    if variance <= 0:
        return 0.0 if isclose(shift, 0.0) else float(np.copysign(np.inf, shift))
    return shift / sqrt(variance)
