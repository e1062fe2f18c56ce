"""Rules that need the whole text: length, language, claims without support, a missing disclaimer."""

from collections.abc import Iterable

from governance.guards.text import normalise
from leitstand.specs.guards import ClaimsRule, DisclaimerRule, LanguageRule, LengthRule

__all__ = ["language_reason", "length_reason", "misses", "unsupported_claims", "words_of"]

MAX_JUDGED = 50_000
_SPACED = bytes(byte if chr(byte).isalnum() else 32 for byte in range(128)) + b" " * 128
_SENTENCES = bytes(10 if byte in b".!?\n" else byte for byte in range(256))


def length_reason(rule: LengthRule, text: str) -> str:
    """The reason code, or empty when the length is as it should be."""
    if len(text) > rule.max_chars:
        return "length.too_long"
    return "length.too_short" if len(text) < rule.min_chars else ""


def language_reason(rule: LanguageRule, text: str) -> str:
    """The reason code, or empty when the language is expected or cannot be told.

    Raises:
        MissingExtraError: lingua is not installed.
    """
    from governance.language import detect  # noqa: PLC0415 -- 260 MB of models, only where a rule asks

    found = detect([text[:MAX_JUDGED]], rule.languages)[0]
    return "language.unexpected" if found is not None and found not in rule.languages else ""


def words_of(texts: Iterable[str]) -> frozenset[bytes]:
    """The words of four letters and more, cut to six: an inflected form supports another."""
    return frozenset(word for text in texts for word in _stems(normalise(text).data.lower()))


def unsupported_claims(rule: ClaimsRule, answer: str, support: frozenset[bytes]) -> int:
    """Sentences of `answer` too few of whose words are in `support`."""
    data = normalise(answer[:MAX_JUDGED]).data.lower().translate(_SENTENCES)
    count = 0
    for sentence in data.split(b"\n"):
        words = _stems(sentence)
        if len(words) >= rule.min_words:
            count += sum(word in support for word in words) < rule.min_support * len(words)
    return count


def _stems(data: bytes) -> list[bytes]:
    return [word[:6] for word in data.translate(_SPACED).split() if len(word) > 3 and not word[:1].isdigit()]  # noqa: PLR2004


def misses(rule: DisclaimerRule, answer: str) -> bool:
    """Whether the answer lacks a disclaimer that it needs."""
    folded = _plain(answer)
    if rule.when and not any(f" {_plain(phrase)} " in f" {folded} " for phrase in rule.when):
        return False
    return _plain(rule.text) not in folded


def _plain(text: str) -> str:
    return b" ".join(normalise(text).data.lower().translate(_SPACED).split()).decode()
