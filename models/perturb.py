"""Changes to a text: typing errors, personal data, harmless rewriting, another person in the sentence.

Pure functions. What is random takes a `numpy` generator; `generator(seed, row)` gives each row its own,
so the change of one row does not depend on which other rows are changed. All personal data is invented:
IBANs and card numbers carry right check digits and belong to nobody.
"""

from collections.abc import Callable
from string import punctuation

import numpy as np

from leitstand.usecase import CounterfactualSpec

__all__ = [
    "HARMLESS",
    "card_number",
    "generator",
    "iban",
    "people",
    "with_person",
    "with_personal_data",
    "with_typos",
]

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_FIRST = ("Maria", "James", "Fatima", "Wei", "Olga", "Kwame", "Ingrid", "Diego", "Priya", "Tom")
_LAST = ("Novak", "Johnson", "Haddad", "Chen", "Petrova", "Mensah", "Larsen", "Garcia", "Sharma", "Baker")
_PHRASES = {
    "name": ("My name is {}. {text}", "{text} Regards, {}", "Hello, this is {}. {text}"),
    "email": ("{text} You can reach me at {}.", "My e-mail is {}. {text}"),
    "phone": ("{text} My number is {}.", "Call me on {}. {text}"),
    "iban": ("My IBAN is {}. {text}", "{text} IBAN: {}"),
    "card": ("{text} The card number is {}.", "I have card {}. {text}"),
}


def generator(seed: int, row: int) -> np.random.Generator:
    """The random numbers of one row."""
    return np.random.default_rng([seed, row])


def with_typos(text: str, rate: float, rng: np.random.Generator) -> str:
    """`text` in which each word of three or more letters gets one typing error with probability `rate`.

    The errors are those of a keyboard: a neighbouring key, two letters swapped, one dropped, one doubled
    (as in Belinkov & Bisk 2018, ICLR). The first letter stays; white space becomes single spaces.
    """
    return " ".join(_mistype(word, rng) if _can_err(word) and rng.random() < rate else word for word in text.split())


def with_personal_data(text: str, kind: str, rng: np.random.Generator) -> str:
    """`text` with an invented ``name``, ``email``, ``phone``, ``iban`` or ``card`` in a natural phrase."""
    phrases = _PHRASES[kind]
    phrase = phrases[int(rng.integers(len(phrases)))]
    return phrase.replace("{}", _PERSONAL[kind](rng)).replace("{text}", text)


def with_person(text: str, template: str, person: str) -> str:
    """The counterfactual sentence: `template` with `{text}` and `{person}` filled in."""
    return template.replace("{person}", person).replace("{text}", text)


def people(spec: CounterfactualSpec) -> list[tuple[str, str]]:
    """All (group, person) pairs of the specification, in its order."""
    return [(group, person) for group, words in spec.groups.items() for person in words]


def iban(rng: np.random.Generator) -> str:
    """An invented German IBAN with right check digits (ISO 13616, modulo 97)."""
    account = _digits(rng, 18)
    check = 98 - int(account + "131400") % 97
    return f"DE{check:02d}{account}"


def card_number(rng: np.random.Generator) -> str:
    """An invented 16-digit card number with a right check digit (ISO/IEC 7812, Luhn)."""
    body = "4" + _digits(rng, 14)
    total = sum(sum(divmod(int(digit) * (2 - index % 2), 10)) for index, digit in enumerate(body))
    return body + str(-total % 10)


def _no_punctuation(text: str) -> str:
    return " ".join(text.translate(str.maketrans("", "", punctuation)).split()) or text


HARMLESS: dict[str, Callable[[str], str]] = {
    "lower_case": str.lower,
    "no_punctuation": _no_punctuation,
    "extra_spaces": lambda text: "  " + "   ".join(text.split()) + " ",
    "polite_prefix": lambda text: f"Hello, could you please help me? {text}",
}
"""Rewritings that keep the meaning, by name."""


def _can_err(word: str) -> bool:
    return sum(letter.isalpha() for letter in word) >= 3  # noqa: PLR2004


def _mistype(word: str, rng: np.random.Generator) -> str:
    places = [index for index, letter in enumerate(word) if letter.isalpha() and index > 0]
    if not places:
        return word
    at = places[int(rng.integers(len(places)))]
    return _ERRORS[int(rng.integers(len(_ERRORS)))](word, at, rng)


def _neighbour(word: str, at: int, rng: np.random.Generator) -> str:
    letter = word[at].lower()
    row = next((row for row in _ROWS if letter in row), None)
    if row is None:
        return _double(word, at, rng)
    place = row.index(letter)
    choices = [row[i] for i in (place - 1, place + 1) if 0 <= i < len(row)]
    return word[:at] + choices[int(rng.integers(len(choices)))] + word[at + 1 :]


def _transpose(word: str, at: int, rng: np.random.Generator) -> str:
    if at + 1 >= len(word) or word[at] == word[at + 1]:
        return _drop(word, at, rng)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _drop(word: str, at: int, _: np.random.Generator) -> str:
    return word[:at] + word[at + 1 :]


def _double(word: str, at: int, _: np.random.Generator) -> str:
    return word[: at + 1] + word[at] + word[at + 1 :]


_ERRORS = (_neighbour, _transpose, _drop, _double)


def _digits(rng: np.random.Generator, count: int) -> str:
    return "".join(str(digit) for digit in rng.integers(0, 10, size=count))


def _person(rng: np.random.Generator) -> tuple[str, str]:
    return _FIRST[int(rng.integers(len(_FIRST)))], _LAST[int(rng.integers(len(_LAST)))]


def _email(rng: np.random.Generator) -> str:
    first, last = _person(rng)
    return f"{first}.{last}@example.com".lower()


_PERSONAL: dict[str, Callable[[np.random.Generator], str]] = {
    "name": lambda rng: " ".join(_person(rng)),
    "email": _email,
    "phone": lambda rng: f"+44 7700 900{_digits(rng, 3)}",
    "iban": iban,
    "card": card_number,
}
