"""The Open Inference Protocol as a client speaks it: requests for texts, and answers read back.

Tensors travel in binary where we ask; both forms are read, since a passed-through request may have asked
for the other. `services.inference_protocol` is the server's side.
"""

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from leitstand.errors import PermanentBackendError

__all__ = ["ALWAYS", "VECTORS", "Predictions", "decode_answer", "encode_texts"]

ALWAYS = ("label", "score", "abstain")
VECTORS = ("probabilities", "embedding")  # asked for when the upstream offers them
DTYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BOOL": "|b1", "INT32": "<i4", "INT64": "<i8"}
LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Predictions:
    """What an upstream said about the texts of one request.

    Attributes:
        version: Model version that answered; 0 when it did not say.
        labels: One per text; empty when they were not asked for.
        scores: Calibrated probability of each label.
        abstain: Whether the score is below the model's threshold.
        probabilities: [texts, labels], or None.
        embedding: [texts, dimensions], or None.
    """

    version: int
    labels: list[str]
    scores: list[float]
    abstain: list[bool]
    probabilities: np.ndarray | None
    embedding: np.ndarray | None


def encode_texts(texts: Sequence[str], outputs: Collection[str]) -> bytes:
    """The body that asks for `outputs` in binary."""
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
    return orjson.dumps({"inputs": [tensor], "outputs": wanted})


def decode_answer(body: bytes, head_bytes: int | None) -> Predictions:
    """Reads an answer.

    Args:
        body: The whole body.
        head_bytes: Length of its JSON part, from ``Inference-Header-Content-Length``; None: all of it.

    Raises:
        PermanentBackendError: It is not an answer of the protocol, or its tensors do not fit together.
    """
    try:
        document = orjson.loads(body if head_bytes is None else memoryview(body)[:head_bytes])
        tensors = _tensors(document, memoryview(body)[len(body) if head_bytes is None else head_bytes :])
        version = str(document.get("model_version", ""))
        answer = Predictions(
            version=int(version) if version.isdigit() else 0,
            labels=list(tensors.get("label", ())),
            scores=[float(score) for score in tensors.get("score", ())],
            abstain=[bool(value) for value in tensors.get("abstain", ())],
            probabilities=_matrix(tensors.get("probabilities")),
            embedding=_matrix(tensors.get("embedding")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise PermanentBackendError(f"The upstream's answer is not readable: {error!r}"[:300]) from error
    lengths = {len(part) for part in (answer.labels, answer.scores, answer.abstain) if part}
    lengths |= {len(part) for part in (answer.probabilities, answer.embedding) if part is not None}
    if len(lengths) > 1:
        raise PermanentBackendError(f"The upstream's tensors have different lengths: {sorted(lengths)}")
    return answer


def _tensors(document: dict[str, Any], tail: memoryview) -> dict[str, Any]:
    found: dict[str, Any] = {}
    place = 0
    for output in document["outputs"]:
        size = (output.get("parameters") or {}).get("binary_data_size")
        if size is None:
            found[output["name"]] = _shaped(output["data"], output["shape"])
            continue
        if place + size > len(tail):
            raise ValueError(f"{output['name']} is cut off")
        raw = tail[place : place + size]
        place += size
        if output["datatype"] == "BYTES":
            found[output["name"]] = _strings(raw)
        else:
            found[output["name"]] = np.frombuffer(raw, DTYPES[output["datatype"]]).reshape(output["shape"])
    return found


def _shaped(data: list[Any], shape: list[int]) -> Any:
    return data if len(shape) == 1 else np.asarray(data, np.float32).reshape(shape)


def _strings(raw: memoryview) -> list[str]:
    """Elements as a 4-byte little-endian length and that many bytes."""
    strings, place = [], 0
    while place < len(raw):
        (length,) = LENGTH.unpack_from(raw, place)
        place += LENGTH.size
        if place + length > len(raw):
            raise ValueError(f"element {len(strings)} is cut off")
        strings.append(str(raw[place : place + length], "utf-8"))
        place += length
    return strings


def _matrix(tensor: Any) -> np.ndarray | None:
    return None if tensor is None else np.atleast_2d(np.asarray(tensor))
