"""Numbers about a text that say nothing of its words."""

import pytest

from governance.text_statistics import TextStatistics, text_statistics


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", TextStatistics(0, 0, 0.0, 0.0, 0.0)),
        ("   ", TextStatistics(3, 0, 0.0, 0.0, 0.0)),
        ("Card 42", TextStatistics(7, 2, 2 / 7, 0.25, 0.0)),
        ("ÄRGER über", TextStatistics(10, 2, 0.0, 5 / 9, 0.2)),
        ("12345", TextStatistics(5, 1, 1.0, 0.0, 0.0)),
        ("你好", TextStatistics(2, 1, 0.0, 0.0, 1.0)),
        ("\ud800x", TextStatistics(2, 1, 0.0, 0.0, 0.5)),
    ],
)
def test_statistics_of_ordinary_and_odd_texts(text: str, expected: TextStatistics) -> None:
    assert text_statistics(text) == pytest.approx(expected)


def test_ascii_is_no_special_case() -> None:
    text = "I was Charged 3 times. WHY?"
    plain, accented = text_statistics(text), text_statistics(text + "\u4f60")
    letters = [c for c in text if c.isalpha()]
    assert plain.upper_share == accented.upper_share == sum(c.isupper() for c in letters) / len(letters)
