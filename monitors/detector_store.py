"""A `DetectorSet` as a folder: ``detectors.json`` and ``arrays.npz``, under one content digest.

Numbers and names only, no pickled code. The digest is over the JSON and the bytes of every array, so the folder
can be registered next to the model version whose reference it holds. Version 1.
"""

import dataclasses
import json
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from leitstand.errors import IntegrityError, NotFoundError
from leitstand.files import atomic_dir, digest_bytes, digest_json, write_text
from monitors.calibration import Calibration
from monitors.detection import DetectorSet, Quality
from monitors.drift import Bins, Categories
from monitors.embedding_drift import RandomFeatures, Whitening
from monitors.features import Columns, EmbeddingPlan, FeaturePlan
from monitors.sketches import Sample, Sketch

__all__ = ["load_detectors", "save_detectors"]

SCHEMA_VERSION = 1
Arrays = dict[str, npt.NDArray[Any]]


def save_detectors(detectors: DetectorSet, folder: Path) -> str:
    """Writes the folder atomically, replacing what is there, and returns its digest (``sha256:...``)."""
    arrays = _arrays(detectors)
    document = _document(detectors)
    document["arrays"] = {name: _array_digest(array) for name, array in arrays.items()}
    document["digest"] = digest_json(document)
    with atomic_dir(folder) as part:
        np.savez(part / "arrays.npz", allow_pickle=False, **arrays)
        write_text(part / "detectors.json", json.dumps(document, indent=1, sort_keys=True) + "\n")
    return document["digest"]


def load_detectors(folder: Path) -> DetectorSet:
    """Reads what `save_detectors` wrote.

    Raises:
        NotFoundError: There is none.
        IntegrityError: Something was changed or damaged.
    """
    if not (folder / "detectors.json").is_file():
        raise NotFoundError(f"No drift detectors in {folder}", hint="fit them with `monitors.detection.fit_detectors`")
    try:
        document = json.loads((folder / "detectors.json").read_text(encoding="utf-8"))
        with np.load(folder / "arrays.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        digest = document.pop("digest")
        intact = digest == digest_json(document) and document["arrays"] == {
            name: _array_digest(array) for name, array in arrays.items()
        }
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise IntegrityError(
            f"The drift detectors in {folder} cannot be read: {error}", hint="fit them again"
        ) from error
    if not intact or document["schema_version"] != SCHEMA_VERSION:
        raise IntegrityError(f"The drift detectors in {folder} are not those that were saved", hint="fit them again")
    return _restored(document, arrays)


def _document(detectors: DetectorSet) -> dict[str, Any]:
    plan, reference = detectors.plan, detectors.reference
    simple = ("alpha", "min_rows", "block_rows", "reference_rows", "reference_digest", "use_case", "version")
    return {
        "schema_version": SCHEMA_VERSION,
        "columns": dataclasses.asdict(plan.columns),
        "labels": list(plan.labels),
        "numeric": list(plan.bins),
        "categories": {name: list(categories.values) for name, categories in plan.categories.items()},
        "embedding": bool(plan.embedding),
        "residual_variance": plan.embedding.whitening.residual_variance if plan.embedding else 0.0,
        "probabilities": plan.probabilities,
        "seed": plan.seed,
        "sample_rows": plan.sample_rows,
        "compared_rows": reference.rows,
        "first": reference.first.isoformat() if reference.first else None,
        "last": reference.last.isoformat() if reference.last else None,
        "calibrated_rows": detectors.calibration.reference_rows,
        "quality": dataclasses.asdict(detectors.quality),
        **{name: getattr(detectors, name) for name in simple},
    }


def _arrays(detectors: DetectorSet) -> Arrays:
    plan, calibration, reference = detectors.plan, detectors.calibration, detectors.reference
    arrays: Arrays = {f"calibration.{f}": getattr(calibration, f) for f in ("sizes", "quantiles", "exponents")}
    arrays |= {"calibration.smallest": calibration.smallest, "sums": reference.sums, "extras": reference.extras}
    arrays |= {"sample.keys": reference.sample.keys, "sample.rows": reference.sample.rows}
    for index, bins in enumerate(plan.bins.values()):
        arrays |= {f"bins.{index}.edges": bins.edges, f"bins.{index}.centres": bins.centres}
    if plan.embedding:
        fitted = plan.embedding
        arrays |= {
            "whitening.centre": fitted.whitening.centre, "whitening.projection": fitted.whitening.projection,
            "random": fitted.random.frequencies, "distances.edges": fitted.distances.edges,
            "distances.centres": fitted.distances.centres,
        }  # fmt: skip
    return arrays


def _restored(document: dict[str, Any], arrays: Arrays) -> DetectorSet:
    columns: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in document["columns"].items()
    }
    bins = {name: _bins(arrays, f"bins.{index}") for index, name in enumerate(document["numeric"])}
    # JSON sorts keys: the order of the categorical columns is that of `columns`.
    categories = {name: Categories(tuple(document["categories"][name])) for name in columns["categorical"]}
    plan = FeaturePlan(
        columns=Columns(**columns), labels=tuple(document["labels"]), bins=bins, categories=categories,
        embedding=_embedding(document, arrays) if document["embedding"] else None,
        probabilities=document["probabilities"], seed=document["seed"], sample_rows=document["sample_rows"],
    )  # fmt: skip
    sample = Sample(document["sample_rows"], arrays["sample.keys"], arrays["sample.rows"])
    first, last = (document[key] and datetime.fromisoformat(document[key]) for key in ("first", "last"))
    calibration = Calibration(
        arrays["calibration.sizes"], document["calibrated_rows"], arrays["calibration.quantiles"],
        arrays["calibration.exponents"], arrays["calibration.smallest"],
    )  # fmt: skip
    simple = ("alpha", "min_rows", "block_rows", "reference_rows", "reference_digest", "use_case", "version")
    return DetectorSet(
        plan=plan, calibration=calibration, quality=Quality(**document["quality"]),
        reference=Sketch(document["compared_rows"], arrays["sums"], arrays["extras"], sample, first, last),
        **{name: document[name] for name in simple},
    )  # fmt: skip


def _embedding(document: dict[str, Any], arrays: Arrays) -> EmbeddingPlan:
    whitening = Whitening(
        arrays["whitening.centre"], arrays["whitening.projection"], float(document["residual_variance"])
    )
    random = RandomFeatures(arrays["random"])
    return EmbeddingPlan(len(whitening.centre), whitening, random, _bins(arrays, "distances"))


def _bins(arrays: Arrays, name: str) -> Bins:
    return Bins(arrays[f"{name}.edges"], arrays[f"{name}.centres"])


def _array_digest(array: npt.NDArray[Any]) -> str:
    head = f"{array.dtype.str}{array.shape}".encode()
    return digest_bytes(head + np.ascontiguousarray(array).tobytes())
