"""The flows: one for each stage, and `lifecycle` from source file to served Bento.

Run one with ``leitstand run support``, or as a deployment with ``prefect deployment run lifecycle/support``.
Every flow takes names and numbers only, so that the UI's form and the command line can start it.
"""

from prefect import flow, get_run_logger

from flows import tasks
from flows.stages import CHALLENGER, CHAMPION
from flows.wiring import wire
from leitstand.errors import PolicyDenied
from leitstand.types import Endpoint, GateReport, ModelRef, ModelVersion, RunRecord, Snapshot
from models.packaging import BentoRecord
from models.promotion import attached_gate_report, check

__all__ = ["deploy", "evaluate", "ingest", "lifecycle", "package", "train"]


@flow(name="ingest", flow_run_name="ingest {use_case}", persist_result=False)
def ingest(use_case: str) -> Snapshot:
    """Reads, validates and freezes the data set of a use case."""
    return tasks.recall(tasks.ingest_task, use_case)[0]


@flow(name="train", flow_run_name="train {use_case}", persist_result=False)
def train(use_case: str, profile: str | None = None, seed: int | None = None) -> RunRecord:
    """Ingests (from the cache when nothing changed) and trains one profile."""
    snapshot, _ = tasks.recall(tasks.ingest_task, use_case)
    return _train(use_case, snapshot, profile, seed)


@flow(name="evaluate", flow_run_name="evaluate {use_case}", persist_result=False)
def evaluate(use_case: str, profile: str | None = None, seed: int | None = None) -> ModelVersion:
    """Trains if needed, measures, decides the gates and registers the version with its reports.

    Raises:
        PromotionRejected: A gate failed; the version is registered, without an alias.
        InsufficientEvidence: A gate could not decide; likewise.
    """
    return _candidate(use_case, profile, seed)[0]


@flow(name="package", flow_run_name="package {use_case}", persist_result=False)
def package(use_case: str, version: int | None = None) -> BentoRecord:
    """Builds the Bento of a version; without a number, of the champion."""
    return tasks.package_task(use_case, _version(use_case, version))


@flow(name="deploy", flow_run_name="deploy {use_case}", persist_result=False)
def deploy(use_case: str, version: int | None = None) -> Endpoint:
    """Packages if needed, serves the version and makes it champion; without a number, serves the champion.

    Raises:
        PromotionRejected: The version's gates did not pass.
    """
    chosen = _version(use_case, version)
    verdict = attached_gate_report(wire().registry, chosen)
    check(chosen, verdict)
    return _serve(use_case, chosen, verdict)


@flow(name="lifecycle", flow_run_name="lifecycle {use_case}", persist_result=False)
def lifecycle(use_case: str, profile: str | None = None, seed: int | None = None, serve: bool = True) -> ModelVersion:
    """Takes a use case from its source files to a served, promoted version.

    Args:
        use_case: Name of a folder below `usecases/`.
        profile: Training profile; the use case's default when left out.
        seed: Seed of the run; the use case's when left out.
        serve: Whether to package, deploy and promote after the gates passed.
    """
    version, verdict = _candidate(use_case, profile, seed)
    if serve:
        _serve(use_case, version, verdict)
    return version


def _train(use_case: str, snapshot: Snapshot, profile: str | None, seed: int | None) -> RunRecord:
    chosen = profile or wire().use_case(use_case).training.default_profile
    record, cached = tasks.recall(tasks.train_task, use_case, snapshot, chosen, seed)
    if cached:
        get_run_logger().info(
            "Nothing changed in data, profile '%s', seed or base model: no training, run %s is used",
            chosen,
            record.run_id,
        )
    return record


def _candidate(use_case: str, profile: str | None, seed: int | None) -> tuple[ModelVersion, GateReport]:
    snapshot, _ = tasks.recall(tasks.ingest_task, use_case)
    run = _train(use_case, snapshot, profile, seed)
    report, _ = tasks.recall(tasks.evaluate_task, use_case, snapshot, run)
    verdict, files = tasks.gate_task(use_case, snapshot, report)
    version = tasks.register_task(use_case, snapshot, run, report, verdict, files)
    try:
        tasks.promote_task(use_case, version, verdict, CHALLENGER, "gates passed")
    except PolicyDenied:
        get_run_logger().warning("%s is registered without an alias; see %s", version.ref, files["gate_report.html"])
        raise
    return version, verdict


def _serve(use_case: str, version: ModelVersion, verdict: GateReport | None) -> Endpoint:
    bento = tasks.package_task(use_case, version)
    endpoint = tasks.deploy_task(use_case, bento)
    tasks.promote_task(use_case, version, verdict, CHAMPION, f"serves as {bento.tag}")
    return endpoint


def _version(use_case: str, number: int | None) -> ModelVersion:
    ref = ModelRef(name=use_case, version=number) if number else ModelRef(name=use_case, alias=CHAMPION)
    return wire().registry.get(ref)
