"""Measures a trained model on the test split: quality, calibration, slices, robustness, bias, cost.

`evaluate` reads the test split only, never train. The same model, data and use case give the same
numbers, apart from latency and throughput. Deciding whether the numbers are good enough is the business
of ``models.gates``.
"""

import csv
import io
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leitstand.errors import ConfigurationError, bounded
from leitstand.files import atomic_path, digest_json, write_text
from leitstand.types import EvaluationReport, Snapshot, utc_now
from leitstand.usecase import UseCase
from models import artifact, metrics, probes
from models.data import load_split
from models.golden import load_golden
from models.loading import open_classifier
from models.measurement import Samples, measure

__all__ = ["Samples", "evaluate", "method_digest", "write_report"]

_METHOD = 1
"""Raise it when a probe changes: reports measured differently must not be compared row by row."""


def evaluate(
    use_case: UseCase,
    snapshot: Snapshot,
    model_dir: Path,
    *,
    out: Path,
    split: Literal["train", "test"] = "test",
    engine: str = "auto",
    samples: Samples | None = None,
    other_labels: bool = False,
) -> EvaluationReport:
    """Measures the model in `model_dir` and writes its answers below `out`.

    Files: ``evaluation.json`` (the report), ``predictions.parquet``, ``units.parquet``, ``confusion.csv``.

    Args:
        use_case: Names label groups, counterfactuals, and the engine and precision that serve.
        snapshot: The data set.
        model_dir: A sealed model folder.
        out: Folder for the files; made when missing.
        split: Which split to measure on.
        engine: ``auto`` takes the use case's serving engine.
        samples: Sizes of the probes.
        other_labels: Measure a model whose label set is another one, as a champion's is when feedback brought new
            labels: it is wrong on rows of labels that it does not have. False: such a model is refused.

    Raises:
        IntegrityError: A file of the model, or the golden set, does not match its digest.
        ConfigurationError: Model and data have different labels.
        NotFoundError: The split has no rows.
    """
    digest = artifact.verify(model_dir)
    engine = use_case.serving.engine if engine == "auto" else engine
    classifier = open_classifier(model_dir, engine=engine, precision=use_case.serving.precision)
    names, order = _label_order(classifier.config.labels, snapshot.labels, other_labels=other_labels)
    rows = load_split(snapshot, split)
    samples = samples or Samples()
    golden = load_golden(use_case)
    book, answers = measure(
        use_case, rows.texts, rows.labels, names, classifier, order, samples,
        golden=golden.known(snapshot.labels) if golden else None, new_labels=snapshot.new_labels,
    )  # fmt: skip
    sealed = artifact.read_manifest(model_dir).files  # graphs that an engine caches beside them do not count
    book.add("size_mb", sum(file.bytes for file in sealed.values()) / 1e6, 1)
    out.mkdir(parents=True, exist_ok=True)
    report = EvaluationReport(
        use_case=use_case.name,
        weights_digest=digest,
        data_digest=snapshot.digest,
        split=split,
        evaluated_at=utc_now(),
        engine=classifier.engine,
        metrics=tuple(book.metrics),
        predictions=_write_predictions(out, names, rows.labels, answers),
        confusion=_write_confusion(out, names, rows.labels, answers),
        units=_write_units(out, book),
        reliability=metrics.reliability(answers.scores, answers.predicted == rows.labels),
        samples=book.samples,
        unknown_labels=tuple(name for name, place in zip(names, order, strict=True) if place < 0),
        spec_digest=method_digest(use_case, samples),
    )
    write_report(report, out)
    return report


def method_digest(use_case: UseCase, samples: Samples | None = None) -> str:
    """Digest of how `use_case` is measured: reports with the same one, on the same data, can be compared.

    Together with the digests of weights and data, a key under which an evaluation may be cached.
    """
    spec = use_case.evaluation.model_dump(mode="json")
    golden = [use_case.data.golden.digest] if use_case.data.golden else []
    return digest_json([_METHOD, vars(samples or Samples()), spec, use_case.serving.precision, *golden])


def write_report(report: EvaluationReport, out: Path) -> Path:
    """Writes ``evaluation.json`` into `out` and returns its path."""
    return write_text(out / "evaluation.json", report.model_dump_json(indent=1))


def _label_order(
    model: tuple[str, ...], data: tuple[str, ...], *, other_labels: bool
) -> tuple[tuple[str, ...], np.ndarray]:
    """The labels of the data and then those of the model alone, and where each stands among the model's logits.

    -1: the model does not have it.
    """
    only = {"data": sorted(set(data) - set(model)), "model": sorted(set(model) - set(data))}
    if any(only.values()) and not (other_labels and set(data) & set(model)):
        parts = [f"{len(names)} only in the {side} ({bounded(names)})" for side, names in only.items() if names]
        raise ConfigurationError(
            f"Model and data have different labels: {', '.join(parts)}",
            hint="train the model on this data set, or evaluate it on the one it was trained on",
        )
    place = {name: index for index, name in enumerate(model)}
    names = data + tuple(name for name in model if name not in data)
    return names, np.array([place.get(name, -1) for name in names], dtype=np.int64)


def _write_predictions(out: Path, names: tuple[str, ...], labels: np.ndarray, given: probes.Answers) -> Path:
    columns = {
        "row": np.arange(len(labels)),
        "label": [names[i] for i in labels],
        "predicted": [names[i] for i in given.predicted],
        "score": given.scores.astype(np.float32),
        "abstain": given.abstain,
    }
    return _write_parquet(out / "predictions.parquet", pa.table(columns))


def _write_units(out: Path, book: probes.Book) -> Path:
    keys = [(name, at or "", len(units.ids)) for (name, at), units in book.units.items()]
    columns = {
        "metric": np.repeat([name for name, _, _ in keys], [n for _, _, n in keys]),
        "slice": np.repeat([at for _, at, _ in keys], [n for _, _, n in keys]),
        "unit": np.concatenate([units.ids for units in book.units.values()]),
        "value": np.concatenate([units.values for units in book.units.values()]),
    }
    unknown = np.fromiter(book.unknown, np.int64, len(book.unknown))
    columns["known"] = ~np.isin(columns["unit"], unknown)
    return _write_parquet(out / "units.parquet", pa.table(columns))


def _write_parquet(target: Path, table: pa.Table) -> Path:
    with atomic_path(target) as part:
        pq.write_table(table, part)
    return target


def _write_confusion(out: Path, names: tuple[str, ...], labels: np.ndarray, given: probes.Answers) -> Path:
    table = metrics.confusion(labels, given.predicted, len(names))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "predicted", "count"])
    writer.writerows([names[i], names[j], int(table[i, j])] for i, j in zip(*np.nonzero(table), strict=True))
    return write_text(out / "confusion.csv", text.getvalue())
