"""Answers become rows of the inference log, off the request's path.

`Recorder.add` only appends to a bounded queue; twenty times a second a thread decodes answers, computes text
statistics and hands rows to the log. A full queue drops answers and counts them. Texts are used for statistics and the
language, and are kept only in a store that is switched on (`governance.input_store`).
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b

import numpy as np
import structlog

from governance.input_store import InputStore, KeptTexts
from governance.text_statistics import text_statistics
from leitstand.ports import InferenceLog
from leitstand.types import WindowRow
from services.exchange import Payload
from services.gateway_metrics import DOUBT, ROWS_DROPPED
from services.upstream_codec import Predictions, decode_answer
from services.upstreams import Reply

__all__ = ["Answered", "Recorder", "chat_row", "pseudonym", "window_rows"]

PAUSE_S = 0.05

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer to be logged; ``version`` counts when the answer does not name its own."""

    request_id: str
    use_case: str
    subject: str
    version: int
    route: str
    payload: Payload
    reply: Reply
    at: datetime
    latency_ms: float


class Recorder:
    """Turns answers into rows. Close it before the log.

    Args:
        log: Where rows go.
        subject_key: Key of the subjects' pseudonyms; without one, rows name no subject.
        limit: Answers that may wait.
        texts: Where raw texts are kept for labelling; None: nowhere.
    """

    def __init__(
        self, log: InferenceLog, *, subject_key: bytes = b"", limit: int = 10_000, texts: InputStore | None = None
    ) -> None:
        self._log = log
        self._texts = texts if texts is not None and texts.enabled else None
        self._key = subject_key
        self._limit = limit
        self._waiting: deque[Answered] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def add(self, answered: Answered) -> None:
        """Returns at once, and wakes nobody: a thread per request would cost more than its work."""
        if len(self._waiting) < self._limit:
            self._waiting.append(answered)
        else:
            ROWS_DROPPED.inc()

    def close(self) -> None:
        """Returns when every answer added before is with the log."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(PAUSE_S)
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            for answered in batch:
                self._record(answered)
            self._keep_texts(batch)

    def _keep_texts(self, batch: Sequence[Answered]) -> None:
        """Of answers that people got; the shadow saw the same texts."""
        if self._texts is None:
            return
        try:
            self._texts.put_many(
                [
                    KeptTexts(each.use_case, each.request_id, each.payload.texts(), each.at,
                              pseudonym(each.subject, self._key))
                    for each in batch
                    if each.route != "shadow" and each.reply.completion is None
                ]
            )  # fmt: skip
        except Exception as error:  # the boundary: a full disk costs texts, not the log
            logger.warning("Texts were not kept for labelling", requests=len(batch), cause=str(error)[:300])

    def _record(self, answered: Answered) -> None:
        try:
            if answered.reply.completion is not None:
                self._record_chat(answered)
                return
            texts = answered.payload.texts()
            predictions = decode_answer(answered.reply.body, answered.reply.head_bytes)
            rows = window_rows(answered, texts, predictions, self._key)
            if rows:
                self._log.append(rows, texts)
            for row in rows:
                DOUBT.labels(row.use_case, str(row.version), row.route).observe(1 - row.score)
        except Exception as error:  # the boundary: one odd answer must not end the log
            ROWS_DROPPED.inc()
            logger.warning("An answer is missing in the inference log", request=answered.request_id,
                cause=str(error)[:300])  # fmt: skip

    def _record_chat(self, answered: Answered) -> None:
        text = answered.payload.texts()[-1]
        self._log.append([chat_row(answered, text, self._key)], [text])


def chat_row(answered: Answered, text: str, subject_key: bytes = b"") -> WindowRow:
    """The row of a chat: statistics of what was said last, and no label, since nothing was classified."""
    said, usage = text_statistics(text), answered.reply.usage
    return WindowRow(
        request_id=answered.request_id, index=0, at=answered.at, use_case=answered.use_case, version=answered.version,
        route=answered.route, subject=pseudonym(answered.subject, subject_key), label="", score=1.0, abstain=False,
        probabilities=b"", embedding=b"", characters=said.characters, words=said.words,
        tokens=usage.tokens_in if usage else 0, digit_share=said.digit_share, upper_share=said.upper_share,
        non_ascii_share=said.non_ascii_share, language="", latency_ms=answered.latency_ms,
    )  # fmt: skip


def window_rows(
    answered: Answered, texts: Sequence[str], predictions: Predictions, subject_key: bytes = b""
) -> list[WindowRow]:
    """One row per text. An answer without labels or scores (not asked for) gives none.

    Raises:
        ValueError: Texts and predictions are not equally many.
    """
    if not predictions.labels or not predictions.scores:
        return []
    subject = pseudonym(answered.subject, subject_key)
    abstain = predictions.abstain or [False] * len(texts)
    probabilities, embedding = _packed(predictions.probabilities, texts), _packed(predictions.embedding, texts)
    rows = []
    for index, (text, label, score, held) in enumerate(
        zip(texts, predictions.labels, predictions.scores, abstain, strict=True)
    ):
        said = text_statistics(text)
        rows.append(
            WindowRow(
                request_id=answered.request_id, index=index, at=answered.at, use_case=answered.use_case,
                version=predictions.version or answered.version, route=answered.route, subject=subject,
                label=label, score=score, abstain=held, probabilities=probabilities[index],
                embedding=embedding[index], characters=said.characters, words=said.words, tokens=0,
                digit_share=said.digit_share, upper_share=said.upper_share, non_ascii_share=said.non_ascii_share,
                language="", latency_ms=answered.latency_ms,
            )
        )  # fmt: skip
    return rows


def pseudonym(subject: str, key: bytes) -> str:
    """A keyed hash (BLAKE2b, 128 bits) in hex; empty without a key, because a plain hash can be guessed back."""
    if not subject or not key:
        return ""
    return blake2b(subject.encode("utf-8", "surrogatepass"), digest_size=16, key=key[:64]).hexdigest()


def _packed(matrix: np.ndarray | None, texts: Sequence[str]) -> Sequence[bytes]:
    if matrix is None:
        return [b""] * len(texts)
    return [row.tobytes() for row in matrix.astype("<f2")]
