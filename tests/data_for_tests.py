"""Small data sets and use cases for tests of data, validation and lineage."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leitstand.usecase import UseCase

LABELS = ("card", "refund")
Pair = tuple[str | None, str | None]

SUBJECTS = ("my new card", "the old card", "this payment", "that transfer", "the second account")
QUESTIONS = (
    "When will {} be ready for me to use?", "Why has {} not been delivered yet?", "Could you please help me with {}?",
    "What should I do about {} today?", "Who can I speak to about {}?",
)  # fmt: skip


def sound_rows(count: int = 20, start: int = 0) -> list[Pair]:
    """Different English sentences with alternating labels; other `start`, other sentences."""
    rows: list[Pair] = []
    for number in range(start, start + count):
        question, subject = QUESTIONS[number % 5], SUBJECTS[number // 5 % 5]
        rows.append((f"{question.format(subject)} I asked the bank about it in week {number}.", LABELS[number % 2]))
    return rows


def as_csv(rows: Iterable[Pair], columns: tuple[str, str] = ("text", "label")) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(columns)
    writer.writerows([[value or "" for value in row] for row in rows])
    return stream.getvalue().encode("utf-8", "surrogateescape")


def as_jsonl(rows: Iterable[Pair], columns: tuple[str, str] = ("text", "label")) -> bytes:
    lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows]
    return "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")


def as_parquet(rows: Iterable[Pair], columns: tuple[str, str] = ("text", "label"), row_group: int = 7) -> bytes:
    table = [list(values) for values in zip(*rows, strict=True)] or [[], []]
    sink = pa.BufferOutputStream()
    arrays = dict(zip(columns, (pa.array(values, pa.string()) for values in table), strict=True))
    pq.write_table(pa.table(arrays), sink, row_group_size=row_group)
    return sink.getvalue().to_pybytes()


WRITERS = {".csv": as_csv, ".jsonl": as_jsonl, ".parquet": as_parquet}


def use_case(folder: Path, **data: Any) -> UseCase:
    """A use case whose limits allow small sets; `data` overrides its data section."""
    limits: Mapping[str, Any] = {"min_rows": 5, "min_rows_per_label": 2, "max_quarantined": 0.2, "max_leakage": 0.1}
    section = {
        "train": "train.csv",
        "test": "test.csv",
        "labels": list(LABELS),
        "licence": "CC0-1.0",
        "expectations": limits | data.pop("expectations", {}),
    }
    return UseCase.model_validate(
        {
            "schema_version": 1,
            "name": "tiny",
            "title": "Tiny",
            "owner": "tests",
            "task": "text-classification",
            "data": section | data,
            "model": {"base": "package:none"},
            "training": {"default_profile": "quick", "profiles": {"quick": {"method": "frozen"}}},
            "gates": [{"metric": "accuracy", "floor": 0.5}],
            "folder": folder,
        }
    )


def write_data(
    folder: Path, train: Sequence[Pair] | bytes, test: Sequence[Pair] | bytes | None = None, ending: str = ".csv"
) -> None:
    """Writes both splits; rows in the format of `ending`, bytes as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    write = WRITERS[ending]
    for name, rows in (("train", train), ("test", sound_rows(10, start=100) if test is None else test)):
        (folder / f"{name}{ending}").write_bytes(rows if isinstance(rows, bytes) else write(rows))
