"""Model-based checks: anything that scores texts, with a deadline of its own.

A check may be slow, and may hang: it runs in a thread, and who waits for it stops waiting at its deadline. What
follows then is the rule's decision (`on_timeout`). `BentoCheck` asks a model Bento, or any server of the Open Inference
Protocol, that answers labels and scores.
"""

import http.client
import json
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from governance.guards.classifier import InjectionModel
from leitstand.errors import PermanentBackendError, TransientBackendError
from leitstand.specs.guards import CheckRule

__all__ = ["BentoCheck", "Check", "open_check"]

MAX_ANSWER = 1_000_000
OK = 200


class Check(Protocol):
    """Scores texts."""

    def judge(self, texts: Sequence[str]) -> list[float]:
        """How sure it is, for each text in [0, 1], that the text is what it looks for. May block its thread.

        Raises:
            BackendError: It could not tell.
        """
        ...


class BentoCheck:
    """A classifier behind the Open Inference Protocol.

    Args:
        url: Its infer URL, like ``http://127.0.0.1:3001/v2/models/moderation/infer``.
        labels: Labels that count as found.
        timeout_s: For connecting, and for each read.
    """

    def __init__(self, url: str, labels: Sequence[str], timeout_s: float) -> None:
        self._url, self._labels, self._timeout_s = urlsplit(url), frozenset(labels), timeout_s

    def judge(self, texts: Sequence[str]) -> list[float]:
        """See `Check.judge`: the score of the label where it counts as found, else 0."""
        tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
        wanted = [{"name": name} for name in ("label", "score")]
        answer = self._post(json.dumps({"inputs": [tensor], "outputs": wanted}).encode())
        try:
            outputs = {output["name"]: output["data"] for output in json.loads(answer)["outputs"]}
            pairs = list(zip(outputs["label"], outputs["score"], strict=True))
            if len(pairs) != len(texts):
                raise ValueError(f"{len(pairs)} answers to {len(texts)} texts")
            return [float(score) if label in self._labels else 0.0 for label, score in pairs]
        except (ValueError, KeyError, TypeError) as error:
            raise PermanentBackendError(f"The check at {self._url.netloc} is not readable: {error!r}"[:300]) from error

    def _post(self, body: bytes) -> bytes:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self._timeout_s)
        try:
            connection.request("POST", self._url.path or "/", body, {"content-type": "application/json"})
            response = connection.getresponse()
            answer = response.read(MAX_ANSWER + 1)
        except (OSError, http.client.HTTPException) as error:
            raise TransientBackendError(
                f"The check at {self._url.netloc} does not answer: {error!r}"[:300], hint="see the Bento's log"
            ) from error
        finally:
            connection.close()
        if response.status != OK or len(answer) > MAX_ANSWER:
            raise TransientBackendError(f"The check at {self._url.netloc} answered {response.status}")
        return answer


def open_check(rule: CheckRule) -> Check:
    """The check that a rule names."""
    if rule.model == "injection":
        return InjectionModel()
    return BentoCheck(rule.model, rule.labels, rule.deadline_ms / 1000)
