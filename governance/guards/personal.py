"""Detectors of personal data: shapes by RE2, what is meant by checksums and numbering plans of libraries.

Sure (a checksum or a syntax decides): e-mail, IBAN, card, IP address, German tax id (IdNr) and social security number.
Likely: phone numbers (numbering plans of Google's libphonenumber). Guessed: names (a title or phrase before them, or
a known given name), addresses (street types), German tax numbers (shape only), dates of birth (a word before them).
"""

import ipaddress
from collections.abc import Callable, Sequence
from functools import lru_cache

from stdnum import luhn, numdb
from stdnum.de import idnr, stnr

from governance.guards.detectors import Detector, Pattern
from governance.guards.names import name_detectors
from governance.guards.phones import phone_detector

__all__ = ["personal_detectors"]

CARD_DIGITS = range(13, 20)
MONTH = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mae?r|mai|okt|dez)[a-z]{0,7}"
DATE = (
    r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}-\d{2}-\d{2}"
    rf"|\d{{1,2}}(?:st|nd|rd|th|\.)? (?:of )?{MONTH}\.?,? \d{{4}}|{MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}"
)
BORN = r"born(?: on)?|date of birth|dob|birth ?day|birthdate|geboren(?: am)?|geburtsdatum|geburtstag|geb\."
STREET_DE = "[Ss]trasse|[Ss]tr\\.|[Ww]eg|[Pp]latz|[Aa]llee|[Gg]asse|[Rr]ing|[Dd]amm|[Uu]fer|[Cc]haussee|[Ss]teig"
STREET_EN = (
    "Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Square|Sq|"
    "Terrace|Ter|Place|Pl|Way|Close|Crescent|Alley|Circle|Cir|Parkway|Pkwy|Highway|Hwy|Trail|Trl|Plaza|Loop|Row|Mews|"
    "Grove|Gardens|Hill|Hills|Walk|Path|Park|Heights|Ridge|Turnpike|Causeway|Throughway|Cove|Crossing|Expressway|"
    "Freeway|"
    "Knoll|Meadows|Manor|Pike|Quay|Wharf"
)
WEIGHTS = (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1)


def personal_detectors(kinds: Sequence[str], regions: Sequence[str] = ("DE",)) -> list[Detector]:
    """The detectors of some kinds, surest first: where two start together, the first wins.

    Args:
        kinds: See `leitstand.specs.guards.PersonalKind`.
        regions: Countries whose phone numbers are known without ``+CODE``.
    """
    made: list[Detector] = []
    for kind, make in MAKERS.items():
        if kind in kinds:
            made += make()
        if kind == "ip" and "phone" in kinds:
            made.append(phone_detector(tuple(regions)))
    return made


def _email() -> list[Detector]:
    local, domain = r"[a-z0-9_](?:[a-z0-9._%+'-]{0,62}[a-z0-9_+-])?", r"[a-z0-9_](?:[a-z0-9_.-]{0,100}[a-z0-9_])?"
    return [Pattern("email", rf"(?i)\b{local}@{domain}\.[a-z_]{{2,18}}\b", longest=186, needs=b"@")]


def _iban() -> list[Detector]:
    start = r"\b[A-Za-z]{2}\d{2}[ -]?[A-Za-z0-9]{2}"
    return [Pattern("iban", start, longest=46, needs=b"0123456789", accept=_iban_end)]


def _iban_end(text: bytes, begin: int, _: int) -> int:
    """The end of the IBAN at `begin`, grouped by single spaces or hyphens; ISO 13616: 97-10 checksum."""
    length = _iban_lengths().get(text[begin : begin + 2].upper())
    if length is None:
        return 0
    found = _compact(text, begin, length)
    if found is None:
        return 0
    compact, end = found
    number = "".join(str(int(letter, 36)) for letter in compact[4:] + compact[:4])
    return end if int(number) % 97 == 1 else 0


def _compact(text: bytes, begin: int, length: int) -> tuple[str, int] | None:
    """`length` letters and digits from `begin` on, single separators skipped, and where they end."""
    taken: list[str] = []
    place, gap = begin, 0
    for byte in text[begin : begin + length + length // 2]:
        character = chr(byte)
        if character.isalnum():
            taken.append(character)
            gap = 0
        elif character in " -" and not gap:
            gap = 1
        else:
            break
        place += 1
        if len(taken) == length:
            return ("".join(taken), place) if not text[place : place + 1].isalnum() else None
    return None


@lru_cache(maxsize=1)
def _iban_lengths() -> dict[bytes, int]:
    """Country code to length, from the registry that python-stdnum carries."""
    database = numdb.get("iban")
    lengths: dict[bytes, int] = {}
    for code in (chr(a) + chr(b) for a in range(65, 91) for b in range(65, 91)):
        for prefix, properties in database.info(code):
            if prefix == code and "bban" in properties:
                parts = properties["bban"].replace("!n", " ").replace("!a", " ").replace("!c", " ").replace("!e", " ")
                lengths[code.encode()] = 4 + sum(map(int, parts.split()))
    return lengths


def _card() -> list[Detector]:
    return [Pattern("card", r"\b[2-6]\d{2,18}\b", longest=28, needs=b"23456", accept=_card_end)]


def _card_end(text: bytes, begin: int, _: int) -> int:
    """The end of the longest card number at `begin`: 13 to 19 digits in groups of three or more, Luhn."""
    digits, ends, place, group = "", [], begin, 0
    for byte in text[begin : begin + 26] + b"\0":
        if 48 <= byte <= 57:  # noqa: PLR2004 -- 0 to 9
            digits, group = digits + chr(byte), group + 1
        elif group < 3:  # noqa: PLR2004
            break
        else:
            ends.append((digits, place))
            if byte not in b" -":
                break
            group = 0
        place += 1
    for number, end in reversed(ends):
        if len(number) in CARD_DIGITS and not text[end : end + 1].isalnum() and luhn.is_valid(number):
            return end
    return 0


def _tax_id() -> list[Detector]:
    pattern = r"\b[1-9]\d(?:\d{9}|(?: \d{3}){3})\b"
    return [Pattern("tax_id", pattern, longest=14, needs=b"123456789", accept=_if(idnr.is_valid))]


def _tax_number() -> list[Detector]:
    pattern = r"\b\d{2,3}/\d{3,4}/\d{4,5}\b"
    return [Pattern("tax_number", pattern, longest=14, needs=b"/", accept=_if(stnr.is_valid))]


def _social_security() -> list[Detector]:
    pattern = r"\b\d{2} ?[0-9]{6} ?[A-Za-z] ?\d{2} ?\d\b"
    return [Pattern("social_security", pattern, longest=16, needs=b"0123456789", accept=_if(_social_security_valid))]


def _social_security_valid(number: str) -> bool:
    """Check digit of the Versicherungsnummer (VKVV, section 4)."""
    compact = number.replace(" ", "").upper()
    digits = compact[:8] + f"{ord(compact[8]) - 64:02d}" + compact[9:11]
    total = sum(sum(divmod(int(digit) * weight, 10)) for digit, weight in zip(digits, WEIGHTS, strict=True))
    dated = 1 <= int(compact[2:4]) <= 81 and 1 <= int(compact[4:6]) <= 12  # noqa: PLR2004 -- a day, or it + 50
    return dated and total % 10 == int(compact[11])


def _address() -> list[Detector]:
    german = (
        rf"\b[A-Z][a-zA-Z-]{{1,30}}(?: [A-Z][a-z]{{1,20}})?[ -]?(?:{STREET_DE}) \d{{1,4}}"
        r"(?: ?[a-hA-H]\b|[/-]\d{1,4})?(?:,? (?:D-)?\d{5} [A-Z][a-z]{2,25})?"
    )
    english = (
        rf"\b\d{{1,5}}[A-Za-z]? (?:[A-Z][a-z]{{1,20}} ){{1,3}}(?:{STREET_EN})\b\.?"
        r"(?:,? [A-Z][a-z]{2,20}(?: [A-Z][a-z]{2,20})?(?:,? [A-Z]{2}[ ,]{1,2}\d{5})?)?"
    )
    return [
        Pattern("address", german, longest=112, needs=b"0123456789"),
        Pattern("address", english, longest=140, needs=b"0123456789"),
    ]


def _ip() -> list[Detector]:
    octet = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
    return [
        Pattern("ip", rf"\b{octet}(?:\.{octet}){{3}}\b", longest=15, needs=b".", accept=_not_in_dots),
        Pattern(
            "ip", r"\b[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{2,34}[0-9A-Fa-f]\b", longest=39, needs=b":", accept=_if(_is_ip)
        ),
    ]


def _not_in_dots(text: bytes, begin: int, end: int) -> int:
    longer = text[begin - 1 : begin] == b"." or (text[end : end + 1] == b"." and text[end + 1 : end + 2].isdigit())
    return 0 if longer else end


def _is_ip(text: str) -> bool:
    if "::" not in text and text.count(":") != 7:  # noqa: PLR2004 -- groups of an address that is written out
        return False
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _birth_date() -> list[Detector]:
    pattern = rf"(?i)\b(?:{BORN})(?: is| ist|:)?(?: on| the| der| am)? {{0,2}}({DATE})\b"
    return [Pattern("birth_date", pattern, longest=60, needs=b"0123456789", group=1)]


def _if(valid: Callable[[str], bool]) -> Callable[[bytes, int, int], int]:
    def accept(text: bytes, begin: int, end: int) -> int:
        return end if valid(text[begin:end].decode()) else 0

    return accept


MAKERS: dict[str, Callable[[], list[Detector]]] = {
    "email": _email, "iban": _iban, "card": _card, "social_security": _social_security, "tax_id": _tax_id,
    "tax_number": _tax_number, "ip": _ip, "birth_date": _birth_date, "address": _address, "name": name_detectors,
    "phone": list,  # made by `personal_detectors`: it needs the regions
}  # fmt: skip
