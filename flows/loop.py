"""The stores that the closed loop works with, and what it knows about the present: who serves, what ran lately."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from flows.rollout import gateway_urls
from flows.stages import CHAMPION
from flows.wiring import Adapters
from governance.feedback_log import open_feedback_log
from governance.log_location import LogLocation, open_log_location
from leitstand.errors import NotFoundError
from leitstand.own_calls import ask_gateway
from leitstand.ports import FeedbackLog
from leitstand.types import ModelRef, RouteTable
from monitors.alerting import AlertCentre, open_alert_centre
from monitors.decision import LoopState
from monitors.decision_log import DecisionLog, open_decision_log
from monitors.gateway_counts import CountSource, GatewayMetrics
from monitors.health import Health
from monitors.retrainings import RetrainingLog, open_retraining_log

__all__ = ["Loop", "loop_state", "open_loop", "serving_version"]

WEEK = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What drift checks and retrainings are handed.

    Attributes:
        adapters: Registry, routes and the rest.
        log: Where the inference log lies.
        feedback: What people said about answers.
        decisions: Every decision.
        alerts: Tells people.
        retrainings: Every retraining.
        counts: The gateways' counters.
    """

    adapters: Adapters
    log: LogLocation
    feedback: FeedbackLog
    decisions: DecisionLog
    alerts: AlertCentre
    retrainings: RetrainingLog
    counts: CountSource

    @property
    def home(self) -> Path:
        """Below it everything lies."""
        return self.adapters.home


def open_loop(adapters: Adapters) -> Loop:
    """The stores of an installation."""
    settings = adapters.settings
    return Loop(
        adapters=adapters,
        log=open_log_location(settings),
        feedback=open_feedback_log(settings),
        decisions=open_decision_log(settings),
        alerts=open_alert_centre(settings),
        retrainings=open_retraining_log(settings),
        counts=GatewayMetrics(gateway_urls(settings), partial(ask_gateway, settings)),
    )


def serving_version(adapters: Adapters, name: str) -> int:
    """The version that answers as stable; without routes, the champion.

    Raises:
        NotFoundError: Nothing was deployed yet.
    """
    table = adapters.routes.read(name)
    if table is not None:
        return table.stable.version
    try:
        return adapters.registry.get(ModelRef(name=name, alias=CHAMPION)).version
    except NotFoundError as error:
        raise NotFoundError(
            f"Nothing serves '{name}' yet, so there is nothing to watch",
            hint=f"serve a first version with `leitstand run {name}`",
        ) from error


def loop_state(loop: Loop, name: str, health: Health, *, now: datetime) -> LoopState:
    """What runs and what ran lately."""
    adapters = loop.adapters
    serving, previous, promoted_at = _promotion(list(adapters.routes.history(name)))
    ran = loop.retrainings.recent(name)
    started = [each.started_at for each in ran if each.outcome != "too little feedback"]
    return LoopState(
        serving=serving,
        previous_version=previous,
        promoted_at=promoted_at,
        retraining=any(each.outcome == "running" for each in ran) or adapters.rollouts.running(name) is not None,
        retrains_this_week=loop.retrainings.started_since(name, now - WEEK),
        last_retrain_at=max(started, default=None),
        requests=health.requests,
        usual_requests=health.usual_requests,
    )


def _promotion(history: list[RouteTable]) -> tuple[int | None, int | None, datetime | None]:
    """Stable version, the one before it, and since when.

    Neither a first version nor one that came back was promoted over anything: there is nothing to go back to.
    """
    if not history:
        return None, None, None
    serving = history[-1].stable.version
    since, before = history[-1].changed_at, None
    for place, table in reversed(list(enumerate(history))):
        if table.stable.version != serving:
            before = place
            break
        since = table.changed_at
    if before is None or any(table.stable.version == serving for table in history[:before]):
        return serving, None, None
    return serving, history[before].stable.version, since
