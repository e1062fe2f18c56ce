"""Data sets: ingest a use case's sources into an immutable, validated snapshot, and read it back.

Reads the sources (`models.data_sources`), judges them (`governance.validation`) and stores what may be
used (`models.snapshots`). Data that may not be used leaves a report in
``HOME/data/USE_CASE/rejected-<digest>/`` and raises.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from governance.rows import Source
from governance.validation import RULES_VERSION, Validation, unreadable_report, validate
from governance.validation_report import ValidationReport
from leitstand.errors import ValidationFailed
from leitstand.files import canonical_json, digest_bytes, digest_json
from leitstand.settings import S3Settings
from leitstand.types import Snapshot
from leitstand.usecase import UseCase
from models.data_sources import read_bytes, read_labels, read_source
from models.golden import load_golden
from models.snapshots import SPLITS, Split, latest, load_split, open_snapshot, short, store_snapshot, write_records

__all__ = ["Split", "ingest", "latest", "load_split", "open_snapshot", "source_digest"]


def source_digest(use_case: UseCase, s3: S3Settings) -> str:
    """The digest of everything that `ingest` depends on: source bytes, label set, data spec, rules.

    The key under which an ingestion may be cached. Reads every source in full, since neither a file's
    time nor an object's tag tells whether its bytes are the same.
    """
    data = {split: read_bytes(_uri(use_case, split), s3) for split in SPLITS}
    return _key(use_case, data, read_labels(use_case, s3))


def ingest(use_case: UseCase, *, home: Path, s3: S3Settings) -> Snapshot:
    """Reads, validates and stores the data of a use case; the same content gives the same snapshot.

    Raises:
        ValidationFailed: The data breaks its expectations; `failures` names each, and the hint the report's page.
        NotFoundError: A source does not exist.
        ConfigurationError: The data section of the use case is wrong.
        IntegrityError: The golden set is not the pinned one.
    """
    folder = home / "data" / use_case.name
    data = {split: read_bytes(_uri(use_case, split), s3) for split in SPLITS}
    labels = read_labels(use_case, s3)
    key = _key(use_case, data, labels)
    try:
        sources = [_parse(use_case, split, data[split]) for split in SPLITS]
    except ValidationFailed as error:
        report = unreadable_report(use_case.name, use_case.data, error.failures, key)
        raise _rejected(folder, report, [], error.hint) from error
    golden = load_golden(use_case)
    validation = validate(
        use_case.name, use_case.data, sources, labels, source_digest=key, golden=golden.rows if golden else ()
    )
    lines = _quarantine_lines(validation)
    if not validation.report.passed:
        raise _rejected(folder, validation.report, lines, None)
    return store_snapshot(folder, labels, validation.rows.kept, validation.report, lines)


def _uri(use_case: UseCase, split: str) -> str:
    return use_case.resolve(getattr(use_case.data, split))


def _key(use_case: UseCase, data: dict[str, bytes], labels: Sequence[str]) -> str:
    return digest_json(
        {
            "rules": RULES_VERSION,
            "spec": use_case.data.model_dump(mode="json"),
            "labels": list(labels),
            "sources": {split: digest_bytes(content) for split, content in data.items()},
        }
    )


def _parse(use_case: UseCase, split: str, content: bytes) -> Source:
    spec = use_case.data
    return read_source(
        content,
        split=split,
        uri=_uri(use_case, split),
        text_column=spec.text_column,
        label_column=spec.label_column,
    )


def _quarantine_lines(validation: Validation) -> list[str]:
    rows = validation.rows
    return [canonical_json(dataclasses.asdict(item)) for item in [*rows.quarantined, *rows.leaked]]


def _rejected(folder: Path, report: ValidationReport, lines: list[str], hint: str | None) -> ValidationFailed:
    target = folder / f"rejected-{short(report.source_digest)}"
    write_records(target, report, lines)
    failures = report.failures
    return ValidationFailed(
        f"The data of use case '{report.use_case}' breaks {len(failures)} expectation(s):\n  " + "\n  ".join(failures),
        failures=failures,
        report=target / "report.json",
        hint=(f"{hint}; " if hint else "correct the data, or the limits under data.expectations; ")
        + f"the report is {target / 'report.html'}",
    )
