"""What an answer may repeat of its request: known personal data, numbers with a source, no prompt.

All of it belongs to one request and is compared without case and spacing. A number is supported when a source holds
it, or a number that rounds to it; ``1.234`` is read as both 1,234 and 1.234, because both are written. Numbers as words
are not seen.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from governance.guards.detectors import Detector, Hit, Pattern
from governance.guards.linear import Linear, escape
from governance.guards.text import normalise

__all__ = ["Known", "PromptWords", "Unknown", "canary_detector", "number_detector"]

REACH = 240
SPELLED = frozenset(("email", "name", "address"))
_WORD = Linear(r"\b[a-z0-9_']+")
DIGITS = r"\b[0-9]{1,15}(?:[.,'][0-9]{1,9}){0,4}\b"
NUMBER = rf"{DIGITS}(?: ?(?:%|percent|prozent|thousand|tausend|million(?:en)?|mio|billion|mrd|k\b))?"
_NUMBER = Linear(DIGITS)
_SPACED = bytes(byte if chr(byte).isalnum() or byte in b"_'" else 32 for byte in range(128)) + b" " * 128
REMEMBERED = 10_000
_SIGNS = bytes(byte for byte in range(128) if not chr(byte).isalnum())
SCALES = {b"%": 0.01, b"p": 0.01, b"t": 1e3, b"k": 1e3, b"mr": 1e9, b"b": 1e9, b"m": 1e6}


class Known:
    """The request's texts, for looking up what stands in them."""

    def __init__(self, texts: Iterable[str]) -> None:
        folded = [normalise(text).data.lower() for text in texts]
        self._spelled = b"\n".join(b" ".join(text.split()) for text in folded)
        self._compact = b"\n".join(_compact(text) for text in folded)

    def __contains__(self, found: tuple[str, bytes]) -> bool:
        kind, data = found
        if kind in SPELLED:
            return b" ".join(data.lower().split()) in self._spelled
        return _compact(data.lower()) in self._compact


class Unknown:
    """A detector that leaves out what is known."""

    def __init__(self, detector: Detector, known: Known) -> None:
        self._detector, self._known = detector, known
        self.longest = detector.longest

    def search(self, text: bytes, pos: int, stop: int) -> Hit | None:
        """See `Detector.search`."""
        while (hit := self._detector.search(text, pos, stop)) is not None:
            if (hit.kind, text[hit.begin : hit.end]) not in self._known:
                return hit
            pos = hit.start + 1
        return None


class PromptWords:
    """Finds `count` words in a row that stand in a prompt.

    Args:
        prompts: System prompts.
        count: Words in a row that count as repeated.
        kind: What a hit is called.
    """

    longest = REACH

    def __init__(self, prompts: Iterable[str], count: int, kind: str = "repeated") -> None:
        self._count, self._kind = count, kind
        told = [normalise(prompt).data.lower() for prompt in prompts]
        self._rows = {row for prompt in told for row in _rows([*_WORD.found(prompt)], count)}
        self._vocabulary = frozenset(word for row in self._rows for word in row)

    def search(self, text: bytes, pos: int, stop: int) -> Hit | None:
        """See `Detector.search`."""
        lower = text.lower()
        if not self._rows or not self._may_repeat(lower):
            return None
        spans: list[tuple[int, int]] = []
        words: list[bytes] = []
        for span in _WORD.spans(lower, pos):
            spans.append(span)
            words.append(lower[span[0] : span[1]])
            if len(words) < self._count:
                continue
            begin, end = spans[-self._count][0], spans[-1][1]
            if begin >= stop:
                return None
            if end - begin <= REACH and tuple(words[-self._count :]) in self._rows:
                return Hit(self._kind, begin, begin, end)
        return None

    def _may_repeat(self, lower: bytes) -> bool:
        """Whether enough words in a row are any of the prompt's: seldom, and quick to tell."""
        run = 0
        for word in lower.translate(_SPACED).split():
            run = run + 1 if word in self._vocabulary else 0
            if run == self._count:
                return True
        return False


def canary_detector(canaries: Sequence[str]) -> Detector:
    """Finds strings that stand in a prompt only to be found."""
    folded = [escape(normalise(canary).data.decode()) for canary in canaries]
    return Pattern("canary", rf"(?i)(?:{'|'.join(folded)})", longest=max(map(len, canaries)) * 2)


def number_detector(texts: Iterable[str], ignore_up_to: int) -> Detector:
    """Finds numbers that no text supports, and that are not whole numbers up to `ignore_up_to`."""
    values = sorted(
        {value for text in texts for number in _NUMBER.found(normalise(text).data) for value, _ in _readings(number)}
    )

    judged: dict[bytes, bool] = {}

    def unsupported(text: bytes, begin: int, end: int) -> int:
        if text[begin - 1 : begin] in (b".", b",", b"'") and text[begin - 2 : begin - 1].isdigit():
            return 0  # the rest of a number that was judged
        number = text[begin:end]
        fine = judged.get(number)
        if fine is None:
            fine = _supported(number, values, ignore_up_to)
            if len(judged) < REMEMBERED:
                judged[number] = fine
        return 0 if fine else end

    return Pattern("unsupported", f"(?i){NUMBER}", longest=76, needs=b"0123456789", accept=unsupported)


def _supported(written: bytes, values: Sequence[float], ignore_up_to: int) -> bool:
    """Whether a number, with the word for its scale, is or rounds one of `values`."""
    behind = _NUMBER.end_of_match(written, 0, len(written))
    scale = _scale(written[behind:].strip().lower())
    for value, decimals in _readings(written[:behind]):
        if value <= ignore_up_to and not decimals:
            return True
        precision = 0.5 * 10.0**-decimals
        if _near(values, value, precision) or (scale != 1 and _near(values, value * scale, precision * scale)):
            return True
    return False


def _readings(number: bytes) -> Iterator[tuple[float, int]]:
    """What a number may mean, with its decimals: signs between digits group thousands, or the last one is a point."""
    parts = number.replace(b",", b".").replace(b"'", b".").decode().split(".")
    if len(parts) == 1 or all(len(part) == 3 for part in parts[1:]):  # noqa: PLR2004
        yield float("".join(parts)), 0
    if len(parts) > 1:
        yield float("".join(parts[:-1]) + "." + parts[-1]), len(parts[-1])


def _scale(word: bytes) -> float:
    return next((factor for start, factor in SCALES.items() if word.startswith(start)), 1.0)


def _near(values: Sequence[float], value: float, precision: float) -> bool:
    """Whether a value rounds to `value`."""
    at = bisect_left(values, value - precision * (1 + 1e-9))
    return at < len(values) and values[at] <= value + precision * (1 + 1e-9)


def _compact(data: bytes) -> bytes:
    return data.translate(None, _SIGNS)


def _rows(words: Sequence[bytes], count: int) -> Iterator[tuple[bytes, ...]]:
    return zip(*(words[shift:] for shift in range(count)), strict=False)
