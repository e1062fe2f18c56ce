"""Texts as the rules read them: plain ASCII, with the way back to the original characters.

What looks like a Latin letter becomes one: compatibility forms and accents (NFKD), Cyrillic and Greek
look-alikes, full-width and mathematical letters, and the invisible tag characters that smuggle text. What
cannot be seen (zero-width, soft hyphens, combining marks) disappears. Other letters become ``_``, other signs a
control character, so one byte is one character and RE2's offsets need no decoding. Every character is folded by
itself, so a stream can be folded piece by piece.

Limit: words of other scripts cannot be told from each other.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["InvisibleRuns", "Normal", "normalise"]

OTHER_LETTER, OTHER_SIGN = "_", "\x1a"
MAX_INVISIBLE = 8
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")  # one character class: linear in any engine
_TAGS = range(0xE0020, 0xE007F)
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
_LOOKALIKES = dict(
    zip(
        "АВЕЅІЈКМНОРСТУХаеіјорсухѕһԁԛԝьѵΑΒΕΖΗΙΚΜΝΟΡΤΥΧανορυικτɑɡıⅼßẞøØłŁđĐæÆœŒþÞðℓ∕⁄«»„“”‘’‚‛`´′‹›",
        [*"ABESIJKMHOPCTYXaeijopcyxshdqwbvABEZHIKMNOPTYXavopuiktagil", "ss", "SS", *"oOlLdD", "ae", "AE", "oe", "OE",
         "th", "Th", "d", "l", "/", "/", '"', '"', '"', '"', '"', *"'''''''''"],
        strict=True,
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Normal:
    """A folded text.

    Attributes:
        raw: The original.
        data: Its ASCII form; rules match here.
    """

    raw: str
    data: bytes
    _origins: Sequence[int] | None  # raw index of every byte; None: the same

    def begin(self, index: int) -> int:
        """Where byte `index` stands in `raw`; the text's end for the index behind the last."""
        if self._origins is None:
            return index
        return self._origins[index] if index < len(self._origins) else len(self.raw)

    def end(self, index: int) -> int:
        """The end in `raw` of bytes up to `index` (exclusive), with invisible characters that follow."""
        if self._origins is None or index == 0:
            return index
        return max(self.begin(index), self._origins[index - 1] + 1)


def normalise(raw: str) -> Normal:
    """Folds a text."""
    if raw.isascii():
        return Normal(raw, raw.encode(), None)
    parts: list[str] = []
    origins: list[int] = []
    place = 0
    for match in _NOT_ASCII.finditer(raw):
        index = match.start()
        if index > place:
            parts.append(raw[place:index])
            origins.extend(range(place, index))
        folded = _fold(raw[index])
        parts.append(folded)
        origins.extend([index] * len(folded))
        place = index + 1
    parts.append(raw[place:])
    origins.extend(range(place, len(raw)))
    return Normal(raw, "".join(parts).encode(), origins)


class InvisibleRuns:
    """Drops invisible characters beyond the eighth in a row, over the chunks of a stream.

    With it, a pattern of N letters spans a bounded number of characters.
    """

    def __init__(self) -> None:
        self._run = 0

    def shortened(self, chunk: str) -> str:
        """The chunk without what is too much."""
        if chunk.isascii():
            self._run = 0 if chunk else self._run
            return chunk
        kept: list[str] = []
        for character in chunk:
            self._run = 0 if character.isascii() or _fold(character) else self._run + 1
            if self._run <= MAX_INVISIBLE:
                kept.append(character)
        return "".join(kept)


@lru_cache(maxsize=8192)
def _fold(character: str) -> str:
    if ord(character) in _TAGS:
        return chr(ord(character) - 0xE0000)
    return "".join(map(_fold_part, unicodedata.normalize("NFKD", character)))


def _fold_part(part: str) -> str:
    if part.isascii():
        return part
    known = _LOOKALIKES.get(part)
    if known is not None:
        return known
    category = unicodedata.category(part)
    if category in ("Mn", "Me", "Mc", "Cf") or part in _FILLERS:
        return ""
    by_category = {"Nd": str(unicodedata.digit(part, 0)), "Zs": " ", "Zl": "\n", "Zp": "\n", "Pd": "-", "Pc": "_"}
    if category in by_category:
        return by_category[category]
    return OTHER_LETTER if part.isalpha() else OTHER_SIGN
