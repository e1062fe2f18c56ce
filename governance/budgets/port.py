"""What a store of counts promises, and the records it takes and gives.

A request is *held* before it is answered: every charge is checked, and either all are booked or none. A hold
reserves its amounts and expires after a lease unless it is renewed. It is *settled* with what was used.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Answer", "BudgetChange", "BudgetStore", "Charge", "Level"]


class Charge(NamedTuple):
    """One limit that a request counts against.

    Attributes:
        kind: ``d`` a day's amount, ``t`` a rate (token bucket), ``c`` requests at once.
        key: Names the limit and whom it limits.
        limit: Units per day; requests that the bucket holds; requests at once.
        amount: Units to reserve; microseconds between two requests at the mean rate; 1.
        start_ms: Start of the day, in milliseconds since 1970; 0 for the other kinds.
        end_ms: Its end, exclusive.
    """

    kind: Literal["d", "t", "c"]
    key: str
    limit: int
    amount: int
    start_ms: int = 0
    end_ms: int = 0


class Answer(NamedTuple):
    """What became of a hold.

    Attributes:
        state: ``held``, ``refused``, or ``other day``: the store's clock is outside of a charge's day.
        now_ms: The store's clock, in milliseconds since 1970.
        refused: Index of the charge that refuses the longest; -1 for none.
        wait_ms: Until it may admit.
        left: What each charge leaves, in its own units, after this hold.
    """

    state: Literal["held", "refused", "other day"]
    now_ms: int
    refused: int
    wait_ms: int
    left: tuple[int, ...]


class Level(NamedTuple):
    """The count of one charge's key; for ``c``, `reserved` are the requests being answered. Rates have none."""

    spent: int
    reserved: int
    granted: int


class BudgetChange(BaseModel):
    """Who changed a day's count by hand, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    at: datetime
    actor: str
    action: Literal["grant", "reset"]
    key: str
    amount: int = Field(description="units added to the day's limit by a grant; units forgotten by a reset")
    reason: str


class BudgetStore(Protocol):
    """Counts shared by every gateway. The store's clock decides, never a gateway's.

    Everything is booked whole or not at all, whoever else books at the same moment. Raises
    `TransientBackendError` when the store does not answer in time, and then the call may have happened:
    repeat it with the same hold.
    """

    async def hold(self, hold: str, charges: Sequence[Charge], lease_ms: int) -> Answer:
        """Books all `charges` under the id `hold`, or none. The same id again is held once."""
        ...

    async def settle(self, hold: str, used: Sequence[int], late: Sequence[Charge] = ()) -> bool:
        """Books what was used of each charge instead of what was held, and frees its places.

        Within a day of its lease an expired hold settles like any other. Settling twice changes nothing.

        Args:
            hold: Its id.
            used: One amount per charge; those of days count.
            late: Charges to book if there is no such hold: it could not be made in time.

        Returns:
            Whether there was such a hold.
        """
        ...

    async def renew(self, holds: Sequence[str], lease_ms: int) -> None:
        """Starts the leases anew; an expired hold is held again."""
        ...

    async def reconcile(self, lease_ms: int) -> int:
        """Books expired holds as used in full and returns their number, at most 100 at a time."""
        ...

    async def levels(self, charges: Sequence[Charge]) -> Sequence[Level]: ...

    async def now_ms(self) -> int:
        """The store's clock."""
        ...

    async def grant(self, charge: Charge, change: BudgetChange) -> None:
        """Adds ``change.amount`` to the limit of the charge's day, and records the change."""
        ...

    async def reset(self, charge: Charge, change: BudgetChange) -> int:
        """Forgets what was spent on the charge's day, and records the change with it; what is held stays held."""
        ...

    async def changes(self) -> Sequence[BudgetChange]:
        """Oldest first, the last 10,000."""
        ...

    async def keys(self, start_ms: int) -> Sequence[str]:
        """Keys with counts of the day that starts then, sorted."""
        ...

    async def close(self) -> None: ...
