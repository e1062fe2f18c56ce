"""The rollout as a Prefect flow: ``prefect deployment run rollout/support``.

A thin wrapper. The rollout's state is in its store, so a flow run that is killed, or a Prefect server that is
restarted, loses nothing: run the flow again and it goes on with the unfinished rollout.
"""

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.rollout import controller, drive, start
from flows.rollout_view import markdown
from flows.stages import CHALLENGER
from flows.wiring import wire
from leitstand.errors import ConflictError, PolicyDenied
from leitstand.types import ModelRef, utc_now
from monitors.rollout_rules import Phase, Rollout

__all__ = ["rollout"]


@flow(name="rollout", flow_run_name="rollout {use_case}", persist_result=False)
def rollout(use_case: str, version: int | None = None, actor: str = "flow:rollout", reason: str = "") -> str:
    """Takes a version from shadow over canary steps to all traffic, or back; returns the rollout's id.

    Args:
        use_case: Name of the use case.
        version: The candidate; the challenger when left out.
        actor: Who wants it, for the record.
        reason: Why, for the record.

    Raises:
        ConflictError: A rollout to another version is not finished.
        PolicyDenied: The candidate was rolled back, or a person aborted.
    """
    adapters, log = wire(), get_run_logger()
    control = controller(adapters)
    number = version or adapters.registry.get(ModelRef(name=use_case, alias=CHALLENGER)).version
    running = control.store.running(use_case)
    if running is None:
        running = start(adapters, control, use_case, number, actor=actor, reason=reason)
    elif running.version != number:
        raise ConflictError(
            f"Rollout {running.rollout_id} to version {running.version} is {running.phase}, not finished",
            hint=f"abort it with `leitstand rollout abort {use_case} --reason ...`",
        )

    def watch(state: Rollout) -> None:
        log.info("%s: %s, %g %%: %s", state.rollout_id, state.phase, state.percent, state.reason)
        create_markdown_artifact(
            key=f"rollout-{use_case}".replace("_", "-"), markdown=markdown(control, state, utc_now())
        )

    final = drive(control, running.rollout_id, watch=watch)
    if final.phase is not Phase.PROMOTED:
        raise PolicyDenied(
            f"{final.rollout_id} to {use_case}:{final.version} was {final.phase.replace('_', ' ')}: {final.reason}",
            hint=f"see `leitstand rollout status {use_case}`",
        )
    return final.rollout_id
