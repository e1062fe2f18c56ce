"""From labelled feedback to a challenger in a rollout; plain functions, of which `flows.retraining_flow` is the flow.

One retraining per use case at a time, and one per trigger: a lock between processes, and `monitors.retrainings`.
Whatever goes wrong, the champion stays: aliases and routes move only after the gates passed, and then by the rollout.
Every end is recorded, and told when a person should know. Retrainings that began count for the week's budget.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import pyarrow.parquet as pq
import structlog
from filelock import Timeout

from flows import stages
from flows.loop import Loop
from flows.rollout import Controller, start
from flows.wiring import Adapters
from leitstand.errors import LeitstandError, PolicyDenied, ValidationFailed
from leitstand.files import digest_json
from leitstand.types import (
    EvaluationReport,
    GateReport,
    ModelRef,
    ModelVersion,
    RunRecord,
    Severity,
    Snapshot,
    utc_now,
)
from leitstand.usecase import UseCase
from monitors.alerts import AlertChange, make_alert
from monitors.retrainings import Retraining

__all__ = ["PlainSteps", "RetrainingPlan", "Steps", "lock_name", "notice_crashes", "plan", "queue_labels", "retrain"]

QUEUE_ROWS = 200
QUEUE_REACH = timedelta(days=7)

logger = structlog.get_logger()


class Steps(Protocol):
    """The stages of a training, plain or as Prefect tasks."""

    def ingest(self, use_case: UseCase) -> Snapshot:
        """The base."""
        ...

    def train(self, use_case: UseCase, snapshot: Snapshot, profile: str, warm_start: Path | None) -> RunRecord:
        """Trains, from the weights in `warm_start` when it is given."""
        ...

    def evaluate(self, use_case: UseCase, snapshot: Snapshot, run: RunRecord) -> EvaluationReport:
        """Measures on the snapshot's test split."""
        ...

    def gate(
        self, use_case: UseCase, snapshot: Snapshot, report: EvaluationReport
    ) -> tuple[GateReport, dict[str, Path]]:
        """Decides the gates, against the champion too."""
        ...

    def register(
        self, use_case: UseCase, snapshot: Snapshot, run: RunRecord, report: EvaluationReport, verdict: GateReport,
        files: dict[str, Path],
    ) -> ModelVersion:  # fmt: skip
        """Registers the version, whatever the verdict."""
        ...

    def promote(self, version: ModelVersion, verdict: GateReport, reason: str) -> None:
        """Makes it challenger; raises `PolicyDenied` when a gate did not pass."""
        ...


@dataclass(frozen=True)
class PlainSteps:
    """`Steps` in this process, without Prefect."""

    adapters: Adapters

    def ingest(self, use_case: UseCase) -> Snapshot:
        """See `flows.stages`."""
        return stages.ingest(self.adapters, use_case)

    def train(self, use_case: UseCase, snapshot: Snapshot, profile: str, warm_start: Path | None) -> RunRecord:
        """See `flows.stages`."""
        return stages.train(self.adapters, use_case, snapshot, profile=profile, warm_start=warm_start)

    def evaluate(self, use_case: UseCase, snapshot: Snapshot, run: RunRecord) -> EvaluationReport:
        """See `flows.stages`."""
        return stages.evaluate(self.adapters, use_case, snapshot, run)

    def gate(
        self, use_case: UseCase, snapshot: Snapshot, report: EvaluationReport
    ) -> tuple[GateReport, dict[str, Path]]:  # fmt: skip
        """See `flows.stages`."""
        return stages.gate(self.adapters, use_case, snapshot, report)

    def register(
        self, use_case: UseCase, snapshot: Snapshot, run: RunRecord, report: EvaluationReport, verdict: GateReport,
        files: dict[str, Path],
    ) -> ModelVersion:  # fmt: skip
        """See `flows.stages`."""
        return stages.register(self.adapters, use_case, snapshot, run, report, verdict, files)

    def promote(self, version: ModelVersion, verdict: GateReport, reason: str) -> None:
        """Makes the version challenger, if its gates passed."""
        actor = "flow:retrain"
        stages.promote(self.adapters, version, verdict, alias=stages.CHALLENGER, reason=reason, actor=actor)


@dataclass(frozen=True)
class RetrainingPlan:
    """What a retraining would train on.

    Attributes:
        snapshot: Base and feedback.
        profile: Of the training.
        warm_start: Folder of the champion; None: from the base model.
        feedback_rows: Labelled answers whose text is there.
        without_text: Labelled answers whose text was not kept.
        train_rows: Feedback rows that would be trained on.
        new_rows: Of these, rows beyond what the champion was trained on.
    """

    snapshot: Snapshot
    profile: str
    warm_start: Path | None
    feedback_rows: int
    without_text: int
    train_rows: int
    new_rows: int


def plan(loop: Loop, use_case: UseCase, steps: Steps | None = None) -> RetrainingPlan:
    """Builds the snapshot of base and feedback; trains nothing.

    Raises:
        ValidationFailed: Too few labelled answers may be trained on; `failures` says why.
    """
    from models.retraining import build_retraining_snapshot, collect_feedback

    adapters, spec = loop.adapters, use_case.retraining
    base = (steps or PlainSteps(adapters)).ingest(use_case)
    rows, missing = collect_feedback(adapters.settings, use_case.name)
    snapshot = build_retraining_snapshot(use_case, base, rows, home=adapters.home, s3=adapters.settings.s3)
    train_rows = snapshot.splits["train"].rows - base.splits["train"].rows
    new_rows = train_rows - _trained_on(adapters, use_case.name, base)
    return RetrainingPlan(
        snapshot=snapshot, profile=spec.profile or use_case.training.default_profile,
        warm_start=stages.champion_folder(adapters, use_case.name) if spec.warm_start else None,
        feedback_rows=len(rows), without_text=missing, train_rows=train_rows, new_rows=new_rows,
    )  # fmt: skip


def retrain(
    loop: Loop, control: Controller, use_case: UseCase, *, trigger: str, reason: str, actor: str = "flow:retrain",
    steps: Steps | None = None, clock: Callable[[], datetime] = utc_now,
) -> Retraining | None:  # fmt: skip
    """Trains a challenger on base and feedback, and starts its rollout.

    Args:
        loop: The stores.
        control: The rollout controller; the rollout is only started, not driven.
        use_case: What to train.
        trigger: What asked for it; the same trigger again does nothing.
        reason: For the record.
        actor: Who wants it.
        steps: How the stages run; plain by default.
        clock: The present moment.

    Returns:
        What became of it; None when this trigger has had its retraining, or another one runs.

    Raises:
        PolicyDenied: A gate failed or could not decide. Recorded and told; the champion stays.
        LeitstandError: The training failed. Likewise.
    """
    name = use_case.name
    lock = loop.adapters.lock(lock_name(name))
    try:
        lock.acquire(timeout=1.0)
    except Timeout:
        logger.info("A retraining runs already", use_case=name, trigger=trigger)
        return None
    try:
        _close_crashed(loop, name, clock())
        begun = loop.retrainings.claim(name, trigger, reason, now=clock())
        if begun is None:
            logger.info("This trigger has had its retraining", use_case=name, trigger=trigger)
            return None
        return _recorded(loop, control, use_case, begun, actor, steps or PlainSteps(loop.adapters), clock)
    finally:
        lock.release()


def notice_crashes(loop: Loop, name: str, *, now: datetime) -> list[Retraining]:
    """Closes retrainings whose process died, tells people, and returns them."""
    lock = loop.adapters.lock(lock_name(name))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return []
    try:
        return _close_crashed(loop, name, now)
    finally:
        lock.release()


def queue_labels(loop: Loop, use_case: UseCase, *, now: datetime, count: int = QUEUE_ROWS) -> Path | None:
    """Writes which answers should be labelled next; None when none waits.

    The file counts as a queue of `leitstand label`: its inclusion probabilities are kept for estimates of quality.
    """
    from models.labelling import choose
    from monitors.windows import read_window

    name = use_case.name
    feedback = loop.feedback.entries(name)
    window = read_window(loop.log, name, now - QUEUE_REACH, now, feedback=feedback, now=now)
    queue = choose(window, count)
    if not queue.num_rows:
        return None
    key = digest_json([name, queue.select(["request_id", "index"]).to_pylist()])
    target = loop.home / "labelling" / name / f"{key[7:23]}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(queue.drop_columns(["probabilities"]), target)
    return target


def lock_name(name: str) -> str:
    """Of the lock that a retraining of the use case holds."""
    return f"retrain-{name}"


def _recorded(
    loop: Loop, control: Controller, use_case: UseCase, begun: Retraining, actor: str, steps: Steps,
    clock: Callable[[], datetime],
) -> Retraining:  # fmt: skip
    """Runs the retraining and records its end, whatever it is."""
    try:
        ended = _trained(loop, control, use_case, begun, actor, steps)
    except _Refused as refused:
        queue = queue_labels(loop, use_case, now=clock())
        where = f"; label these: {queue}, or `leitstand label {use_case.name}`" if queue else ""
        ended = begun.model_copy(update={"outcome": "too little feedback", "detail": f"{refused}{where}"[:2000]})
    except PolicyDenied as error:
        _close(loop, begun.model_copy(update={"outcome": "gates failed", "detail": error.message[:2000]}), clock())
        raise
    except BaseException as error:
        said = error.message if isinstance(error, LeitstandError) else f"{type(error).__name__}: {error}"
        _close(loop, begun.model_copy(update={"outcome": "failed", "detail": said[:2000]}), clock())
        raise
    return _close(loop, ended, clock())


def _close(loop: Loop, ended: Retraining, now: datetime) -> Retraining:
    ended = ended.model_copy(update={"finished_at": now})
    loop.retrainings.finish(ended)
    loop.alerts.report(_alert(loop, ended, now))
    return ended


class _Refused(Exception):
    """There is too little feedback to train on."""


def _trained(
    loop: Loop, control: Controller, use_case: UseCase, begun: Retraining, actor: str, steps: Steps
) -> Retraining:  # fmt: skip
    adapters, name = loop.adapters, use_case.name
    adapters.rollouts.refuse_while_running(name)
    planned = _planned(loop, use_case, steps)
    run = steps.train(use_case, planned.snapshot, planned.profile, planned.warm_start)
    report = steps.evaluate(use_case, planned.snapshot, run)
    verdict, files = steps.gate(use_case, planned.snapshot, report)
    version = steps.register(use_case, planned.snapshot, run, report, verdict, files)
    steps.promote(version, verdict, f"retrained: {begun.reason}")
    rollout = start(adapters, control, name, version.version, actor=actor, reason=begun.reason)
    text = f"{planned.new_rows} new labelled rows; version {version.version} goes into {rollout.rollout_id}"
    update = {"outcome": "rollout started", "detail": text, "version": version.version, "rollout": rollout.rollout_id}
    return begun.model_copy(update=update)


def _planned(loop: Loop, use_case: UseCase, steps: Steps) -> RetrainingPlan:
    try:
        planned = plan(loop, use_case, steps)
    except ValidationFailed as error:
        if error.report is not None:  # the data set itself is refused, not the feedback
            raise
        raise _Refused(error.message) from error
    least = use_case.retraining.min_new_rows
    if planned.new_rows < least:
        raise _Refused(
            f"{planned.new_rows} labelled rows that the champion was not trained on; {least} are needed "
            f"({planned.feedback_rows} labels with a text, {planned.without_text} without)"
        )
    return planned


def _trained_on(adapters: Adapters, name: str, base: Snapshot) -> int:
    """Feedback rows that the champion was trained on."""
    from models.snapshots import open_snapshot, short

    try:
        champion = adapters.registry.get(ModelRef(name=name, alias=stages.CHAMPION))
        snapshot = open_snapshot(adapters.home / "data" / name / short(champion.data_digest))
    except LeitstandError:
        return 0
    return snapshot.splits["train"].rows - base.splits["train"].rows if snapshot.parent == base.digest else 0


def _close_crashed(loop: Loop, name: str, now: datetime) -> list[Retraining]:
    ended = list(loop.retrainings.close_crashed(name, now=now))
    for each in ended:
        loop.alerts.report(_alert(loop, each, now))
    return ended


def _alert(loop: Loop, ended: Retraining, now: datetime) -> AlertChange:
    key = "retraining-failed"
    if ended.outcome == "rollout started":
        return AlertChange(cleared=(f"{ended.use_case}/{key}",))
    severity = Severity.WARNING
    title = f"Retraining: {ended.outcome}; the champion stays"
    body = f"{ended.detail}\nIt was started because: {ended.reason}"
    runbooks = loop.adapters.settings.alerts.runbooks
    return AlertChange((make_alert(key, ended.use_case, severity, title, body, now=now, runbooks=runbooks),))
