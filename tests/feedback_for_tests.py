"""Feedback entries, and windows of answers to label, for tests."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from leitstand.types import Feedback

__all__ = ["LABELS", "START", "answers", "said"]

START = datetime(2026, 11, 1, tzinfo=UTC)
LABELS = ("card", "cash", "fees", "top_up", "transfer")


def said(
    request_id: str, label: str | None, source: str, hour: float, *, rating: int | None = None, index: int = 0
) -> Feedback:
    """What `source` said about an answer, `hour` hours after the start."""
    return Feedback(
        feedback_id=f"{request_id}/{index}/{source}/{hour}", request_id=request_id, index=index, use_case="tiny",
        label=label, rating=rating, source=source, at=START + timedelta(hours=hour),
    )  # fmt: skip


def answers(rows: int, *, seed: int = 0, feedback: float = 0.0, with_embeddings: bool = True) -> pa.Table:
    """Answers of a classifier of `LABELS`; a share `feedback` of them is labelled already."""
    random = np.random.default_rng(seed)
    embeddings = random.normal(size=(rows, 16))
    logits = 1.5 * embeddings[:, : len(LABELS)]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    best = probabilities.argmax(axis=1)
    known = random.random(rows) < feedback

    def packed(values: np.ndarray) -> pa.Array:
        return pa.array([row.astype("<f2").tobytes() if with_embeddings else b"" for row in values], pa.binary())

    return pa.table(
        {
            "request_id": pa.array([f"r{n}" for n in range(rows)], pa.string()),
            "index": pa.array(np.zeros(rows, np.int32)),
            "at": pa.array([START + timedelta(seconds=n) for n in range(rows)], pa.timestamp("us", tz="UTC")),
            "use_case": pa.array(["support"] * rows, pa.string()),
            "version": pa.array(np.full(rows, 3, np.int32)),
            "route": pa.array(["stable"] * rows, pa.string()),
            "label": pa.array([LABELS[place] for place in best], pa.string()),
            "score": pa.array(probabilities.max(axis=1, initial=0).astype(np.float32)),
            "probabilities": packed(probabilities),
            "embedding": packed(embeddings),
            "feedback_label": pa.array(["card" if yes else None for yes in known], pa.string()),
        }
    )
