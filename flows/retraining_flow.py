"""Retraining as a Prefect flow: ``prefect deployment run retrain/support``.

The automation of `flows.automations` runs it on ``leitstand.drift.detected``. A thin wrapper around
`flows.retraining`, whose stages run as cached tasks: a run that is repeated after a crash goes on from the last
checkpoint of the training.
"""

from dataclasses import dataclass
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows import tasks
from flows.loop import open_loop
from flows.retraining import retrain as run_retraining
from flows.rollout import controller
from flows.stages import CHALLENGER
from flows.wiring import wire
from leitstand.types import EvaluationReport, GateReport, ModelVersion, RunRecord, Snapshot, utc_now
from leitstand.usecase import UseCase

__all__ = ["retrain"]


@dataclass(frozen=True)
class TaskSteps:
    """`flows.retraining.Steps` as Prefect tasks."""

    def ingest(self, use_case: UseCase) -> Snapshot:
        """See `flows.tasks`."""
        return tasks.recall(tasks.ingest_task, use_case.name)[0]

    def train(self, use_case: UseCase, snapshot: Snapshot, profile: str, warm_start: Path | None) -> RunRecord:
        """See `flows.tasks`."""
        return tasks.recall(tasks.train_task, use_case.name, snapshot, profile, None, warm_start)[0]

    def evaluate(self, use_case: UseCase, snapshot: Snapshot, run: RunRecord) -> EvaluationReport:
        """See `flows.tasks`."""
        return tasks.recall(tasks.evaluate_task, use_case.name, snapshot, run)[0]

    def gate(
        self, use_case: UseCase, snapshot: Snapshot, report: EvaluationReport
    ) -> tuple[GateReport, dict[str, Path]]:  # fmt: skip
        """See `flows.tasks`."""
        return tasks.gate_task(use_case.name, snapshot, report)

    def register(
        self, use_case: UseCase, snapshot: Snapshot, run: RunRecord, report: EvaluationReport, verdict: GateReport,
        files: dict[str, Path],
    ) -> ModelVersion:  # fmt: skip
        """See `flows.tasks`."""
        return tasks.register_task(use_case.name, snapshot, run, report, verdict, files)

    def promote(self, version: ModelVersion, verdict: GateReport, reason: str) -> None:
        """See `flows.tasks`."""
        tasks.promote_task(version.name, version, verdict, CHALLENGER, reason)


@flow(name="retrain", flow_run_name="retrain {use_case}", persist_result=False)
def retrain(use_case: str, trigger: str = "", reason: str = "") -> str:
    """Trains a challenger on base and labelled feedback and starts its rollout; returns what became of it.

    Args:
        use_case: Name of the use case.
        trigger: What asks for it; the same trigger again does nothing. Empty: a person, now.
        reason: Why, for the record.

    Raises:
        PolicyDenied: A gate failed or could not decide; the champion stays.
    """
    adapters, log = wire(), get_run_logger()
    done = run_retraining(
        open_loop(adapters), controller(adapters), adapters.use_case(use_case),
        trigger=trigger or f"by hand at {utc_now().isoformat()}", reason=reason or "asked for by hand",
        steps=TaskSteps(),
    )  # fmt: skip
    if done is None:
        log.info("Nothing to do: this trigger has had its retraining, or another one runs")
        return "nothing to do"
    log.info("%s: %s", done.outcome, done.detail)
    text = f"**{done.outcome}**\n\n{done.detail}\n\nStarted because: {done.reason}"
    create_markdown_artifact(key=f"retrain-{use_case}".replace("_", "-"), markdown=text)
    return done.outcome
