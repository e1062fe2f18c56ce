"""What a drift report is drawn from: samples, comparable columns, and notes on the rest."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leitstand.errors import ConfigurationError
from monitors.report_data import ReportData, prepare
from tests.report_windows_for_tests import window_table

REFERENCE = window_table(300, seed=1, feedback=1.0)


def replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def prepared(window: pa.Table, reference: pa.Table = REFERENCE, rows: int = 1000) -> ReportData:
    return prepare(reference, window, sample_rows=rows, seed=5)


@settings(max_examples=15, deadline=None)
@given(total=st.integers(200, 900), rows=st.integers(20, 150), seed=st.integers(0, 99))
def test_a_sample_has_the_asked_size_and_keeps_the_share_of_every_label(total: int, rows: int, seed: int):
    window = window_table(total, seed=seed, shift=0.5)
    data = prepare(REFERENCE, window, sample_rows=rows, seed=seed)
    assert len(data.window) == rows
    whole = window["label"].to_pandas().value_counts()
    drawn = data.window["label"].value_counts()
    for label, count in whole.items():
        assert abs(drawn.get(label, 0) - count * rows / total) < 1 + 1e-9


def test_the_same_seed_draws_the_same_rows_and_another_seed_others():
    window = window_table(800, seed=2)
    first, again, other = (prepare(REFERENCE, window, sample_rows=100, seed=seed) for seed in (1, 1, 2))
    assert first.window.equals(again.window)
    assert not first.window.equals(other.window)


def test_the_report_says_how_it_was_sampled_and_how_exact_it_is():
    data = prepared(window_table(800, seed=2, feedback=0.5), rows=200)
    assert "200 of the 800 rows of the window" in data.sampling and "200 of the 300 rows" in data.sampling
    text = " ".join(data.exactness)
    # sqrt(1 - 200/800) * 50 / sqrt(200), 50 / sqrt(200), and 1.358 * sqrt(400 / 40000)
    assert "3.06 points" in text and "3.54 points" in text and "0.136" in text
    assert "labelled rows" in text
    whole = prepared(window_table(100, seed=2))
    assert whole.sampling == "Computed on all 100 rows of the window and all 300 rows of the reference."


def test_columns_that_cannot_be_compared_are_left_out_with_a_reason():
    rows = 60
    window = window_table(rows, seed=2, shift=0.5)
    window = replaced(window, "digit_share", pa.array([float("nan")] * rows, pa.float32()))
    window = replaced(window, "upper_share", pa.array([float("inf")] * rows, pa.float32()))
    window = replaced(window, "words", pa.array([5] * 3 + [None] * (rows - 3), pa.int32()))
    window = window.drop_columns(["tokens"])
    data = prepared(window)
    left = {"digit_share", "upper_share", "words", "tokens"}
    assert not left & set(data.window.columns)
    notes = " ".join(data.notes)
    assert "“digit_share” has no value in the window" in notes and "“upper_share” has no value" in notes
    assert "“words” has only 3 values in the window" in notes and "“tokens” is missing in the window" in notes


def test_a_constant_is_compared_only_when_it_differs_from_the_reference():
    window = window_table(60, seed=2)
    same = replaced(window, "language", pa.array(["en"] * 60))
    other = replaced(window, "language", pa.array(["de"] * 60))
    assert "“language” is always “en”, in both: nothing to compare." in prepared(same).notes
    assert "language" in prepared(other).categories


def test_a_language_that_was_not_recognised_counts_as_unsure():
    window = replaced(window_table(60, seed=2), "language", pa.array(["en"] * 30 + [""] * 30))
    assert set(prepared(window).window["language"]) == {"en", "unsure"}


def test_embeddings_become_distance_and_principal_components_of_the_reference():
    data = prepared(window_table(300, seed=2, shift=1.0))
    assert [name for name in data.window.columns if name.startswith("embedding")] == [
        "embedding distance", "embedding PC1", "embedding PC2", "embedding PC3", "embedding PC4",
    ]  # fmt: skip
    assert abs(data.window["embedding distance"].mean() - data.reference["embedding distance"].mean()) > 0.02
    components = data.reference[["embedding PC1", "embedding PC2"]].to_numpy()
    assert components.mean(axis=0) == pytest.approx([0, 0], abs=1e-4)
    assert components[:, 0].var() > components[:, 1].var()


@pytest.mark.parametrize(
    ("window", "note"),
    [
        (window_table(60, seed=2, with_embeddings=False), "The window has too few embeddings"),
        (window_table(60, seed=2, dimensions=8), "16 dimensions in the reference and 8 in the window"),
        (window_table(60, seed=2).drop_columns(["embedding"]), "The window has too few embeddings"),
    ],
)
def test_embeddings_that_cannot_be_compared_are_left_out_with_a_reason(window: pa.Table, note: str):
    data = prepared(window)
    assert "embedding" not in data.groups
    assert any(note in each for each in data.notes)


def test_rows_with_a_damaged_embedding_are_skipped_and_the_others_used():
    window = window_table(60, seed=2)
    damaged = window["embedding"].to_pylist()
    damaged[:3] = [b"\x01", b"", None]
    damaged[3] = np.full(16, np.nan, dtype="<f2").tobytes()
    data = prepared(replaced(window, "embedding", pa.array(damaged, pa.binary())))
    assert int(data.window["embedding distance"].isna().sum()) == 4


def test_a_reference_of_another_schema_is_an_error_that_names_every_column():
    reference = REFERENCE.drop_columns(["label"])
    reference = replaced(reference, "score", pa.array(["high"] * 300))
    with pytest.raises(ConfigurationError) as caught:
        prepared(window_table(60), reference)
    assert "reference.label is missing" in str(caught.value)
    assert "reference.score is string, not a number" in str(caught.value)
    assert "Fix:" in str(caught.value)


def test_an_empty_reference_is_an_error_and_an_empty_window_is_not():
    with pytest.raises(ConfigurationError, match="no rows"):
        prepared(window_table(60), window_table(0))
    data = prepared(window_table(0))
    assert len(data.window) == 0 and data.labelled_rows == 0 and data.exactness == ()


def test_only_rows_with_a_feedback_label_enter_the_quality_section():
    data = prepared(window_table(200, seed=2, feedback=0.3))
    assert 30 < data.labelled_rows < 90 and len(data.labelled_window) == data.labelled_rows
    assert set(data.labelled_window.columns) == {"label", "feedback_label"}
    without = window_table(50).drop_columns(["feedback_label", "rating", "feedback_source", "feedback_at"])
    assert prepared(without).labelled_rows == 0


def test_labels_from_outside_carry_no_markup_and_cannot_crowd_the_page():
    rows = 200
    window = window_table(rows, seed=2)
    told = ["<b>x</b>\n" * 30] * 2 + [f"made up {number}" for number in range(rows - 2)]
    data = prepared(replaced(window, "feedback_label", pa.array(told)))
    shown = set(data.labelled_window["feedback_label"])
    assert len(shown) == 31 and "(another label)" in shown
    assert max(map(len, shown)) <= 80 and not any(c in text for text in shown for c in "<>&\n")
