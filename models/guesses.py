"""What a model that was trained on the base alone would guess for the texts of feedback, and how often it misses.

The model is a ridge regression to one-hot labels on frozen embeddings of the base encoder (scikit-learn): it
takes seconds, knows nothing of the feedback, and its miss rate comes from five-fold cross-validation on the base
rows. Embeddings of the base rows are kept in ``home/cache/embeddings``, so a second retraining embeds new texts only.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, cross_val_predict

from leitstand.files import atomic_path, digest_json, short_digest
from leitstand.settings import S3Settings
from leitstand.types import Snapshot
from leitstand.usecase import UseCase
from models.base import resolve_base
from models.batching import encode
from models.distributed import open_workers
from models.encoder import build_classifier, load_base_tokenizer
from models.forward import embeddings
from models.optimization import tune_process
from models.snapshots import load_split
from models.source_trust import Guesses

__all__ = ["embed_base", "guess", "rank_labels"]

FOLDS = 5
RIDGE = 1.0


def guess(
    use_case: UseCase, base: Snapshot, texts: dict[str, str], *, home: Path, s3: S3Settings, seed: int = 0
) -> Guesses:
    """Guesses for `texts` (key to text) of a model fitted on the base's training rows.

    Raises:
        NotFoundError: The base model or the snapshot is missing.
    """
    rows = load_split(base, "train")
    keys = sorted(texts)
    features, asked = embed_base(use_case, base, rows.texts, [texts[key] for key in keys], home=home, s3=s3)
    best = use_case.feedback.trust.top_guesses
    ranked, miss_rate = rank_labels(features, rows.labels, asked, len(base.labels), best=best, seed=seed)
    names = {key: [base.labels[label] for label in order] for key, order in zip(keys, ranked.tolist(), strict=True)}
    return Guesses(names, frozenset(base.labels), miss_rate)


def rank_labels(
    features: np.ndarray, labels: np.ndarray, asked: np.ndarray, count: int, *, best: int, seed: int
) -> tuple[np.ndarray, float]:
    """The `best` likeliest labels of each asked row, (n, best), and the cross-validated share of base rows missed.

    Args:
        features: (rows, hidden) of the base.
        labels: (rows,) int64.
        asked: (n, hidden).
        count: Number of labels.
        best: How many guesses count; all labels when there are fewer.
        seed: Of the folds.
    """
    mean, scale = features.mean(0), features.std(0) + 1e-6
    inputs, targets = (features - mean) / scale, np.eye(count)[labels]
    model = Ridge(alpha=RIDGE)
    folds = KFold(min(FOLDS, len(labels)), shuffle=True, random_state=seed)
    scores = np.asarray(cross_val_predict(model, inputs, targets, cv=folds))
    missed = 1.0 - float((_top(scores, best) == labels[:, None]).any(axis=1).mean())
    if not len(asked):
        return np.empty((0, min(best, count)), dtype=np.int64), missed
    return _top(model.fit(inputs, targets).predict((asked - mean) / scale), best), missed


def embed_base(
    use_case: UseCase, base: Snapshot, base_texts: Sequence[str], texts: Sequence[str], *, home: Path, s3: S3Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled embeddings of the base's training texts (from the cache when they are there) and of `texts`, float32."""
    model = resolve_base(use_case.model.base, home=home, s3=s3, folder=use_case.folder)
    key = digest_json([model.digest, base.splits["train"].digest, use_case.model.max_tokens])
    path = home / "cache" / "embeddings" / f"{short_digest(key)}.npy"
    kept = _read(path, len(base_texts))
    tune_process()
    tokenizer = load_base_tokenizer(model.folder, use_case.model.max_tokens)
    module = build_classifier(model.folder, 1)
    todo = [*texts] if kept is not None else [*base_texts, *texts]
    with open_workers() as workers:
        module.to(workers.device)
        found = embeddings(module, encode(tokenizer, todo), workers).numpy() if todo else np.empty((0, 1), np.float32)
    if kept is not None:
        return kept, found
    mine, others = found[: len(base_texts)], found[len(base_texts) :]
    with atomic_path(path) as part, part.open("wb") as file:
        np.save(file, mine)
    return mine, others


def _read(path: Path, rows: int) -> np.ndarray | None:
    try:
        kept = np.load(path)
    except (OSError, ValueError):
        return None
    return kept if kept.ndim == 2 and len(kept) == rows else None  # noqa: PLR2004


def _top(scores: np.ndarray, best: int) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :best]
