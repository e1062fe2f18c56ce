"""Exports records as JSON lines or Parquet, in the clear only where that is asked for."""

import itertools
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import AwareDatetime

from governance.audit.reading import Reader, opened_json
from governance.audit.records import InferenceRecord
from leitstand.errors import MissingExtraError
from leitstand.files import atomic_path

__all__ = ["export", "row_of"]

BATCH = 10_000
NESTED = ("parameters", "sources", "verdicts", "who", "input", "output")
MOMENTS = ("started_at", "ended_at")
SEALED = {"who", "input", "output"}


def export(
    reader: Reader, records: Iterable[InferenceRecord], target: Path, kind: Literal["jsonl", "parquet"], *, clear: bool
) -> int:
    """Writes the records into `target`, atomically, and returns their number.

    Args:
        reader: Decrypts, when `clear`.
        records: What to export.
        target: The file.
        kind: JSON lines, or Parquet with one column per field; nested ones are JSON there.
        clear: Whether texts are written in the clear; erased ones are null, and ``erased`` says so.

    Raises:
        IntegrityError: A record is not readable, or not what was recorded.
        MissingExtraError: Parquet needs pyarrow.
    """
    rows = (row_of(reader, record, clear=clear) for record in records)
    with atomic_path(target) as part:
        return _jsonl(rows, part) if kind == "jsonl" else _parquet(rows, part)


def row_of(reader: Reader, record: InferenceRecord, *, clear: bool) -> dict[str, Any]:
    """A record as JSON can hold it; with `clear`, its texts instead of ciphertexts."""
    row = {"id": record.id, **record.model_dump(mode="json", by_alias=True)}
    if clear:
        opened = reader.open(record)
        row |= {"erased": opened.erased} | {name: opened_json(getattr(opened, name)) for name in SEALED}
    return row


def _jsonl(rows: Iterable[dict[str, Any]], target: Path) -> int:
    count = 0
    with target.open("wb") as file:
        for row in rows:
            file.write(orjson.dumps(row) + b"\n")
            count += 1
    return count


def _parquet(rows: Iterator[dict[str, Any]], target: Path) -> int:
    try:
        import pyarrow as pa  # noqa: PLC0415 -- only this format needs it
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("Parquet needs pyarrow", hint="pip install 'leitstand[governance]'") from error
    schema, count = _schema(pa), 0
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        while batch := list(itertools.islice(rows, BATCH)):
            writer.write_table(pa.Table.from_pylist([_flat(row) for row in batch], schema=schema))
            count += len(batch)
    return count


def _schema(pa: Any) -> Any:
    moment, whole, text = pa.timestamp("us", tz="UTC"), pa.int64(), pa.string()
    kinds = {int: whole, Literal[1]: whole, AwareDatetime: moment}
    fields = [(name, kinds.get(field.annotation, text)) for name, field in InferenceRecord.model_fields.items()]
    return pa.schema([("id", text), *fields, ("erased", pa.bool_())])


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    nested = {name: orjson.dumps(row[name]).decode() for name in NESTED if row[name] is not None}
    moments = {name: datetime.fromisoformat(row[name]) for name in MOMENTS}
    return {"erased": None} | row | nested | moments
