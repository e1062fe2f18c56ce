"""Reading CSV, JSONL and Parquet: the same rows from each, and files that are not what they say are named."""

import json

import pytest

from governance.rows import Reason, Source
from leitstand.errors import ConfigurationError, NotFoundError, ValidationFailed
from leitstand.settings import S3Settings
from models.data_sources import read_bytes, read_labels, read_source
from tests.data_for_tests import WRITERS, as_csv, as_jsonl, as_parquet, use_case


def read(data: bytes, ending: str = ".csv") -> Source:
    return read_source(data, split="train", uri=f"train{ending}", text_column="text", label_column="label")


def pairs(source: Source) -> list[tuple[str | None, str | None]]:
    return [(row.text, row.label) for row in source.rows]


@pytest.mark.parametrize("ending", WRITERS)
def test_each_format_gives_texts_and_labels_as_written(ending: str) -> None:
    rows = [('He said "no",\nthen left', "card"), ("Grüße 🙂", "refund"), ("a\r\nb", "card"), ("x\u2028y", "card")]
    source = read(WRITERS[ending](rows), ending)
    assert pairs(source) == rows
    assert [row.number for row in source.rows] == [1, 2, 3, 4]
    assert source.columns == ("text", "label")


def test_a_byte_order_mark_is_no_part_of_the_first_column() -> None:
    assert read(b"\xef\xbb\xbf" + as_csv([("hello there", "card")])).columns == ("text", "label")


def test_labels_that_are_numbers_become_text() -> None:
    assert pairs(read(b'{"text": "hello", "label": 3}\n', ".jsonl")) == [("hello", "3")]


def test_a_text_that_is_no_string_is_marked() -> None:
    assert read(b'{"text": 12, "label": "card"}', ".jsonl").rows[0].defect is Reason.NOT_TEXT


@pytest.mark.parametrize("write", [as_csv, as_jsonl, as_parquet])
def test_missing_columns_leave_the_others_to_be_named(write) -> None:
    ending = {as_csv: ".csv", as_jsonl: ".jsonl", as_parquet: ".parquet"}[write]
    source = read(write([("hello", "card")], ("texts", "label")), ending)
    assert source.columns == ("texts", "label")
    assert source.rows == []


def test_bytes_that_are_not_utf8_are_located_and_kept_apart() -> None:
    source = read("text,label\nGrüße,card\nfine,card\n".encode("latin-1"))
    assert source.bad_byte == 13
    assert "\udcfc" in (source.rows[0].text or "")
    assert source.rows[1].text == "fine"


@pytest.mark.parametrize(
    ("data", "ending", "named"),
    [
        (b"", ".csv", "train.csv: the file is empty"),
        (b" \n\n", ".jsonl", "train.jsonl: the file is empty"),
        ("text,label\nhi,card\n".encode("utf-16"), ".csv", "train.csv: the file is UTF-16, not UTF-8 (byte offset 0)"),
        (b"text,label\na,card\nb,c,d\n", ".csv", "train.csv: line 3: 3 fields, but the header has 2"),
        (b'text,label\na,card\n"b,card\n', ".csv", "train.csv: line 3: not valid CSV"),
        (b"text,text,label\n", ".csv", "train.csv: line 1: columns stand twice: text"),
        (b'{"text": "a", "label": "card"}\n{"text"', ".jsonl", "train.jsonl: line 2: not valid JSON"),
        (b'["a", "card"]\n', ".jsonl", "train.jsonl: line 1: expected an object, found list"),
        (as_parquet([("a", "card")])[:-9], ".parquet", "train.parquet: not a valid Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_place(data: bytes, ending: str, named: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        read(data, ending)
    assert named in caught.value.message
    assert caught.value.failures
    assert caught.value.hint


def test_an_unknown_ending_names_those_that_are_known() -> None:
    with pytest.raises(ConfigurationError, match=r"\.csv, \.jsonl"):
        read(b"x", ".xlsx")


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.csv"):
        read_bytes(str(tmp_path / "nowhere.csv"), S3Settings())


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="gopher"):
        read_bytes("gopher://host/train.csv", S3Settings())


def test_labels_come_from_a_json_file_in_its_order(tmp_path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(["b", "a"]))
    assert read_labels(use_case(tmp_path, labels="labels.json"), S3Settings()) == ("b", "a")


@pytest.mark.parametrize("content", ['{"a": 1}', '["a", "a"]', "[]", '["a", ""]', "nonsense"])
def test_a_label_file_that_is_no_list_of_names_is_refused(tmp_path, content: str) -> None:
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"labels\.json"):
        read_labels(use_case(tmp_path, labels="labels.json"), S3Settings())
