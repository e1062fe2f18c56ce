"""Opens the benchmarked classifier in a peer's process; model, engine and precision come from the environment."""

import os
from pathlib import Path
from typing import Any

from models.loading import Classifier, open_classifier

__all__ = ["answers", "opened"]


def opened() -> Classifier:
    classifier = open_classifier(
        Path(os.environ["PEER_MODEL"]), engine=os.environ["PEER_ENGINE"], precision=os.environ["PEER_PRECISION"]
    )
    if os.environ["PEER_ENGINE"] == "openvino" and os.environ["PEER_PACKED"] == "0":
        classifier.backend._row_tokens = 0  # type: ignore[attr-defined]  # one text per row: plain padding
    return classifier


def answers(classifier: Classifier, texts: list[str]) -> list[dict[str, Any]]:
    made = classifier.predict(texts)
    rows = zip(made.labels, made.scores.tolist(), made.abstain.tolist(), strict=True)
    return [{"label": label, "score": score, "abstain": abstain} for label, score, abstain in rows]
