"""Languages for a sample of the inference log, detected in the log's thread with a budget per second.

lingua holds the interpreter lock for 0.1 to 0.3 ms per text (measured on two busy cores), which is more than
the rest of a gateway's work on a request; a fixed number per second is enough to see a shift of language.
Texts that are too short, and all when lingua is not installed, keep an empty language.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import structlog

from governance.language import detect
from leitstand.errors import MissingExtraError
from leitstand.types import WindowRow

__all__ = ["LanguageSampler"]

logger = structlog.get_logger()


class LanguageSampler:
    """A token bucket of one second, and the detector behind it."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._tokens = per_s
        self._at = time.monotonic()

    def wants(self) -> bool:
        """Whether the next text is part of the sample; takes one from the budget."""
        if not self._per_s:
            return False
        now = time.monotonic()
        self._tokens = min(max(self._per_s, 1.0), self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def fill(self, rows: Sequence[WindowRow], texts: Mapping[int, str]) -> list[WindowRow]:
        """The rows; those with a text at their place and no language get one where lingua is sure."""
        result = list(rows)
        places = [place for place in texts if not result[place].language]
        if not places:
            return result
        try:
            found = detect([texts[place] for place in places], ())
        except MissingExtraError as error:
            self._per_s = 0.0
            logger.warning("The inference log holds no languages", cause=error.message, hint=error.hint)
            return result
        for place, language in zip(places, found, strict=True):
            if language:
                result[place] = dataclasses.replace(result[place], language=language)
        return result
