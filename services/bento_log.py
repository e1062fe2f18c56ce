"""Lets a Bento without a gateway write the inference log; off unless ``serving.inference_log`` is on.

A gateway logs better: it knows the route, the subject and the languages. pyarrow (156 MB installed) is therefore no
requirement of a Bento; the operator who wants this adds it to the image. Embeddings are computed for every
request then (2.5 % more CPU), and writing shares the cores with the engine.
"""

import importlib
import time
from collections.abc import Sequence
from typing import Any

from governance.text_statistics import text_statistics
from leitstand.errors import MissingExtraError
from leitstand.settings import Settings
from leitstand.types import WindowRow, utc_now
from models.bento_manifest import ServingManifest
from services.batching import Answer

__all__ = ["BentoLog", "open_bento_log"]


def open_bento_log(settings: Settings, manifest: ServingManifest) -> "BentoLog | None":
    """The log, or None when it is off.

    Raises:
        MissingExtraError: It is on, but pyarrow or structlog is not installed.
    """
    if not settings.serving.inference_log:
        return None
    try:
        module = importlib.import_module("governance.inference_log")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"serving.inference_log is on, but '{error.name}' is not installed in this Bento's environment",
            hint="pip install 'pyarrow>=22' 'structlog>=25', or let the gateway log",
        ) from error
    monitoring = settings.monitoring.model_copy(update={"languages_per_s": 0.0})  # lingua is not in a Bento
    return BentoLog(module.open_inference_log(settings.model_copy(update={"monitoring": monitoring})), manifest)


class BentoLog:
    """Turns answers into rows of `log`, an `InferenceLog`."""

    def __init__(self, log: Any, manifest: ServingManifest) -> None:
        self._log = log
        self._use_case = manifest.use_case
        self._version = manifest.version

    def record(
        self, request_id: str, texts: Sequence[str], ids: Sequence[Sequence[int]], answers: Sequence[Answer],
        started: float,
    ) -> None:  # fmt: skip
        """Adds one row per text; `started` is `time.perf_counter()` at the request's arrival."""
        now, latency = utc_now(), (time.perf_counter() - started) * 1000
        rows = [
            WindowRow(
                request_id=request_id, index=index, at=now, use_case=self._use_case, version=self._version,
                route="stable", subject="", label=answer.label, score=answer.score, abstain=answer.abstain,
                probabilities=answer.probabilities.astype("<f2").tobytes(),
                embedding=b"" if answer.embedding is None else answer.embedding.astype("<f2").tobytes(),
                tokens=len(tokens), language="", latency_ms=latency, **text_statistics(text)._asdict(),
            )
            for index, (text, tokens, answer) in enumerate(zip(texts, ids, answers, strict=True))
        ]  # fmt: skip
        self._log.append(rows)

    def close(self) -> None:
        """Writes what is left."""
        self._log.close()
