"""Tokens like ``<EMAIL_1>`` instead of personal data, for one request, and the way back.

The mapping lives as long as the request and is never written anywhere; its representation shows only how many
there are. A token that a text of the request contains already is never given out, so it can stand for nothing else.
"""

from collections.abc import Iterable

from governance.guards.detectors import Hit
from governance.guards.linear import Linear
from governance.guards.text import normalise

__all__ = ["LONGEST_TOKEN", "Tokens", "Vault"]

LONGEST_TOKEN = 32
_TOKEN = Linear(r"<[A-Z][A-Z_]{1,19}_[0-9]{1,6}>")


class Vault:
    """The tokens of one request.

    Args:
        texts: Every text that the model will see; what looks like a token in them is not given out.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._reserved: set[str] = set()
        for text in texts:
            if "<" in text or not text.isascii():
                self._reserved.update(token.decode() for token in _TOKEN.found(normalise(text).data))
        self._tokens: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}
        self._last: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Vault({len(self)} values)"

    def token(self, kind: str, value: str) -> str:
        """The token of a value: the same for the same value."""
        known = self._tokens.get((kind, value))
        if known is not None:
            return known
        while True:
            number = self._last[kind] = self._last.get(kind, 0) + 1
            token = f"<{kind.upper()}_{number}>"
            if token not in self._reserved:
                break
        self._tokens[kind, value] = token
        self._values[token] = value
        return token

    def value(self, token: str) -> str | None:
        """What a token stands for; None: it is none of this request."""
        return self._values.get(token)


class Tokens:
    """The detector of a vault's tokens in an answer."""

    longest = LONGEST_TOKEN

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def search(self, text: bytes, pos: int, stop: int) -> Hit | None:
        """See `Detector.search`."""
        if not len(self._vault):
            return None
        while (match := _TOKEN.search(text, pos)) is not None and match[0] < stop:
            start, begin, end = match
            if self._vault.value(text[begin:end].decode()) is not None:
                return Hit("token", start, begin, end)
            pos = start + 1
        return None
