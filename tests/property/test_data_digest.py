"""The digest of a data set depends on its rows alone, and no row gets lost between source and snapshot."""

from hypothesis import given, settings
from hypothesis import strategies as st

from governance.rows import Row, Source, sort_rows
from leitstand.usecase import Expectations
from models.data_sources import read_source
from models.snapshots import split_digest
from tests.data_for_tests import WRITERS, as_parquet

LABELS = ("card", "refund")
# Surrogates are no text; a lone carriage return inside a quoted field is the csv writer's own trap.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
labels = st.sampled_from([*LABELS, "other", ""])
tables = st.lists(st.tuples(texts, labels), max_size=25)


def rows_of(data: bytes, ending: str) -> list[Row]:
    return read_source(data, split="train", uri=f"x{ending}", text_column="text", label_column="label").rows


def digest(rows: list[Row]) -> str:
    return split_digest((row.text or "", row.label or "") for row in rows)


@given(tables.filter(bool))
@settings(deadline=None)
def test_digest_does_not_depend_on_the_file_format(table: list[tuple[str, str]]) -> None:
    digests = {digest(rows_of(write(table), ending)) for ending, write in WRITERS.items()}
    assert digests == {split_digest(table)}


@given(tables.filter(bool), st.integers(1, 30))
@settings(deadline=None)
def test_digest_does_not_depend_on_row_groups(table: list[tuple[str, str]], size: int) -> None:
    assert digest(rows_of(as_parquet(table, row_group=size), ".parquet")) == split_digest(table)


@given(tables)
def test_digest_depends_on_the_order_of_rows(table: list[tuple[str, str]]) -> None:
    backwards = table[::-1]
    assert (split_digest(table) == split_digest(backwards)) == (table == backwards)


@given(texts, texts)
def test_digest_tells_where_text_ends_and_label_begins(text: str, label: str) -> None:
    assert split_digest([(text + "a", label)]) != split_digest([(text, "a" + label)])


@given(tables, tables)
def test_every_row_is_kept_quarantined_or_leaked_exactly_once(
    train: list[tuple[str, str]], test: list[tuple[str, str]]
) -> None:
    sources = [
        Source(name, name, "", (), [Row(number, *row) for number, row in enumerate(table, start=1)])
        for name, table in (("train", train), ("test", test))
    ]
    result = sort_rows(sources, LABELS, Expectations())
    for name, table in (("train", train), ("test", test)):
        found = [row.number for row in result.kept[name]]
        found += [item.number for item in (*result.quarantined, *result.leaked) if item.split == name]
        assert sorted(found) == list(range(1, len(table) + 1))


@given(tables, tables)
def test_sorting_again_what_was_kept_keeps_it_all(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> None:
    sources = [
        Source(name, name, "", (), [Row(number, *row) for number, row in enumerate(table, start=1)])
        for name, table in (("train", train), ("test", test))
    ]
    first = sort_rows(sources, LABELS, Expectations())
    again = sort_rows([Source(name, name, "", (), rows) for name, rows in first.kept.items()], LABELS, Expectations())
    assert again.kept == first.kept
    assert not again.quarantined
    assert not again.leaked
