"""What a request may cost at most, and what it did cost, in whole millionths of the currency unit."""

from collections.abc import Sequence
from decimal import Decimal

from leitstand.specs.budgets import PricesSpec
from leitstand.types import Usage

__all__ = ["Prices", "micros", "tokens_of"]

MILLION = 10**6
BYTES_PER_TOKEN = 3  # English has 4 to 5, German 4, Chinese and emoji about 3: an estimate from above for most texts
SPECIAL_TOKENS = 2


def micros(money: Decimal) -> int:
    """Whole millionths."""
    return int(money * MILLION)


class Prices:
    """The prices of one use case, ready to be multiplied."""

    def __init__(self, spec: PricesSpec) -> None:
        self._read = micros(spec.per_million_tokens_in)
        self._written = micros(spec.per_million_tokens_out)
        self._request = micros(spec.per_request)
        self.free = not (self._read or self._written or self._request)

    def of(self, tokens_in: int, tokens_out: int) -> Usage:
        """The tokens with their cost, rounded up to a whole millionth."""
        parts = tokens_in * self._read + tokens_out * self._written
        return Usage(tokens_in, tokens_out, self._request - (-parts // MILLION))


def tokens_of(texts: Sequence[str], most_each: int) -> int:
    """Tokens that `texts` have for a model that reads at most `most_each` of each, estimated by their UTF-8 bytes."""
    total = 0
    for text in texts:
        size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        total += min(most_each, -(-size // BYTES_PER_TOKEN) + SPECIAL_TOKENS)
    return total
