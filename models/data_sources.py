"""Reads labelled texts from CSV, JSONL or Parquet, from a path or ``s3://``.

Gives every row with its number, text and label, also the bad ones: judging rows is the part of
`governance.rows`. Only a file that cannot be read as what its name says raises. The same rows give
the same values in each format: a missing text or label is None or an empty string, a label that is a
number becomes its decimal text.
"""

import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from governance.rows import Reason, Row, Source
from leitstand.errors import ConfigurationError, NotFoundError, ValidationFailed, bounded
from leitstand.files import digest_bytes
from leitstand.settings import S3Settings
from leitstand.usecase import UseCase

__all__ = ["read_bytes", "read_labels", "read_source"]

MAX_FIELD_BYTES = 2**31 - 1
_WIDE_ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_BOM = b"\xef\xbb\xbf"

Parsed = tuple[tuple[str, ...], list[Row]]


def read_bytes(uri: str, s3: S3Settings) -> bytes:
    """The bytes of a local file or an ``s3://`` object.

    Raises:
        NotFoundError: There is no such file or object.
        ConfigurationError: The URI has a scheme that is not known.
        BackendError: The object store failed.
    """
    scheme, separator, rest = uri.partition("://")
    if separator and scheme == "s3":
        from models.blobs.fetch import fetch_file  # noqa: PLC0415  -- boto3 is slow to import and not always needed

        with tempfile.TemporaryDirectory() as folder:
            return fetch_file(uri, Path(folder) / "source", s3).read_bytes()
    if separator and scheme != "file":
        raise ConfigurationError(f"{uri}: cannot read from '{scheme}://'", hint="write a path or an s3:// URI")
    path = Path(rest if separator else uri)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"No data file {path}", hint="check data.train and data.test of the use case") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", hint="check path and rights") from error


def read_labels(use_case: UseCase, s3: S3Settings) -> tuple[str, ...]:
    """The label set, in the order that gives each label its index.

    Raises:
        ConfigurationError: The file holds no JSON list of different, non-empty strings.
    """
    spec = use_case.data.labels
    if not isinstance(spec, str):
        return _checked_labels(list(spec), "data.labels")
    uri = use_case.resolve(spec)
    try:
        return _checked_labels(json.loads(read_bytes(uri, s3)), uri)
    except ValueError as error:
        raise ConfigurationError(f"{uri} is not JSON: {error}", hint='write a list like ["card", "refund"]') from error


def _checked_labels(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item.strip() for item in value):
        raise ConfigurationError(f"{where}: expected a list of label names", hint='write ["card", "refund"]')
    repeated = sorted({item for item in value if value.count(item) > 1})
    if repeated:
        raise ConfigurationError(f"{where}: labels stand twice: {bounded(repeated)}", hint="keep each once")
    return tuple(value)


def read_source(data: bytes, *, split: str, uri: str, text_column: str, label_column: str) -> Source:
    """Parses the bytes of one source file by the ending of its name.

    Columns that are missing are not an error here: `Source.columns` lists those there are, and rows
    are left out.

    Raises:
        ConfigurationError: The ending is none of ``.csv``, ``.jsonl``, ``.ndjson``, ``.parquet``.
        ValidationFailed: The file is empty, damaged, ragged, or in another encoding; file and line or byte are named.
    """
    ending = Path(uri).suffix.lower()
    if ending not in _READERS:
        raise ConfigurationError(
            f"{uri}: cannot tell the format from '{ending}'", hint=f"use a file ending in {', '.join(_READERS)}"
        )
    if not data.removeprefix(_BOM).strip():
        raise _unreadable(uri, "the file is empty", "check the export that wrote it")
    digest, bad_byte = digest_bytes(data), None
    if ending != ".parquet":
        _reject_wide_encoding(data, uri)
        bad_byte = _first_bad_byte(data)
        data = data.removeprefix(_BOM)
    columns, rows = _READERS[ending](data, uri, text_column, label_column)
    return Source(split, uri, digest, columns, rows, bad_byte)


def _unreadable(uri: str, problem: str, hint: str) -> ValidationFailed:
    message = f"{uri}: {problem}"
    return ValidationFailed(message, failures=[message], hint=hint)


def _reject_wide_encoding(data: bytes, uri: str) -> None:
    for mark, name in _WIDE_ENCODINGS:
        if data.startswith(mark):
            raise _unreadable(uri, f"the file is {name}, not UTF-8 (byte offset 0)", "save the file as UTF-8")


def _first_bad_byte(data: bytes) -> int | None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


def _read_csv(data: bytes, uri: str, text_column: str, label_column: str) -> Parsed:
    csv.field_size_limit(MAX_FIELD_BYTES)  # the default of 128 kB would refuse a file for one long text
    stream = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
    reader = csv.reader(stream, strict=True)
    lines = _lines(reader, uri)
    columns = tuple(name.strip() for name in next(lines, []))
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise _unreadable(uri, f"line 1: columns stand twice: {bounded(repeated)}", "rename one of them")
    if text_column not in columns or label_column not in columns:
        return columns, []
    text, label = columns.index(text_column), columns.index(label_column)
    rows: list[Row] = []
    for cells in lines:
        if not cells:
            continue
        if len(cells) != len(columns):
            problem = f"line {reader.line_num}: {len(cells)} fields, but the header has {len(columns)}"
            raise _unreadable(uri, problem, "quote texts that hold commas, quotes or line breaks")
        rows.append(Row(len(rows) + 1, cells[text], cells[label]))
    return columns, rows


def _lines(reader: Any, uri: str) -> Iterator[list[str]]:
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = "check the quotes around this line"
            raise _unreadable(uri, f"line {reader.line_num}: not valid CSV: {error}", hint) from error


def _read_jsonl(data: bytes, uri: str, text_column: str, label_column: str) -> Parsed:
    columns: dict[str, None] = {}
    rows: list[Row] = []
    for number, line in enumerate(data.split(b"\n"), start=1):  # str.splitlines would also split at U+2028
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8", "surrogateescape"))
        except ValueError as error:
            raise _unreadable(uri, f"line {number}: not valid JSON: {error}", "write one object per line") from error
        if not isinstance(record, dict):
            found = type(record).__name__
            raise _unreadable(uri, f"line {number}: expected an object, found {found}", "write one object per line")
        columns.update(dict.fromkeys(record))
        rows.append(_row(len(rows) + 1, record.get(text_column), record.get(label_column)))
    if text_column not in columns or label_column not in columns:
        rows = []
    return tuple(columns), rows


def _read_parquet(data: bytes, uri: str, text_column: str, label_column: str) -> Parsed:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        columns = tuple(file.schema_arrow.names)
        if text_column not in columns or label_column not in columns:
            return columns, []
        table = file.read(columns=[text_column, label_column])
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(uri, f"not a valid Parquet file: {error}", "write the file again") from error
    pairs = zip(_values(table.column(text_column)), _values(table.column(label_column)), strict=True)
    return columns, [_row(number, text, label) for number, (text, label) in enumerate(pairs, start=1)]


def _values(column: Any) -> Sequence[Any]:
    """Python values of a column; strings by way of bytes, since Arrow does not check that they are UTF-8."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _values(column.cast(kind.value_type))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = column.cast(pa.large_binary() if pa.types.is_large_string(kind) else pa.binary())
    values = column.to_pylist()
    return [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value for value in values]


def _row(number: int, text: Any, label: Any) -> Row:
    if label is not None and not isinstance(label, str):
        label = json.dumps(label, default=str)
    if text is not None and not isinstance(text, str):
        return Row(number, json.dumps(text, default=str), label, Reason.NOT_TEXT)
    return Row(number, text, label)


_READERS: dict[str, Callable[[bytes, str, str, str], Parsed]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
