"""Which sources of labels are trusted: statistical tests against the other sources, the base data and a model.

Three one-sided binomial tests for each source with enough labels, Holm's correction over all of them
(Holm 1979, Scand. J. Stat. 6), so the chance that any honest source is quarantined stays below the policy's
``alpha``:

*agreement*    texts that others labelled too (other sources' majority, or the base data): how often does the
               source differ? Tolerated: the median rate of the other sources, plus the tolerance.
*plausibility* how often is a label outside the model's best k guesses? Agents mostly send corrections, so they
               differ from the first guess by their trade; from the best five, honest ones rarely. Tolerated: the
               model's own cross-validated miss rate or the other sources' median, whichever is higher, plus the
               tolerance.
*peers*        how often does it differ from the model's first guess? Tolerated: the median of the other sources
               plus the tolerance; needs two others. It finds targeted flips between neighbouring labels.

The medians hold as long as fewer than half of the sources are bad; a majority of liars cannot be told from
an honest majority by any test of this kind. Labels that the model does not know are left out of the model's
tests. Pure: no files, no models.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from leitstand.usecase import TrustSpec

__all__ = ["Guesses", "Opinion", "SourceFinding", "examine_sources", "holm"]


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one source says about one text; `key` identifies the text (normalised)."""

    source: str
    key: str
    label: str


@dataclass(frozen=True)
class Guesses:
    """A model's ranked guesses for texts, and how often it misses on its own data (cross-validated).

    Attributes:
        ranked: Text key to labels, the likeliest first; at least as many as the policy looks at.
        labels: The labels that the model knows.
        miss_rate: Share of base rows whose label is not among the best k guesses, k as in the policy.
    """

    ranked: Mapping[str, Sequence[str]]
    labels: frozenset[str]
    miss_rate: float


@dataclass(frozen=True)
class SourceFinding:
    """The outcome of one test on one source. `p_value` is corrected; the source fails when it is below alpha."""

    source: str
    test: str
    differing: int
    rows: int
    tolerated: float
    p_value: float
    failed: bool

    @property
    def reason(self) -> str:
        """The finding as a sentence."""
        what = {
            "agreement": "differ from what others say about the same texts",
            "plausibility": "are outside the model's best guesses",
            "peers": "differ from the model's first guess, unlike other sources",
        }[self.test]
        share = f"{self.differing:,} of {self.rows:,} labels {what}"
        return f"{share} ({self.differing / self.rows:.0%}, tolerated {self.tolerated:.0%}, p={self.p_value:.2g})"


def examine_sources(
    opinions: Sequence[Opinion], base: Mapping[str, str], guesses: Guesses | None, policy: TrustSpec
) -> list[SourceFinding]:
    """Tests every source; the order of `opinions` does not matter.

    A bad source makes honest ones look bad, because they contradict it. So sources that the model convicts
    leave first, then the one that agrees least with the others (two that are tied both leave: nobody can say
    which of them is right), and the rest are tested again, until nobody fails.

    Args:
        opinions: At most one per source and text.
        base: Text key to label, of the base training rows.
        guesses: The model's; None leaves the model's tests out.
        policy: When a source is quarantined.

    Returns:
        The failed tests, and those of the last round, in which nobody failed.
    """
    convicted: list[SourceFinding] = []
    while True:
        gone = {item.source for item in convicted}
        found = _round([item for item in opinions if item.source not in gone], base, guesses, policy)
        failed = [item for item in found if item.failed]
        if not failed:
            return convicted + found
        by_model = [item for item in failed if item.test != "agreement"]
        least = min(item.p_value for item in failed)
        convicted += by_model or [item for item in failed if item.p_value == least]


def _round(
    opinions: Sequence[Opinion], base: Mapping[str, str], guesses: Guesses | None, policy: TrustSpec
) -> list[SourceFinding]:
    sources = sorted({opinion.source for opinion in opinions})
    found: list[SourceFinding] = []
    found += _tests("agreement", sources, _against_others(opinions, base), 0.0, policy, peers=0)
    if guesses is not None:
        known = [item for item in opinions if item.label in guesses.labels and item.key in guesses.ranked]
        best = policy.top_guesses
        missed = [(item.source, item.label not in guesses.ranked[item.key][:best]) for item in known]
        found += _tests("plausibility", sources, missed, guesses.miss_rate, policy, peers=0)
        differing = [(item.source, item.label != guesses.ranked[item.key][0]) for item in known]
        found += _tests("peers", sources, differing, 0.0, policy, peers=2)
    return _corrected(found, policy.alpha)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _against_others(opinions: Sequence[Opinion], base: Mapping[str, str]) -> list[tuple[str, bool]]:
    """Per opinion on a text that others labelled: its source, and whether it differs from their majority."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for opinion in opinions:
        votes[opinion.key][opinion.label] += 1
    found = []
    for opinion in opinions:
        others = votes[opinion.key] - Counter([opinion.label])
        if opinion.key in base:
            others[base[opinion.key]] += 2  # base rows were validated: two voices
        ranked = others.most_common(2)
        if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
            found.append((opinion.source, ranked[0][0] != opinion.label))
    return found


def _tests(
    test: str, sources: Sequence[str], marks: Sequence[tuple[str, bool]], expected: float, policy: TrustSpec, *,
    peers: int,
) -> list[SourceFinding]:  # fmt: skip
    totals, differing = Counter(source for source, _ in marks), Counter(source for source, bad in marks if bad)
    rates = {source: differing[source] / totals[source] for source in sources if totals[source] >= policy.min_rows}
    found = []
    for source in rates:
        others = [rate for other, rate in rates.items() if other != source]
        if len(others) < peers:
            continue
        usual = max(expected, float(np.median(others)) if len(others) > 1 else expected)
        tolerated = min(usual + policy.tolerance, 1.0)
        rows, bad = totals[source], differing[source]
        p_value = float(stats.binom.sf(bad - 1, rows, tolerated))
        found.append(SourceFinding(source, test, bad, rows, tolerated, p_value, failed=False))
    return found


def _corrected(found: Sequence[SourceFinding], alpha: float) -> list[SourceFinding]:
    adjusted = holm([item.p_value for item in found])
    return [
        SourceFinding(item.source, item.test, item.differing, item.rows, item.tolerated, p_value, p_value < alpha)
        for item, p_value in zip(found, adjusted, strict=True)
    ]
