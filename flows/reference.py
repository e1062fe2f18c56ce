"""The reference of a version: how it answers its test split, and the detectors that compare windows with that.

Below ``home/monitors/references/USE_CASE/<key>/``, where the key is a digest of weights, data, policy and way of
computing:

    reference.parquet     the answers in the columns of the inference log, with the true labels as feedback
    detectors/            `monitors.detector_store`

The first check of a version makes it, in seconds to minutes, and attaches it to the version in the registry, so
that another machine compares with the same numbers. Test rows are held out from training, so scores and accuracy
are honest; they are not the traffic, and a reference of the first weeks' traffic may alarm less (`docs/how-to`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from flows.wiring import Adapters
from governance.text_statistics import text_statistics
from leitstand.errors import IntegrityError, LeitstandError, MissingExtraError, NotFoundError
from leitstand.files import atomic_dir, digest_json, short_digest
from leitstand.types import ModelRef, ModelVersion, Snapshot
from leitstand.usecase import UseCase
from models.snapshots import Split
from monitors.detection import DetectorSet, fit_detectors
from monitors.detector_store import load_detectors, save_detectors
from monitors.features import Columns
from monitors.windows import WINDOW_SCHEMA

if TYPE_CHECKING:
    from models.loading import Classifier

__all__ = ["Reference", "build_reference", "reference_folder", "reference_of", "reference_rows"]

SCHEMA_VERSION = 1
SEED = 0
RESAMPLES = 10_000
BATCH_TEXTS = 64
LANGUAGE_CHARACTERS = 300
FILES = {"reference.parquet": "reference.parquet", "detectors.json": "detectors/detectors.json",
    "arrays.npz": "detectors/arrays.npz"}  # fmt: skip
# Tokens are not watched: the gateway never sees them and writes 0, a Bento that logs by itself does not.
WATCHED = Columns(numeric=tuple(name for name in Columns().numeric if name != "tokens"))

logger = structlog.get_logger()


@dataclass(frozen=True)
class Reference:
    """What windows of a version are compared with.

    Attributes:
        version: The model version.
        detectors: Calibrated for the use case's policy.
        folder: Where both lie.
    """

    version: int
    detectors: DetectorSet
    folder: Path

    def rows(self) -> pa.Table:
        """The reference's rows in the columns of `WINDOW_SCHEMA`."""
        return pq.read_table(self.folder / "reference.parquet", schema=WINDOW_SCHEMA)


def reference_of(adapters: Adapters, use_case: UseCase, version: int) -> Reference:
    """The reference of a version: from disk, from the registry, or made now.

    Raises:
        NotFoundError: The version is not in the registry, or its snapshot is not on this machine.
        ValidationFailed: The test split is too small for detectors.
    """
    found = adapters.registry.get(ModelRef(name=use_case.name, version=version))
    folder = reference_folder(adapters, use_case, found)
    with adapters.lock(f"reference-{use_case.name}-{folder.name}"):
        opened = _open(folder, version)
        if opened is None and _restore(adapters, found, folder):
            opened = _open(folder, version)
        if opened is None:
            opened = build_reference(adapters, use_case, found)
        _attach(adapters, found, folder)
    return opened


def reference_folder(adapters: Adapters, use_case: UseCase, version: ModelVersion) -> Path:
    """Where the reference lies; other weights, data, policy, or way of computing have a folder of their own."""
    policy = use_case.drift.model_dump(
        mode="json", include={"check_every", "min_window_rows", "false_alarms_per_month"}
    )
    how = use_case.serving.model_dump(mode="json", include={"engine", "precision"})
    key = digest_json([SCHEMA_VERSION, SEED, version.weights_digest, version.data_digest, policy, how])
    return adapters.home / "monitors" / "references" / use_case.name / short_digest(key)


def build_reference(adapters: Adapters, use_case: UseCase, version: ModelVersion) -> Reference:
    """Answers the version's test split, fits the detectors, and stores both; replaces what is there.

    Raises:
        NotFoundError: The version's snapshot is not on this machine.
        ValidationFailed: The test split is too small.
    """
    from flows.stages import model_folder
    from models.loading import open_classifier
    from models.snapshots import load_split

    snapshot = _snapshot(adapters, version)
    split, serving = load_split(snapshot, "test"), use_case.serving
    folder = model_folder(adapters, version)
    classifier = open_classifier(folder, engine=serving.engine, precision=serving.precision)
    languages = _languages(adapters, split.texts)
    rows = reference_rows(version, classifier, split, snapshot.labels, languages)
    detectors = fit_detectors(
        rows, use_case.drift, labels=classifier.config.labels, seed=SEED, columns=WATCHED, resamples=RESAMPLES
    )  # fmt: skip
    folder = reference_folder(adapters, use_case, version)
    with atomic_dir(folder) as part:
        pq.write_table(rows, part / "reference.parquet", compression="zstd")
        save_detectors(detectors, part / "detectors")
    logger.info("Drift detectors were fitted", use_case=use_case.name, version=version.version, rows=rows.num_rows)
    return Reference(version.version, detectors, folder)


def reference_rows(
    version: ModelVersion, classifier: "Classifier", split: Split, names: Sequence[str], languages: Sequence[str]
) -> pa.Table:
    """The version's answers to a split, in the columns of the log, with the true labels as feedback.

    Probabilities and embeddings are rounded to float16, as in the log; tokens are 0 and the latency is null, because
    neither is what the gateway would see.

    Args:
        version: Whose answers.
        classifier: The version, opened.
        split: Texts, with labels as places in `names`.
        names: The data's labels.
        languages: Of each text; empty where nobody looked.
    """
    ids = classifier.encode(split.texts)
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    logits: list[np.ndarray] = [np.empty(0)] * len(ids)
    embedding: list[np.ndarray] = [np.empty(0)] * len(ids)
    for start in range(0, len(order), BATCH_TEXTS):
        chunk = order[start : start + BATCH_TEXTS]
        found = classifier.backend.run_with_embedding([ids[place] for place in chunk])
        for place, row, vector in zip(chunk, *found, strict=True):
            logits[place], embedding[place] = row, vector
    answers = classifier.decide(np.stack(logits).astype(np.float32))
    statistics = [text_statistics(text) for text in split.texts]
    count, begin = len(split.texts), version.created_at
    truth = [names[label] for label in split.labels.tolist()]
    columns = {
        "request_id": [f"reference-{place}" for place in range(count)], "index": [0] * count,
        "at": [begin + timedelta(milliseconds=place) for place in range(count)],
        "use_case": [version.name] * count, "version": [version.version] * count, "route": ["stable"] * count,
        "subject": [""] * count, "label": answers.labels, "score": answers.scores, "abstain": answers.abstain,
        "probabilities": [row.astype("<f2").tobytes() for row in answers.probabilities],
        "embedding": [row.astype("<f2").tobytes() for row in embedding],
        **{name: [getattr(each, name) for each in statistics] for name in type(statistics[0])._fields},
        "tokens": [0] * count, "language": languages, "latency_ms": [None] * count,
        "feedback_label": truth, "rating": [None] * count, "feedback_source": ["test split"] * count,
        "feedback_at": [begin] * count,
    }  # fmt: skip
    return pa.Table.from_arrays(
        [pa.array(columns[field.name], field.type) for field in WINDOW_SCHEMA], schema=WINDOW_SCHEMA
    )


def _languages(adapters: Adapters, texts: Sequence[str]) -> list[str]:
    """As the log would hold them: empty where nobody looks, or the detector is not sure or not installed."""
    from governance.language import detect

    if not adapters.settings.monitoring.languages_per_s:
        return [""] * len(texts)
    try:
        return [code or "" for code in detect([text[:LANGUAGE_CHARACTERS] for text in texts], ())]
    except MissingExtraError:
        return [""] * len(texts)


def _snapshot(adapters: Adapters, version: ModelVersion) -> Snapshot:
    from models.snapshots import open_snapshot

    folder = adapters.home / "data" / version.name / short_digest(version.data_digest)
    try:
        return open_snapshot(folder)
    except NotFoundError as error:
        raise NotFoundError(
            f"The data that {version.ref} was measured on is not on this machine ({folder})",
            hint=f"`leitstand data validate {version.name}`, or check where its reference is attached already",
        ) from error


def _open(folder: Path, version: int) -> Reference | None:
    try:
        detectors = load_detectors(folder / "detectors")
        pq.read_schema(folder / "reference.parquet")
    except (NotFoundError, IntegrityError, OSError, pa.ArrowException):
        return None
    return Reference(version, detectors, folder)


def _attached(folder: Path) -> dict[str, str]:
    """Name in the registry to path in the folder."""
    return {f"drift-{folder.name}-{name}": path for name, path in FILES.items()}


def _restore(adapters: Adapters, version: ModelVersion, folder: Path) -> bool:
    """Fetches the reference from the registry; whether it was there."""
    names = _attached(folder)
    if not set(names) <= set(version.attachments):
        return False
    with atomic_dir(folder) as part:
        (part / "detectors").mkdir()
        for name, path in names.items():
            adapters.registry.attachment(version.ref, name, part).replace(part / path)
    return True


def _attach(adapters: Adapters, version: ModelVersion, folder: Path) -> None:
    """Attaches what is not there yet. A registry that cannot take it does not stop the check."""
    missing = {n: folder / path for n, path in _attached(folder).items() if n not in version.attachments}
    if not missing:
        return
    try:
        adapters.registry.attach(version.ref, missing)
    except LeitstandError as error:
        logger.warning("The reference stays on this machine", version=str(version.ref), cause=error.message)
