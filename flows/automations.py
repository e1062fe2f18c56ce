"""The Prefect automations of the closed loop, made from code: ``python -m flows.automations [USE_CASE ...]``.

| automation | on | runs |
|---|---|---|
| `leitstand: retrain NAME` | `leitstand.drift.detected` with the action *retrain* | `retrain/NAME` |
| `leitstand: roll back NAME` | `leitstand.rollback.advised` | `deploy/NAME` with the version before |

`leitstand up` makes them after it deployed. What exists is a person's: one that was switched off or changed in the
UI stays so. Only a reference to a deployment that is gone is repaired. An automation that was deleted comes back;
to keep it from acting, switch it off. The interval of `drift-check/NAME` is set to `drift.check_every` likewise.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.loop_events import ACTION_LABEL, DRIFT, ROLLBACK, resource_id
from leitstand.errors import NotFoundError, TransientBackendError
from leitstand.types import Action

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

__all__ = ["Wanted", "definition", "ensure_automations", "ensure_schedule", "wanted"]


@dataclass(frozen=True)
class Wanted:
    """One automation: on which event and decided action which deployment runs, with what parameters."""

    name: str
    description: str
    use_case: str
    event: str
    action: Action
    deployment: str
    parameters: dict[str, Any]


def wanted(use_case: str) -> tuple[Wanted, ...]:
    """The automations of a use case."""
    reason = "{{ event.payload.reason }}"
    return (
        Wanted(
            name=f"leitstand: retrain {use_case}",
            description="Starts the retraining that a drift check decided. Switch it off to decide yourself.",
            use_case=use_case, event=DRIFT, action=Action.RETRAIN, deployment=f"retrain/{use_case}",
            parameters={"use_case": use_case, "trigger": "{{ event.payload.trigger }}", "reason": reason},
        ),
        Wanted(
            name=f"leitstand: roll back {use_case}",
            description="Lets the version before answer again after a bad promotion. Switch it off to decide yourself.",
            use_case=use_case, event=ROLLBACK, action=Action.ROLL_BACK, deployment=f"deploy/{use_case}",
            parameters={"use_case": use_case, "version": "{{ event.payload.previous_version }}"},
        ),
    )  # fmt: skip


def definition(each: Wanted, deployment: UUID) -> "AutomationCore":
    """The automation as Prefect takes it."""
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    match: Any = {"prefect.resource.id": resource_id(each.use_case), ACTION_LABEL: each.action.value}
    trigger = EventTrigger(
        expect={each.event}, match=match, posture=Posture.Reactive, threshold=1, within=timedelta(0)
    )  # fmt: skip
    action = RunDeployment(
        source="selected", deployment_id=deployment, parameters=each.parameters, job_variables=None
    )  # fmt: skip
    return AutomationCore(name=each.name, description=each.description, trigger=trigger, actions=[action])


def ensure_automations(use_case: str) -> Sequence[str]:
    """Creates what is missing and repairs what points nowhere; returns a sentence for each automation.

    Raises:
        NotFoundError: The use case has no such deployment in Prefect.
        TransientBackendError: The server does not answer.
    """
    with _client() as client:
        return [_ensure(client, each) for each in wanted(use_case)]


def ensure_schedule(use_case: str, check_every: timedelta) -> str:
    """Has windows checked as often as the policy says, and keeps whether the schedule is switched on.

    Raises:
        NotFoundError: The use case has no `drift-check` deployment in Prefect.
        TransientBackendError: The server does not answer.
    """
    from prefect.client.schemas.schedules import IntervalSchedule
    from prefect.exceptions import ObjectNotFound

    name = f"drift-check/{use_case}"
    with _client() as client:
        try:
            deployment = client.read_deployment_by_name(name).id
        except ObjectNotFound as error:
            raise NotFoundError(f"Prefect has no deployment '{name}'", hint="deploy it with `leitstand up`") from error
        for found in client.read_deployment_schedules(deployment):
            timing = found.schedule
            if isinstance(timing, IntervalSchedule) and timing.interval != check_every:
                changed = timing.model_copy(update={"interval": check_every})
                client.update_deployment_schedule(deployment, found.id, active=found.active, schedule=changed)
    return f"{name}: every {check_every}"


def _ensure(client: "SyncPrefectClient", each: Wanted) -> str:
    from prefect.exceptions import ObjectNotFound

    try:
        deployment = client.read_deployment_by_name(each.deployment).id
    except ObjectNotFound as error:
        raise NotFoundError(
            f"Prefect has no deployment '{each.deployment}'", hint="deploy it with `leitstand up`"
        ) from error
    found = client.read_automations_by_name(each.name)
    if not found:
        client.create_automation(definition(each, deployment))
        return f"{each.name}: created"
    kept = found[0]
    targets = [action for action in kept.actions if getattr(action, "deployment_id", None)]
    lost = [action for action in targets if not _exists(client, action.deployment_id)]  # type: ignore[union-attr]
    if lost:
        fresh = definition(each, deployment).model_copy(update={"enabled": kept.enabled})
        client.update_automation(kept.id, fresh)
        return f"{each.name}: repaired"
    return f"{each.name}: {'there' if kept.enabled else 'switched off, as a person left it'}"


def _exists(client: "SyncPrefectClient", deployment: UUID) -> bool:
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_deployment(deployment)
    except ObjectNotFound:
        return False
    return True


@contextmanager
def _client() -> Iterator["SyncPrefectClient"]:
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        raise TransientBackendError(f"Prefect does not answer: {error}", hint="start it with `leitstand up`") from error


def main(arguments: Sequence[str]) -> None:
    """Makes the automations of the use cases that are named, or of all that are deployed."""
    from leitstand.settings import apply_environment, load_settings
    from leitstand.usecase import find, load, names

    settings = load_settings()
    apply_environment(settings)
    for use_case in arguments or names(settings.usecases):
        spec = load(find(use_case, settings.usecases))
        try:
            lines = [*ensure_automations(use_case), ensure_schedule(use_case, spec.drift.check_every)]
        except NotFoundError as error:
            if arguments:
                raise
            lines = [f"{use_case}: {error.message}"]
        print("\n".join(lines))  # noqa: T201 -- a command


if __name__ == "__main__":
    main(sys.argv[1:])
