"""An exchange's answer as plain values: what ``predict`` answers, and what a job keeps."""

from typing import Any

import numpy as np

from services.exchange import Exchange

__all__ = ["predictions_of"]


def predictions_of(exchange: Exchange, top_k: int) -> list[dict[str, Any]]:
    """One `Prediction` per text, in their order; call it only when the reply has status 200.

    Raises:
        PermanentBackendError: The answer is not readable.
    """
    made = exchange.predictions()
    top = _top(made.probabilities, exchange.labels, top_k)
    return [
        {
            "label": label,
            "score": round(score, 6),
            "abstain": abstain,
            "top": top[index] if top else [{"label": label, "score": round(score, 6)}],
        }
        for index, (label, score, abstain) in enumerate(zip(made.labels, made.scores, made.abstain, strict=True))
    ]


def _top(probabilities: np.ndarray | None, labels: tuple[str, ...], top_k: int) -> list[list[dict[str, Any]]]:
    """The best labels per text; none when the model does not tell its labels."""
    if probabilities is None or probabilities.shape[1] != len(labels):
        return []
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    scores = np.take_along_axis(probabilities, best, axis=1).astype(float)
    return [
        [{"label": labels[i], "score": round(value, 6)} for i, value in zip(row, row_scores, strict=True)]
        for row, row_scores in zip(best.tolist(), scores.tolist(), strict=True)
    ]
