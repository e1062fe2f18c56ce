"""The rules for single rows: what is quarantined, for which reason, and what is said about it."""

import pytest

from governance.rows import Reason, Row, Sorted, Source, excerpt, normalise, sort_rows
from leitstand.usecase import Expectations

LIMITS = Expectations(min_chars=5, max_chars=100)
LABELS = ("card", "refund")


def source(split: str, *rows: tuple[str | None, str | None]) -> Source:
    return Source(split, f"{split}.csv", "", ("text", "label"), [Row(i, *row) for i, row in enumerate(rows, start=1)])


def judged(*rows: tuple[str | None, str | None]) -> Sorted:
    return sort_rows([source("train", *rows)], LABELS, LIMITS)


@pytest.mark.parametrize(
    ("text", "label", "reason"),
    [
        (None, "card", Reason.EMPTY),
        ("", "card", Reason.EMPTY),
        ("  \n\t ", "card", Reason.EMPTY),
        ("x" * 101, "card", Reason.TOO_LONG),
        ("no", "card", Reason.TOO_SHORT),
        ("  no   ", "card", Reason.TOO_SHORT),
        ("caf\udce9 latt\udce9", "card", Reason.NOT_UTF8),
        ("caf\ufffd latte", "card", Reason.NOT_UTF8),
        ("where is\x00 my card", "card", Reason.CONTROL),
        ("where is\x1b[31m my card", "card", Reason.CONTROL),
        ("it\x92s broken", "card", Reason.CONTROL),
        ("🙂🙂🙂🙂🙂🙂", "card", Reason.NO_LETTERS),
        ("12345 !!", "card", Reason.NO_LETTERS),
        ("where is my card", None, Reason.LABEL_MISSING),
        ("where is my card", " ", Reason.LABEL_MISSING),
        ("where is my card", "cards", Reason.UNKNOWN_LABEL),
    ],
)
def test_a_bad_row_is_quarantined_with_its_reason(text: str | None, label: str | None, reason: Reason) -> None:
    result = judged(("where is my refund", "refund"), (text, label))
    (bad,) = result.quarantined
    assert (bad.reason, bad.number, bad.split) == (reason, 2, "train")
    assert bad.text_digest.startswith("sha256:")
    assert [row.number for row in result.kept["train"]] == [1]


def test_a_text_of_ten_megabytes_leaves_a_short_record() -> None:
    (bad,) = judged(("a1 " * 3_500_000, "card")).quarantined
    assert bad.reason is Reason.TOO_LONG
    assert bad.detail == "10,500,000 characters, at most 100"
    assert len(bad.excerpt) <= 61


def test_sound_rows_pass_with_line_breaks_tabs_and_emoji() -> None:
    assert judged(("where\tis my\ncard 🙂", "card"), ("Где моя карта", "card")).quarantined == []


def test_one_text_under_two_labels_is_quarantined_with_all_its_rows() -> None:
    result = judged(("Where is it?", "card"), ("where  is it?", "refund"), ("other text", "card"))
    assert [(bad.number, bad.reason) for bad in result.quarantined] == [
        (1, Reason.CONFLICTING_LABEL),
        (2, Reason.CONFLICTING_LABEL),
    ]
    assert "card, refund" in result.quarantined[0].detail


def test_repeats_with_the_same_label_are_kept() -> None:
    assert len(judged(("Where is it?", "card"), ("where is IT?", "card")).kept["train"]) == 2


def test_a_train_row_that_stands_in_test_leaves_train_and_test_stays() -> None:
    train = source("train", ("\nWhere is my card?", "card"), ("I want a refund", "refund"))
    test = source("test", ("where is  my card?", "card"))
    result = sort_rows([train, test], LABELS, LIMITS)
    assert [row.number for row in result.kept["train"]] == [2]
    assert [row.number for row in result.kept["test"]] == [1]
    assert result.quarantined == []
    (leaked,) = result.leaked
    assert (leaked.reason, leaked.detail) == (Reason.ALSO_IN_TEST, "test row 1 holds the same text")


def test_an_excerpt_masks_digits_addresses_and_control_characters() -> None:
    assert excerpt("call\x00 0176 55 or mail ann@example.org") == "call\\x00 #### ## or mail <e-mail>"


def test_normalising_folds_case_and_white_space() -> None:
    assert normalise("\n Straße  A\t") == normalise("STRASSE a")
