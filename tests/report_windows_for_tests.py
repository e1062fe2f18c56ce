"""Windows of the inference log for tests: rows as a small text classifier leaves them, without one.

Each label has a centre on the unit sphere; an embedding is a noisy centre, and its probabilities are a
softmax of its closeness to all centres, so that labels, scores and embeddings hang together as real ones
do. `LABELS` is small on purpose; every function is seeded.
"""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from governance.inference_log import ROW_SCHEMA

__all__ = ["LABELS", "START", "WINDOW_SCHEMA", "window_table"]

LABELS = ("card_arrival", "cash_withdrawal_charge", "exchange_rate", "lost_or_stolen_card", "top_up_failed")
START = datetime(2026, 11, 24, 8, tzinfo=UTC)
DIMENSIONS = 16
WINDOW_SCHEMA = pa.schema(
    [
        *ROW_SCHEMA,
        ("feedback_label", pa.string()),
        ("rating", pa.int8()),
        ("feedback_source", pa.string()),
        ("feedback_at", pa.timestamp("us", tz="UTC")),
    ]
)


def window_table(
    rows: int,
    *,
    seed: int = 0,
    labels: tuple[str, ...] = LABELS,
    dimensions: int = DIMENSIONS,
    shift: float = 0.0,
    feedback: float = 0.0,
    correct: float = 0.9,
    start: datetime = START,
    minutes: int = 60,
    version: int = 3,
    use_case: str = "support",
    with_embeddings: bool = True,
) -> pa.Table:
    """A table of `WINDOW_SCHEMA`: one row per answered text.

    Args:
        rows: How many; 0 gives an empty table.
        seed: Decides every value; the centres of the labels are the same for every seed.
        labels: The model's labels, in its order.
        dimensions: Of the embeddings.
        shift: 0 for traffic like the reference; at 1 embeddings move by one centre, texts get longer,
            one language enters and the first label takes over.
        feedback: Share of rows that people labelled.
        correct: Share of the labelled rows on which the model was right.
        start: Moment of the first row, UTC.
        minutes: Length of the window.
        version: Model version of all rows.
        use_case: Name of the use case of all rows.
        with_embeddings: False leaves `embedding` and `probabilities` empty, as a model that is not asked for them.
    """
    random = np.random.default_rng(seed)
    centres = _unit(np.random.default_rng(7).normal(size=(len(labels), dimensions)))
    prior = np.full(len(labels), 1.0)
    prior[0] += 4.0 * shift
    truth = random.choice(len(labels), size=rows, p=prior / prior.sum())
    away = _unit(np.random.default_rng(8).normal(size=(1, dimensions)))
    embeddings = _unit(centres[truth] + random.normal(scale=0.5 / np.sqrt(dimensions), size=(rows, dimensions)))
    embeddings = _unit(embeddings + shift * away)
    logits = 8.0 * embeddings @ centres.T + random.normal(scale=0.5, size=(rows, len(labels)))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True, initial=0.0))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1) if rows else truth
    score = probabilities.max(axis=1, initial=0.0)
    words = 1 + random.poisson(11 + 6 * shift, size=rows)
    characters = words * 4 + random.poisson(6, size=rows)
    offsets = np.sort(random.uniform(0, minutes * 60e6, size=rows)).astype(int)
    is_labelled = random.random(rows) < feedback
    right = np.where(random.random(rows) < correct, predicted, (predicted + 1) % len(labels))
    moments = [start + timedelta(microseconds=int(offset)) for offset in offsets]
    columns = {
        "request_id": [f"r{seed:03d}-{number:06d}" for number in range(rows)],
        "index": np.zeros(rows, dtype=np.int32),
        "at": moments,
        "use_case": [use_case] * rows,
        "version": np.full(rows, version, dtype=np.int32),
        "route": ["stable"] * rows,
        "subject": [f"s{number % 50:02d}" for number in range(rows)],
        "label": [labels[i] for i in predicted],
        "score": score.astype(np.float32),
        "abstain": score < 0.5,
        "probabilities": _float16(probabilities, with_embeddings),
        "embedding": _float16(embeddings, with_embeddings),
        "characters": characters.astype(np.int32),
        "words": words.astype(np.int32),
        "tokens": (words * 1.3 + 2).astype(np.int32),
        "digit_share": random.beta(1, 40, size=rows).astype(np.float32),
        "upper_share": random.beta(2, 40, size=rows).astype(np.float32),
        "non_ascii_share": np.where(random.random(rows) < 0.05 + 0.3 * shift, 0.02, 0.0).astype(np.float32),
        "language": np.where(random.random(rows) < 0.4 * shift, "de", "en").tolist(),
        "latency_ms": random.lognormal(3, 0.4, size=rows).astype(np.float32),
        "feedback_label": [labels[i] if told else None for i, told in zip(right, is_labelled, strict=True)],
        "rating": [None] * rows,
        "feedback_source": ["agents" if told else None for told in is_labelled],
        "feedback_at": [
            at + timedelta(minutes=5) if told else None for at, told in zip(moments, is_labelled, strict=True)
        ],
    }
    return pa.table(columns, schema=WINDOW_SCHEMA)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _float16(rows: np.ndarray, filled: bool) -> list[bytes]:
    return [row.tobytes() if filled else b"" for row in rows.astype("<f2")]
