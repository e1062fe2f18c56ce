"""How often a call may be made again: a budget, so that retries never multiply the load of a failing upstream.

Every request adds `share` to the budget and every retry takes one from it. In any stretch of time, retries are at
most ``reserve + share * requests``. Not safe with threads.
"""

from random import random

__all__ = ["RetryBudget", "backoff_s"]


class RetryBudget:
    """A bucket of retries that requests fill; full at the start.

    Args:
        share: Retries per request in the long run.
        reserve: The most that the bucket holds.
    """

    __slots__ = ("_left", "_reserve", "_share")

    def __init__(self, share: float, reserve: float) -> None:
        self._share = share
        self._reserve = max(reserve, 1.0 if share else 0.0)
        self._left = float(reserve)

    def earn(self) -> None:
        """Counts a request."""
        left = self._left + self._share
        self._left = left if left < self._reserve else self._reserve

    def spend(self) -> bool:
        """Whether a retry is allowed; if so, it is counted."""
        if self._left < 1 - 1e-9:
            return False
        self._left -= 1
        return True


def backoff_s(retry: int, base_s: float) -> float:
    """A pause before the retry of that number (from 1): uniform between 0 and ``base_s * 2 ** (retry - 1)``.

    "Full jitter" spreads clients best (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """
    return random() * base_s * 2.0 ** (retry - 1)  # noqa: S311 -- no secret
