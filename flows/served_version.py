"""The version that a Bento serves, asked over the Open Inference Protocol, and what it is like to different people."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leitstand.errors import TransientBackendError
from leitstand.own_calls import ask_bento
from leitstand.settings import Settings
from leitstand.types import Metric
from leitstand.usecase import UseCase
from models import probes
from models.golden import Golden

__all__ = ["ServedVersion", "measure_behaviour"]

ASKED_AT_ONCE = 64
TIMEOUT_S = 30


@dataclass(frozen=True)
class ServedAnswers:
    """`probabilities` (n, labels) and `abstain` (n,) bool, as `models.probes` wants them."""

    probabilities: np.ndarray
    abstain: np.ndarray


class ServedVersion:
    """A client without retries: who asks at night wants to know that an answer is missing.

    Args:
        url: Of the Bento.
        name: Of the use case.
        settings: Hold the secret that Bentos want to see; None: there is none.
    """

    def __init__(self, url: str, name: str, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._url = f"{url.rstrip('/')}/v2/models/{name}"

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the probabilities.

        Raises:
            TransientBackendError: It does not answer, or does not tell.
        """
        outputs = self._call(self._url, None)["outputs"]
        given = next((output for output in outputs if output["name"] == "probabilities"), {})
        labels = (given.get("parameters") or {}).get("labels")
        if not labels:
            raise TransientBackendError(f"{self._url} does not tell its labels", hint="serve a Bento of this version")
        return tuple(labels)

    def answers(self, texts: Sequence[str]) -> list[str]:
        """One label per text.

        Raises:
            TransientBackendError: It does not answer, or not with a label per text.
        """
        return [label for part in self._parts(texts, "label") for label in part["label"]]

    def predict(self, texts: list[str], /) -> ServedAnswers:
        """Probabilities and abstentions.

        Raises:
            TransientBackendError: As `answers`.
        """
        parts = list(self._parts(texts, "probabilities", "abstain"))
        if not parts:
            return ServedAnswers(np.empty((0, 0), np.float32), np.empty(0, bool))
        rows = [np.asarray(part["probabilities"], np.float32).reshape(len(part["abstain"]), -1) for part in parts]
        return ServedAnswers(np.vstack(rows), np.concatenate([np.asarray(part["abstain"], bool) for part in parts]))

    def _parts(self, texts: Sequence[str], *names: str) -> list[dict[str, Any]]:
        return [
            self._ask(list(texts[start : start + ASKED_AT_ONCE]), names)
            for start in range(0, len(texts), ASKED_AT_ONCE)
        ]

    def _ask(self, texts: list[str], names: Sequence[str]) -> dict[str, Any]:
        tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
        body = json.dumps({"inputs": [tensor], "outputs": [{"name": name} for name in names]}).encode()
        given = {output["name"]: output["data"] for output in self._call(f"{self._url}/infer", body)["outputs"]}
        if set(names) - set(given) or len(given[names[-1]]) != len(texts):
            raise TransientBackendError(f"{self._url} did not answer {len(texts)} texts with {', '.join(names)}")
        return given

    def _call(self, url: str, body: bytes | None) -> dict[str, Any]:
        try:
            return json.loads(ask_bento(self._settings, url, body, TIMEOUT_S))
        except (OSError, ValueError) as error:
            raise TransientBackendError(f"{url} did not answer: {error}", hint="see `leitstand status`") from error


def measure_behaviour(served: ServedVersion, use_case: UseCase, golden: Golden, *, texts: int) -> list[Metric]:
    """The evaluation's probes on golden texts, asked of what serves: counterfactuals, rewritings, personal data.

    Names and slices are those of the evaluation (`models.probes`), so the same gates judge them.

    Args:
        served: Who is asked.
        use_case: Names the groups and the seed.
        golden: Texts and labels; those whose label the version does not have are left out.
        texts: Golden texts per probe.
    """
    names = served.labels
    sentences, labels = golden.known(names)
    order, book, seed = np.arange(len(names)), probes.Book(), use_case.training.seed
    plain = probes.ask(served, sentences, order)
    limits: dict[str, Any] = {"limit": texts, "seed": seed}
    probes.robustness(book, served, sentences, plain, order, **limits)
    probes.personal_data(book, served, sentences, labels, plain, order, **limits)
    spec = use_case.evaluation.counterfactuals
    if spec is not None:
        probes.counterfactuals(book, served, sentences, labels, spec, order, **limits)
    return book.metrics
