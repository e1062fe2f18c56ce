"""Names of people, guessed: by what stands before them, or by a known given name before another capitalised word.

The given names are those of Faker's lists for English and German speaking countries (`data/README.md`). A name that is
written small, stands alone, or has a given name of another origin is only found behind a title or phrase.
"""

from functools import lru_cache
from pathlib import Path

from governance.guards.detectors import Detector, Pattern

__all__ = ["given_names", "name_detectors"]

GIVEN_NAMES = Path(__file__).parent / "data" / "given_names.txt"
WORD = r"[A-Z][a-z']{1,20}(?:-?[A-Z][a-z]{1,20})?"
PARTICLE = r"(?:(?:von|van|de|zu|der|den|del|la|bin|al|da|dos|ten)[ -]){0,2}"
FULL = rf"{WORD}(?: [A-Z]\.)?(?: {WORD})? {PARTICLE}{WORD}"
TITLES = r"(?:Mr|Mrs|Ms|Miss|Mister|Dr|Prof|Herr|Herrn|Frau|Familie|Sir|Madam)\.?"
PHRASES = (
    r"(?:(?i:my (?:full )?name is|i am called|this is|name:|signed|regards,?|sincerely,?|yours,?|contact person:?|"
    r"mein name ist|ich heisse|mein name lautet|grusse?n?,?|gez\.|ansprechpartner(?:in)?:?|kontoinhaber(?:in)?:?"
    r"|account holder:?|card ?holder:?|cc:))"
)


def name_detectors() -> list[Detector]:
    """Detectors of titles and phrases, then of given names."""
    some = rf"{WORD}(?: [A-Z]\.)?(?: {PARTICLE}{WORD}){{0,2}}"
    return [
        Pattern("name", rf"\b{TITLES} (?:(?:Dr|Prof)\.? )?({some})\b", longest=128, group=1),
        Pattern("name", rf"\b{PHRASES}[ \n]{{1,2}}({some})\b", longest=140, group=1),
        Pattern("name", rf"\b{FULL}\b", longest=142, accept=_known),
    ]


def _known(text: bytes, begin: int, end: int) -> int:
    first = text[begin:end].split(None, 1)[0].decode().lower()
    return end if first in given_names() or first.split("-")[0] in given_names() else 0


@lru_cache(maxsize=1)
def given_names() -> frozenset[str]:
    """Folded, in lower case."""
    return frozenset(GIVEN_NAMES.read_text(encoding="ascii").split())
