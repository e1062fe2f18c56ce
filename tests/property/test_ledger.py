"""No change to a written ledger goes unnoticed: one entry altered, dropped or moved names the first bad one."""

import json
import shutil
import sqlite3
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leitstand.errors import IntegrityError
from models.ledger import SqliteLedger

COUNT = 6
START = datetime(2026, 11, 24, tzinfo=UTC)
FIELDS = (
    "at",
    "name",
    "alias",
    "version",
    "previous",
    "actor",
    "reason",
    "evidence",
    "previous_hash",
    "hash",
    "sequence",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    ledger = SqliteLedger(path)
    for number in range(1, COUNT + 1):
        ledger.append(
            name="support", alias="champion", version=number, previous=number - 1 or None, actor="ada",
            reason=f"reason {number}", at=START + timedelta(hours=number),
        )  # fmt: skip
    ledger.close()
    return path


def forge(written: Path, statements: list[tuple[str, tuple]]) -> SqliteLedger:
    """A copy of the ledger, changed by someone who drops the triggers first."""
    path = written.with_name(f"{uuid.uuid4().hex}.db")
    shutil.copyfile(written, path)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER entries_are_never_changed")
        connection.execute("DROP TRIGGER entries_are_never_removed")
        for statement, values in statements:
            connection.execute(statement, values)
    connection.close()
    return SqliteLedger(path)


def refused(ledger: SqliteLedger, sequence: int) -> None:
    with pytest.raises(IntegrityError, match=f"entry {sequence} "):
        ledger.verify()
    ledger.close()


def records(written: Path) -> list[dict]:
    with sqlite3.connect(written) as connection:
        rows = connection.execute("SELECT record FROM entries ORDER BY sequence").fetchall()
    connection.close()
    return [json.loads(record) for (record,) in rows]


@given(sequence=st.integers(1, COUNT), field=st.sampled_from(FIELDS), data=st.data())
def test_a_changed_field_is_found(written: Path, sequence: int, field: str, data: st.DataObject):
    record = records(written)[sequence - 1]
    old = record[field]
    new = data.draw(st.integers(0, 99) if isinstance(old, int) or old is None else st.text(max_size=9))
    if field == "at":
        new = (START + timedelta(seconds=data.draw(st.integers(1, 999)))).isoformat()
    if new == old:
        return
    record[field] = new
    change = ("UPDATE entries SET record = ? WHERE sequence = ?", (json.dumps(record), sequence))
    refused(forge(written, [change]), sequence)


@given(sequence=st.integers(1, COUNT), position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(written: Path, sequence: int, position: int, bit: int):
    raw = bytearray(json.dumps(records(written)[sequence - 1]).encode())
    raw[position % len(raw)] ^= 1 << bit
    change = ("UPDATE entries SET record = CAST(? AS TEXT) WHERE sequence = ?", (bytes(raw), sequence))
    refused(forge(written, [change]), sequence)


@given(sequence=st.integers(1, COUNT))
def test_a_removed_entry_is_found_even_at_the_end(written: Path, sequence: int):
    refused(forge(written, [("DELETE FROM entries WHERE sequence = ?", (sequence,))]), sequence)


@given(first=st.integers(1, COUNT), second=st.integers(1, COUNT))
def test_two_entries_exchanged_are_found(written: Path, first: int, second: int):
    if first == second:
        return
    rows = [json.dumps(record) for record in records(written)]
    change = "UPDATE entries SET record = ? WHERE sequence = ?"
    ledger = forge(written, [(change, (rows[first - 1], second)), (change, (rows[second - 1], first))])
    refused(ledger, min(first, second))


@given(hours=st.floats(0, COUNT + 2, allow_nan=False))
def test_the_holder_is_the_last_one_set_before_the_moment(written: Path, hours: float):
    ledger = SqliteLedger(written)
    expected = min(int(hours), COUNT) or None
    assert ledger.holder("support", "champion", START + timedelta(hours=hours)) == expected
    assert ledger.verify() == COUNT
    ledger.close()


@pytest.mark.parametrize("statement", ["UPDATE entries SET name = 'x'", "DELETE FROM entries"])
def test_the_database_refuses_changes(written: Path, statement: str):
    with sqlite3.connect(written) as connection, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()


def test_bytes_that_are_no_database_are_said_to_be_damaged(tmp_path: Path):
    (tmp_path / "ledger.db").write_bytes(b"not a database at all, but long enough to look at")
    with pytest.raises(IntegrityError, match=r"ledger\.db is damaged"):
        SqliteLedger(tmp_path / "ledger.db").entries()
