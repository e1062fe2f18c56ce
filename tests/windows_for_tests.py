"""Tables like the inference log's, drawn from a world whose drift is known."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

LABELS = ("card", "cash", "fees", "top_up")
WIDTH = 16
START = datetime(2026, 3, 1, tzinfo=UTC)
CENTRES = np.random.default_rng(99).normal(size=(len(LABELS), WIDTH))


def packed(rows: np.ndarray) -> pa.Array:
    """Rows of numbers as the log writes them: float16 bytes."""
    return pa.array([row.astype("<f2").tobytes() for row in rows], pa.binary())


def window(
    rng: np.random.Generator,
    rows: int,
    *,
    prior: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25),
    moved: float = 0.0,
    longer: float = 0.0,
    feedback: float = 0.0,
    extra: int = 0,
) -> pa.Table:
    """Rows of the log. `moved` shifts embeddings, `longer` the lengths, `extra` adds that many number columns."""
    truth = rng.choice(len(LABELS), rows, p=prior)
    embedding = CENTRES[truth] + rng.normal(size=(rows, WIDTH)) + moved
    likelihood = np.exp(-((embedding[:, None] - CENTRES) ** 2).sum(axis=2) / 2)
    probabilities = likelihood / likelihood.sum(axis=1, keepdims=True)
    answer, score = probabilities.argmax(axis=1), probabilities.max(axis=1)
    known = rng.random(rows) < feedback
    names = np.array(LABELS)
    numbers = {f"x{i}": pa.array(rng.normal(size=rows).astype(np.float32)) for i in range(extra)}
    return pa.table(
        {
            "request_id": [f"r{i}" for i in range(rows)],
            "at": pa.array([START + timedelta(seconds=i) for i in range(rows)], pa.timestamp("us", "UTC")),
            "use_case": ["support"] * rows,
            "version": pa.array([7] * rows, pa.int32()),
            "label": pa.array(names[answer].tolist(), pa.string()),
            "score": pa.array(score, pa.float32()),
            "abstain": pa.array(score < 0.5),
            "probabilities": packed(probabilities),
            "embedding": packed(embedding),
            "characters": pa.array(rng.poisson(60 + longer, rows), pa.int32()),
            "words": pa.array(rng.poisson(11, rows), pa.int32()),
            "tokens": pa.array(rng.poisson(14, rows), pa.int32()),
            "digit_share": pa.array(np.where(rng.random(rows) < 0.9, 0, rng.random(rows) / 10), pa.float32()),
            "upper_share": pa.array(rng.random(rows) / 10, pa.float32()),
            "non_ascii_share": pa.array(np.zeros(rows), pa.float32()),
            "language": pa.array(np.where(rng.random(rows) < 0.2, "en", "").tolist(), pa.string()),
            "latency_ms": pa.array(rng.gamma(2, 10, rows), pa.float32()),
            "feedback_label": pa.array(np.where(known, names[truth], None).tolist(), pa.string()),
            **numbers,
        }
    )
