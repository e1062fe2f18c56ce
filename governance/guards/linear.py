"""RE2 with types: patterns over ASCII bytes, matched in time linear in the text."""

from collections.abc import Iterator

import re2

__all__ = ["Linear", "escape"]


class Linear:
    """A compiled pattern.

    Args:
        pattern: RE2 syntax; ASCII only.
    """

    def __init__(self, pattern: str) -> None:
        self._regex = re2.compile(pattern.encode("ascii"))

    def search(self, text: bytes, pos: int = 0, group: int = 0) -> tuple[int, int, int] | None:
        """Start of the first match at or after `pos`, and the span of a group of it."""
        match = self._regex.search(text, pos)
        return None if match is None else (match.start(), *match.span(group))

    def spans(self, text: bytes, pos: int = 0) -> Iterator[tuple[int, int]]:
        """Spans of all matches from `pos` on that do not overlap."""
        for match in self._regex.finditer(text, pos):
            yield match.span()

    def found(self, text: bytes, pos: int = 0) -> Iterator[bytes]:
        """The same, as their bytes."""
        for begin, end in self.spans(text, pos):
            yield text[begin:end]

    def end_of_match(self, text: bytes, pos: int, stop: int) -> int:
        """Where the match that starts exactly at `pos` and ends by `stop` ends; -1: there is none."""
        match = self._regex.match(text, pos, stop)
        return -1 if match is None else match.end()

    def is_all_of(self, text: bytes) -> bool:
        """Whether the pattern matches the whole text."""
        return self._regex.fullmatch(text) is not None


def escape(text: str) -> str:
    """The pattern of exactly this text."""
    return re2.escape(text)
