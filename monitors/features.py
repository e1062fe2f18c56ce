"""Rows of the inference log as sums: which cells and features a window is reduced to.

A `FeaturePlan` is fitted on one part of the reference. Every detector of `monitors.family` is a function of the
summed features, so one pass over the record batches is enough, sums merge, and a resampled window is a weighted
sum of the reference's feature rows. `sketch` and `matrix` give the same features, summed and per row.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is imported)

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from leitstand.errors import ConfigurationError, ValidationFailed, bounded
from monitors.drift import Bins, Categories
from monitors.embedding_drift import RandomFeatures, Whitening, median_bandwidth
from monitors.sketches import Sample, Sketch, content_hash, decode_float16

__all__ = ["Columns", "EmbeddingPlan", "FeaturePlan"]

FloatArray = npt.NDArray[np.floating]

BINS = 20
MIN_SHARE = 1e-3
WHITENED = 64
MOMENTS = 16
SAMPLE_ROWS = 2000
LATENCY_MS = np.geomspace(0.1, 1e6, 253)  # neighbours lie 6.6 % apart


@dataclass(frozen=True)
class Columns:
    """Which columns are watched, by what they say. The default is the inference log's.

    Attributes:
        numeric: Numbers; NaN and null have a cell.
        categorical: Texts or booleans; null has a cell.
        sampled: Those of `categorical` that are empty where nobody looked: empty and null rows are left out.
        prediction: Those columns that describe the answer, not the input.
        embedding: Column of float16 vectors, or None.
        probabilities: Column of float16 vectors over the labels, or None.
        score: Column with the calibrated score of the answer, or None.
        label: Column with the predicted label.
    """

    numeric: tuple[str, ...] = (
        "score", "characters", "words", "tokens", "digit_share", "upper_share", "non_ascii_share",
    )  # fmt: skip
    categorical: tuple[str, ...] = ("label", "language", "abstain")
    sampled: tuple[str, ...] = ("language",)
    prediction: tuple[str, ...] = ("score", "label", "abstain")
    embedding: str | None = "embedding"
    probabilities: str | None = "probabilities"
    score: str | None = "score"
    label: str | None = "label"

    @property
    def required(self) -> tuple[str, ...]:
        """Every column that must be there."""
        optional = (self.embedding, self.probabilities, self.score)
        return tuple(dict.fromkeys([*self.numeric, *self.categorical, *(name for name in optional if name)]))


@dataclass(frozen=True)
class EmbeddingPlan:
    """What embeddings are reduced to.

    Attributes:
        width: Dimensions of an embedding.
        whitening: Fitted on another part of the reference than the one windows are compared with.
        random: Random Fourier features with the median bandwidth of the reference.
        distances: Cells of the out-of-distribution score, by its quantiles on the compared part.
    """

    width: int
    whitening: Whitening
    random: RandomFeatures
    distances: Bins

    @property
    def moments(self) -> int:
        """How many whitened coordinates have their second moments summed (for the Fréchet distance)."""
        return min(MOMENTS, self.whitening.projection.shape[1])

    @classmethod
    def fit(cls, rows: FloatArray, compared: FloatArray, seed: int) -> "EmbeddingPlan":
        """From (n, d) embeddings to fit on and others to take the distances' quantiles from."""
        whitening = Whitening.fit(rows, WHITENED)
        random = RandomFeatures.draw(rows.shape[1], median_bandwidth(rows, seed=seed), seed=seed)
        return cls(rows.shape[1], whitening, random, Bins.fit(whitening.distance(compared), BINS))


@dataclass(frozen=True)
class FeaturePlan:
    """Layout of the features, fitted on the reference.

    Attributes:
        columns: The watched columns.
        labels: The model's labels, in its order.
        bins: Cells per numeric column.
        categories: Cells per categorical column.
        embedding: None when the reference has no embeddings.
        probabilities: Whether the reference has them.
        seed: Of the sample.
    """

    columns: Columns
    labels: tuple[str, ...]
    bins: dict[str, Bins]
    categories: dict[str, Categories]
    embedding: EmbeddingPlan | None
    probabilities: bool
    seed: int = 0
    sample_rows: int = field(default=SAMPLE_ROWS)

    @classmethod
    def fit(
        cls, fitted: pa.Table, compared: pa.Table, columns: Columns, labels: tuple[str, ...], seed: int
    ) -> "FeaturePlan":
        """Cells and projections from `fitted`; only the out-of-distribution quantiles come from `compared`."""
        embedding = None
        if columns.embedding:
            rows, others = (_vectors(part, columns.embedding, None)[1] for part in (fitted, compared))
            if min(len(rows), len(others)) >= 2 * BINS:
                embedding = EmbeddingPlan.fit(rows, others, seed)
        probabilities = bool(columns.probabilities) and bool(
            len(_vectors(compared, columns.probabilities or "", len(labels))[1])
        )
        return cls(
            columns=columns, labels=labels, embedding=embedding, probabilities=probabilities, seed=seed,
            bins={name: Bins.fit(_numbers(fitted[name]), BINS) for name in columns.numeric},
            categories={name: _categories(fitted[name], name, columns) for name in columns.categorical},
        )  # fmt: skip

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each group of features lies in `Sketch.sums`."""
        sizes = {f"cells:{name}": bins.cells for name, bins in self.bins.items()}
        sizes |= {f"cells:{name}": categories.cells for name, categories in self.categories.items()}
        if self.embedding:
            moments = self.embedding.moments
            sizes |= {
                "embedding:rows": 1, "embedding:mean": self.embedding.width,
                "embedding:random": 2 * self.embedding.random.frequencies.shape[1], "embedding:white": moments,
                "embedding:moments": moments * (moments + 1) // 2, "cells:distance": self.embedding.distances.cells,
            }  # fmt: skip
        if self.probabilities:
            sizes |= {"probabilities:rows": 1, "probabilities:mean": len(self.labels)}
        if self.columns.score:
            sizes |= {"score:rows": 1, "score:mean": 1}
        return _laid_out(sizes)

    @property
    def width(self) -> int:
        """Features per row."""
        return max((part.stop for part in self.slices.values()), default=0)

    @cached_property
    def extra_slices(self) -> dict[str, slice]:
        """Where the parts of `Sketch.extras` lie."""
        cells = self.bins[self.columns.score].cells if self.columns.score in self.bins else 1
        sizes = {"variance": 1, "rows": cells, "labelled": cells, "right": cells, "latency": len(LATENCY_MS) + 1}
        return _laid_out(sizes)

    def check(self, schema: pa.Schema) -> None:
        """Raises ValidationFailed when a watched column is missing or of another kind."""
        failures = [f"{name}: missing" for name in self.columns.required if name not in schema.names]
        for name in self.columns.numeric:
            if name in schema.names and not _is_number(schema.field(name).type):
                failures.append(f"{name}: {schema.field(name).type}, expected a number")
        if failures:
            raise ValidationFailed(
                f"The window does not have the reference's columns: {bounded(failures)}",
                failures=failures, hint="read windows with `monitors.windows.read_window`, of this use case's log",
            )  # fmt: skip

    def empty(self) -> Sketch:
        """The sketch of no rows."""
        parts = self.embedding.whitening.projection.shape[1] + 1 if self.embedding else 0
        extras = self.extra_slices["latency"].stop
        width = parts + (len(self.labels) if self.probabilities else 0)
        sample = Sample(self.sample_rows, np.zeros(0, np.uint64), np.zeros((0, width), np.float32))
        return Sketch(0, np.zeros(self.width), np.zeros(extras), sample)

    def sketch(self, batch: pa.RecordBatch | pa.Table) -> Sketch:
        """The sketch of one record batch; O(rows × features), memory for one batch."""
        sums = np.zeros(self.width)
        for key, kind, _, values in self._features(batch):
            part = self.slices[key]
            if kind == "cells":
                sums[part] = np.bincount(values, minlength=part.stop - part.start)
            elif kind == "moments":
                sums[part] = (values.T @ values)[np.triu_indices(values.shape[1])]
            else:
                sums[part] = values.sum(axis=0, dtype=np.float64)
        times = batch["at"] if "at" in batch.schema.names and batch.num_rows else None
        span = pc.min_max(times).as_py() if times is not None else {"min": None, "max": None}
        return Sketch(batch.num_rows, sums, self._extras(batch), self.sample(batch), span["min"], span["max"])

    def matrix(self, table: pa.Table) -> npt.NDArray[np.float32]:
        """(rows, features) whose column sums are the sketch's `sums`."""
        result = np.zeros((table.num_rows, self.width), np.float32)
        for key, kind, rows, values in self._features(table):
            part = self.slices[key]
            if kind == "cells":
                result[rows, part.start + values] = 1
            elif kind == "moments":
                i, j = np.triu_indices(values.shape[1])
                result[rows, part] = values[:, i] * values[:, j]
            else:
                result[rows, part] = values
        return result

    def sample(self, batch: pa.RecordBatch | pa.Table) -> Sample:
        """Whitened embedding, distance outside the components, and probabilities of a sample of the rows."""
        empty = self.empty_sample
        if not self.embedding:
            return empty
        present, vectors = _vectors(batch, self.columns.embedding or "", self.embedding.width)
        keys = content_hash(vectors, self.seed)
        chosen = np.argsort(keys, kind="stable")[: self.sample_rows]
        keys, rows = keys[chosen], vectors[chosen].astype(np.float32)
        white = self.embedding.whitening.transform(rows)
        parts = [white, np.log1p(self.embedding.whitening.distance(rows, white))[:, None]]
        if self.probabilities:
            has, values = _vectors(batch, self.columns.probabilities or "", len(self.labels))
            spread = np.full((len(present), len(self.labels)), np.nan, np.float32)
            spread[has] = values
            parts.append(spread[present][chosen])
        return Sample.of(self.sample_rows, keys, np.concatenate(parts, axis=1))

    @property
    def empty_sample(self) -> Sample:
        """The sample of no rows."""
        return self.empty().sample

    def _features(self, batch: pa.RecordBatch | pa.Table) -> Iterator[tuple[str, str, Any, Any]]:
        """(key, kind, rows that have it, codes or values) of each group of features."""
        for name, bins in self.bins.items():
            yield f"cells:{name}", "cells", np.arange(batch.num_rows), bins.codes(_numbers(batch[name]))
        for name, categories in self.categories.items():
            codes, looked = _codes(batch[name], categories, name in self.columns.sampled)
            yield f"cells:{name}", "cells", np.flatnonzero(looked), codes[looked]
        if self.embedding:
            yield from self._embedding_features(batch, self.embedding)
        if self.probabilities:
            has, values = _vectors(batch, self.columns.probabilities or "", len(self.labels))
            yield "probabilities:rows", "values", has, np.ones((len(values), 1), np.float32)
            yield "probabilities:mean", "values", has, values
        if self.columns.score:
            scores = _numbers(batch[self.columns.score])
            finite = np.flatnonzero(np.isfinite(scores))
            yield "score:rows", "values", finite, np.ones((len(finite), 1), np.float32)
            yield "score:mean", "values", finite, scores[finite, None]

    def _embedding_features(self, batch: Any, plan: EmbeddingPlan) -> Iterator[tuple[str, str, Any, Any]]:
        present, vectors = _vectors(batch, self.columns.embedding or "", plan.width)
        rows = np.asarray(vectors, np.float32)
        white = plan.whitening.transform(rows)
        yield "embedding:rows", "values", present, np.ones((len(rows), 1), np.float32)
        yield "embedding:mean", "values", present, rows
        yield "embedding:random", "values", present, plan.random.transform(rows)
        yield "embedding:white", "values", present, white[:, : plan.moments]
        yield "embedding:moments", "moments", present, white[:, : plan.moments]
        distances = plan.whitening.distance(rows, white)
        yield "cells:distance", "cells", np.flatnonzero(present), plan.distances.codes(distances)

    def _extras(self, batch: pa.RecordBatch | pa.Table) -> npt.NDArray[np.float64]:
        result = np.zeros(self.extra_slices["latency"].stop)
        names = batch.schema.names
        if self.columns.score:
            scores = _numbers(batch[self.columns.score])
            finite = scores[np.isfinite(scores)].astype(np.float64)
            result[self.extra_slices["variance"]] = (finite * (1 - finite)).sum()
            cells = (
                self.bins[self.columns.score].codes(scores)
                if self.columns.score in self.bins
                else np.zeros(len(scores))
            )
            labelled = right = np.zeros(batch.num_rows, bool)
            if self.columns.label and "feedback_label" in names:
                labelled = pc.is_valid(batch["feedback_label"]).to_numpy(zero_copy_only=False)
                equal = pc.equal(batch["feedback_label"], batch[self.columns.label])
                right = pc.fill_null(equal, False).to_numpy(zero_copy_only=False)
            for key, mask in (("rows", np.ones(batch.num_rows, bool)), ("labelled", labelled), ("right", right)):
                part = self.extra_slices[key]
                result[part] = np.bincount(cells[mask].astype(np.intp), minlength=part.stop - part.start)
        if "latency_ms" in names:
            latency = _numbers(batch["latency_ms"])
            cells = np.searchsorted(LATENCY_MS, latency[np.isfinite(latency)])
            result[self.extra_slices["latency"]] = np.bincount(cells, minlength=len(LATENCY_MS) + 1)
        return result


def _laid_out(sizes: dict[str, int]) -> dict[str, slice]:
    stops = np.cumsum(list(sizes.values())).tolist()
    return {key: slice(stop - size, stop) for (key, size), stop in zip(sizes.items(), stops, strict=True)}


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _numbers(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.floating]:
    """Values with NaN for null; float32 stays float32."""
    if not _is_number(column.type):
        raise ConfigurationError(f"A numeric column holds {column.type}", hint="name it in Columns.categorical")
    values = column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def _vectors(
    batch: pa.RecordBatch | pa.Table, name: str, width: int | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float16]]:
    """Rows with a vector of finite numbers, and the vectors; a vector with a hole counts as none."""
    column = _one_chunk(batch[name])
    kind = column.type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)):
        raise ValidationFailed(f"Column '{name}' holds {kind}, expected float16 bytes", failures=[name])
    present, vectors = decode_float16(column, width, name)
    # A float16 is infinite or NaN when its five exponent bits are all set.
    broken = ((vectors.view(np.uint16) & 0x7C00) == 0x7C00).any(axis=1)  # noqa: PLR2004
    if broken.any():
        present = present.copy()
        present[np.flatnonzero(present)[broken]] = False
        vectors = vectors[~broken]
    return present, vectors


def _text(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    array = _one_chunk(column)
    return array if pa.types.is_string(array.type) else array.cast(pa.string())


def _categories(column: pa.ChunkedArray, name: str, columns: Columns) -> Categories:
    values = _text(column)
    if name in columns.sampled:
        values = values.filter(pc.fill_null(pc.not_equal(values, ""), False))
    return Categories.fit(values.to_pylist(), min_share=MIN_SHARE)


def _codes(
    column: pa.Array | pa.ChunkedArray, categories: Categories, sampled: bool
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Cell per row, and which rows count: all, or those that somebody looked at."""
    values = _text(column)
    found = pc.index_in(values, value_set=pa.array(categories.values, pa.string()))
    codes = pc.fill_null(found, len(categories.values)).to_numpy(zero_copy_only=False).astype(np.intp)
    null = pc.is_null(values).to_numpy(zero_copy_only=False)
    codes[null] = len(categories.values) + 1
    looked = np.ones(len(codes), bool)
    if sampled:
        looked = ~null & (pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False) > 0)
    return codes, looked
