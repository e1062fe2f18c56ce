"""What a window of any size leaves in memory: sums, counts and a small sample, all of which merge.

A `Sketch` of 10 million rows is as large as one of a hundred. ``merge(a, b)`` is the sketch of both windows
together, in any order and grouping (sums of reals up to rounding), so batches, processes and hours combine. The
sample keeps the rows with the smallest hash of their own content (bottom-k; Cohen & Kaplan 2007, PODC): which
rows are kept depends on the rows alone, and rows with equal embeddings are kept or left out together.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is imported)

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from leitstand.errors import ValidationFailed

__all__ = ["Sample", "Sketch", "content_hash", "decode_float16", "merge"]

HALF_BYTES = 2
MIX = np.uint64(0x9E3779B97F4A7C15)
MIX2 = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class Sample:
    """At most `size` rows, those with the smallest keys of all that were seen.

    Attributes:
        size: Most rows.
        keys: (n,) rising; uniform over the 64-bit numbers.
        rows: (n, d) float32.
    """

    size: int
    keys: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.float32]

    @classmethod
    def of(cls, size: int, keys: npt.NDArray[np.uint64], rows: npt.NDArray[np.float32]) -> "Sample":
        """The sample of these rows. O(n log n)."""
        order = np.argsort(keys, kind="stable")[:size]
        return cls(size, keys[order], rows[order])

    def merge(self, other: "Sample") -> "Sample":
        """The sample of all rows that either side saw."""
        keys, rows = np.concatenate([self.keys, other.keys]), np.concatenate([self.rows, other.rows])
        return Sample.of(self.size, keys, rows)


@dataclass(frozen=True)
class Sketch:
    """Everything that is kept of a window.

    Attributes:
        rows: Rows seen.
        sums: (F,) sums over rows of the features that `monitors.features.FeaturePlan` lays out.
        extras: (E,) sums that no detector uses: scores, late labels, latency.
        sample: Rows for what sums cannot do, such as a classifier.
        first: Earliest time, None when the rows have none.
        last: Latest time.
    """

    rows: int
    sums: npt.NDArray[np.float64]
    extras: npt.NDArray[np.float64]
    sample: Sample
    first: datetime | None = None
    last: datetime | None = None


def merge(a: Sketch, b: Sketch) -> Sketch:
    """The sketch of both windows together. O(F + sample)."""
    firsts = [time for time in (a.first, b.first) if time is not None]
    lasts = [time for time in (a.last, b.last) if time is not None]
    return Sketch(
        rows=a.rows + b.rows, sums=a.sums + b.sums, extras=a.extras + b.extras, sample=a.sample.merge(b.sample),
        first=min(firsts, default=None), last=max(lasts, default=None),
    )  # fmt: skip


def content_hash(rows: npt.NDArray[np.float16], seed: int) -> npt.NDArray[np.uint64]:
    """A 64-bit hash per row, from its bytes and the seed alone (multilinear, then mixed). O(n d)."""
    n, width = rows.shape
    pad = -width % 4
    words = np.pad(rows, ((0, 0), (0, pad))) if pad else np.ascontiguousarray(rows)
    words = words.view(np.uint64).reshape(n, (width + pad) // 4)
    factors = np.random.default_rng(seed).integers(0, 2**64, words.shape[1], np.uint64) | np.uint64(1)
    mixed = (words ^ (words >> np.uint64(29))) * factors
    total = mixed.sum(axis=1, dtype=np.uint64)
    total ^= total >> np.uint64(31)
    total *= MIX
    total ^= total >> np.uint64(27)
    total *= MIX2
    return total ^ (total >> np.uint64(31))


def decode_float16(
    column: pa.Array, width: int | None, name: str
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float16]]:
    """Rows that hold a vector, and their vectors (present, width), without copying when all do.

    Args:
        column: Little-endian float16 bytes per row; empty or null when there is no vector.
        width: Expected dimensions; None takes those found.
        name: Of the column, for the message.

    Raises:
        ValidationFailed: Vectors have another width, or several widths.
    """
    array = column.cast(pa.large_binary())
    lengths = pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False)
    present = lengths > 0
    if not present.any():
        return present, np.zeros((0, width or 0), np.float16)
    found = np.unique(lengths[present])
    if len(found) > 1 or found[0] % HALF_BYTES or (width is not None and found[0] != width * HALF_BYTES):
        held = ", ".join(str(size / HALF_BYTES).removesuffix(".0") for size in found[:5])
        raise ValidationFailed(
            f"Column '{name}' holds vectors of {held} float16 numbers, the reference {width or 'one width'}",
            failures=[name], hint="fit the detectors on a reference of the model version that answered this window",
        )  # fmt: skip
    if not present.all():
        array = array.filter(pa.array(present))
    _, offsets, data = array.buffers()
    start = np.frombuffer(offsets, np.int64)[array.offset]
    values = np.frombuffer(data, "<f2", count=len(array) * int(found[0]) // HALF_BYTES, offset=int(start))
    return present, values.reshape(len(array), -1)
