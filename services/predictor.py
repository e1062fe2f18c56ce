"""The Bento: one version of one use case. ``/v2`` is answered by `services.protocol`, ``/classify`` here.

Threads are set here and nowhere else: the engine computes with one single-threaded stream per available
CPU (`LEITSTAND_SERVING__THREADS` overrides), the tokenizer with none of its own, and the event loop lives
in between; more compute threads than CPUs slow each other down severalfold.
"""

import asyncio
import logging
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
from annotated_types import MaxLen, MinLen
from bentoml.models import BentoModel

from leitstand.errors import ConfigurationError
from leitstand.settings import load_settings
from models.bento_manifest import read_manifest
from models.loading import open_classifier
from services.batching import Answer, Batcher
from services.bento_access import bento_access, refuse_open
from services.bento_log import BentoLog, open_bento_log
from services.draining import drain_on_sigterm
from services.errors import HttpError
from services.inference_protocol import check_texts
from services.parent import die_with_parent
from services.priority import run_with_low_priority
from services.protocol import FrontDoor, Protocol
from services.request_ids import request_id_from
from services.scheduling import Limits, Overloaded

__all__ = ["Predictor"]

WARM_UP = (
    "Where is my card?",
    "I was charged twice for the same thing and would like my money back, please.",
    "My transfer to a friend in another country has not arrived although it left my account last week. "
    "Can you look into what happened to it and tell me when it is going to be there?",
    "How do I change my PIN?",
) * 8

_manifest = read_manifest()
_settings = load_settings().serving
_protocol = Protocol()


@bentoml.service(
    name="predictor",
    workers=_settings.workers,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    resources={"cpu": "1"},
)
class Predictor:
    """Classifies texts: labels with calibrated scores, and abstention when the score is low."""

    if _manifest is not None:
        model = BentoModel(_manifest.model_tag)
    _log: BentoLog | None = None

    @bentoml.on_startup
    async def open(self) -> None:
        """Loads the weights and warms up; ``/readyz`` answers only afterwards."""
        if _manifest is None:
            raise ConfigurationError("serving.json is missing", hint="build a Bento with `leitstand package NAME`")
        refuse_open(load_settings())
        die_with_parent()
        drain_on_sigterm(_protocol.drain)
        # uvicorn formats an access-log record per request as soon as any handler could see it; metrics count instead.
        logging.getLogger("uvicorn.access").propagate = False
        opening = partial(
            open_classifier,
            Path(self.model.path),
            engine=_manifest.engine,
            precision=_manifest.precision,
            threads=_settings.threads,
        )
        classifier = await asyncio.to_thread(run_with_low_priority, opening)
        limits = Limits(
            max_batch_texts=_manifest.max_batch_size,
            max_queue=_manifest.max_queue,
            deadline_s=_manifest.deadline_ms / 1000,
            workers=classifier.backend.concurrency,
        )
        self._batcher = Batcher(classifier, limits)
        await self._batcher.warm_up(WARM_UP)
        self._log = open_bento_log(load_settings(), _manifest)
        _protocol.open(self._batcher, _manifest, self._log)

    @bentoml.on_shutdown
    def close(self) -> None:
        """Called after the last answer was sent."""
        _protocol.close()
        if self._log is not None:
            self._log.close()

    @bentoml.api
    async def classify(
        self,
        texts: Annotated[list[str], MinLen(1), MaxLen(256)],
        top_k: int = 3,
        ctx: bentoml.Context = None,  # type: ignore[assignment]
    ) -> dict[str, Any]:
        """Label, calibrated score, abstention and the best alternatives for each text."""
        started = time.perf_counter()
        try:
            check_texts(texts, _manifest.max_text_bytes if _manifest else 0)
            ids = await asyncio.to_thread(self._batcher.classifier.encode, texts)
            answers = await self._batcher.classify(ids, embedding=self._log is not None)
        except HttpError as error:
            ctx.response.status_code = error.status
            return {"error": error.message}
        except Overloaded as error:
            ctx.response.status_code = 503
            ctx.response.headers["Retry-After"] = str(round(error.retry_after_s))
            return {"error": f"overloaded: {error.reason}"}
        if self._log is not None:
            name = request_id_from(ctx.request.headers.get("x-request-id", "").encode("latin-1"))
            ctx.response.headers["x-request-id"] = name
            self._log.record(name, texts, ids, answers, started)
        labels = self._batcher.classifier.config.labels
        version = _manifest.version if _manifest else 0
        return {"version": version, "predictions": [_friendly(answer, labels, top_k) for answer in answers]}


def _friendly(answer: Answer, labels: tuple[str, ...], top_k: int) -> dict[str, Any]:
    best = np.argsort(answer.probabilities)[::-1][: max(1, top_k)]
    return {
        "label": answer.label,
        "score": round(answer.score, 6),
        "abstain": answer.abstain,
        "top": [{"label": labels[i], "score": round(float(answer.probabilities[i]), 6)} for i in best],
    }


Predictor.add_asgi_middleware(FrontDoor, protocol=_protocol, access=bento_access(load_settings()))  # pyright: ignore
