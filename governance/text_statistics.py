"""Cheap numbers about a text, computed while its answer is made; nothing of the text survives in them.

Pure. A few C-level passes, one or two microseconds for a short text, so it may run on an event loop.
The language is not here: detecting it costs a hundred times as much (`governance.log_language`).
"""

import string
from typing import NamedTuple

__all__ = ["TextStatistics", "text_statistics"]

_DIGITS = string.digits.encode()
_UPPER = string.ascii_uppercase.encode()
_LOWER = string.ascii_lowercase.encode()


class TextStatistics(NamedTuple):
    """The fields of `WindowRow` of the same names.

    Attributes:
        characters: Unicode code points.
        words: Groups of non-space characters.
        digit_share: ASCII digits / characters, in [0, 1]; 0 for an empty text.
        upper_share: Upper-case / cased letters, in [0, 1]; 0 when there is none.
        non_ascii_share: Characters outside ASCII / characters, in [0, 1].
    """

    characters: int
    words: int
    digit_share: float
    upper_share: float
    non_ascii_share: float


def text_statistics(text: str) -> TextStatistics:
    """Length, words and shares of digits, upper case and non-ASCII characters."""
    characters = len(text)
    if not characters:
        return TextStatistics(0, 0, 0.0, 0.0, 0.0)
    raw = text.encode("ascii", "ignore")
    digits = len(raw) - len(raw.translate(None, _DIGITS))
    if len(raw) == characters:
        upper, lower = _deleted(raw, _UPPER), _deleted(raw, _LOWER)
    else:
        upper, lower = sum(map(str.isupper, text)), sum(map(str.islower, text))
    upper_share = upper / (upper + lower) if upper else 0.0
    return TextStatistics(
        characters, len(text.split()), digits / characters, upper_share, (characters - len(raw)) / characters
    )


def _deleted(raw: bytes, letters: bytes) -> int:
    return len(raw) - len(raw.translate(None, letters))
