"""Measures a trained model on the test split: quality, calibration, slices, robustness, bias, cost.

`evaluate` reads the test split only, never train. The same model, data and use case give the same
numbers, apart from latency and throughput. Deciding whether the numbers are good enough is the business
of ``models.gates``.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from leitstand.errors import ConfigurationError, NotFoundError, bounded
from leitstand.files import atomic_path, digest_json, write_text
from leitstand.types import EvaluationReport, Snapshot, utc_now
from leitstand.usecase import UseCase
from models import artifact, metrics, perturb, probes
from models.data import load_split
from models.loading import open_classifier
from models.slices import group_masks, length_masks

__all__ = ["Samples", "evaluate", "measure", "write_report"]

_METHOD = 1
"""Raise it when a probe changes: reports measured differently must not be compared row by row."""


@dataclass(frozen=True)
class Samples:
    """How much each probe asks. The defaults are about 21,000 texts on Banking77's 3,080 test rows."""

    pii: int = 1000
    robustness: int = 1000
    counterfactual_texts: int = 200
    counterfactual_sentences: int = 12_000
    latency_calls: int = 500
    seed: int = 20_260


def evaluate(
    use_case: UseCase,
    snapshot: Snapshot,
    model_dir: Path,
    *,
    out: Path,
    split: Literal["train", "test"] = "test",
    engine: str = "auto",
    samples: Samples | None = None,
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

    Raises:
        IntegrityError: A file of the model does not match its manifest.
        ConfigurationError: Model and data have different labels.
        NotFoundError: The split has no rows.
    """
    digest = artifact.verify(model_dir)
    engine = use_case.serving.engine if engine == "auto" else engine
    classifier = open_classifier(model_dir, engine=engine, precision=use_case.serving.precision)
    rows = load_split(snapshot, split)
    order = _label_order(classifier.config.labels, snapshot.labels)
    samples = samples or Samples()
    book, answers = measure(use_case, rows.texts, rows.labels, snapshot.labels, classifier, order, samples)
    size = sum(path.stat().st_size for path in model_dir.rglob("*") if path.is_file())
    book.add("size_mb", size / 1e6, 1)
    spec = [_METHOD, vars(samples), use_case.evaluation.model_dump(mode="json"), use_case.serving.precision]
    out.mkdir(parents=True, exist_ok=True)
    report = EvaluationReport(
        use_case=use_case.name,
        weights_digest=digest,
        data_digest=snapshot.digest,
        split=split,
        evaluated_at=utc_now(),
        engine=str(getattr(classifier, "engine", engine)),
        metrics=tuple(book.metrics),
        predictions=_write_predictions(out, snapshot.labels, rows.labels, answers),
        confusion=_write_confusion(out, snapshot.labels, rows.labels, answers),
        units=_write_units(out, book),
        reliability=metrics.reliability(answers.scores, answers.predicted == rows.labels),
        samples=book.samples,
        spec_digest=digest_json(spec),
    )
    write_report(report, out)
    return report


def write_report(report: EvaluationReport, out: Path) -> Path:
    """Writes ``evaluation.json`` into `out` and returns its path."""
    return write_text(out / "evaluation.json", report.model_dump_json(indent=1))


def measure(
    use_case: UseCase,
    texts: list[str],
    labels: np.ndarray,
    names: tuple[str, ...],
    classifier: probes.Predicts,
    order: np.ndarray,
    samples: Samples,
) -> tuple[probes.Book, probes.Answers]:
    """All probes on one split; returns what they found, and the answers to the unchanged texts.

    Raises:
        NotFoundError: There are no rows.
    """
    if not texts:
        raise NotFoundError("There are no rows to evaluate on", hint="ingest a test split with at least one row")
    book, spec, seed = probes.Book(), use_case.evaluation, samples.seed
    rows = np.arange(len(texts))
    classifier.predict(texts[:64])
    start = time.perf_counter()
    plain = probes.ask(classifier, texts, order)
    book.add("throughput", len(texts) / max(time.perf_counter() - start, 1e-9), len(texts))
    book.samples["rows"] = len(texts)
    book.answers(rows, labels, plain)
    _quality(book, labels, plain, len(names), spec.bootstrap_samples, seed)
    masks = length_masks(texts) | group_masks(labels, names, spec.label_groups)
    for name, mask in masks.items():
        book.answers(rows[mask], labels[mask], probes.Answers(plain.probabilities[mask], plain.abstain[mask]), name)
    mistyped = [perturb.with_typos(t, spec.typo_rate, perturb.generator(seed, i)) for i, t in enumerate(texts)]
    book.answers(rows, labels, probes.ask(classifier, mistyped, order), "typos")
    probes.personal_data(book, classifier, texts, labels, plain, order, limit=samples.pii, seed=seed)
    probes.robustness(book, classifier, texts, plain, order, limit=samples.robustness, seed=seed)
    if spec.counterfactuals:
        asked = len(spec.counterfactuals.templates) * len(perturb.people(spec.counterfactuals))
        limit = max(1, min(samples.counterfactual_texts, samples.counterfactual_sentences // asked))
        probes.counterfactuals(
            book, classifier, texts, labels, spec.counterfactuals, order, limit=limit, seed=seed
        )  # fmt: skip
    probes.latency(book, classifier, texts, calls=samples.latency_calls, seed=seed)
    return book, plain


def _quality(
    book: probes.Book, labels: np.ndarray, plain: probes.Answers, count: int, resamples: int, seed: int
) -> None:
    n, rows, right = len(labels), np.arange(len(labels)), (plain.predicted == labels).astype(np.float64)
    for name, average in (("macro_f1", "macro"), ("weighted_f1", "weighted")):
        value = metrics.f1(labels, plain.predicted, count, average)

        def scores(weights: np.ndarray, average: str = average) -> np.ndarray:
            return metrics.weighted_f1_scores(labels, plain.predicted, count, weights, average)

        book.add(name, value, n, metrics.percentile_interval(scores, value, n, resamples, seed))

    def errors(weights: np.ndarray) -> np.ndarray:
        return metrics.weighted_ece(plain.scores, right, weights)

    value = metrics.ece(plain.scores, right)
    book.add("ece", value, n, metrics.percentile_interval(errors, value, n, resamples, seed, reflected=True))
    book.mean("brier", rows, metrics.brier(plain.probabilities, labels))
    book.mean("nll", rows, metrics.nll(plain.probabilities, labels))


def _label_order(model: tuple[str, ...], data: tuple[str, ...]) -> np.ndarray:
    """Where each label of the data stands among the model's logits."""
    missing, extra = sorted(set(data) - set(model)), sorted(set(model) - set(data))
    if missing or extra:
        raise ConfigurationError(
            f"Model and data have different labels: {len(missing)} only in the data ({bounded(missing)}), "
            f"{len(extra)} only in the model ({bounded(extra)})",
            hint="train the model on this data set, or evaluate it on the one it was trained on",
        )
    place = {name: index for index, name in enumerate(model)}
    return np.array([place[name] for name in data], dtype=np.int64)


def _write_predictions(out: Path, names: tuple[str, ...], labels: np.ndarray, given: probes.Answers) -> Path:
    words = np.array(names, dtype=object)
    frame = pd.DataFrame(
        {
            "row": np.arange(len(labels)),
            "label": words[labels],
            "predicted": words[given.predicted],
            "score": given.scores.astype(np.float32),
            "abstain": given.abstain,
        }
    )
    return _write_parquet(out / "predictions.parquet", frame)


def _write_units(out: Path, book: probes.Book) -> Path:
    parts = [
        pd.DataFrame({"metric": name, "slice": at or "", "unit": units.ids, "value": units.values})
        for (name, at), units in book.units.items()
    ]
    return _write_parquet(out / "units.parquet", pd.concat(parts, ignore_index=True))


def _write_parquet(target: Path, frame: pd.DataFrame) -> Path:
    with atomic_path(target) as part:
        frame.to_parquet(part, index=False)
    return target


def _write_confusion(out: Path, names: tuple[str, ...], labels: np.ndarray, given: probes.Answers) -> Path:
    table = metrics.confusion(labels, given.predicted, len(names))
    truth, answer = np.nonzero(table)
    frame = pd.DataFrame(
        {
            "label": [names[i] for i in truth],
            "predicted": [names[i] for i in answer],
            "count": table[truth, answer],
        }
    )
    return write_text(out / "confusion.csv", frame.to_csv(index=False))
