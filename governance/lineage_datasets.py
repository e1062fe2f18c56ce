"""What lineage calls things: sources, snapshots, models, Bentos and endpoints as OpenLineage datasets.

Names follow OpenLineage's naming convention (``file`` and a path, ``s3://bucket`` and a key). For things
it has no rule for, the namespace says the kind: ``leitstand.models``, ``bentoml``, or the server's URL.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from openlineage.client.facet_v2 import (
    data_quality_assertions_dataset,
    data_quality_metrics_input_dataset,
    dataset_type_dataset,
    dataset_version_dataset,
    output_statistics_output_dataset,
    schema_dataset,
)
from openlineage.client.naming.dataset import S3, LocalFileSystem

from governance.validation_report import SplitFacts, ValidationReport
from leitstand.types import ModelRef, RunRecord, Snapshot

__all__ = [
    "Dataset", "bento_dataset", "endpoint_dataset", "file_dataset", "model_dataset", "read_report", "report_datasets",
    "run_dataset", "snapshot_dataset", "source_dataset", "source_datasets",
]  # fmt: skip

_COLUMNS = (("text", "string", "the text to classify"), ("label", "string", "its label"))


@dataclass(frozen=True)
class Dataset:
    """A named dataset; `input_facets` are sent where it is read, `output_facets` where it is written."""

    namespace: str
    name: str
    facets: dict[str, Any] = field(default_factory=dict)
    input_facets: dict[str, Any] = field(default_factory=dict)
    output_facets: dict[str, Any] = field(default_factory=dict)


def source_dataset(uri: str) -> Dataset:
    """A source file: a path, ``file://`` or ``s3://bucket/key``."""
    scheme, separator, rest = uri.partition("://")
    if separator and scheme == "s3":
        bucket, _, key = rest.partition("/")
        name = S3(bucket, key)
        return Dataset(name.get_namespace(), name.get_name())
    return file_dataset(Path(rest if scheme == "file" else uri))


def source_datasets(snapshot: Snapshot) -> list[Dataset]:
    """The sources of a snapshot, with their digests and what validation found in each."""
    report = read_report(snapshot.report_json)
    if report:
        return report_datasets(report)
    return [
        replace(source_dataset(uri), facets=_versioned(snapshot.source_digests[split]))
        for split, uri in snapshot.sources.items()
    ]


def report_datasets(report: ValidationReport) -> list[Dataset]:
    """The sources that a validation report is about; also those of a data set that was refused."""
    return [
        replace(
            source_dataset(facts.uri),
            facets=_versioned(facts.source_digest),
            input_facets=_quality(report, [split]),
        )
        for split, facts in report.splits.items()
    ]


def read_report(path: Path | None) -> ValidationReport | None:
    """The validation report in a file; None when there is none that can be read: lineage goes without."""
    try:
        return ValidationReport.model_validate_json(path.read_bytes()) if path else None
    except (OSError, ValueError):
        return None


def snapshot_dataset(snapshot: Snapshot) -> Dataset:
    """A snapshot: its folder, with schema, digest, size and data quality."""
    folder = next(iter(snapshot.splits.values())).path.parent
    report = read_report(snapshot.report_json)
    rows = sum(split.rows for split in snapshot.splits.values())
    size = sum(split.path.stat().st_size for split in snapshot.splits.values() if split.path.is_file())
    return replace(
        file_dataset(folder),
        facets=_versioned(snapshot.digest) | _schema(),
        input_facets=_quality(report, list(report.splits)) if report else {},
        output_facets={
            "outputStatistics": output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                rowCount=rows, size=size
            )
        },
    )


def run_dataset(record: RunRecord) -> Dataset:
    """The model folder that a training run wrote."""
    return replace(file_dataset(record.model_dir), facets=_versioned(record.weights_digest) | _kind("MODEL"))


def file_dataset(path: Path) -> Dataset:
    """A file or folder on this machine."""
    name = LocalFileSystem(str(path.absolute()))
    return Dataset(name.get_namespace(), name.get_name())


def model_dataset(ref: ModelRef) -> Dataset:
    """A registered model version."""
    return Dataset("leitstand.models", str(ref), facets=_kind("MODEL"))


def bento_dataset(tag: str) -> Dataset:
    """A Bento in the store, by tag."""
    return Dataset("bentoml", tag, facets=_kind("BENTO"))


def endpoint_dataset(url: str) -> Dataset:
    """A served endpoint: the server is the namespace, the path the name."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = f":{parts.port}" if parts.port else ""
    return Dataset(f"{parts.scheme}://{host}{port}", parts.path or "/", facets=_kind("ENDPOINT"))


def _versioned(digest: str) -> dict[str, Any]:
    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=digest)}


def _kind(name: str) -> dict[str, Any]:
    return {"datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(datasetType=name)}


def _schema() -> dict[str, Any]:
    fields = [
        schema_dataset.SchemaDatasetFacetFields(name=name, type=kind, description=text, ordinal_position=place)
        for place, (name, kind, text) in enumerate(_COLUMNS, start=1)
    ]
    return {"schema": schema_dataset.SchemaDatasetFacet(fields=fields)}


def _quality(report: ValidationReport, splits: list[str]) -> dict[str, Any]:
    facts = [report.splits[split] for split in splits]
    assertions = [
        data_quality_assertions_dataset.Assertion(
            assertion=result.expectation,
            success=result.passed,
            name=f"{result.split}: {result.name}",
            expected=result.allowed,
            actual=result.observed,
            severity="error",
        )
        for result in report.results
        if result.split in splits
    ]
    metrics = data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet(
        columnMetrics={"text": _text_metrics(facts), "label": _label_metrics(facts)},
        rowCount=sum(fact.rows for fact in facts),
        fileCount=len(facts),
    )
    return {
        "dataQualityMetrics": metrics,
        "dataQualityAssertions": data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(
            assertions=assertions
        ),
    }


def _text_metrics(facts: list[SplitFacts]) -> Any:
    kept = sum(fact.kept for fact in facts)
    return data_quality_metrics_input_dataset.ColumnMetrics(
        nullCount=sum(fact.reasons.get("empty", 0) for fact in facts),
        distinctCount=kept - sum(fact.duplicates for fact in facts),
        count=float(sum(fact.rows for fact in facts)),
    )


def _label_metrics(facts: list[SplitFacts]) -> Any:
    return data_quality_metrics_input_dataset.ColumnMetrics(
        nullCount=sum(fact.reasons.get("label_missing", 0) for fact in facts),
        distinctCount=len({label for fact in facts for label, count in fact.labels.items() if count}),
        count=float(sum(fact.rows for fact in facts)),
    )
