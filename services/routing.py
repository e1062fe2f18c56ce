"""Who answers a request: a pure choice from the route table.

Sticky by subject: a hash of use case, canary version and subject is compared with the canary's share, so
raising the share keeps everybody who is on the canary there, lowering it moves only those above it, and every
process agrees without talking. The canary's version is part of the hash so that it is not always the same
people who meet a new version first. Without a subject the request id decides. A tenant that the table pins
takes part in neither canary nor shadow.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from leitstand.types import RouteTable, Target

__all__ = ["Choice", "Route", "choose", "insist", "point"]

Route = Literal["stable", "canary", "pinned", "fallback"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The upstream of one request.

    Attributes:
        route: ``stable``, ``canary``, ``pinned`` (the tenant's own) or ``fallback``.
        target: Who answers.
        stand_in: Who answers for a canary that cannot: stable. None on every other route.
        fallback: Who answers when neither can; None when the table names nobody.
        shadow: Who computes as well, unseen; None when this request is not sampled.
    """

    route: Route
    target: Target
    stand_in: Target | None = None
    fallback: Target | None = None
    shadow: Target | None = None


def choose(table: RouteTable, request_id: str, subject: str = "", tenant: str = "") -> Choice:
    """The route of one request. The same arguments give the same answer in every process."""
    if table.tenants and tenant in table.tenants:
        pinned = table.tenants[tenant]
        return Choice("pinned", pinned.target, fallback=pinned.fallback or table.fallback)
    shadow = table.shadow
    if shadow is not None and point("shadow", table.use_case, request_id) * 100 >= table.shadow_percent:
        shadow = None
    canary = table.canary
    if canary is not None and table.canary_percent > 0:
        key = subject or request_id
        if point("canary", table.use_case, str(canary.version), key) * 100 < table.canary_percent:
            return Choice("canary", canary, stand_in=table.stable, fallback=table.fallback, shadow=shadow)
    return Choice("stable", table.stable, fallback=table.fallback, shadow=shadow)


def insist(table: RouteTable, version: int, tenant: str = "") -> Choice | None:
    """The route to a certain version, when the table has it for that tenant; nobody steps in for it."""
    if tenant in table.tenants:
        pinned = table.tenants[tenant]
        named: dict[Route, Target | None] = {"pinned": pinned.target, "fallback": pinned.fallback or table.fallback}
    else:
        named = {"stable": table.stable, "canary": table.canary, "fallback": table.fallback}
    for route, target in named.items():
        if target is not None and target.version == version:
            return Choice(route, target)
    return None


def point(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but `parts`: the first 53 bits of their BLAKE2b hash."""
    digest = blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53
