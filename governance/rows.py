"""Which rows of a labelled data set may be used, and why the others may not: pure rules on values.

Reads no files and decides nothing about the set as a whole; that is `governance.validation`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from leitstand.errors import bounded
from leitstand.files import digest_bytes
from leitstand.usecase import Expectations

__all__ = [
    "Quarantined", "Reason", "Row", "Sorted", "Source", "excerpt", "normalise", "sort_rows", "text_defect",
    "text_digest",
]  # fmt: skip

EXCERPT_CHARS = 60
SCANNED_CHARS = 4 * EXCERPT_CHARS

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BROKEN = re.compile("[\ud800-\udfff\ufffd]")
_EMAIL = re.compile(r"\S+@\S+")


class Reason(StrEnum):
    """Why a row was set aside. The values are part of the quarantine file's format."""

    NOT_TEXT = "not_text"
    EMPTY = "empty"
    TOO_LONG = "too_long"
    NOT_UTF8 = "not_utf8"
    CONTROL = "control_characters"
    TOO_SHORT = "too_short"
    NO_LETTERS = "no_letters"
    LABEL_MISSING = "label_missing"
    UNKNOWN_LABEL = "unknown_label"
    CONFLICTING_LABEL = "conflicting_label"
    ALSO_IN_TEST = "also_in_test"
    ALSO_IN_GOLDEN = "also_in_golden"


@dataclass(frozen=True, slots=True)
class Row:
    """One row as read. Bytes that are no UTF-8 stand in `text` as lone surrogates (``surrogateescape``)."""

    number: int
    text: str | None
    label: str | None
    defect: Reason | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One source file as read: its columns, its rows, and the first byte that is not UTF-8, if any."""

    split: str
    uri: str
    digest: str
    columns: tuple[str, ...]
    rows: list[Row] = field(repr=False)
    bad_byte: int | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that is not used. Holds a digest and a short masked excerpt, never the whole text.

    A label of the label set stands as it is; an unknown one may be anything, so it is an excerpt too.
    """

    split: str
    number: int
    reason: Reason
    detail: str
    label: str | None
    text_digest: str
    excerpt: str


@dataclass(frozen=True, slots=True)
class Sorted:
    """Every input row stands in exactly one of the three: kept, quarantined or leaked."""

    kept: dict[str, list[Row]]
    quarantined: list[Quarantined]
    leaked: list[Quarantined]


def normalise(text: str) -> str:
    """The form in which two texts count as the same: runs of white space are one space, case is folded."""
    return " ".join(text.split()).casefold()


def text_digest(text: str | None) -> str:
    """``sha256:`` over the text's UTF-8 bytes, also of a text that holds lone surrogates."""
    return digest_bytes((text or "").encode("utf-8", "surrogatepass"))


def excerpt(text: str | None) -> str:
    """The first 60 characters, fit for a report: digits and e-mail addresses masked, oddities escaped."""
    start = _EMAIL.sub("<e-mail>", (text or "")[:SCANNED_CHARS])
    start = re.sub(r"\d", "#", start)[:EXCERPT_CHARS]
    start = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in start)
    return start + ("…" if len(text or "") > EXCERPT_CHARS else "")


def _defect_of(row: Row, labels: frozenset[str], expectations: Expectations) -> tuple[Reason, str] | None:
    """The first rule that the row breaks, with the value that breaks it, or None."""
    if row.defect:
        return row.defect, "the value is not a string"
    problem = text_defect(row.text, expectations)
    if problem:
        return problem
    if not row.label or not row.label.strip():
        return Reason.LABEL_MISSING, "no label"
    if row.label not in labels:
        return Reason.UNKNOWN_LABEL, f"label '{excerpt(row.label)}' is not in the label set"
    return None


def text_defect(text: str | None, expectations: Expectations) -> tuple[Reason, str] | None:
    """The first rule that a text breaks, with the value that breaks it, or None."""
    if text is None or not text.strip():
        return Reason.EMPTY, "no text"
    if len(text) > expectations.max_chars:  # first, so that a text of 10 MB costs nothing
        return Reason.TOO_LONG, f"{len(text):,} characters, at most {expectations.max_chars:,}"
    problem = _character_defect(text)
    if problem:
        return problem
    chars = len(text.strip())
    if chars < expectations.min_chars:
        return Reason.TOO_SHORT, f"{chars} characters, at least {expectations.min_chars}"
    return None


def _character_defect(text: str) -> tuple[Reason, str] | None:
    broken = _BROKEN.search(text)
    if broken:
        return Reason.NOT_UTF8, f"undecodable at character {broken.start()}"
    control = _CONTROL.search(text)
    if control:
        return Reason.CONTROL, f"U+{ord(control[0]):04X} at character {control.start()}"
    if not any(char.isalpha() for char in text):
        return Reason.NO_LETTERS, "no letter, only signs, digits or emoji"
    return None


def sort_rows(
    sources: Iterable[Source], labels: Sequence[str], expectations: Expectations, golden: Sequence[Row] = ()
) -> Sorted:
    """Sorts the rows of all splits into kept, quarantined and leaked; order is kept.

    A text that carries two labels within its split is quarantined with all its rows. A train row whose
    normalised text also stands in the kept test rows, or in `golden`, is `leaked`: it leaves train, so that
    test stays as published and honest.
    """
    known = frozenset(labels)
    kept: dict[str, list[Row]] = {}
    quarantined: list[Quarantined] = []
    for source in sources:
        sound: list[Row] = []
        for row in source.rows:
            problem = _defect_of(row, known, expectations)
            if problem:
                quarantined.append(_set_aside(source.split, row, *problem, known=row.label in known))
            else:
                sound.append(row)
        kept[source.split], conflicting = _without_conflicts(source.split, sound)
        quarantined += conflicting
    leaked: list[Quarantined] = []
    if "train" in kept and "test" in kept:
        kept["train"], leaked = _without_leaked(kept["train"], kept["test"], Reason.ALSO_IN_TEST)
    if golden and "train" in kept:
        kept["train"], more = _without_leaked(kept["train"], golden, Reason.ALSO_IN_GOLDEN)
        leaked += more
    return Sorted(kept, sorted(quarantined, key=lambda item: (item.split, item.number)), leaked)


def _without_conflicts(split: str, rows: list[Row]) -> tuple[list[Row], list[Quarantined]]:
    seen: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        seen[normalise(row.text or "")].add(row.label or "")
    kept, conflicting = [], []
    for row in rows:
        found = seen[normalise(row.text or "")]
        if len(found) > 1:
            detail = f"the same text is labelled: {bounded(sorted(found))}"
            conflicting.append(_set_aside(split, row, Reason.CONFLICTING_LABEL, detail))
        else:
            kept.append(row)
    return kept, conflicting


def _without_leaked(train: list[Row], held_out: Sequence[Row], reason: Reason) -> tuple[list[Row], list[Quarantined]]:
    numbers = {normalise(row.text or ""): row.number for row in reversed(held_out)}
    place = "test" if reason is Reason.ALSO_IN_TEST else "golden"
    kept, leaked = [], []
    for row in train:
        number = numbers.get(normalise(row.text or ""))
        if number is None:
            kept.append(row)
        else:
            leaked.append(_set_aside("train", row, reason, f"{place} row {number} holds the same text"))
    return kept, leaked


def _set_aside(split: str, row: Row, reason: Reason, detail: str, *, known: bool = True) -> Quarantined:
    label = row.label if known or row.label is None else excerpt(row.label)
    return Quarantined(split, row.number, reason, detail, label, text_digest(row.text), excerpt(row.text))
