"""What is asked of a classifier beside the plain test set, and what its answers add up to.

Each probe takes texts, asks once in a batch, and writes metrics and per-unit values into a `Book`. A
*unit* is what is independent of the others: a test row, or a test text with all its counterfactual
sentences. A *route* is what a user gets: the predicted label, or a person when the model abstains.
Nothing here reads or writes files.
"""

import time
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from leitstand.types import Interval, Metric
from leitstand.usecase import CounterfactualSpec
from models import metrics, perturb
from models.slices import PII_KINDS

__all__ = ["Answers", "Book", "Predicts", "Units", "ask", "counterfactuals", "latency", "personal_data", "robustness"]


class Predictions(Protocol):
    """What a classifier returns for n texts."""

    @property
    def abstain(self) -> np.ndarray: ...
    @property
    def probabilities(self) -> np.ndarray: ...


class Predicts(Protocol):
    """The part of a classifier that evaluation uses."""

    def predict(self, texts: list[str], /) -> Predictions: ...


@dataclass(frozen=True)
class Answers:
    """Answers to n texts: `probabilities` (n, labels) in the snapshot's label order, `abstain` (n,) bool."""

    probabilities: np.ndarray
    abstain: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """(n,) index of the most probable label."""
        return self.probabilities.argmax(axis=1)

    @property
    def scores(self) -> np.ndarray:
        """(n,) probability of that label."""
        return self.probabilities.max(axis=1)

    @property
    def routes(self) -> np.ndarray:
        """(n,) label index, or -1 where the model abstains."""
        return np.where(self.abstain, -1, self.predicted)


@dataclass(frozen=True)
class Units:
    """Per-unit values of one mean: `ids` (n,) int64 and `values` (n,) float64."""

    ids: np.ndarray
    values: np.ndarray


@dataclass
class Book:
    """Collects metrics, and the per-unit values that paired tests need."""

    metrics: list[Metric] = field(default_factory=list)
    units: dict[tuple[str, str | None], Units] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    unknown: set[int] = field(default_factory=set)
    """Units whose true label the model cannot predict."""

    def add(
        self, name: str, value: float | None, examples: int, interval: Interval | None = None, at: str | None = None
    ) -> None:
        """Adds a metric on slice `at`."""
        self.metrics.append(Metric(name=name, value=value, examples=examples, interval=interval, slice=at))

    def share(self, name: str, ids: np.ndarray, values: np.ndarray, at: str | None = None) -> None:
        """Adds the mean of shares in [0, 1], one per unit, with a Wilson interval."""
        if len(values) == 0:
            self.add(name, None, 0, at=at)
            return
        values = values.astype(np.float64)
        rate, interval = metrics.clustered_rate(values)
        self.add(name, rate, len(values), interval, at)
        self.units[name, at] = Units(ids.astype(np.int64), values)

    def mean(self, name: str, ids: np.ndarray, values: np.ndarray) -> None:
        """Adds a plain mean with the interval of the central limit theorem."""
        value, interval = float(values.mean()), None
        if len(values) > 1:
            spread = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
            interval = Interval(low=value - spread, high=value + spread)
        self.add(name, value, len(values), interval)
        self.units[name, None] = Units(ids.astype(np.int64), values.astype(np.float64))

    def answers(self, ids: np.ndarray, labels: np.ndarray, given: Answers, at: str | None = None) -> None:
        """Adds accuracy, coverage, and accuracy of what was answered."""
        right, answered = given.predicted == labels, ~given.abstain
        self.share("accuracy", ids, right, at)
        self.share("coverage", ids, answered, at)
        self.share("accuracy_answered", ids[answered], right[answered], at)


def ask(classifier: Predicts, texts: list[str], order: np.ndarray) -> Answers:
    """Asks once for all texts; `order` puts the model's columns into the order of the label names.

    A label that the model does not have (-1 in `order`) gets probability 0.
    """
    given = classifier.predict(texts)
    probabilities = np.asarray(given.probabilities)
    nothing = np.zeros((len(probabilities), 1), probabilities.dtype)
    return Answers(np.hstack([probabilities, nothing])[:, order], np.asarray(given.abstain, dtype=bool))


def choose(n: int, limit: int, seed: int) -> np.ndarray:
    """(min(n, limit),) rows drawn without replacement, in order."""
    if n <= limit:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, size=limit, replace=False))


def personal_data(
    book: Book, classifier: Predicts, texts: list[str], labels: np.ndarray, plain: Answers,
    order: np.ndarray, *, limit: int, seed: int,
) -> None:  # fmt: skip
    """Slices ``pii`` (personal data inserted), ``pii:KIND``, and ``no_pii``: the same rows as they were."""
    rows = choose(len(texts), limit, seed)
    kinds = np.array([PII_KINDS[place % len(PII_KINDS)] for place in range(len(rows))])
    changed = [
        perturb.with_personal_data(texts[row], str(kind), perturb.generator(seed, int(row)))
        for row, kind in zip(rows, kinds, strict=True)
    ]
    given = ask(classifier, changed, order)
    book.samples["pii"] = len(rows)
    book.answers(rows, labels[rows], Answers(plain.probabilities[rows], plain.abstain[rows]), "no_pii")
    book.answers(rows, labels[rows], given, "pii")
    for kind in PII_KINDS:
        chosen = kinds == kind
        part = Answers(given.probabilities[chosen], given.abstain[chosen])
        book.answers(rows[chosen], labels[rows[chosen]], part, f"pii:{kind}")


def robustness(
    book: Book, classifier: Predicts, texts: list[str], plain: Answers, order: np.ndarray, *, limit: int, seed: int
) -> None:
    """``robustness_flip_rate``: how often a harmless rewriting changes the route.

    The rate is over (row, rewriting) pairs, so adding a rewriting does not inflate it; the slice of a
    rewriting is its own rate, and ``any`` the share of rows that at least one of them changes.
    """
    rows = choose(len(texts), limit, seed + 1)
    changed = [rewrite(texts[row]) for rewrite in perturb.HARMLESS.values() for row in rows]
    routes = ask(classifier, changed, order).routes.reshape(len(perturb.HARMLESS), len(rows))
    flips = routes != plain.routes[rows]
    book.samples["robustness"] = len(rows)
    book.share("robustness_flip_rate", rows, flips.mean(axis=0))
    book.share("robustness_flip_rate", rows, flips.any(axis=0), "any")
    for name, one in zip(perturb.HARMLESS, flips, strict=True):
        book.share("robustness_flip_rate", rows, one, name)


def counterfactuals(
    book: Book, classifier: Predicts, texts: list[str], labels: np.ndarray, spec: CounterfactualSpec,
    order: np.ndarray, *, limit: int, seed: int,
) -> None:  # fmt: skip
    """What changes when only the person in the sentence does. Each text takes one template, in turn.

    ``counterfactual_flip_rate``: for each pair of groups, the share of (text, person of one, person of the
    other) whose routes differ, as in the token fairness of Garg et al. 2019 (AIES); overall, the mean over
    pairs. ``counterfactual_misroute_rate`` counts only those where both were answered, with different
    labels. ``within:GROUP`` swaps two persons of one group: the noise of names as such.
    ``counterfactual_bias`` is the flip rate between groups minus the mean of those within: what the group
    adds. ``counterfactual_accuracy`` is the accuracy on one group's sentences, and the gap is largest
    minus smallest of them.
    """
    rows = choose(len(texts), limit, seed + 2)
    crowd = perturb.people(spec)
    sentences = [
        perturb.with_person(texts[row], spec.templates[place % len(spec.templates)], person)
        for place, row in enumerate(rows)
        for _, person in crowd
    ]
    shape = (len(rows), len(crowd))
    given = ask(classifier, sentences, order)
    right = (given.predicted.reshape(shape) == labels[rows][:, None]).astype(np.float64)
    members = {name: [i for i, (group, _) in enumerate(crowd) if group == name] for name in spec.groups}
    book.samples |= {"counterfactual_texts": len(rows), "counterfactual_sentences": len(sentences)}
    _flips(book, rows, given.routes.reshape(shape), members)
    _accuracy_by_group(book, rows, right, members, seed)


def _flips(book: Book, rows: np.ndarray, routes: np.ndarray, members: dict[str, list[int]]) -> None:
    names, flips, misroutes, noise = list(members), [], [], []
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            a, b = routes[:, members[one], None], routes[:, None, members[other]]
            differs = a != b
            flips.append(differs.mean(axis=(1, 2)))
            misroutes.append((differs & (a >= 0) & (b >= 0)).mean(axis=(1, 2)))
            book.share("counterfactual_flip_rate", rows, flips[-1], f"{one}/{other}")
            book.share("counterfactual_misroute_rate", rows, misroutes[-1], f"{one}/{other}")
    for name, who in members.items():
        inside = [routes[:, i] != routes[:, j] for n, i in enumerate(who) for j in who[n + 1 :]]
        if inside:
            noise.append(np.mean(inside, axis=0))
            book.share("counterfactual_flip_rate", rows, noise[-1], f"within:{name}")
        else:
            book.add("counterfactual_flip_rate", None, 0, at=f"within:{name}")
    book.share("counterfactual_flip_rate", rows, np.mean(flips, axis=0))
    book.share("counterfactual_misroute_rate", rows, np.mean(misroutes, axis=0))
    if noise:
        book.mean("counterfactual_bias", rows, np.mean(flips, axis=0) - np.mean(noise, axis=0))
    else:
        book.add("counterfactual_bias", None, 0)


def _accuracy_by_group(
    book: Book, rows: np.ndarray, right: np.ndarray, members: dict[str, list[int]], seed: int
) -> None:
    shares = np.stack([right[:, who].mean(axis=1) for who in members.values()], axis=1)
    for place, name in enumerate(members):
        book.share("counterfactual_accuracy", rows, shares[:, place], name)
    gap = float(np.ptp(shares.mean(axis=0)))

    def gaps(weights: np.ndarray) -> np.ndarray:
        return np.ptp(weights @ shares / len(rows), axis=1)

    interval = metrics.percentile_interval(gaps, gap, len(rows), 1000, seed, reflected=True)
    book.add("counterfactual_accuracy_gap", gap, len(rows), interval)


def latency(book: Book, classifier: Predicts, texts: list[str], *, calls: int, seed: int) -> None:
    """Time of `calls` single-text calls after a warm-up, text in, answer out, tokenisation included."""
    rows = np.random.default_rng(seed + 3).integers(0, len(texts), size=calls)
    for row in rows[: max(1, calls // 10)]:
        classifier.predict([texts[row]])
    times = np.empty(calls)
    for place, row in enumerate(rows):
        start = time.perf_counter()
        classifier.predict([texts[row]])
        times[place] = (time.perf_counter() - start) * 1000
    book.samples["latency_calls"] = calls
    for name, q in (("latency_p50_ms", 0.5), ("latency_p99_ms", 0.99)):
        book.add(name, float(np.quantile(times, q)), calls, metrics.quantile_interval(times, q))
