"""Builds the snapshot that a retraining uses: the base's rows and the feedback that may be trained on.

The snapshot lies beside the ingested ones, in ``HOME/data/USE_CASE/<first 16 hex digits of its digest>/``:

    train.parquet           the base's rows in their order, then feedback, with the column ``weight``
    test.parquet            the base's rows in their order, then held-out feedback
    feedback.parquet        the labels that were used, one line per source and text, with split, weight and request
    quarantine.jsonl        one line per row that was not used, with the reason
    feedback_report.json    `FeedbackReport`: counts per reason and per source, tests, new labels
    snapshot.json           `Snapshot`; ``parent`` is the base, ``new_labels`` those that it lacks

Labels are the base's in their order, then the new ones, sorted. The same base and feedback give the same
snapshot. What may be trained on is decided in `models.feedback`.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from governance.feedback_log import open_feedback_log
from governance.input_store import open_input_store
from governance.rows import normalise
from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError, ValidationFailed
from leitstand.files import atomic_dir, canonical_json, digest_bytes, digest_json, write_text
from leitstand.settings import S3Settings, Settings
from leitstand.types import Snapshot, SplitInfo
from leitstand.usecase import UseCase
from models.feedback import (
    Boundaries,
    FeedbackRow,
    Selection,
    TrainingRow,
    join_texts,
    select_rows,
    standing_labels,
)
from models.golden import load_golden
from models.guesses import guess
from models.snapshots import SNAPSHOT, Split, load_split, open_snapshot, short, split_digest, weight_texts
from models.source_trust import Guesses

__all__ = ["FeedbackReport", "SourceReport", "build_retraining_snapshot", "collect_feedback"]


class SourceReport(BaseModel):
    """What became of one source's labels. `rows` = `used` + `in_base` and what is counted in `set_aside`, at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    rows: int
    used: int
    quarantined: bool
    set_aside: dict[str, int]
    tests: tuple[str, ...]


class FeedbackReport(BaseModel):
    """``feedback_report.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use_case: str
    base_digest: str
    rows: int
    train_rows: int
    test_rows: int
    in_base: int
    set_aside: dict[str, int]
    new_labels: dict[str, int]
    weight_sum: float
    sources: tuple[SourceReport, ...]
    quarantined_sources: dict[str, str]


def collect_feedback(settings: Settings, use_case: str) -> tuple[list[FeedbackRow], int]:
    """All standing labels that have a text, and the number of those that have none.

    Texts come from the store of kept inputs, and, where that has let them go, from the snapshots of earlier
    retrainings: what a model was trained on is not forgotten by the next one when the retention ends. Labels that
    were changed or withdrawn since then count as they stand now.

    Raises:
        BackendError: The feedback log or the store cannot be read.
    """
    standing = standing_labels(open_feedback_log(settings).entries(use_case))
    store = open_input_store(settings)
    earlier = _earlier_texts(settings.root / "data" / use_case)

    def texts_of(request_id: str) -> list[str]:
        return store.get(use_case, request_id) or earlier.get(request_id, [])

    return join_texts(standing, texts_of)


def _earlier_texts(folder: Path) -> dict[str, list[str]]:
    """Request id to the texts that retraining snapshots below `folder` hold of it; gaps are empty."""
    found: dict[str, dict[int, str]] = {}
    for path in sorted(folder.glob("*/feedback.parquet")):
        try:
            table = pq.read_table(path, columns=["request_id", "index", "text"])
        except (OSError, pa.ArrowException):
            continue  # its snapshot is damaged and will be written again
        for row in table.to_pylist():
            found.setdefault(row["request_id"], {})[row["index"]] = row["text"]
    return {request: [texts.get(n, "") for n in range(max(texts) + 1)] for request, texts in found.items()}


def build_retraining_snapshot(
    use_case: UseCase,
    base: Snapshot,
    rows: Sequence[FeedbackRow],
    *,
    home: Path,
    s3: S3Settings,
    guesses: Guesses | None = None,
    check_sources: bool = True,
) -> Snapshot:
    """Writes the snapshot of base and feedback, unless it is there already, and returns it.

    Args:
        use_case: Its `feedback` section decides what is used.
        base: An ingested snapshot; feedback is always added to it afresh.
        rows: Labelled feedback with its texts, from `models.feedback.join_texts`.
        home: The snapshot lies below ``home/data``.
        s3: For a base model behind ``s3://``.
        guesses: What a model that knows only the base guesses for the rows' texts; None: fit one (`models.guesses`).
        check_sources: False leaves the tests against a model out; for tests and tiny sets.

    Raises:
        ValidationFailed: No row may be trained on; `failures` says why.
        ConfigurationError: `base` is itself a retraining snapshot.
    """
    if base.parent is not None:
        raise ConfigurationError(
            f"Snapshot {base.digest} holds feedback already",
            hint="pass the ingested snapshot; feedback is added afresh",
        )
    train, test = load_split(base, "train"), load_split(base, "test")
    if guesses is None and check_sources and rows:
        guesses = guess(use_case, base, {row.key: row.text for row in rows}, home=home, s3=s3)
    boundaries = _boundaries(use_case, base, train, test)
    chosen = select_rows(rows, boundaries, use_case.feedback, use_case.data.expectations, guesses)
    if not chosen.train:
        failures = [f"{reason}: {count:,}" for reason, count in _reasons(chosen).items()]
        raise ValidationFailed(
            f"None of {len(rows):,} feedback rows of '{use_case.name}' may be trained on"
            + (f" ({', '.join(failures)}; {chosen.in_base:,} stand in the base already)" if failures else ""),
            failures=failures,
            hint="collect labels with `leitstand label`, or admit new labels under `feedback`",
        )
    return _store(use_case, base, train, test, rows, chosen, home)


def _boundaries(use_case: UseCase, base: Snapshot, train: Split, test: Split) -> Boundaries:
    golden = load_golden(use_case)
    named = zip(train.texts, train.labels.tolist(), strict=True)
    return Boundaries(
        base={normalise(text): base.labels[label] for text, label in named},
        rows=len(train.texts),
        labels=base.labels,
        test=frozenset(normalise(text) for text in test.texts),
        golden=frozenset(normalise(text) for text in golden.texts) if golden else frozenset(),
    )


def _store(
    use_case: UseCase, base: Snapshot, train: Split, test: Split, rows: Sequence[FeedbackRow], chosen: Selection,
    home: Path,
) -> Snapshot:  # fmt: skip
    labels = (*base.labels, *chosen.new_labels)
    tables = {
        "train": _with_feedback(base, train, chosen.train, weighted=True),
        "test": _with_feedback(base, test, chosen.test, weighted=False),
    }
    digests = {split: _digest(table) for split, table in tables.items()}
    digest = digest_json({"labels": list(labels), "splits": digests})
    folder = home / "data" / use_case.name
    target = folder / short(digest)
    used = _parquet(_used(chosen))
    snapshot = Snapshot(
        use_case=use_case.name,
        digest=digest,
        labels=labels,
        splits={
            split: SplitInfo(path=Path(f"{split}.parquet"), rows=table.num_rows, digest=digests[split])
            for split, table in tables.items()
        },
        sources={"base": str(base.splits["train"].path.parent), "feedback": str(target / "feedback.parquet")},
        source_digests={"base": base.digest, "feedback": digest_bytes(used)},
        quarantined=len(chosen.set_aside),
        quarantine_file=Path("quarantine.jsonl"),
        parent=base.digest,
        new_labels=chosen.new_labels,
        feedback_report=Path("feedback_report.json"),
    )
    if not _intact(target, snapshot):
        report = _report(use_case, base, rows, chosen)
        lines = [canonical_json(dataclasses.asdict(item)) for item in chosen.set_aside]
        with atomic_dir(target) as part:
            for split, table in tables.items():
                (part / f"{split}.parquet").write_bytes(_parquet(table))
            (part / "feedback.parquet").write_bytes(used)
            write_text(part / "quarantine.jsonl", "".join(line + "\n" for line in lines))
            write_text(part / "feedback_report.json", report.model_dump_json(indent=1))
            write_text(part / SNAPSHOT, snapshot.model_dump_json(indent=1))
    return open_snapshot(target)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _with_feedback(base: Snapshot, split: Split, rows: Sequence[TrainingRow], *, weighted: bool) -> pa.Table:
    columns: dict[str, list] = {
        "text": [*split.texts, *(row.text for row in rows)],
        "label": [*(base.labels[label] for label in split.labels), *(row.label for row in rows)],
    }
    if weighted:
        columns["weight"] = [1.0] * len(split.texts) + [row.weight for row in rows]
    return pa.table(columns)


def _digest(table: pa.Table) -> str:
    columns = [table[name].to_pylist() for name in ("text", "label")]
    weights = np.array(table["weight"]) if "weight" in table.column_names else None
    return split_digest(zip(*columns, *weight_texts(weights), strict=True))


def _used(chosen: Selection) -> pa.Table:
    rows = [("train", row) for row in chosen.train] + [("test", row) for row in chosen.test]
    lines = [(split, row.weight, origin) for split, row in rows for origin in row.origins]
    return pa.table(
        {
            "split": [split for split, _, _ in lines],
            "text": [origin.text for _, _, origin in lines],
            "label": [origin.label for _, _, origin in lines],
            "weight": [weight for _, weight, _ in lines],
            "at": pa.array([origin.at for _, _, origin in lines], pa.timestamp("us", tz="UTC")),
            "source": [origin.source for _, _, origin in lines],
            "request_id": [origin.request_id for _, _, origin in lines],
            "index": pa.array([origin.index for _, _, origin in lines], pa.int32()),
        }
    )


def _reasons(chosen: Selection) -> dict[str, int]:
    return dict(sorted(Counter(item.reason for item in chosen.set_aside).items()))


def _report(use_case: UseCase, base: Snapshot, rows: Sequence[FeedbackRow], chosen: Selection) -> FeedbackReport:
    used = [*chosen.train, *chosen.test]
    by_source = Counter(source for row in used for source in row.sources)
    aside: dict[str, Counter[str]] = {}
    for item in chosen.set_aside:
        aside.setdefault(item.source, Counter())[item.reason] += 1
    failed = {item.source: item.reason for item in chosen.findings if item.failed}
    counts = Counter(row.source for row in rows)
    return FeedbackReport(
        use_case=use_case.name,
        base_digest=base.digest,
        rows=len(rows),
        train_rows=len(chosen.train),
        test_rows=len(chosen.test),
        in_base=chosen.in_base,
        set_aside=_reasons(chosen),
        new_labels={label: sum(row.label == label for row in used) for label in chosen.new_labels},
        weight_sum=round(sum(row.weight for row in chosen.train), 4),
        sources=tuple(
            SourceReport(
                source=source,
                rows=counts[source],
                used=by_source[source],
                quarantined=source in failed,
                set_aside=dict(sorted(aside.get(source, Counter()).items())),
                tests=tuple(f"{item.test}: {item.reason}" for item in chosen.findings if item.source == source),
            )
            for source in sorted(counts)
        ),
        quarantined_sources=failed,
    )


def _intact(folder: Path, wanted: Snapshot) -> bool:
    """Whether the folder holds this very snapshot, records included."""
    try:
        there = open_snapshot(folder)
        for split in there.splits:
            load_split(there, split)
        return there.source_digests == wanted.source_digests and there.quarantined == wanted.quarantined
    except (NotFoundError, IntegrityError):
        return False
