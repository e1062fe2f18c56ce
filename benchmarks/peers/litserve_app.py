"""LitServe with dynamic batching."""

import sys
from typing import Any

import litserve

from benchmarks.peers.shared import answers, opened


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.classifier = opened()

    def decode_request(self, request: dict[str, Any]) -> str:
        return request["text"]

    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        return answers(self.classifier, list(texts))

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Api(max_batch_size=64, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
