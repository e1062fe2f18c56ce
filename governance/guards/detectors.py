"""Finding patterns in folded texts: leftmost first, bounded in length, never backtracking.

Every detector answers one question: where is the next thing that starts at or after `pos`? The answer depends only
on the bytes from a few before that start to `longest` behind it, so a stream can be searched piece by piece with
the result of a search over the whole. Patterns run in RE2, whose time grows linearly with the text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from governance.guards.linear import Linear

__all__ = ["AROUND", "Accept", "Detector", "Hit", "Pattern", "Scan", "alternatives"]

AROUND = 4  # bytes beside a match that decide whether it counts

Accept = Callable[[bytes, int, int], int]
"""(text, begin, end) -> the end of what counts, or 0 when it does not."""


@dataclass(frozen=True, slots=True)
class Hit:
    """Something found: its kind, where the match starts, and the part that is meant (``begin`` to ``end``)."""

    kind: str
    start: int
    begin: int
    end: int


class Detector(Protocol):
    """Finds one kind of thing."""

    longest: int

    def search(self, text: bytes, pos: int, stop: int) -> Hit | None:
        """The first one with ``pos <= start < stop``."""
        ...


class Pattern:
    """An RE2 pattern, whose candidates `accept` may refuse or shorten.

    Args:
        kind: What it finds.
        pattern: RE2 syntax over ASCII; with a bounded length.
        longest: Bytes of the longest match.
        needs: Bytes of which one must be in the text; saves the search where none is.
        group: The group that is meant; 0: all of it.
        accept: See `Accept`.
    """

    def __init__(
        self, kind: str, pattern: str, *, longest: int, needs: bytes = b"", group: int = 0, accept: Accept | None = None
    ) -> None:
        self.kind, self.longest = kind, longest
        self._regex = Linear(pattern)
        self._needs, self._group, self._accept = needs, group, accept

    def search(self, text: bytes, pos: int, stop: int) -> Hit | None:
        """See `Detector.search`."""
        if self._needs and not any(text.find(need, pos) >= 0 for need in self._needs):
            return None
        while pos < stop:
            match = self._regex.search(text, pos, self._group)
            if match is None or match[0] >= stop:
                return None
            start, begin, end = match
            if self._accept is not None:
                end = self._accept(text, begin, end)
            if end > begin:
                return Hit(self.kind, start, begin, end)
            pos = start + 1
        return None


class Scan:
    """A search from left to right over a text that may still grow: of several detectors, the first start wins.

    Where two start together, the detector that is named first wins. What is found takes its part of the text; the
    search goes on behind it.
    """

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self._detectors = tuple(detectors)
        self.longest = max((detector.longest for detector in detectors), default=0)
        self.pos = 0

    def run(self, text: bytes, stop: int) -> list[tuple[int, Hit]]:
        """All that starts before `stop`, with the index of its detector; the next call goes on behind it."""
        following = [detector.search(text, self.pos, stop) for detector in self._detectors]
        hits: list[tuple[int, Hit]] = []
        while True:
            ahead = [(hit.start, index) for index, hit in enumerate(following) if hit is not None]
            if not ahead:
                break
            chosen = min(ahead)[1]
            first = following[chosen]
            assert first is not None  # noqa: S101 -- filtered above
            hits.append((chosen, first))
            self.pos = first.end
            for index, hit in enumerate(following):
                if hit is not None and hit.start < self.pos:
                    following[index] = self._detectors[index].search(text, self.pos, stop)
        self.pos = max(self.pos, stop)
        return hits

    def shift(self, count: int) -> None:
        """`count` bytes were cut off at the text's start."""
        self.pos -= count


def alternatives(kind: str, phrases: Sequence[str], *, longest: int) -> Pattern:
    """One pattern for many, as whole words in any case."""
    return Pattern(kind, rf"(?i)\b(?:{'|'.join(phrases)})\b", longest=longest)
