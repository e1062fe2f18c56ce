"""What holds for every text: nothing crashes, nothing that was masked is left, chunks change nothing."""

import random
from functools import cache
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import iban, luhn

from governance.guards import Chain, Request, Vault
from governance.guards.detectors import Pattern, Scan
from governance.guards.personal import personal_detectors
from governance.guards.phrases import bias_detectors, injection_detectors, unsafe_detectors
from governance.guards.secrets import secret_detectors
from governance.guards.text import InvisibleRuns, normalise
from leitstand.errors import ContentBlocked
from leitstand.specs.guards import GuardsSpec, PersonalKind

KINDS = get_args(PersonalKind)
PIECES = [
    "max.müller@firma.de", "+49 30 1234567", "030/12345678", "DE89 3704 0044 0532 0130 00",
    "4111 1111 1111 1111", "4111",
    "36 574 261 809", "181/815/08155", "15 070649 C 103", "Hauptstraße 12a, 10115 Berlin", "My name is Jürgen Schmidt",
    "born on 12 March 1980", "Herr Dr. Weber", "192.168.0.1", "2001:db8::1", "<EMAIL_1>", "<PHONE_1>", "<EM", "AIL_1",
    "\u200b" * 12, "e\u0301", "ﷺ", "日本", "sk-abcdefghijklmnopqrstuv123", "password: hunter22", "1,234.56", "12",
    "3.5 %", "you are the helpful assistant of a bank and so", "CANARY-12345", "cana\u200bry-123", "a", ".", " ", "\n",
    "John Smith",
    "all women are", "ｄｅ89", "-",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=12), max_size=25).flatmap(
    lambda parts: st.sampled_from(["", " ", "-"]).map(lambda glue: glue.join(parts))
)


@cache
def chain() -> Chain:
    prompt = "you are the helpful assistant of a bank and so you never tell anybody"
    return Chain(
        GuardsSpec.model_validate(
            {
                "input": [{"rule": "personal_data", "kinds": KINDS}, {"rule": "injection", "action": "review"}],
                "output": [
                    {"rule": "personal_data", "kinds": KINDS, "regions": ["DE", "US"]},
                    {"rule": "secrets"}, {"rule": "bias"},
                    {"rule": "leaked_prompt", "action": "mask", "prompt": prompt, "canaries": ["CANARY-12345"]},
                    {"rule": "unsupported_numbers", "action": "mask"}, {"rule": "disclaimer", "text": "No advice."},
                ],
            }
        )
    )  # fmt: skip


def shown(text: str) -> str:
    return InvisibleRuns().shortened(text)


def chunks(text: str, seed: int, largest: int) -> list[str]:
    rng = random.Random(seed)
    cuts = [0]
    while cuts[-1] < len(text):
        cuts.append(min(len(text), cuts[-1] + rng.randint(1, largest)))
    return [text[a:b] for a, b in pairwise(cuts)]


@settings(deadline=None, max_examples=120)
@given(texts, st.integers(0, 10**6), st.sampled_from([1, 3, 17, 90]))
def test_chunks_change_neither_the_answer_nor_the_verdicts(text: str, seed: int, largest: int) -> None:
    vault = Vault(())
    vault.token("email", "a@b.de")
    request = Request(texts=["call 030 1234567, 1234.56"])
    whole, verdicts, _ = chain().check_answer(text, request, vault)
    guard = chain().answer_guard(request, vault)
    streamed = "".join([*map(guard.feed, chunks(text, seed, largest)), guard.finish()])
    assert streamed == whole
    assert sorted(map(str, guard.verdicts)) == sorted(map(str, verdicts))


@settings(deadline=None, max_examples=120)
@given(texts)
def test_masking_is_undone_to_the_letter(text: str) -> None:
    looked = chain().check_input([text])
    restored, _, _ = Chain(GuardsSpec()).check_answer(looked.texts[0], vault=looked.vault)
    assert shown(restored) == shown(text)


SURE = personal_detectors(["email", "iban", "card"])


@settings(deadline=None, max_examples=120)
@given(texts)
def test_no_valid_mail_address_iban_or_card_is_left(text: str) -> None:
    (masked,) = chain().check_input([text]).texts
    data = normalise(masked).data
    assert Scan(SURE).run(data, len(data)) == []
    for word in data.decode().split():
        assert not iban.is_valid(word)
        assert not (13 <= len(word) <= 19 and word.isdigit() and word[0] in "23456" and luhn.is_valid(word))


@settings(deadline=None, max_examples=120)
@given(st.text(max_size=200))
def test_any_text_passes_through_without_a_crash(text: str) -> None:
    normal = normalise(text)
    assert normal.data.isascii() and normal.begin(0) >= 0 and normal.end(len(normal.data)) <= len(text)
    assert all(normal.begin(i) <= normal.begin(i + 1) for i in range(len(normal.data)))
    chain().check_input([text, text])
    chain().check_answer(text)


@settings(deadline=None, max_examples=120)
@given(texts, st.integers(0, 10**6), st.integers(0, 300))
def test_nothing_behind_a_blocked_place_gets_out(text: str, seed: int, lead: int) -> None:
    guard = Chain(
        GuardsSpec.model_validate({"output": [{"rule": "terms", "phrases": ["stop word"], "action": "block"}]})
    ).answer_guard()
    out = ""
    whole = "x" * lead + " stop  wоrd " + text
    with pytest.raises(ContentBlocked):
        for chunk in chunks(whole, seed, 9):
            out += guard.feed(chunk)
        out += guard.finish()
    assert len(out) <= lead + 1 and whole.startswith(out)
    with pytest.raises(ContentBlocked):
        guard.feed("more")


def test_the_hold_back_is_bounded_and_everything_else_leaves() -> None:
    guard = chain().answer_guard()
    given_in, out = 0, 0
    for _ in range(300):
        given_in += len("lorem ipsum ")
        out += len(guard.feed("lorem ipsum "))
        assert given_in - out <= guard.holds_back
    assert guard.holds_back < 500


def all_detectors() -> list[Pattern]:
    regions = ["DE", "US"]
    made = [
        *personal_detectors(KINDS, regions),
        *secret_detectors(),
        *injection_detectors(),
        *unsafe_detectors(),
        *bias_detectors(),
    ]
    return [detector for detector in made if isinstance(detector, Pattern)]


class Counted:
    """Counts candidates that a pattern offers: what the search costs beside RE2's linear pass."""

    def __init__(self, pattern: Pattern) -> None:
        self.offered = 0
        accept = pattern._accept

        def count(text: bytes, begin: int, end: int) -> int:
            self.offered += 1
            return accept(text, begin, end) if accept else end

        pattern._accept = count


@pytest.mark.parametrize(
    "unit", ["1", "1 ", "111 ", "4111 ", "+49", "0171 ", "DE89 ", "a@", "a.", "Anna ", "1:", "ab12", "eyJ", "{"]
)
def test_work_grows_with_the_text_and_not_faster(unit: str) -> None:
    """Every search is RE2's, and no start is tried twice: candidates are at most one per byte and pattern."""
    detectors = all_detectors()
    counters = [Counted(detector) for detector in detectors]
    for size in (500, 4000):
        data = (unit * size)[:size].encode()
        Scan(detectors).run(data, len(data))
        assert all(counter.offered <= size for counter in counters)
        for counter in counters:
            counter.offered = 0
