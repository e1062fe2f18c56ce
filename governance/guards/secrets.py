"""Keys, tokens and passwords in texts: published formats first, then what looks random.

A private key is found by its first line; its other lines look random. Entropy: Shannon's, over the characters of one
word of 24 to 200; 3.8 bits, and letters of both cases with digits. Hexadecimal digests (commit ids, UUIDs) are left
alone: they are seldom secret.
"""

import math
from collections import Counter

from governance.guards.detectors import Detector, Pattern
from governance.guards.linear import Linear

__all__ = ["secret_detectors"]

FORMATS = {
    "aws_key": (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", 20, b"A"),
    "github_token": (r"\b(?:gh[pousr]_[A-Za-z0-9]{36,80}|github_pat_[A-Za-z0-9_]{22,100})\b", 111, b"_"),
    "gitlab_token": (r"\bglpat-[A-Za-z0-9_-]{20,60}\b", 66, b"-"),
    "slack_token": (r"\bxox[abeoprs]-[A-Za-z0-9-]{10,120}\b", 125, b"-"),
    "google_key": (r"\bAIza[0-9A-Za-z_-]{35}\b", 39, b"A"),
    "stripe_key": (r"\b[rs]k_(?:live|test)_[0-9A-Za-z]{16,110}\b", 118, b"_"),
    "openai_key": (r"\bsk-(?:proj-|ant-|svcacct-)?[A-Za-z0-9_-]{20,180}\b", 192, b"-"),
    "huggingface_token": (r"\bhf_[A-Za-z0-9]{30,60}\b", 63, b"_"),
    "npm_token": (r"\bnpm_[A-Za-z0-9]{36}\b", 40, b"_"),
    "jwt": (r"\beyJ[A-Za-z0-9_-]{12,400}", 403, b"e"),  # header and payload, each by itself
    "private_key": (r"-----BEGIN [A-Z ]{0,24}PRIVATE KEY-----\s{0,2}(?:[A-Za-z0-9+/=]{1,76}\s{1,2}){0,4}", 375, b"-"),
    "url_password": (r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,64}:([^\s/@]{3,64})@", 160, b"@"),
}
ASSIGNED = (
    r"(?i)\b(?:pass(?:word|wort|phrase|wd)|kennwort|secret(?:[_ -]?key)?|api[_ -]?key|access[_ -]?(?:key|token)|"
    r"auth[_ -]?token|bearer|client[_ -]?secret)\b"
    r"[\"']?(?: (?:is|ist|lautet))?[ \t]{0,3}[:= ][ \t\"']{0,4}([^\s\"',;]{6,120})"
)
WORD = r"\b[A-Za-z0-9_+/-]{24,200}={0,2}"
_HEX = Linear(r"[0-9a-fA-F-]+")
BITS = 3.8


def secret_detectors(*, entropy: bool = True) -> list[Detector]:
    """Detectors of published formats, of words behind "password:" and the like, and of random-looking words."""
    made: list[Detector] = [
        Pattern(kind, pattern, longest=longest, needs=needs, group=1 if "([^" in pattern else 0)
        for kind, (pattern, longest, needs) in FORMATS.items()
    ]
    made.append(Pattern("password", ASSIGNED, longest=190, group=1, accept=_not_prose))
    if entropy:
        made.append(Pattern("random", WORD, longest=203, accept=_random))
    return made


def _not_prose(text: bytes, begin: int, end: int) -> int:
    """A password is a word that is not only small letters, unless a sign announced it."""
    word = text[begin:end]
    announced = text[begin - 2 : begin].strip(b" \t\"'")[-1:] in (b":", b"=")
    return end if announced or (word != word.lower() and not word.istitle()) or any(map(_digit, word)) else 0


def _digit(byte: int) -> bool:
    return 48 <= byte <= 57  # noqa: PLR2004 -- 0 to 9


def _random(text: bytes, begin: int, end: int) -> int:
    word = text[begin:end]
    if _HEX.is_all_of(word) or not any(map(_digit, word)) or word == word.lower() or word == word.upper():
        return 0
    counts, total = Counter(word), len(word)
    bits = -sum(count / total * math.log2(count / total) for count in counts.values())
    return end if bits >= BITS else 0
