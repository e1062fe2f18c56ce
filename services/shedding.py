"""Who is refused first when the gateway is nearly full: low priority, then normal, never high before both.

``x-priority`` is ``low``, ``normal`` or ``high``. Everybody may ask for less than the use case's default; more needs
the scope ``USE_CASE:priority``, or the tenant's place in `resilience.priorities`. Asking for too much is
answered with what is allowed. The limits are fixed shares: latency of a model depends on what it is asked, and an
adaptive limit would read long texts as overload; the Bento sheds by its own estimate of the wait.
"""

import math

from leitstand.specs.resilience import Priority, PrioritySpec
from services.errors import bad_request
from services.exchange import Exchange
from services.gateway_metrics import SHED
from services.scheduling import Overloaded

__all__ = ["Shedder", "priority_of"]

HEADER = b"x-priority"
SHARES: dict[Priority, float] = {"low": 0.6, "normal": 0.9, "high": 1.0}
RANK: dict[Priority, int] = {"low": 0, "normal": 1, "high": 2}
ASKED: dict[bytes, Priority] = {name.encode(): name for name in SHARES}


def priority_of(exchange: Exchange, spec: PrioritySpec) -> Priority:
    """The priority that the caller asks for, as far as it is allowed.

    Raises:
        HttpError: 400, there is no such priority.
    """
    given = exchange.headers.get(HEADER)
    asked = spec.default if given is None else ASKED.get(given.lower())
    if asked is None:
        raise bad_request(f"x-priority is one of {', '.join(SHARES)}")
    caller = exchange.caller
    highest = spec.tenants.get(caller.tenant)
    if highest is None:
        trusted = f"{exchange.use_case}:priority" in caller.scopes
        highest = "high" if trusted else max(spec.highest, spec.default, key=RANK.__getitem__)
    return min(asked, highest, key=RANK.__getitem__)


class Shedder:
    """Refuses what is over its priority's share of `limit` requests at once."""

    def __init__(self, limit: int) -> None:
        self._limits = {name: max(1, math.ceil(limit * share)) for name, share in SHARES.items()}

    def check(self, exchange: Exchange, spec: PrioritySpec, in_flight: int) -> None:
        """Returns for a request that may go on; `in_flight` counts it already.

        Raises:
            Overloaded: It may not.
            HttpError: As `priority_of`.
        """
        priority = priority_of(exchange, spec)
        if in_flight > self._limits[priority]:
            SHED.labels(priority).inc()
            raise Overloaded(f"{in_flight} requests are being answered, too many for priority {priority}", 1.0)
