"""Probes find what is there: biased classifiers show bias, robust ones do not flip."""

from pathlib import Path

import numpy as np
import pytest

from leitstand import usecase
from leitstand.errors import NotFoundError
from leitstand.types import Metric
from models.measurement import Samples, measure
from models.probes import Book
from models.slices import catalog
from tests.fakes import KeywordClassifier

KEYWORDS = {"card": "card", "cash": "cash", "transfer": "transfer"}
NAMES = tuple(KEYWORDS)
SMALL = Samples(pii=20, robustness=20, counterfactual_texts=10, latency_calls=20)


@pytest.fixture
def spec(project: Path) -> usecase.UseCase:
    support = usecase.load(project / "usecases" / "support" / "usecase.yaml")
    people = usecase.CounterfactualSpec(
        templates=("I ask for {person}. {text}", "{text} This is for {person}."),
        groups={"women": ("Emily", "Sarah"), "men": ("Michael", "Thomas"), "places": ("Ayse",)},
    )
    evaluation = usecase.EvaluationSpec(
        typo_rate=1.0, label_groups={"plastic": ("card",), "money": ("cash", "transfer")}, counterfactuals=people,
        bootstrap_samples=100,
    )  # fmt: skip
    return support.model_copy(update={"evaluation": evaluation})


def found(
    spec: usecase.UseCase, classifier: KeywordClassifier, samples: Samples = SMALL,
    golden: tuple[list[str], np.ndarray] | None = None,
) -> Book:  # fmt: skip
    texts = [f"where is my {word} {'please tell me ' * (row % 7)}?" for row in range(20) for word in NAMES]
    labels = np.tile(np.arange(3), 20)
    return measure(spec, texts, labels, NAMES, classifier, np.arange(3), samples, golden=golden)[0]


def at(book: Book, name: str, slice_name: str | None = None) -> Metric:
    (metric,) = [m for m in book.metrics if m.name == name and m.slice == slice_name]
    return metric


def test_everything_in_the_catalogue_is_measured_and_nothing_else(spec: usecase.UseCase) -> None:
    golden = (["where is my card?", "where is my cash?"], np.array([0, 1]))
    measured = {(m.name, m.slice) for m in found(spec, KeywordClassifier(KEYWORDS), golden=golden).metrics}
    expected = {(name, s) for name, slices in catalog(spec).items() for s in slices} - {("size_mb", None)}
    assert measured == expected


def test_a_perfect_classifier_is_perfect_on_clean_text_and_worse_on_typing_errors(spec: usecase.UseCase) -> None:
    book = found(spec, KeywordClassifier(KEYWORDS))
    assert at(book, "accuracy").value == 1.0
    assert at(book, "macro_f1").value == 1.0
    assert at(book, "accuracy", "group:plastic").examples == 20
    assert (at(book, "accuracy", "typos").value or 0) < 0.7
    assert (at(book, "coverage", "typos").value or 0) < 0.3, "unknown words leave the fake without an answer"


def test_a_classifier_that_ignores_the_person_never_flips(spec: usecase.UseCase) -> None:
    book = found(spec, KeywordClassifier(KEYWORDS))
    assert at(book, "counterfactual_flip_rate").value == 0
    assert at(book, "counterfactual_accuracy_gap").value == 0
    assert at(book, "counterfactual_flip_rate").examples == 10


def test_bias_against_one_group_shows_between_groups_and_not_within(spec: usecase.UseCase) -> None:
    book = found(spec, KeywordClassifier(KEYWORDS, wrong_for={"Ayse": "cash"}))
    assert at(book, "counterfactual_flip_rate", "women/men").value == 0
    hurt = at(book, "counterfactual_flip_rate", "women/places").value or 0
    assert 0.4 < hurt < 0.95
    assert at(book, "counterfactual_flip_rate", "within:women").value == 0
    assert at(book, "counterfactual_flip_rate", "within:places").value is None, "one person has nobody to swap with"
    assert at(book, "counterfactual_accuracy_gap").value == pytest.approx(hurt)
    overall = at(book, "counterfactual_flip_rate").value
    assert overall == pytest.approx(2 * hurt / 3), "mean over the three pairs"


def test_bias_is_what_the_group_adds_to_the_noise_of_names(spec: usecase.UseCase) -> None:
    hurt = at(found(spec, KeywordClassifier(KEYWORDS, wrong_for={"Ayse": "cash"})), "counterfactual_bias").value or 0
    noisy = found(spec, KeywordClassifier(KEYWORDS, wrong_for={"Emily": "cash", "Michael": "cash"}))
    assert hurt > 0.25
    assert (at(noisy, "counterfactual_flip_rate").value or 0) > 0.25
    assert (at(noisy, "counterfactual_bias").value or 0) < 0.05


def test_two_different_answers_are_a_misroute_and_silence_is_only_a_flip(spec: usecase.UseCase) -> None:
    wrong = found(spec, KeywordClassifier(KEYWORDS, wrong_for={"Ayse": "cash"}))
    assert at(wrong, "counterfactual_misroute_rate").value == at(wrong, "counterfactual_flip_rate").value
    silent = found(spec, KeywordClassifier(KEYWORDS, silent_for={"Ayse"}))
    assert (at(silent, "counterfactual_flip_rate").value or 0) > 0.5
    assert at(silent, "counterfactual_misroute_rate").value == 0


def test_noise_on_one_name_shows_within_its_group(spec: usecase.UseCase) -> None:
    book = found(spec, KeywordClassifier(KEYWORDS, wrong_for={"Emily": "cash"}))
    assert (at(book, "counterfactual_flip_rate", "within:women").value or 0) > 0.4
    assert at(book, "counterfactual_flip_rate", "within:men").value == 0


def test_a_rewriting_that_changes_the_route_is_named(spec: usecase.UseCase) -> None:
    book = found(spec, KeywordClassifier(KEYWORDS, wrong_for={"Hello": "cash"}))
    assert (at(book, "robustness_flip_rate", "polite_prefix").value or 0) > 0.4
    assert at(book, "robustness_flip_rate", "extra_spaces").value == 0
    overall, some = at(book, "robustness_flip_rate").value, at(book, "robustness_flip_rate", "any").value
    assert overall == pytest.approx((some or 0) / 4)


def test_personal_data_is_compared_with_the_same_rows_as_they_were(spec: usecase.UseCase) -> None:
    book = found(spec, KeywordClassifier(KEYWORDS, wrong_for={"IBAN": "cash"}))
    assert at(book, "accuracy", "no_pii").value == 1.0
    assert at(book, "accuracy", "pii:email").value == 1.0
    assert (at(book, "accuracy", "pii:iban").value or 0) < 1.0
    ids = [book.units["accuracy", s].ids for s in ("pii", "no_pii")]
    assert (ids[0] == ids[1]).all()


def test_the_same_seed_gives_the_same_numbers(spec: usecase.UseCase) -> None:
    first, again = (found(spec, KeywordClassifier(KEYWORDS)).metrics for _ in range(2))
    timed = {"latency_p50_ms", "latency_p99_ms", "throughput"}
    assert [m for m in first if m.name not in timed] == [m for m in again if m.name not in timed]


def test_the_number_of_counterfactual_sentences_is_bounded(spec: usecase.UseCase) -> None:
    samples = Samples(
        pii=20, robustness=20, counterfactual_texts=50, counterfactual_sentences=40, latency_calls=20
    )  # fmt: skip
    book = found(spec, KeywordClassifier(KEYWORDS), samples)
    assert book.samples["counterfactual_texts"] == 8
    assert book.samples["counterfactual_sentences"] == 40


def test_no_rows_are_refused(spec: usecase.UseCase) -> None:
    with pytest.raises(NotFoundError, match="no rows"):
        measure(spec, [], np.array([], dtype=np.int64), NAMES, KeywordClassifier(KEYWORDS), np.arange(3), SMALL)
