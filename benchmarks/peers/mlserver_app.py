"""MLServer with adaptive batching."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers.shared import answers, opened


class Model(MLModel):
    async def load(self) -> bool:
        self.classifier = opened()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        import numpy as np

        rows = answers(self.classifier, StringCodec.decode_input(payload.inputs[0]))
        outputs = [
            StringCodec.encode_output("label", [row["label"] for row in rows]),
            NumpyCodec.encode_output("score", np.array([row["score"] for row in rows], np.float32)),
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
