"""The rollout controller: makes the world match a rollout's state, looks at the evidence, takes the next step.

The state lives in `flows.rollout_store`, the rules in `monitors.rollout_rules`. A tick does at most one
transition: obey what a person asked, repeat the effects of the present state (all idempotent), judge, and
write the next state by compare-and-set. So a controller may be killed anywhere, several may run (a lock lets
one act at a time), and whoever drives next goes on. The route table changes in one write per step.

`drive` is a loop around it for whoever wants to wait: the command line, the Prefect flow, or the watcher that
`leitstand up` starts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Protocol

import structlog
from filelock import BaseFileLock, Timeout

from flows.deployers import open_deployer
from flows.deploying import Deployer
from flows.rollout_store import RolloutStore
from flows.switching import ROUTE_SPREAD_S, change_route, make_stable, stop_others
from flows.wiring import Adapters
from leitstand.errors import (
    BackendError,
    ConflictError,
    LeitstandError,
    NotFoundError,
    PermanentBackendError,
    TransientBackendError,
)
from leitstand.events import RolloutMoved, announce
from leitstand.own_calls import ask_gateway
from leitstand.ports import RouteStore
from leitstand.settings import Settings
from leitstand.types import ModelRef, RouteTable, Target, utc_now
from leitstand.usecase import UseCase
from monitors.gateway_counts import CountSource, GatewayMetrics, Tally, accumulate, latency_quantile_ms
from monitors.rollout_evidence import judge
from monitors.rollout_rules import Command, Judgement, Phase, Request, Rollout, next_step, obey

__all__ = ["Champion", "Controller", "RegistryChampion", "controller", "drive", "gateway_urls", "start"]

POLL_S = 1.0
logger = structlog.get_logger()


class Champion(Protocol):
    """The alias that says which version is meant to answer. Both calls may be repeated."""

    def give(self, rollout: Rollout) -> None:
        """Makes the candidate champion, with an entry in the ledger.

        Raises:
            PolicyDenied: Its gates did not pass.
        """
        ...

    def take_back(self, rollout: Rollout) -> None:
        """Gives the alias back to the version before, when the candidate has it."""
        ...


@dataclass
class Controller:
    """Everything that a rollout touches.

    Args:
        store: States, requests and evidence.
        routes: The route tables.
        deployer: Runs the Bentos.
        counts: The gateways' counters.
        champion: The alias.
        use_case: Reads a use case by name.
        lock: A lock between processes, by name.
        clock: The present moment.
        spread_s: Seconds until every gateway has seen a new route table.
    """

    store: RolloutStore
    routes: RouteStore
    deployer: Deployer
    counts: CountSource
    champion: Champion
    use_case: Callable[[str], UseCase]
    lock: Callable[[str], BaseFileLock]
    clock: Callable[[], datetime] = utc_now
    spread_s: float = ROUTE_SPREAD_S
    _written: dict[str, int] = field(default_factory=dict, init=False)

    def begin(self, use_case: UseCase, *, tag: str, version: int, actor: str, reason: str = "") -> Rollout:
        """Records a new rollout; nothing is deployed yet.

        Raises:
            ConflictError: Another rollout of the use case is not finished, or the version is stable already.
            NotFoundError: Nothing serves the use case, so there is nothing to compare with.
        """
        table = self.routes.read(use_case.name)
        if table is None:
            raise NotFoundError(
                f"Nothing serves '{use_case.name}' yet, so there is nothing to compare version {version} with",
                hint=f"serve a first version with `leitstand run {use_case.name}`",
            )
        if table.stable.version == version:
            raise ConflictError(f"Version {version} of '{use_case.name}' answers all requests already")
        now = self.clock()
        draft = Rollout(
            rollout_id="", use_case=use_case.name, version=version, tag=tag, previous=table.stable.version,
            policy=use_case.rollout, actor=actor, by=actor, started_at=now, since=now, at=now,
            reason=reason or f"started by {actor}",
        )  # fmt: skip
        return self._told(self.store.begin(draft))

    def tick(self, rollout: Rollout) -> Rollout:
        """Obeys, acts, judges, and returns the state that follows; the same one when it stays.

        Raises:
            ConflictError: Another controller was quicker; read the state again.
            TransientBackendError: An effect failed in a way that may pass; repeat the tick.
        """
        for request in self.store.requests(rollout):
            rollout = self._obey(rollout, request)
        try:
            rollout = self._effects(rollout)
        except (TransientBackendError, ConflictError):
            raise
        except LeitstandError as error:
            return self._failed(rollout, error)
        if rollout.phase is Phase.HELD:
            return rollout
        after = next_step(rollout, self._judgement(rollout), self.clock())
        return self._told(self.store.save(after)) if after else rollout

    def _obey(self, rollout: Rollout, request: Request) -> Rollout:
        if request.command is Command.HOLD and rollout.phase in (Phase.SHADOW, Phase.CANARY):
            self._effects(rollout)  # what is frozen is the weight that the state names
        try:
            after = obey(rollout, request, self.clock())
        except ConflictError:
            return self.store.save(rollout.model_copy(update={"requests_seen": request.number}))
        return self._told(self.store.save(after))

    def _effects(self, rollout: Rollout) -> Rollout:
        match rollout.phase:
            case Phase.DEPLOYING:
                return self._deploy(rollout)
            case Phase.SHADOW:
                return self._route(rollout, shadow=_target(rollout))
            case Phase.AWAITING_APPROVAL:
                return self._route(rollout, shadow=_target(rollout) if rollout.policy.shadow_minutes else None)
            case Phase.CANARY:
                return self._route(rollout, canary=_target(rollout), percent=rollout.percent)
            case Phase.PROMOTING:
                self._promote(rollout)
            case Phase.ROLLING_BACK:
                self._roll_back(rollout)
        return rollout

    def _deploy(self, rollout: Rollout) -> Rollout:
        use_case = self.use_case(rollout.use_case)
        endpoint = self.deployer.deploy(use_case, tag=rollout.tag, version=rollout.version)
        return rollout.model_copy(update={"url": endpoint.url, "slow_ms": self._slow_ms(rollout)})

    def _slow_ms(self, rollout: Rollout) -> float:
        """The policy's threshold, or else stable's 99th percentile over all that its gateways remember."""
        if rollout.policy.slow_ms:
            return rollout.policy.slow_ms
        together: dict[str, float] = {}
        try:
            for counts in self.counts.read(rollout.use_case).values():
                for key, value in counts.items():
                    together[key] = together.get(key, 0.0) + value
        except BackendError:
            return rollout.slow_ms
        found = latency_quantile_ms(together, rollout.previous or 0, 0.99)
        return found if found and found != float("inf") else rollout.slow_ms

    def _route(
        self, rollout: Rollout, *, canary: Target | None = None, percent: float = 0.0, shadow: Target | None = None
    ) -> Rollout:
        """Writes the candidate's part of the table, unless a person changed the table meanwhile: then it holds."""
        actor = _actor(rollout)

        def change(before: RouteTable | None) -> RouteTable | None:
            if before is None:
                raise PermanentBackendError(f"The route table of '{rollout.use_case}' is gone")
            if (before.canary, before.canary_percent, before.shadow) == (canary, percent, shadow):
                return None
            if before.revision > self._written.get(rollout.rollout_id, before.revision):
                raise _Interference(before)
            update = {"canary": canary, "canary_percent": percent, "shadow": shadow, "changed_at": self.clock()}
            return before.model_copy(update=update | {"actor": actor, "reason": rollout.reason[:500]})

        try:
            table = change_route(self.routes, rollout.use_case, change)
        except _Interference as found:
            return self._held(rollout, f"{found.table.actor} changed the routes: {found.table.reason}")
        if table:
            self._written[rollout.rollout_id] = table.revision
        return rollout

    def _held(self, rollout: Rollout, reason: str) -> Rollout:
        self._written.pop(rollout.rollout_id, None)
        now = self.clock()
        update = {"phase": Phase.HELD, "held_from": rollout.phase, "reason": reason, "since": now, "at": now}
        return self._told(self.store.save(rollout.model_copy(update=update)))

    def _promote(self, rollout: Rollout) -> None:
        """Ready first, then the alias, then all traffic: what can fail comes before what is hard to take back."""
        use_case = self.use_case(rollout.use_case)
        self.deployer.deploy(use_case, tag=rollout.tag, version=rollout.version)
        self.champion.give(rollout)
        make_stable(
            self.deployer, self.routes, use_case, tag=rollout.tag, version=rollout.version,
            actor=_actor(rollout), reason=rollout.reason[:500], spread_s=self.spread_s, clock=self.clock,
        )  # fmt: skip

    def _roll_back(self, rollout: Rollout) -> None:
        def change(before: RouteTable | None) -> RouteTable | None:
            if before is None or (before.canary is None and before.shadow is None):
                return None
            update = {"canary": None, "canary_percent": 0.0, "shadow": None, "changed_at": self.clock()}
            return before.model_copy(update=update | {"actor": _actor(rollout), "reason": rollout.reason[:500]})

        change_route(self.routes, rollout.use_case, change)
        stop_others(
            self.deployer, self.routes, rollout.use_case, keep=lambda other: other.version != rollout.version,
            spread_s=self.spread_s, clock=self.clock,
        )  # fmt: skip
        self.champion.take_back(rollout)

    def _failed(self, rollout: Rollout, error: LeitstandError) -> Rollout:
        """An effect that will not succeed by repeating it: the candidate goes, unless it has all traffic already."""
        table = self.routes.read(rollout.use_case)
        if rollout.phase is Phase.ROLLING_BACK or (table and table.stable.version == rollout.version):
            raise TransientBackendError(error.message, hint=error.hint) from error
        now = self.clock()
        reason = f"{rollout.phase.replace('_', ' ')} failed: {str(error).strip()[:2000]}"
        update = {"phase": Phase.ROLLING_BACK, "ends_as": Phase.ROLLED_BACK, "reason": reason, "since": now, "at": now}
        return self._told(self.store.save(rollout.model_copy(update=update)))

    def _judgement(self, rollout: Rollout) -> Judgement:
        if rollout.phase not in (Phase.SHADOW, Phase.CANARY):
            return Judgement("undecided")
        try:
            tally = self._gather(rollout)
        except BackendError as error:
            return Judgement("undecided", (error.message,))
        return judge(rollout, tally)

    def _gather(self, rollout: Rollout) -> Tally:
        kept = self.store.evidence(rollout.rollout_id)
        before = Tally.model_validate_json(kept) if kept else Tally()
        begun = f"{rollout.phase} {rollout.step} {rollout.since.isoformat()}"
        tally = accumulate(before, self.counts.read(rollout.use_case), begun=begun)
        self.store.keep_evidence(rollout.rollout_id, tally.model_dump_json())
        return tally

    def _told(self, rollout: Rollout) -> Rollout:
        facts = rollout.model_dump(include={"use_case", "rollout_id", "version", "reason"})
        announce(RolloutMoved(phase=rollout.phase.value, percent=rollout.percent, actor=rollout.by, **facts))
        return rollout


class _Interference(Exception):
    def __init__(self, table: RouteTable) -> None:
        super().__init__(table.reason)
        self.table = table


@dataclass(frozen=True)
class RegistryChampion:
    """`Champion` in the model registry."""

    adapters: Adapters

    def give(self, rollout: Rollout) -> None:
        """See `Champion.give`."""
        from flows.stages import CHAMPION, promote

        version = self.adapters.registry.get(ModelRef(name=rollout.use_case, version=rollout.version))
        promote(self.adapters, version, None, alias=CHAMPION, actor=_actor(rollout), reason=rollout.reason[:500])

    def take_back(self, rollout: Rollout) -> None:
        """See `Champion.take_back`."""
        from flows.stages import CHAMPION

        registry, name = self.adapters.registry, rollout.use_case
        with self.adapters.lock(f"alias-{name}"):
            held = CHAMPION in registry.get(ModelRef(name=name, version=rollout.version)).aliases
            if held and rollout.previous is not None:
                before = ModelRef(name=name, version=rollout.previous)
                reason = f"rolled back: {rollout.reason[:500]}"
                registry.set_alias(before, CHAMPION, actor=_actor(rollout), reason=reason)


def controller(adapters: Adapters, deployer: Deployer | None = None) -> Controller:
    """The controller of an installation."""
    return Controller(
        store=adapters.rollouts,
        routes=adapters.routes,
        deployer=deployer or open_deployer(adapters.settings),
        counts=GatewayMetrics(gateway_urls(adapters.settings), partial(ask_gateway, adapters.settings)),
        champion=RegistryChampion(adapters),
        use_case=adapters.use_case,
        lock=adapters.lock,
    )


def gateway_urls(settings: Settings) -> tuple[str, ...]:
    """The gateways whose counters are evidence."""
    scheme = "https" if settings.tls.cert else "http"
    return settings.gateway.urls or (f"{scheme}://{settings.gateway.host}:{settings.gateway.port}",)


def start(adapters: Adapters, control: Controller, name: str, version: int, *, actor: str, reason: str = "") -> Rollout:
    """Checks the version's gates, packages it, and records the rollout.

    Raises:
        PolicyDenied: The version's gates did not pass.
        ConflictError: Another rollout of the use case is not finished; the message names it.
    """
    from flows.stages import package
    from models.promotion import attached_gate_report, check

    use_case = adapters.use_case(name)
    control.store.refuse_while_running(name)
    found = adapters.registry.get(ModelRef(name=name, version=version))
    check(found, attached_gate_report(adapters.registry, found))
    bento = package(adapters, use_case, found)
    with adapters.lock(f"deploy-{name}"):
        return control.begin(use_case, tag=bento.tag, version=version, actor=actor, reason=reason)


def drive(
    control: Controller,
    rollout_id: str,
    *,
    watch: Callable[[Rollout], None] | None = None,
    until: Callable[[Rollout], bool] = lambda rollout: rollout.finished,
    poll_s: float = POLL_S,
) -> Rollout:
    """Takes a rollout on until it is finished, or `until` holds; only follows while another process drives it.

    Args:
        control: The controller.
        rollout_id: Which rollout.
        watch: Called with every state, the first one included.
        until: When to return.
        poll_s: Seconds between two looks at the evidence.
    """
    told = None
    while True:
        before = control.store.get(rollout_id)
        after = before if until(before) else _tick(control, before)
        if watch and after.revision != told:
            watch(after)
            told = after.revision
        if until(after):
            return after
        if after.revision == before.revision:
            time.sleep(poll_s)


def _tick(control: Controller, rollout: Rollout) -> Rollout:
    """One tick under the lock between controllers; a failure that may pass leaves the state as it is."""
    try:
        with control.lock(f"rollout-{rollout.use_case}").acquire(timeout=0):
            return control.tick(control.store.get(rollout.rollout_id))
    except (Timeout, ConflictError):
        return control.store.get(rollout.rollout_id)
    except BackendError as error:
        logger.warning("A rollout cannot go on now", rollout=rollout.rollout_id, cause=error.message[:500])
        return rollout


def _target(rollout: Rollout) -> Target:
    return Target(version=rollout.version, url=rollout.url)


def _actor(rollout: Rollout) -> str:
    return f"rollout:{rollout.rollout_id}"
