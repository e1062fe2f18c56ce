"""Snapshots on disk: immutable, validated data sets, named by their content.

A snapshot lies in ``HOME/data/USE_CASE/<first 16 hex digits of its digest>/``:

    train.parquet, test.parquet   columns ``text`` and ``label``, the rows that were kept, in source order
    quarantine.jsonl              one line per row that was not kept, with the reason
    report.html, report.json      the validation report
    snapshot.json                 `Snapshot`, with paths relative to the folder

The digest covers the label set and the text and label (and weight, where rows have one) of every kept row
in order, and nothing of the file format: the same rows as CSV, JSONL or Parquet give the same snapshot.
Safe with concurrent processes, and after a kill: a snapshot is there complete, or not at all.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from governance.data_report import write_report
from governance.rows import Row
from governance.validation_report import ValidationReport
from leitstand.errors import IntegrityError, NotFoundError, bounded
from leitstand.files import atomic_dir, digest_json, write_text
from leitstand.types import Snapshot, SplitInfo

__all__ = [
    "SPLITS", "Split", "latest", "load_split", "open_snapshot", "short", "split_digest", "store_snapshot",
    "weight_texts", "write_records",
]  # fmt: skip

SPLITS = ("train", "test")
SNAPSHOT = "snapshot.json"
LATEST = "latest"
SHORT = 16


@dataclass(frozen=True)
class Split:
    """The examples of one split.

    `labels`: (n,) int64, indices into the snapshot's labels. `weights`: (n,) float64, how much each row counts
    in training, or None when all count the same.
    """

    texts: list[str]
    labels: np.ndarray
    weights: np.ndarray | None = None


def store_snapshot(
    folder: Path, labels: Sequence[str], rows: dict[str, list[Row]], report: ValidationReport, quarantine: list[str]
) -> Snapshot:
    """Writes the snapshot below `folder` unless it is there already, notes it as the latest, and returns it.

    Rows that are stored already stay untouched, so a reader is never disturbed. When they now come from
    another file, or passed under other limits, only the records beside them are written anew.
    """
    digests = {split: split_digest((row.text or "", row.label or "") for row in rows[split]) for split in SPLITS}
    digest = digest_json({"labels": list(labels), "splits": digests})
    target = folder / short(digest)
    snapshot = _snapshot(digest, digests, labels, report)
    if not _intact(target):
        with atomic_dir(target) as part:
            for split in SPLITS:
                _write_parquet(part / f"{split}.parquet", rows[split])
            _write_all_records(part, report, quarantine, snapshot)
    elif _source_digest(target) != report.source_digest:
        _write_all_records(target, report, quarantine, snapshot)
    write_text(folder / LATEST, target.name)
    return open_snapshot(target)


def write_records(folder: Path, report: ValidationReport, quarantine: list[str]) -> None:
    """Writes the report as HTML and JSON, and the quarantine file, each atomically."""
    write_text(folder / "quarantine.jsonl", "".join(line + "\n" for line in quarantine))
    write_report(folder / "report.html", report)
    write_text(folder / "report.json", report.model_dump_json(indent=1))


def short(digest: str) -> str:
    """The first 16 hex digits of a digest: the name of its folder."""
    return digest.removeprefix("sha256:")[:SHORT]


def _snapshot(digest: str, digests: dict[str, str], labels: Sequence[str], report: ValidationReport) -> Snapshot:
    return Snapshot(
        use_case=report.use_case,
        digest=digest,
        labels=tuple(labels),
        splits={
            split: SplitInfo(path=Path(f"{split}.parquet"), rows=facts.kept, digest=digests[split])
            for split, facts in report.splits.items()
        },
        sources={split: facts.uri for split, facts in report.splits.items()},
        source_digests={split: facts.source_digest for split, facts in report.splits.items()},
        quarantined=sum(facts.quarantined for facts in report.splits.values()),
        quarantine_file=Path("quarantine.jsonl"),
        report_html=Path("report.html"),
        report_json=Path("report.json"),
    )


def _write_all_records(folder: Path, report: ValidationReport, quarantine: list[str], snapshot: Snapshot) -> None:
    write_text(folder / SNAPSHOT, snapshot.model_dump_json(indent=1))
    write_records(folder, report, quarantine)


def _intact(folder: Path) -> bool:
    try:
        snapshot = open_snapshot(folder)
        for split in SPLITS:
            load_split(snapshot, split)
    except (NotFoundError, IntegrityError):
        return False
    return all(path and path.is_file() for path in (snapshot.report_html, snapshot.quarantine_file))


def _source_digest(folder: Path) -> str:
    try:
        return json.loads((folder / "report.json").read_bytes()).get("source_digest", "")
    except (OSError, ValueError):
        return ""


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    columns = {"text": [row.text for row in rows], "label": [row.label for row in rows]}
    pq.write_table(pa.table(columns, schema=pa.schema({"text": pa.string(), "label": pa.string()})), path)


def split_digest(rows: Iterable[tuple[str, ...]]) -> str:
    """``sha256:`` over the strings of each row in order; each, in UTF-8, follows its length in 8 bytes.

    A row is (text, label), or (text, label, weight) with the weight in four decimals.
    """
    total = hashlib.sha256()
    for row in rows:
        for value in row:
            content = value.encode()
            total.update(len(content).to_bytes(8, "big"))
            total.update(content)
    return "sha256:" + total.hexdigest()


def open_snapshot(folder: Path) -> Snapshot:
    """Reads ``snapshot.json``; paths come back absolute.

    Raises:
        NotFoundError: The folder holds no snapshot.
        IntegrityError: The file is damaged.
    """
    try:
        snapshot = Snapshot.model_validate_json((folder / SNAPSHOT).read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"No snapshot in {folder}", hint="run `leitstand data validate NAME`") from error
    except ValidationError as error:
        raise IntegrityError(f"{folder / SNAPSHOT} is damaged: {error.errors()[0]['msg']}") from error
    splits = {name: info.model_copy(update={"path": folder / info.path}) for name, info in snapshot.splits.items()}
    files = {
        name: folder / value
        for name in ("quarantine_file", "report_html", "report_json", "feedback_report")
        if (value := getattr(snapshot, name)) is not None
    }
    return snapshot.model_copy(update={"splits": splits, **files})


def latest(name: str, home: Path) -> Snapshot:
    """The snapshot that the last successful ingestion of use case `name` gave.

    Raises:
        NotFoundError: There is none.
    """
    folder = home / "data" / name
    try:
        return open_snapshot(folder / (folder / LATEST).read_text(encoding="utf-8").strip())
    except FileNotFoundError as error:
        raise NotFoundError(
            f"No snapshot of use case '{name}' in {folder}", hint=f"run `leitstand data validate {name}`"
        ) from error


def load_split(snapshot: Snapshot, split: str) -> Split:
    """Reads one split and checks it against its digest.

    Raises:
        NotFoundError: The snapshot has no such split, or its file is gone.
        IntegrityError: The rows are not those that were ingested.
    """
    if split not in snapshot.splits:
        raise NotFoundError(f"Snapshot {snapshot.digest} has no split '{split}'", hint=bounded(list(snapshot.splits)))
    info = snapshot.splits[split]
    again = "run `leitstand data validate " + snapshot.use_case + "`"
    try:
        table = pq.read_table(info.path)
        columns = [table.column(name).to_pylist() for name in ("text", "label")]
    except FileNotFoundError as error:
        raise NotFoundError(f"{info.path} is missing", hint=again) from error
    except (pa.ArrowException, OSError, KeyError) as error:
        raise IntegrityError(f"{info.path} is damaged: {error}", hint=again) from error
    texts, names = columns
    weights = table.column("weight").to_numpy() if "weight" in table.column_names else None
    if split_digest(zip(*columns, *weight_texts(weights), strict=True)) != info.digest:
        raise IntegrityError(f"{info.path} does not match its digest {info.digest}", hint=again)
    index = {label: place for place, label in enumerate(snapshot.labels)}
    return Split(texts, np.array([index[name] for name in names], dtype=np.int64), weights)


def weight_texts(weights: np.ndarray | None) -> list[list[str]]:
    """The third column that `split_digest` takes: nothing, or one list with each weight in four decimals."""
    return [] if weights is None else [[f"{weight:.4f}" for weight in weights.tolist()]]
