"""All probes on one set of texts: what `models.evaluation` measures, without files or model loading."""

import time
from dataclasses import dataclass

import numpy as np

from leitstand.errors import NotFoundError
from leitstand.usecase import UseCase
from models import metrics, perturb, probes
from models.slices import GOLDEN, NEW_LABELS, group_masks, length_masks

__all__ = ["Samples", "measure"]


@dataclass(frozen=True)
class Samples:
    """How much each probe asks. The defaults are about 20,000 texts on Banking77's 3,080 test rows."""

    pii: int = 1000
    robustness: int = 1000
    counterfactual_texts: int = 600
    counterfactual_sentences: int = 9_000
    latency_calls: int = 500
    seed: int = 20_260


def measure(
    use_case: UseCase,
    texts: list[str],
    labels: np.ndarray,
    names: tuple[str, ...],
    classifier: probes.Predicts,
    order: np.ndarray,
    samples: Samples,
    *,
    golden: tuple[list[str], np.ndarray] | None = None,
    new_labels: tuple[str, ...] = (),
) -> tuple[probes.Book, probes.Answers]:
    """All probes on one split; returns what they found, and the answers to the unchanged texts.

    Args:
        use_case: Says what is probed.
        texts: The split's.
        labels: (n,) int64, indices into `names`.
        names: Label names.
        classifier: Is asked.
        order: (names,) int64, the classifier's column of each name; -1: it does not have that label.
        samples: Sizes of the probes.
        golden: Texts and labels of the golden set: the slice ``golden``, whose units are numbered after the split's.
        new_labels: Names whose rows are the slice ``labels:new``.

    Raises:
        NotFoundError: There are no rows.
    """
    if not texts:
        raise NotFoundError("There are no rows to evaluate on", hint="ingest a test split with at least one row")
    book, spec, seed = probes.Book(), use_case.evaluation, samples.seed
    book.unknown = set(np.flatnonzero(order[labels] < 0).tolist())
    rows = np.arange(len(texts))
    classifier.predict(texts[:64])
    start = time.perf_counter()
    plain = probes.ask(classifier, texts, order)
    book.add("throughput", len(texts) / max(time.perf_counter() - start, 1e-9), len(texts))
    book.samples["rows"] = len(texts)
    book.answers(rows, labels, plain)
    _quality(book, labels, plain, len(names), spec.bootstrap_samples, seed)
    masks = length_masks(texts) | group_masks(labels, names, spec.label_groups)
    if new_labels:
        masks |= {NEW_LABELS: np.isin(labels, [names.index(name) for name in new_labels])}
    for name, mask in masks.items():
        book.answers(rows[mask], labels[mask], probes.Answers(plain.probabilities[mask], plain.abstain[mask]), name)
    mistyped = [perturb.with_typos(t, spec.typo_rate, perturb.generator(seed, i)) for i, t in enumerate(texts)]
    book.answers(rows, labels, probes.ask(classifier, mistyped, order), "typos")
    if golden is not None:
        _golden(book, classifier, *golden, order, first=len(texts))
    probes.personal_data(book, classifier, texts, labels, plain, order, limit=samples.pii, seed=seed)
    probes.robustness(book, classifier, texts, plain, order, limit=samples.robustness, seed=seed)
    if spec.counterfactuals:
        asked = len(perturb.people(spec.counterfactuals))
        limit = max(1, min(samples.counterfactual_texts, samples.counterfactual_sentences // asked))
        probes.counterfactuals(
            book, classifier, texts, labels, spec.counterfactuals, order, limit=limit, seed=seed
        )  # fmt: skip
    probes.latency(book, classifier, texts, calls=samples.latency_calls, seed=seed)
    return book, plain


def _golden(
    book: probes.Book, classifier: probes.Predicts, texts: list[str], labels: np.ndarray, order: np.ndarray, *,
    first: int,
) -> None:  # fmt: skip
    book.samples["golden"] = len(texts)
    ids = first + np.arange(len(texts))
    book.unknown |= set(ids[order[labels] < 0].tolist())
    given = probes.ask(classifier, texts, order) if texts else probes.Answers(np.zeros((0, 1)), np.zeros(0, bool))
    book.answers(ids, labels, given, GOLDEN)


def _quality(
    book: probes.Book, labels: np.ndarray, plain: probes.Answers, count: int, resamples: int, seed: int
) -> None:
    n, rows, right = len(labels), np.arange(len(labels)), (plain.predicted == labels).astype(np.float64)
    for name, average in (("macro_f1", "macro"), ("weighted_f1", "weighted")):
        value = metrics.f1(labels, plain.predicted, count, average)

        def scores(weights: np.ndarray, average: str = average) -> np.ndarray:
            return metrics.weighted_f1_scores(labels, plain.predicted, count, weights, average)

        book.add(name, value, n, metrics.percentile_interval(scores, value, n, resamples, seed))

    def errors(weights: np.ndarray) -> np.ndarray:
        return metrics.weighted_ece(plain.scores, right, weights)

    value = metrics.ece(plain.scores, right)
    book.add("ece", value, n, metrics.percentile_interval(errors, value, n, resamples, seed, reflected=True))
    book.mean("brier", rows, metrics.brier(plain.probabilities, labels))
    book.mean("nll", rows, metrics.nll(plain.probabilities, labels))
