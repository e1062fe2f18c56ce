"""The stages of the lifecycle as plain functions: adapters and records in, records out.

Each stage is idempotent: it writes below a folder named after the digest of its inputs, so a rerun after a
crash finishes what is missing and repeats nothing. Each emits OpenLineage START and COMPLETE or FAIL.
Nothing here knows Prefect; ``flows/tasks.py`` adds caching, retries and artifacts.
"""

import csv
from pathlib import Path

from flows.deploying import Deployer
from flows.switching import make_stable
from flows.wiring import Adapters
from governance import lineage as names
from leitstand.errors import NotFoundError, ValidationFailed
from leitstand.events import (
    AliasMoved,
    BentoBuilt,
    DataIngested,
    DataRejected,
    GatesDecided,
    ModelRegistered,
    RunFinished,
    ServiceDeployed,
    announce,
)
from leitstand.files import digest_json, short_digest
from leitstand.ports import Progress
from leitstand.types import (
    Endpoint,
    EvaluationReport,
    GateReport,
    LedgerEntry,
    ModelCandidate,
    ModelRef,
    ModelVersion,
    RunRecord,
    Snapshot,
    utc_now,
)
from leitstand.usecase import UseCase
from models.packaging import BentoRecord

__all__ = [
    "champion_folder",
    "deploy",
    "evaluate",
    "evaluation_folder",
    "gate",
    "ingest",
    "labels_of",
    "model_folder",
    "package",
    "promote",
    "register",
    "train",
]

CHAMPION = "champion"
CHALLENGER = "challenger"


def ingest(adapters: Adapters, use_case: UseCase) -> Snapshot:
    """Reads, validates and freezes the data set of a use case.

    Raises:
        ValidationFailed: The data set breaks its expectations; the report page says where.
    """
    from models import data

    sources = [names.source_dataset(use_case.resolve(uri)) for uri in (use_case.data.train, use_case.data.test)]
    with (
        adapters.lineage.run(f"{use_case.name}.ingest", inputs=sources) as run,
        adapters.lock(f"ingest-{use_case.name}"),
    ):
        try:
            snapshot = data.ingest(use_case, home=adapters.home, s3=adapters.settings.s3)
        except ValidationFailed as error:
            announce(DataRejected(use_case=use_case.name, failures=error.failures))
            raise
        run.add_input(*names.source_datasets(snapshot)).add_output(names.snapshot_dataset(snapshot))
    rows = sum(split.rows for split in snapshot.splits.values())
    announce(DataIngested(use_case=use_case.name, digest=snapshot.digest, rows=rows, quarantined=snapshot.quarantined))
    return snapshot


def train(
    adapters: Adapters,
    use_case: UseCase,
    snapshot: Snapshot,
    *,
    profile: str | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    warm_start: Path | None = None,
) -> RunRecord:
    """Trains on a snapshot, or returns the finished run with the same inputs; `warm_start`: folder of the champion.

    Raises:
        ConfigurationError: A gate names a metric or slice that will not be measured; better known before training.
    """
    from models import training
    from models.gates import check_gates

    check_gates(use_case)
    with adapters.lineage.run(f"{use_case.name}.train", inputs=[names.snapshot_dataset(snapshot)]) as run:
        record = training.train(
            use_case,
            snapshot,
            profile=profile,
            home=adapters.home,
            tracker=adapters.tracker,
            commit=adapters.commit,
            s3=adapters.settings.s3,
            seed=seed,
            progress=progress,
            warm_start=warm_start,
        )
        run.add_output(names.run_dataset(record))
    announce(
        RunFinished(
            use_case=use_case.name,
            run_id=record.run_id,
            profile=record.profile,
            weights_digest=record.weights_digest,
            seconds=record.training_seconds,
        )
    )
    return record


def evaluation_folder(adapters: Adapters, use_case: UseCase, weights_digest: str, snapshot: Snapshot) -> Path:
    """Where the evaluation of these weights on this snapshot lies; another way of measuring gets its own."""
    from models.evaluation import method_digest

    key = digest_json([weights_digest, snapshot.digest, method_digest(use_case)])
    return adapters.home / "reports" / use_case.name / short_digest(key)


def evaluate(adapters: Adapters, use_case: UseCase, snapshot: Snapshot, run: RunRecord) -> EvaluationReport:
    """Measures a run's model on the test split, or returns what was measured before."""
    return _measure(adapters, use_case, snapshot, run.model_dir, run.weights_digest, names.run_dataset(run))


def _measure(
    adapters: Adapters,
    use_case: UseCase,
    snapshot: Snapshot,
    model_dir: Path,
    weights_digest: str,
    model: names.Dataset,
    *,
    other_labels: bool = False,
) -> EvaluationReport:
    from models import evaluation

    out = evaluation_folder(adapters, use_case, weights_digest, snapshot)
    file = out / "evaluation.json"
    with (
        adapters.lineage.run(f"{use_case.name}.evaluate", inputs=[names.snapshot_dataset(snapshot), model]) as run,
        adapters.lock(f"evaluate-{out.name}"),
    ):
        if file.is_file():
            report = EvaluationReport.model_validate_json(file.read_bytes())
        else:
            report = evaluation.evaluate(use_case, snapshot, model_dir, out=out, other_labels=other_labels)
        run.add_output(names.file_dataset(file))
    return report


def track_evaluation(adapters: Adapters, use_case: UseCase, record: RunRecord, report: EvaluationReport) -> None:
    """Adds test metrics, slices and the confusion matrix to the training run in the experiment tracker."""
    run = adapters.tracker.start(use_case=use_case.name, job="train", config={}, run_id=record.run_id)
    try:
        whole = {f"test/{metric.name}": metric.value for metric in report.metrics if metric.slice is None}
        run.summary({name: value for name, value in whole.items() if value is not None})
        slices = [
            [m.slice, m.name, m.value, m.examples, m.interval and m.interval.low, m.interval and m.interval.high]
            for m in report.metrics
            if m.slice is not None
        ]
        run.log_table("slices", ["slice", "metric", "value", "examples", "low", "high"], slices)
        if report.confusion:
            with report.confusion.open(encoding="utf-8", newline="") as file:
                columns, *rows = csv.reader(file)
            run.log_table("confusion", columns, rows)
    finally:
        run.finish()


def gate(
    adapters: Adapters, use_case: UseCase, snapshot: Snapshot, report: EvaluationReport
) -> tuple[GateReport, dict[str, Path]]:
    """Decides the gates against their bounds and the champion; returns the verdict and its files.

    The champion is measured again on this snapshot when it was measured on another.
    """
    from models import gate_report, gates

    champion = _champion(adapters, use_case.name)
    champion_report = report if champion and champion.weights_digest == report.weights_digest else None
    if champion and not champion_report:
        with adapters.lock(f"champion-{use_case.name}"):
            folder = _fetched(adapters, champion)
        source = names.model_dataset(champion.ref)
        champion_report = _measure(
            adapters, use_case, snapshot, folder, champion.weights_digest, source, other_labels=True
        )
    verdict = gates.decide(
        use_case,
        report,
        champion=champion_report,
        champion_ref=str(champion.ref) if champion else None,
        now=utc_now(),
    )
    out = evaluation_folder(adapters, use_case, report.weights_digest, snapshot)
    files = gate_report.write_gate_report(verdict, report, use_case, out)
    announce(GatesDecided(use_case=use_case.name, weights_digest=report.weights_digest, outcome=str(verdict.outcome)))
    return verdict, files


def register(
    adapters: Adapters,
    use_case: UseCase,
    snapshot: Snapshot,
    record: RunRecord,
    report: EvaluationReport,
    verdict: GateReport,
    files: dict[str, Path],
) -> ModelVersion:
    """Registers the run's model with its reports and card; the same weights on the same data register once."""
    from models.card import write_card

    champion = _champion(adapters, use_case.name)
    out = next(iter(files.values())).parent
    cards = write_card(use_case=use_case, snapshot=snapshot, run=record, evaluation=report, gates=verdict, out=out)
    attachments = files | cards | {"evaluation.json": out / "evaluation.json"}
    if snapshot.report_html:
        attachments["data_report.html"] = snapshot.report_html
    policy = [gate.model_dump(mode="json") for gate in use_case.gates]
    candidate = ModelCandidate(
        name=use_case.name,
        key=digest_json([record.weights_digest, snapshot.digest, policy]),
        model_dir=record.model_dir,
        weights_digest=record.weights_digest,
        data_digest=snapshot.digest,
        base_model=record.base_model,
        commit=record.commit,
        run_id=record.run_id,
        tracking_url=record.tracking_url,
        profile=record.profile,
        parent=str(champion.ref) if champion and champion.weights_digest != record.weights_digest else None,
        metrics={m.name: m.value for m in report.metrics if m.slice is None and m.value is not None},
        attachments=attachments,
    )
    inputs = [names.run_dataset(record), names.file_dataset(out / "evaluation.json")]
    with adapters.lineage.run(f"{use_case.name}.register", inputs=inputs) as run:
        version = adapters.registry.register(candidate)
        run.add_output(names.model_dataset(version.ref))
    announce(ModelRegistered(use_case=use_case.name, version=version.version, weights_digest=version.weights_digest))
    return version


def package(adapters: Adapters, use_case: UseCase, version: ModelVersion) -> BentoRecord:
    """Builds the Bento of a registered version, or returns the one there is."""
    from models.packaging import package as build

    with (
        adapters.lineage.run(f"{use_case.name}.package", inputs=[names.model_dataset(version.ref)]) as run,
        adapters.lock("bento-store"),
    ):
        record = build(version, _fetched(adapters, version), use_case, home=adapters.home)
        run.add_output(names.bento_dataset(record.tag))
    announce(BentoBuilt(use_case=use_case.name, version=version.version, tag=record.tag))
    return record


def deploy(adapters: Adapters, deployer: Deployer, use_case: UseCase, bento: BentoRecord) -> Endpoint:
    """Runs a Bento, sends all traffic of its use case there at once, and stops what answered before.

    Raises:
        ConflictError: A rollout of the use case is not finished; it alone moves traffic.
    """
    with (
        adapters.lineage.run(f"{use_case.name}.deploy", inputs=[names.bento_dataset(bento.tag)]) as run,
        adapters.lock(f"deploy-{use_case.name}"),
    ):
        adapters.rollouts.refuse_while_running(use_case.name)
        endpoint = make_stable(
            deployer, adapters.routes, use_case,
            tag=bento.tag, version=bento.version, actor="flow:deploy", reason=f"serves as {bento.tag}",
        )  # fmt: skip
        run.add_output(names.endpoint_dataset(f"{endpoint.url}/v2/models/{use_case.name}"))
    announce(ServiceDeployed(use_case=use_case.name, version=endpoint.version, tag=endpoint.tag, url=endpoint.url))
    return endpoint


def promote(
    adapters: Adapters,
    version: ModelVersion,
    verdict: GateReport | None,
    *,
    alias: str,
    reason: str,
    actor: str = "flow:lifecycle",
) -> LedgerEntry | None:
    """Points an alias at a version whose gates passed; None when it points there already.

    Raises:
        PromotionRejected: A gate failed.
        InsufficientEvidence: A gate could not decide.
    """
    from models.promotion import promote as move

    with adapters.lock(f"alias-{version.name}"):
        if alias in adapters.registry.get(version.ref).aliases:
            return None
        entry = move(adapters.registry, version.ref, alias, gate_report=verdict, actor=actor, reason=reason)
    announce(
        AliasMoved(
            use_case=version.name, alias=alias, version=entry.version, previous=entry.previous, actor=entry.actor
        )
    )
    return entry


def champion_folder(adapters: Adapters, name: str) -> Path | None:
    """Folder of the champion's model, verified, to start a training from; None: there is no champion yet."""
    champion = _champion(adapters, name)
    if champion is None:
        return None
    return model_folder(adapters, champion)


def model_folder(adapters: Adapters, version: ModelVersion) -> Path:
    """Folder of a registered version's model in the local cache, verified."""
    with adapters.lock(f"champion-{version.name}"):
        return _fetched(adapters, version)


def labels_of(adapters: Adapters, name: str, version: int) -> tuple[str, ...]:
    """The labels of a registered version in the order of its probabilities; empty when it is not in the registry."""
    from models.artifact import read_config

    try:
        found = adapters.registry.get(ModelRef(name=name, version=version))
    except NotFoundError:
        return ()
    return read_config(model_folder(adapters, found)).labels


def _champion(adapters: Adapters, name: str) -> ModelVersion | None:
    try:
        return adapters.registry.get(ModelRef(name=name, alias=CHAMPION))
    except NotFoundError:
        return None


def _fetched(adapters: Adapters, version: ModelVersion) -> Path:
    """The version's model folder in the local cache, verified against its manifest."""
    from models.artifact import verify

    folder = adapters.home / "cache" / "models" / short_digest(version.weights_digest)
    if folder.is_dir() and verify(folder) == version.weights_digest:
        return folder
    adapters.registry.fetch(version.ref, folder)
    return folder
