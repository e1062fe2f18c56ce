"""What becomes of a job whose chunk failed: again later, or a dead letter. Pure decisions; time and chance are given.

- A limit that is reached, or an upstream that did not look at the chunk (away, busy, left alone by its breaker), is
  no fault of the job: it waits and loses no attempt. An outage makes no dead letters, until jobs are too old.
- An upstream that fails on a chunk may answer later: a retry, with a wait that doubles, and jitter so that many
  jobs that failed together do not come back together.
- Everything else would fail again: the job is dead at once.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from leitstand.errors import LeitstandError, QuotaExceeded, TransientBackendError
from services.errors import HttpError
from services.scheduling import Overloaded

__all__ = ["Backoff", "Verdict", "judge"]

NOT_ASKED = frozenset({"refused", "busy", "open", "crowded"})  # of `UpstreamFailed`
OUTAGE = 4  # an upstream that is away is asked again as if it had failed that often


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits before retries. ``chance`` gives numbers in [0, 1)."""

    first_s: float = 2.0
    longest_s: float = 300.0
    chance: Callable[[], float] = random.random

    def delay_s(self, fruitless: int) -> float:
        """Between half of, and the whole, ``first_s * 2**(fruitless - 1)``, at most `longest_s`."""
        whole = min(self.longest_s, self.first_s * 2 ** min(max(0, fruitless - 1), 32))
        return whole * (0.5 + 0.5 * self.chance())


@dataclass(frozen=True, slots=True)
class Verdict:
    """``retry_s`` is None for a dead letter; `counted`: the attempt counts against the job."""

    code: str
    detail: str
    retry_s: float | None
    counted: bool = True


def judge(error: Exception, fruitless: int, backoff: Backoff) -> Verdict:
    """What to do about the error that ended an attempt, the `fruitless`-th in a row. The detail holds no text."""
    if isinstance(error, QuotaExceeded):
        wait = min(max(error.retry_after_s, backoff.first_s), backoff.longest_s)
        return Verdict(f"quota:{error.limit}", error.message, wait, counted=False)
    if isinstance(error, Overloaded):
        return Verdict("overloaded", error.reason, max(error.retry_after_s, backoff.delay_s(1)), counted=False)
    if isinstance(error, TransientBackendError):
        reason = getattr(error, "reason", "")
        asked = reason not in NOT_ASKED
        wait = backoff.delay_s(fruitless if asked else OUTAGE)
        return Verdict(f"upstream:{reason}" if reason else "transient", error.message, wait, counted=asked)
    if isinstance(error, LeitstandError):
        return Verdict(type(error).__name__, error.message, None)
    if isinstance(error, HttpError):
        return Verdict(f"http:{error.status}", error.message, None)
    return Verdict("internal", f"{type(error).__name__}; the worker's log has the details", None)
