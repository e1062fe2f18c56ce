"""Fits calibrated drift detectors on a reference, and judges windows of the inference log with them.

The promise: with no change, a window drawn like the reference alarms with the probability that the policy's
`false_alarms_per_month` and `check_every` imply, over all detectors together, averaged over references of this
size. `docs/explanation/drift.md` says what that does and does not mean.

A third of the reference fits bins, projections and distances; windows are compared with the rest, which nothing
was fitted on. A window is read once, by record batch, into a `Sketch`.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is imported)

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from leitstand.errors import ConfigurationError, ValidationFailed, bounded
from leitstand.files import digest_bytes, digest_json
from leitstand.types import DriftReport, DriftScore, Metric
from leitstand.usecase import DriftSpec
from monitors.calibration import Calibration, calibrate
from monitors.drift import Significance
from monitors.embedding_drift import RandomFeatures, domain_classifier, median_bandwidth
from monitors.family import Detector, family, observed_rows, statistics
from monitors.features import LATENCY_MS, Columns, FeaturePlan
from monitors.label_shift import PriorShiftVerdict, explain_by_prior_shift
from monitors.quality import estimated_accuracy_from_sums, measured_accuracy_from_counts
from monitors.sketches import Sketch, merge

__all__ = ["DetectorSet", "Quality", "fit_detectors"]

MONTH = timedelta(days=30)
MIN_REFERENCE_ROWS = 300
POPULATION_ROWS = 3000
BATCH_ROWS = 16_384
GRID_STEP = 2.5
GRID_TOP = 16
MIN_LABELS = 30
MIN_WINDOW_ROWS = 20


@dataclass(frozen=True)
class Quality:
    """What labels say of the reference: accuracy, and how far the mean score is off it (with its variance)."""

    accuracy: float | None = None
    offset: float = 0.0
    offset_variance: float = 0.0


@dataclass(frozen=True)
class DetectorSet:
    """Detectors of one model version, calibrated. `monitors.detector_store` writes it to a folder.

    Attributes:
        plan: Layout of the features.
        calibration: Null distributions.
        reference: Sketch of the compared part of the reference.
        alpha: False-alarm probability of one check.
        min_rows: Windows with fewer rows are not judged.
        block_rows: Neighbouring rows that were redrawn together.
        quality: From the reference's labels.
        reference_rows: All rows of the reference.
        reference_digest: Of the reference's watched columns.
        use_case: As the reference says; empty when it does not.
        version: Model version of the reference; 0 when it does not say.
    """

    plan: FeaturePlan
    calibration: Calibration
    reference: Sketch
    alpha: float
    min_rows: int
    block_rows: int
    quality: Quality
    reference_rows: int
    reference_digest: str
    use_case: str = ""
    version: int = 0

    @cached_property
    def detectors(self) -> tuple[Detector, ...]:
        """The family that was calibrated."""
        return family(self.plan)

    @property
    def classifies(self) -> bool:
        """Whether the domain classifier takes part: its p-value needs embeddings, and rows drawn independently."""
        return self.plan.embedding is not None and self.block_rows == 1

    def sketch(self, window: pa.Table | Iterable[pa.RecordBatch]) -> Sketch:
        """Reads a window once; memory for one batch and the sketch. O(rows × features).

        Raises:
            ValidationFailed: Columns, embedding width, probabilities or predicted labels are not the reference's.
        """
        return reduce(merge, (self._checked(batch) for batch in _batches(window)), self.plan.empty())

    def judge(
        self, window: pa.Table | Iterable[pa.RecordBatch], *, start: datetime | None = None,
        end: datetime | None = None, version: int | None = None, seed: int = 0,
    ) -> DriftReport:  # fmt: skip
        """The report on a window. Fewer rows than `min_rows` are reported as insufficient, not as quiet.

        Args:
            window: Rows, or record batches of any number of rows.
            start: Of the window; by default the time of the earliest row.
            end: Of the window; by default the time of the latest row.
            version: Model version that answered; by default the reference's.
            seed: Of the domain classifier's split.

        Raises:
            ValidationFailed: See `sketch`.
            ConfigurationError: The window has no rows with times, and no `start` and `end`.
        """
        return self.judge_sketch(self.sketch(window), start=start, end=end, version=version, seed=seed)

    def judge_sketch(
        self, sketch: Sketch, *, start: datetime | None = None, end: datetime | None = None,
        version: int | None = None, seed: int = 0,
    ) -> DriftReport:  # fmt: skip
        """`judge` on a sketch, such as several hours merged."""
        start, end = start or sketch.first, end or sketch.last
        if start is None or end is None:
            raise ConfigurationError(
                "A window without rows needs `start` and `end`", hint="pass the times that the window was read for"
            )
        enough = sketch.rows >= self.min_rows
        scores = self.scores(sketch, seed) if enough else ()
        drifted = any(score.drifted for score in scores)
        verdict = self.explain(sketch, seed=seed) if drifted else None
        return DriftReport(
            use_case=self.use_case, version=self.version if version is None else version,
            window_start=start, window_end=end, rows=sketch.rows, reference_rows=self.reference_rows,
            reference_digest=self.reference_digest, scores=scores, drifted=drifted,
            insufficient="" if enough else f"{sketch.rows} rows; at least {self.min_rows} are needed",
            shift=verdict.kind if verdict else "", estimated_accuracy=self._estimated(sketch),
            measured_accuracy=self._measured(sketch), reference_accuracy=self.quality.accuracy,
            latency_p99_ms=self._latency(sketch),
        )  # fmt: skip

    def false_alarm_rate(self) -> float:
        """The probability of a false alarm per check that thresholds were calibrated for."""
        return self.alpha

    def explain(self, sketch: Sketch, *, alpha: float = 0.01, seed: int = 0) -> PriorShiftVerdict | None:
        """Whether a changed mix of labels explains the window's embeddings; None without probabilities for both.

        Computed on the sketches' samples, at most a few thousand rows.
        """
        white = self.plan.embedding.whitening.projection.shape[1] if self.plan.embedding else 0
        if not white or not self.plan.probabilities:
            return None
        sides = [sample.rows[np.isfinite(sample.rows).all(axis=1)] for sample in (self.reference.sample, sketch.sample)]
        if min(len(side) for side in sides) < MIN_LABELS:
            return None
        width = median_bandwidth(sides[0][:, :white], seed=seed)
        features = RandomFeatures.draw(white, width, seed=seed)
        reference, window = ((features.transform(s[:, :white]), s[:, white + 1 :]) for s in sides)
        return explain_by_prior_shift(*reference, *window, alpha=alpha, seed=seed)

    def scores(self, sketch: Sketch, seed: int = 0) -> tuple[DriftScore, ...]:
        """One score per detector that had rows enough, whatever the size of the window."""
        rows = observed_rows(self.plan, self.detectors, sketch.sums)
        usual = observed_rows(self.plan, self.detectors, self.reference.sums) / max(self.reference.rows, 1)
        effective = rows / np.maximum(usual, 1e-9)  # the size of a window that would usually have this many
        level = self.calibration.level(self.alpha, sketch.rows, others=int(self.classifies))
        values = statistics(self.plan, self.reference.sums, sketch.sums)
        p_values = self.calibration.p_values(values, effective)
        thresholds = self.calibration.thresholds(level, effective)
        found = [
            _score(detector, float(value), float(threshold), float(p), level, int(seen))
            for detector, value, threshold, p, seen, size in zip(
                self.detectors, values, thresholds, p_values, rows, effective, strict=True
            )
            if size >= self.min_rows / 2
        ]
        if self.classifies and len(sketch.sample.rows):
            found.append(self._classified(sketch, level, seed))
        return tuple(found)

    def _classified(self, sketch: Sketch, level: float, seed: int) -> DriftScore:
        assert self.plan.embedding  # noqa: S101
        width = self.plan.embedding.whitening.projection.shape[1] + 1
        reference, window = (sample.rows[:, :width] for sample in (self.reference.sample, sketch.sample))
        found: Significance = domain_classifier(reference, window, seed=seed)
        n, m = len(reference) - len(reference) // 2, len(window) - len(window) // 2
        threshold = 0.5 + stats.norm.isf(level) * np.sqrt((n + m + 1) / (12 * n * m))
        detector = Detector("domain_auc", "embedding", "embedding", "embedding:rows", 0.5)
        return _score(detector, found.statistic, min(float(threshold), 1.0), found.p_value, level, len(window))

    def _estimated(self, sketch: Sketch) -> Metric | None:
        if not self.plan.columns.score:
            return None
        rows, total = (float(sketch.sums[self.plan.slices[key]][0]) for key in ("score:rows", "score:mean"))
        variance = float(sketch.extras[self.plan.extra_slices["variance"]][0])
        return estimated_accuracy_from_sums(
            total, variance, int(rows), offset=self.quality.offset, offset_variance=self.quality.offset_variance
        )

    def _measured(self, sketch: Sketch) -> Metric | None:
        rows, labelled, right = _label_counts(self.plan, sketch)
        return measured_accuracy_from_counts(rows, labelled, right).raw if labelled.sum() else None

    def _latency(self, sketch: Sketch) -> float | None:
        counts = sketch.extras[self.plan.extra_slices["latency"]]
        if not counts.sum():
            return None
        cell = int(np.searchsorted(np.cumsum(counts), 0.99 * counts.sum()))
        return float(LATENCY_MS[min(cell, len(LATENCY_MS) - 1)])

    def _checked(self, batch: pa.RecordBatch) -> Sketch:
        self.plan.check(batch.schema)
        _check_labels(batch, self.plan.columns, self.plan.labels, "window")
        return self.plan.sketch(batch)


def fit_detectors(
    reference: pa.Table, policy: DriftSpec, *, labels: Iterable[str], seed: int = 0, columns: Columns | None = None,
    resamples: int = 10_000, block_rows: int = 1,
) -> DetectorSet:  # fmt: skip
    """Detectors that judge windows against `reference` at the policy's false-alarm rate.

    Cost: resamples × min(rows, 3,000) × features multiply-adds per window size (about 1,000 features with the default
    columns and embeddings of 384 dimensions), and 12 bytes × resamples × features of memory.

    Args:
        reference: Rows of the inference log that count as normal, not used to train the model (its scores on
            training rows are too good); at least 300. With `feedback_label`, the estimate of accuracy is corrected
            by what the labels say.
        policy: Rate of false alarms, how often is checked, smallest window (20 rows at least).
        labels: The model's labels, in its order.
        seed: Of the split, the projections and the redraws.
        columns: Watched columns; by default those of the inference log.
        resamples: Redraws per window size. The achieved rate is within about ``1 / sqrt(resamples × alpha)`` of
            the wanted one, relatively.
        block_rows: For traffic whose neighbouring rows are alike: how many of them are redrawn together. The
            domain classifier then takes no part.

    Raises:
        ConfigurationError: The reference predicts labels that are not in `labels`, or an argument is out of range.
        ValidationFailed: The reference is too small, or does not have the watched columns.
    """
    watched, names = columns or Columns(), tuple(labels)
    if block_rows < 1 or resamples < 100:  # noqa: PLR2004
        raise ConfigurationError("block_rows must be at least 1, resamples at least 100")
    smallest = max(policy.min_window_rows, MIN_WINDOW_ROWS)
    alpha = min(policy.false_alarms_per_month * (policy.check_every / MONTH), 0.5)
    _check_reference(reference, watched, names, block_rows)
    fitted, compared = _split(reference, block_rows, seed)
    plan = FeaturePlan.fit(fitted, compared, watched, names, seed)
    plan.check(compared.schema)
    rng = np.random.default_rng(seed)
    population = plan.matrix(_population(compared, block_rows, rng))
    sketches = [plan.sketch(batch) for batch in compared.to_batches(max_chunksize=BATCH_ROWS)]
    calibration = calibrate(
        plan, population, compared.num_rows, _grid(smallest, compared.num_rows),
        resamples=resamples, block_rows=block_rows, seed=seed,
    )  # fmt: skip
    return DetectorSet(
        plan=plan, calibration=calibration, reference=reduce(merge, sketches), alpha=alpha,
        min_rows=smallest, block_rows=block_rows, quality=_quality(plan, reference),
        reference_rows=reference.num_rows, reference_digest=_digest(reference.select(watched.required)),
        use_case=str(_first(reference, "use_case") or ""), version=int(_first(reference, "version") or 0),
    )  # fmt: skip


def _check_reference(reference: pa.Table, columns: Columns, labels: tuple[str, ...], block_rows: int) -> None:
    missing = [name for name in columns.required if name not in reference.schema.names]
    if missing:
        raise ValidationFailed(
            f"The reference does not have the watched columns: {bounded(missing)}", failures=missing,
            hint="read it with `monitors.windows.read_window`, or name other columns",
        )  # fmt: skip
    needed = max(MIN_REFERENCE_ROWS, 60 * block_rows)
    if reference.num_rows < needed:
        raise ValidationFailed(
            f"The reference has {reference.num_rows} rows; at least {needed} are needed", failures=["rows"],
            hint="use a longer window, or the model's answers on its test split",
        )  # fmt: skip
    try:
        _check_labels(reference, columns, labels, "reference")
    except ValidationFailed as error:
        raise ConfigurationError(error.message, hint=error.hint) from error


def _check_labels(batch: pa.RecordBatch | pa.Table, columns: Columns, labels: tuple[str, ...], what: str) -> None:
    if not columns.label or columns.label not in batch.schema.names:
        return
    found = pc.unique(batch[columns.label]).to_pylist()
    known = set(labels)
    strange = sorted(str(value) for value in found if value is not None and value not in known)
    if strange:
        raise ValidationFailed(
            f"The {what} predicts labels that the model does not have: {bounded(strange)}", failures=strange,
            hint="give the labels of the model version that answered, and fit detectors per version",
        )  # fmt: skip


def _split(reference: pa.Table, block_rows: int, seed: int) -> tuple[pa.Table, pa.Table]:
    """A third to fit on and the rest to compare with; whole blocks, each part in the order of time."""
    blocks = reference.num_rows // block_rows
    chosen = np.random.default_rng([seed, 1]).permutation(blocks) < blocks // 3
    mask = np.repeat(chosen, block_rows)
    mask = np.concatenate([mask, np.zeros(reference.num_rows - len(mask), bool)])
    return reference.filter(pa.array(mask)), reference.filter(pa.array(~mask))


def _population(compared: pa.Table, block_rows: int, rng: np.random.Generator) -> pa.Table:
    if compared.num_rows <= POPULATION_ROWS * block_rows:
        return compared
    blocks = compared.num_rows // block_rows
    starts = np.sort(rng.choice(blocks, POPULATION_ROWS, replace=False)) * block_rows
    return compared.take(pa.array((starts[:, None] + np.arange(block_rows)).ravel()))


def _grid(smallest: int, reference_rows: int) -> npt.NDArray[np.int64]:
    largest = max(GRID_TOP * reference_rows, 4 * smallest)
    count = int(np.ceil(np.log(largest / smallest) / np.log(GRID_STEP))) + 1
    return np.unique(np.geomspace(smallest, largest, count).round().astype(np.int64))


def _quality(plan: FeaturePlan, reference: pa.Table) -> Quality:
    sketch = reduce(merge, (plan.sketch(batch) for batch in reference.to_batches(max_chunksize=BATCH_ROWS)))
    if not plan.columns.score or "feedback_label" not in reference.schema.names:
        return Quality()
    _, labelled, right = _label_counts(plan, sketch)
    count = float(labelled.sum())
    if count < MIN_LABELS:
        return Quality()
    accuracy = float(right.sum()) / count
    known = reference.filter(pc.is_valid(reference["feedback_label"]))
    scores = known[plan.columns.score].to_numpy().astype(np.float64)
    correct = pc.equal(known["feedback_label"], known[plan.columns.label or ""])
    gap = correct.to_numpy().astype(np.float64) - scores
    gap = gap[np.isfinite(gap)]
    return Quality(accuracy, float(gap.mean()), float(gap.var() / len(gap)))


def _label_counts(plan: FeaturePlan, sketch: Sketch) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
    rows, labelled, right = (sketch.extras[plan.extra_slices[key]] for key in ("rows", "labelled", "right"))
    return rows, labelled, right


def _score(detector: Detector, value: float, threshold: float, p_value: float, level: float, rows: int) -> DriftScore:
    return DriftScore(
        detector=detector.name, column=detector.column, family=detector.family, value=value, threshold=threshold,
        p_value=p_value, drifted=p_value <= level, rows=rows,
    )  # fmt: skip


def _batches(window: pa.Table | Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in window.to_batches() if isinstance(window, pa.Table) else window:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _digest(table: pa.Table) -> str:
    """Of the rows, however they are chunked; memory for one batch."""
    digests = []
    for start in range(0, table.num_rows, BATCH_ROWS):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(start, BATCH_ROWS).combine_chunks())
        digests.append(digest_bytes(sink.getvalue().to_pybytes()))
    return digest_json([str(table.schema), digests])


def _first(table: pa.Table, column: str) -> Any:
    return table[column][0].as_py() if column in table.schema.names and table.num_rows else None
