"""The stages of the gateway's pipeline that decide, as objects to be given; these admit everything.

A policy is an async callable that gets the `Exchange` and returns, or raises: `PolicyDenied` for a refusal,
any other `LeitstandError` for a failure. It may read and replace the exchange's texts and answer. They run
in this order, around the stages *route*, *call* and *log*, which belong to the pipeline itself:

    authenticate → admit → guard_input → (route → call) → guard_output → settle → audit → (log)

`settle` and `audit` also run for requests that failed or were refused, and before the answer leaves; what
they raise replaces the answer. `exchange.error` tells them how it ended.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from services.exchange import Exchange

__all__ = ["Policies", "Policy", "StreamGuard", "admit_everything"]


class Policy(Protocol):
    """One decision about an exchange."""

    async def __call__(self, exchange: Exchange) -> None:
        """Returns to let the exchange go on."""
        ...


class StreamGuard(Protocol):
    """Judges an answer while it is written (`services.guarding.GuardedStream`)."""

    def feed(self, chunk: str) -> str:
        """Takes the next piece and returns what may leave now; raises `ContentBlocked`."""
        ...

    def finish(self) -> str:
        """Returns the rest; raises `ContentBlocked`."""
        ...

    def close(self) -> None:
        """Tells what it found; also of a stream that ends early."""
        ...


def _unguarded(exchange: Exchange) -> StreamGuard | None:
    return None


async def admit_everything(exchange: Exchange) -> None:
    """The policy of an installation that has none for a stage."""


@dataclass(frozen=True, kw_only=True)
class Policies:
    """One policy per deciding stage.

    Attributes:
        authenticate: Who asks; sets the exchange's subject from credentials.
        admit: Rates and budgets: reserves what the request may cost.
        guard_input: Looks at the texts before any model sees them.
        guard_output: Looks at the answer before the caller sees it.
        guard_stream: Makes what looks at an answer that leaves while it is written; None: nobody looks.
        settle: Books what was reserved, or gives it back.
        audit: Writes the record that must exist before the answer leaves.
    """

    authenticate: Policy = admit_everything
    admit: Policy = admit_everything
    guard_input: Policy = admit_everything
    guard_output: Policy = admit_everything
    guard_stream: Callable[[Exchange], StreamGuard | None] = _unguarded
    settle: Policy = admit_everything
    audit: Policy = admit_everything
