"""Prefect tasks around the stages: caching by content, retries of transient errors, artifacts in the UI.

A cache key is a digest of content: source bytes and specification for data; data, profile and base weights
for training; weights, data and way of measuring for the evaluation. `recall` looks whether the files that a
cached record names are still there, so deleting `.leitstand/runs` leads to a new training and not to a broken run.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext

from flows import stages
from flows.deployers import open_deployer
from flows.wiring import wire
from leitstand.errors import TransientBackendError
from leitstand.types import Endpoint, EvaluationReport, GateReport, ModelVersion, RunRecord, Snapshot
from models.packaging import BentoRecord

__all__ = [
    "deploy_task",
    "evaluate_task",
    "gate_task",
    "ingest_task",
    "package_task",
    "promote_task",
    "recall",
    "register_task",
    "train_task",
]


def _is_transient(task: Any, run: Any, state: Any) -> bool:
    """Retries only what the error tree calls transient."""
    try:
        state.result()
    except TransientBackendError:
        return True
    except BaseException:
        return False
    return False


STAGE = {
    "retries": 2,
    "retry_delay_seconds": [2, 10],
    "retry_condition_fn": _is_transient,
}
CACHED: dict[str, Any] = {**STAGE, "persist_result": True, "result_serializer": "json"}
UNCACHED: dict[str, Any] = {**STAGE, "cache_policy": NO_CACHE}


def _ingest_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
    from models.data import source_digest

    adapters = wire()
    use_case = adapters.use_case(parameters["name"])
    return f"ingest-{source_digest(use_case, adapters.settings.s3)}"


def _train_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
    from models.base import resolve_base
    from models.training import training_key

    adapters = wire()
    use_case = adapters.use_case(parameters["name"])
    base = resolve_base(use_case.model.base, home=adapters.home, s3=adapters.settings.s3, folder=use_case.folder)
    key = training_key(
        use_case,
        parameters["snapshot"],
        profile=parameters["profile"],
        seed=parameters["seed"],
        base_digest=base.digest,
        warm_start=parameters["warm_start"],
    )
    return f"train-{key}"


def _evaluate_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
    adapters = wire()
    use_case = adapters.use_case(parameters["name"])
    run: RunRecord = parameters["run"]
    folder = stages.evaluation_folder(adapters, use_case, run.weights_digest, parameters["snapshot"])
    return f"evaluate-{folder.name}"


def recall(task: Any, *arguments: Any) -> tuple[Any, bool]:
    """Runs a cached task; returns its record and whether it came from the cache with all its files."""
    state = task(*arguments, return_state=True)
    cached = state.name == "Cached"
    if cached and not _has_its_files(state.result()):
        return task.with_options(refresh_cache=True)(*arguments), False
    return state.result(), cached


def _has_its_files(record: Snapshot | RunRecord | EvaluationReport) -> bool:
    match record:
        case Snapshot():
            return all(split.path.is_file() for split in record.splits.values())
        case RunRecord():
            return record.model_dir.is_dir()
        case EvaluationReport():
            return record.predictions.is_file()


@task(name="ingest", cache_key_fn=_ingest_key, task_run_name="ingest {name}", **CACHED)
def ingest_task(name: str) -> Snapshot:
    """Reads, validates and freezes the data."""
    adapters = wire()
    snapshot = stages.ingest(adapters, adapters.use_case(name))
    counts = {split: info.rows for split, info in snapshot.splits.items()}
    create_table_artifact(
        key=f"{name}-data",
        table=[{"split": split, "rows": rows} for split, rows in counts.items()],
        description=f"Snapshot `{snapshot.digest}`, {snapshot.quarantined} rows in quarantine",
    )
    _link(f"{name}-data-report", snapshot.report_html, "Data report")
    return snapshot


@task(name="train", cache_key_fn=_train_key, task_run_name="train {name} ({profile})", **CACHED)
def train_task(
    name: str, snapshot: Snapshot, profile: str, seed: int | None, warm_start: Path | None = None
) -> RunRecord:
    """Trains, showing progress in the UI; `warm_start`: folder of the model to start from."""
    adapters = wire()
    use_case = adapters.use_case(name)
    record = stages.train(
        adapters, use_case, snapshot, profile=profile, seed=seed, progress=_progress(f"{name}-training"),
        warm_start=warm_start,
    )  # fmt: skip
    create_table_artifact(
        key=f"{name}-training-run",
        table=[{"metric": key, "value": round(value, 5)} for key, value in sorted(record.metrics.items())],
        description=f"Run `{record.run_id}`, {record.training_seconds:.0f} s, weights `{record.weights_digest}`",
    )
    return record


@task(name="evaluate", cache_key_fn=_evaluate_key, task_run_name="evaluate {name}", **CACHED)
def evaluate_task(name: str, snapshot: Snapshot, run: RunRecord) -> EvaluationReport:
    """Measures the new model on the test split."""
    adapters = wire()
    use_case = adapters.use_case(name)
    report = stages.evaluate(adapters, use_case, snapshot, run)
    stages.track_evaluation(adapters, use_case, run, report)
    create_table_artifact(
        key=f"{name}-evaluation",
        table=[
            {"metric": m.name, "slice": m.slice or "all", "value": m.value, "examples": m.examples}
            for m in report.metrics
        ],
        description=f"Test split of `{report.data_digest}` with {report.engine}",
    )
    return report


@task(name="gate", task_run_name="gate {name}", **UNCACHED)
def gate_task(name: str, snapshot: Snapshot, report: EvaluationReport) -> tuple[GateReport, dict[str, Path]]:
    """Decides the gates. Never cached: the champion may have changed."""
    adapters = wire()
    verdict, files = stages.gate(adapters, adapters.use_case(name), snapshot, report)
    create_table_artifact(
        key=f"{name}-gates",
        table=[
            {"gate": r.gate, "outcome": str(r.outcome), "value": r.value, r.bound_kind: r.bound, "reason": r.reason}
            for r in verdict.results
        ],
        description=f"Verdict: **{verdict.outcome}**",
    )
    _link(f"{name}-gate-report", files.get("gate_report.html"), "Gate report")
    return verdict, files


@task(name="register", task_run_name="register {name}", **UNCACHED)
def register_task(
    name: str,
    snapshot: Snapshot,
    run: RunRecord,
    report: EvaluationReport,
    verdict: GateReport,
    files: dict[str, Path],
) -> ModelVersion:
    """Registers the version with everything an auditor asks for."""
    adapters = wire()
    version = stages.register(adapters, adapters.use_case(name), snapshot, run, report, verdict, files)
    card = next(iter(files.values())).parent / "model_card.md"
    create_markdown_artifact(key=f"{name}-model-card", markdown=card.read_text(encoding="utf-8"))
    return version


@task(name="promote", task_run_name="promote {name} to {alias}", **UNCACHED)
def promote_task(name: str, version: ModelVersion, verdict: GateReport | None, alias: str, reason: str) -> None:
    """Moves an alias, if the gates passed."""
    if stages.promote(wire(), version, verdict, alias=alias, reason=reason) is None:
        get_run_logger().info("%s is %s already", version.ref, alias)


@task(name="package", task_run_name="package {name}", **UNCACHED)
def package_task(name: str, version: ModelVersion) -> BentoRecord:
    """Builds the Bento, unless it is there."""
    adapters = wire()
    bento = stages.package(adapters, adapters.use_case(name), version)
    get_run_logger().info("Bento %s (%s)", bento.tag, bento.engine)
    return bento


@task(name="deploy", task_run_name="deploy {name}", **UNCACHED)
def deploy_task(name: str, bento: BentoRecord) -> Endpoint:
    """Runs the Bento as the use case's service."""
    adapters = wire()
    endpoint = stages.deploy(adapters, open_deployer(adapters.settings), adapters.use_case(name), bento)
    create_link_artifact(key=f"{name}-service", link=endpoint.url, link_text=f"{endpoint.tag} at {endpoint.url}")
    return endpoint


def _link(key: str, path: Path | None, text: str) -> None:
    if path is not None:
        create_link_artifact(key=key, link=path.resolve().as_uri(), link_text=text)


def _progress(key: str) -> Callable[[int, int, Mapping[str, float]], None]:
    """A callback that moves a progress bar in the Prefect UI, at most once per percent."""
    artifact: Any = create_progress_artifact(key=key, progress=0.0, description="Training")
    shown = 0

    def report(done: int, total: int, metrics: Mapping[str, float]) -> None:
        nonlocal shown
        percent = min(100 * done // max(total, 1), 100)
        if percent > shown:
            shown = percent
            loss = metrics.get("train/loss", metrics.get("loss"))
            text = f"step {done} of {total}" + (f", loss {loss:.3f}" if loss is not None else "")
            update_progress_artifact(artifact, progress=float(percent), description=text)

    return report
