"""A sketch of parts is the sketch of the whole, in any order and grouping."""

from functools import reduce
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leitstand.errors import ValidationFailed
from monitors.features import Columns, FeaturePlan
from monitors.sketches import Sketch, content_hash, decode_float16, merge
from tests.windows_for_tests import LABELS, WIDTH, packed, window

ROWS = 240
TABLE = window(np.random.default_rng(4), ROWS, feedback=0.3)
PLAN = FeaturePlan.fit(
    window(np.random.default_rng(5), 300), window(np.random.default_rng(6), 300), Columns(), LABELS, seed=1
)
SMALL = FeaturePlan(**{**{f: getattr(PLAN, f) for f in PLAN.__dataclass_fields__}, "sample_rows": 20})
quick = settings(max_examples=25, deadline=None)


def _same(a: Sketch, b: Sketch) -> None:
    assert a.rows == b.rows and (a.first, a.last) == (b.first, b.last)
    assert a.sums == pytest.approx(b.sums, rel=1e-4, abs=1e-2)
    assert a.extras == pytest.approx(b.extras, rel=1e-6, abs=1e-6)
    assert np.array_equal(a.sample.keys, b.sample.keys)
    assert a.sample.rows == pytest.approx(b.sample.rows, rel=1e-3, abs=1e-3, nan_ok=True)


@quick
@given(st.lists(st.integers(0, ROWS), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_merged_parts_are_the_whole(cuts, random):
    edges = [0, *sorted(cuts), ROWS]
    parts = [SMALL.sketch(TABLE.slice(a, b - a)) for a, b in pairwise(edges)]
    random.shuffle(parts)
    _same(reduce(merge, parts, SMALL.empty()), SMALL.sketch(TABLE))


@quick
@given(st.integers(0, ROWS), st.integers(0, ROWS))
def test_merging_is_commutative_and_associative(one, other):
    low, high = sorted((one, other))
    a, b, c = (SMALL.sketch(TABLE.slice(i, j - i)) for i, j in ((0, low), (low, high), (high, ROWS)))
    _same(merge(a, b), merge(b, a))
    _same(merge(merge(a, b), c), merge(a, merge(b, c)))


@quick
@given(st.permutations(range(12)))
def test_the_order_of_rows_does_not_matter(order):
    part = TABLE.slice(0, 12)
    _same(SMALL.sketch(part.take(pa.array(order))), SMALL.sketch(part))


def test_the_sketch_is_the_sum_of_the_rows_features():
    assert PLAN.matrix(TABLE).sum(axis=0, dtype=float) == pytest.approx(PLAN.sketch(TABLE).sums, rel=1e-4, abs=1e-2)


def test_the_sample_is_uniform_over_rows():
    keys = content_hash(np.random.default_rng(0).normal(size=(20_000, 6)).astype(np.float16), seed=3)
    counts = np.histogram(keys.astype(float) / 2.0**64, bins=20, range=(0, 1))[0]
    assert (((counts - 1000) ** 2) / 1000).sum() < 50  # chi-square with 19 degrees of freedom


def test_vectors_of_any_offset_and_with_holes_are_read():
    rows = np.arange(20, dtype=np.float16).reshape(5, 4)
    column = pa.concat_arrays([packed(rows[:2]), pa.array([b"", None], pa.binary()), packed(rows[2:])]).slice(1)
    present, vectors = decode_float16(column, 4, "embedding")
    assert present.tolist() == [True, False, False, True, True, True]
    assert np.array_equal(vectors, rows[1:])
    with pytest.raises(ValidationFailed, match="4 float16 numbers, the reference 3"):
        decode_float16(column, 3, "embedding")
    with pytest.raises(ValidationFailed):
        decode_float16(pa.array([b"abc"], pa.binary()), None, "embedding")


def test_a_vector_that_holds_nan_counts_as_none():
    broken = np.zeros((3, WIDTH))
    broken[1, 2] = np.nan
    broken[2, 0] = np.inf
    table = TABLE.slice(0, 3).set_column(TABLE.schema.get_field_index("embedding"), "embedding", packed(broken))
    sketch = PLAN.sketch(table)
    assert sketch.sums[PLAN.slices["embedding:rows"]] == 1
    assert np.isfinite(sketch.sums).all()
