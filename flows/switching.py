"""Makes a version the stable one without a gap: the new one is ready before the route moves, the old stops after.

Every step leaves a state in which somebody answers, and may be repeated: a crash in between is mended by
running the same call again. The route table is the one place that says who answers.
"""

import time
from collections.abc import Callable
from datetime import datetime

from flows.deploying import Deployer
from leitstand.errors import ConflictError
from leitstand.ports import RouteStore
from leitstand.types import Endpoint, RouteTable, Target, utc_now
from leitstand.usecase import UseCase

__all__ = ["ROUTE_SPREAD_S", "change_route", "make_stable", "stop_others", "target_of"]

ROUTE_SPREAD_S = 1.5  # every gateway sees a new table within a second; an old target stops only afterwards
ATTEMPTS = 5


def target_of(endpoint: Endpoint) -> Target:
    """The endpoint as an upstream of a route."""
    return Target(version=endpoint.version, url=endpoint.url)


def change_route(
    routes: RouteStore, use_case: str, change: Callable[[RouteTable | None], RouteTable | None]
) -> RouteTable | None:
    """Writes what `change` makes of the stored table, by compare-and-set; None leaves it as it is.

    Raises:
        ConflictError: Others changed the table again and again meanwhile.
    """
    for attempt in range(ATTEMPTS):
        before = routes.read(use_case)
        after = change(before)
        if after is None:
            return before
        try:
            return routes.write(after, expected=before.revision if before else 0)
        except ConflictError:
            if attempt == ATTEMPTS - 1:
                raise
    return None


def make_stable(
    deployer: Deployer,
    routes: RouteStore,
    use_case: UseCase,
    *,
    tag: str,
    version: int,
    actor: str,
    reason: str,
    spread_s: float = ROUTE_SPREAD_S,
    clock: Callable[[], datetime] = utc_now,
) -> Endpoint:
    """Serves a Bento, sends all traffic to it, then stops every other instance of the use case.

    A gateway's callers meet no gap. Callers of the main address do, for the seconds between the old
    process's end and the new one's readiness there.

    Raises:
        BackendError: The Bento did not become ready; nothing else changed.
    """
    endpoint = deployer.deploy(use_case, tag=tag, version=version)
    _point(routes, endpoint, actor, reason, clock())
    stop_others(deployer, routes, use_case.name, keep=lambda other: other.tag == tag, spread_s=spread_s, clock=clock)
    home = deployer.bring_home(use_case, endpoint)
    _point(routes, home, actor, reason, clock())
    stop_others(
        deployer, routes, use_case.name, keep=lambda other: other.url == home.url, spread_s=spread_s, clock=clock
    )
    return home


def stop_others(
    deployer: Deployer,
    routes: RouteStore,
    use_case: str,
    *,
    keep: Callable[[Endpoint], bool],
    spread_s: float = ROUTE_SPREAD_S,
    clock: Callable[[], datetime] = utc_now,
) -> None:
    """Stops instances, once every gateway has had time to see the newest route table.

    Fallbacks and the targets of pinned tenants go on, whatever `keep` says: no rollout decides about them.
    """
    table = routes.read(use_case)
    needed = _needed(table) if table else frozenset()
    doomed = [endpoint for endpoint in deployer.all(use_case) if not keep(endpoint) and endpoint.url not in needed]
    if doomed and table:
        time.sleep(min(spread_s, max(0.0, spread_s - (clock() - table.changed_at).total_seconds())))
    for endpoint in doomed:
        deployer.undeploy(endpoint)


def _needed(table: RouteTable) -> frozenset[str]:
    """URLs that the table names besides those a rollout moves."""
    pinned = [each for route in table.tenants.values() for each in (route.target, route.fallback)]
    return frozenset(target.url for target in (table.fallback, *pinned) if target)


def _point(routes: RouteStore, endpoint: Endpoint, actor: str, reason: str, now: datetime) -> None:
    wanted = target_of(endpoint)

    def change(before: RouteTable | None) -> RouteTable | None:
        if before is None:
            return RouteTable(use_case=endpoint.use_case, stable=wanted, changed_at=now, actor=actor, reason=reason)
        if before.stable == wanted and before.canary is None and before.shadow is None:
            return None
        alone = {"stable": wanted, "canary": None, "canary_percent": 0.0, "shadow": None}
        return before.model_copy(update=alone | {"changed_at": now, "actor": actor, "reason": reason})

    change_route(routes, endpoint.use_case, change)
