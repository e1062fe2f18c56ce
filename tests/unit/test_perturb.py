"""Perturbations are seeded, independent per row, and invent valid-looking personal data."""

import numpy as np
import pytest

from models import perturb
from models.slices import PERTURBATIONS, PII_KINDS

TEXT = "I still have not received my new card, I ordered over a week ago."


def test_rate_zero_leaves_the_text_alone() -> None:
    assert perturb.with_typos(TEXT, 0.0, perturb.generator(1, 0)) == TEXT


def test_rate_one_changes_every_word_of_three_letters() -> None:
    changed = perturb.with_typos(TEXT, 1.0, perturb.generator(1, 0)).split()
    for before, after in zip(TEXT.split(), changed, strict=True):
        if sum(letter.isalpha() for letter in before) >= 3:
            assert before != after
            assert abs(len(before) - len(after)) <= 1
            assert before[0] == after[0]
        else:
            assert before == after


def test_typos_hit_about_the_share_of_words_asked_for() -> None:
    words = "payment " * 2000
    changed = perturb.with_typos(words, 0.15, perturb.generator(1, 0)).split()
    assert np.mean([word != "payment" for word in changed]) == pytest.approx(0.15, abs=0.03)


def test_the_same_seed_and_row_give_the_same_change() -> None:
    first = [perturb.with_typos(TEXT, 0.5, perturb.generator(7, row)) for row in range(5)]
    again = [perturb.with_typos(TEXT, 0.5, perturb.generator(7, row)) for row in reversed(range(5))]
    assert first == again[::-1]
    assert len(set(first)) > 1


def test_invented_iban_and_card_have_right_check_digits() -> None:
    for row in range(200):
        account = perturb.iban(perturb.generator(1, row))
        assert len(account) == 22
        assert int(account[4:] + "1314" + account[2:4]) % 97 == 1
        digits = [int(d) for d in perturb.card_number(perturb.generator(1, row))]
        doubled = [sum(divmod(2 * d, 10)) if place % 2 == 0 else d for place, d in enumerate(digits)]
        assert len(digits) == 16
        assert sum(doubled) % 10 == 0


@pytest.mark.parametrize("kind", PII_KINDS)
def test_personal_data_is_added_around_the_whole_text(kind: str) -> None:
    for row in range(10):
        changed = perturb.with_personal_data("Where is {text} of {}?", kind, perturb.generator(1, row))
        assert "Where is {text} of {}?" in changed
        assert len(changed) > len("Where is {text} of {}?") + 8


def test_harmless_rewritings_are_those_of_the_catalogue() -> None:
    assert tuple(perturb.HARMLESS) == PERTURBATIONS
    assert perturb.HARMLESS["no_punctuation"]("Why, oh why?!") == "Why oh why"
    assert perturb.HARMLESS["no_punctuation"]("?!") == "?!"
    assert perturb.HARMLESS["extra_spaces"]("a  b").split() == ["a", "b"]


def test_braces_in_a_text_are_not_slots() -> None:
    sentence = perturb.with_person("my {person} is {text}", "I ask for {person}. {text}", "Ada")
    assert sentence == "I ask for Ada. my {person} is {text}"
