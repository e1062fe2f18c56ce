"""BentoML's own adaptive batching: a batchable API, as its documentation shows it."""

from typing import Any

import bentoml

from benchmarks.peers.shared import answers, opened


@bentoml.service(name="batchable", traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Batchable:
    def __init__(self) -> None:
        self.classifier = opened()
        answers(self.classifier, ["where is my card"] * 64)

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=10_000)
    def predict(self, text: list[str]) -> list[dict[str, Any]]:
        return answers(self.classifier, text)
