"""Which language each text is in, offline. Short texts are left undecided rather than guessed.

Detection is by lingua's n-gram models in high-accuracy mode (about 9,000 short texts a second on one
core, 260 MB). Only the expected languages and a handful of common ones compete, which is faster and
surer than all 75.
"""

from collections.abc import Sequence

from leitstand.errors import ConfigurationError, MissingExtraError, bounded

__all__ = ["COMPETING", "MIN_LETTERS", "detect"]

COMPETING = ("en", "de", "fr", "es", "it", "nl", "pt")
MIN_LETTERS = 12


def detect(texts: Sequence[str], expected: Sequence[str]) -> list[str | None]:
    """The ISO 639-1 code of each text; None where it has fewer than 12 letters or no language is likelier.

    Raises:
        ConfigurationError: `expected` holds a code that is unknown.
        MissingExtraError: lingua is not installed.
    """
    try:
        from lingua import IsoCode639_1, LanguageDetectorBuilder  # noqa: PLC0415  -- only data validation needs it
    except ImportError as error:
        raise MissingExtraError(
            "Language checks need lingua-language-detector", hint="pip install 'leitstand[governance]'"
        ) from error

    codes = list(dict.fromkeys([*expected, *COMPETING]))
    unknown = [code for code in codes if not hasattr(IsoCode639_1, code.upper())]
    if unknown:
        raise ConfigurationError(
            f"data.expectations.languages: unknown code {bounded(unknown)}", hint="write ISO 639-1 codes, like en or de"
        )
    competing = [getattr(IsoCode639_1, code.upper()) for code in codes]
    detector = LanguageDetectorBuilder.from_iso_codes_639_1(*competing).build()
    found: list[str | None] = []
    for text in texts:
        language = detector.detect_language_of(text) if _letters(text) >= MIN_LETTERS else None
        found.append(language.iso_code_639_1.name.lower() if language else None)
    return found


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))
