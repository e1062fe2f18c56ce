"""Phone numbers by the numbering plans that the library `phonenumbers` carries, compiled for RE2.

The library's own matcher backtracks; its plans are plain patterns of national numbers. What counts: ``+`` or ``00``
and a calling code with a number of its plan, or a national number of a chosen region.
"""

from collections.abc import Sequence
from functools import lru_cache

import phonenumbers

from governance.guards.detectors import Detector, Pattern
from governance.guards.linear import Linear

__all__ = ["phone_detector"]

REACH = 30
DIGITS = range(7, 16)
TYPES = ("fixed_line", "mobile", "toll_free", "premium_rate", "shared_cost", "voip", "personal_number", "uan")
SEPARATORS = b" ()/.-"
_DATE = Linear(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}")


def phone_detector(regions: Sequence[str]) -> Detector:
    """Finds international numbers, and national ones of `regions`."""
    plans = [(_national_prefix(region), _plan(region)) for region in regions]
    start = r"\+[1-9]|\b00[1-9]|\(?\b0[1-9]"
    if any(prefix != "0" for prefix, _ in plans):
        start += r"|\(?\b[2-9]\d{2}\)?[ .-]{1,2}\d{3}[ .-]\d{4}\b"

    def accept(text: bytes, begin: int, _: int) -> int:
        return _end(text, begin, plans)

    return Pattern("phone", start, longest=REACH, needs=b"0123456789", accept=accept)


def _end(text: bytes, begin: int, plans: Sequence[tuple[str, Linear]]) -> int:
    before = text[begin - 1 : begin]
    if begin and (before.isalnum() or before in (b".", b",", b"/", b"-", b":", b"+")):
        return 0
    if _DATE.end_of_match(text, begin, min(len(text), begin + 12)) > 0:
        return 0
    for digits, end in reversed(_groups(text, begin)):
        if len(digits) in DIGITS and not text[end : end + 1].isalnum() and _valid(text, begin, digits, plans):
            return end
    return 0


def _groups(text: bytes, begin: int) -> list[tuple[str, int]]:
    """Digits up to the end of each group, and where it ends; a letter or two signs that part numbers end the search."""
    digits, found, gap = "", [], 0
    plus = text[begin : begin + 1] == b"+"
    window = text[begin + plus : begin + REACH] + b"\0"
    for offset, byte in enumerate(window, begin + plus):
        if 48 <= byte <= 57:  # noqa: PLR2004 -- 0 to 9
            digits, gap = digits + chr(byte), 0
            continue
        if digits and not gap:
            found.append((digits, offset))
        gap += 1
        if byte not in SEPARATORS or gap > 3:  # noqa: PLR2004
            break
    return found


def _valid(text: bytes, begin: int, digits: str, plans: Sequence[tuple[str, Linear]]) -> bool:
    if text[begin : begin + 1] == b"+":
        return _valid_abroad(digits)
    if digits.startswith("00"):
        return _valid_abroad(digits[2:])
    national = [(digits.removeprefix(prefix) if prefix else digits, plan) for prefix, plan in plans]
    return any(plan.is_all_of(rest.encode()) for rest, plan in national)


def _valid_abroad(digits: str) -> bool:
    for length in (1, 2, 3):
        regions = phonenumbers.COUNTRY_CODE_TO_REGION_CODE.get(int(digits[:length]), ())
        rest = digits[length:]
        for region in regions:
            plan = _plan(region)
            if plan.is_all_of(rest.encode()) or (rest[:1] == "0" and plan.is_all_of(rest[1:].encode())):
                return True  # +49 (0)30 ...: the zero is often written along
    return False


@lru_cache(maxsize=512)
def _plan(region: str) -> Linear:
    metadata = phonenumbers.PhoneMetadata.metadata_for_region_or_calling_code(
        phonenumbers.country_code_for_region(region), region
    )
    parts = [getattr(metadata, kind) for kind in TYPES] if metadata else []
    patterns = [part.national_number_pattern for part in parts if part and part.national_number_pattern]
    return Linear("|".join(f"(?:{pattern})" for pattern in patterns) or r"[^\x00-\x7f]")


def _national_prefix(region: str) -> str:
    metadata = phonenumbers.PhoneMetadata.metadata_for_region(region)
    return (metadata.national_prefix or "") if metadata else ""
