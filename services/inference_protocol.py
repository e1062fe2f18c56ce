"""The Open Inference Protocol's request and response for one text classifier, without any transport.

Reads JSON, and the binary tensor extension that Triton's clients use; writes either. Input ``text`` BYTES
[n] or [n, 1]; outputs ``label`` BYTES, ``score`` FP32, ``abstain`` BOOL, each [n]; when asked for by name
also ``probabilities`` FP32 [n, labels] and ``embedding`` FP32 [n, hidden].
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from services.batching import Answer
from services.errors import bad_request, too_large

__all__ = ["DATATYPES", "OUTPUTS", "InferRequest", "check_texts", "decode_request", "encode_response", "replace_texts"]

OUTPUTS = ("label", "score", "abstain")
VECTORS = frozenset(("probabilities", "embedding"))
DATATYPES = {"label": "BYTES", "score": "FP32", "abstain": "BOOL", "probabilities": "FP32", "embedding": "FP32"}
MAX_TEXTS = 1024


@dataclass(slots=True)
class InferRequest:
    """A checked request: texts that are not empty, and how each wanted output travels."""

    texts: list[str]
    outputs: dict[str, bool]
    request_id: str | None


def decode_request(body: bytes, json_bytes: int | None, max_text_bytes: int) -> InferRequest:
    """Checks and reads a request.

    Args:
        body: The whole body.
        json_bytes: Length of its JSON part, from ``Inference-Header-Content-Length``; None: all of it.
        max_text_bytes: UTF-8 bytes a text may have.

    Raises:
        HttpError: 400 or 413; the message names the tensor and the element.
    """
    if json_bytes is not None and not 0 <= json_bytes <= len(body):
        raise bad_request(f"Inference-Header-Content-Length {json_bytes} is not within the body of {len(body)} bytes")
    try:
        document = orjson.loads(body if json_bytes is None else memoryview(body)[:json_bytes])
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the body is not valid JSON in UTF-8: {error}") from error
    if type(document) is not dict:
        raise bad_request("the body must be a JSON object")
    request_id = document.get("id")
    if request_id is not None and type(request_id) is not str:
        raise bad_request("id must be a string")
    tensor = _only_input(document)
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        texts = _json_texts(tensor)
    else:
        texts = _binary_texts(memoryview(body)[len(body) if json_bytes is None else json_bytes :], size)
    _check_shape(tensor, len(texts))
    check_texts(texts, max_text_bytes)
    return InferRequest(texts, _wanted(document), request_id)


def encode_response(
    model: str, version: str, request: InferRequest, answers: Sequence[Answer]
) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part when tensors follow in binary."""
    shape = [len(answers)]
    options = 0
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, binary in request.outputs.items():
        values: Any = [getattr(answer, name) for answer in answers]
        tensor: dict[str, Any] = {"name": name, "datatype": DATATYPES[name], "shape": shape}
        if name in VECTORS:
            options = orjson.OPT_SERIALIZE_NUMPY
            matrix = np.stack(values).astype("<f4", copy=False)
            tensor["shape"], values = list(matrix.shape), matrix.ravel()
        if binary:
            raw = _pack(name, values)
            tensor["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            tensor["data"] = values
        outputs.append(tensor)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if request.request_id is not None:
        document["id"] = request.request_id
    head = orjson.dumps(document, option=options)
    return (head + b"".join(tail), len(head)) if tail else (head, None)


def replace_texts(body: bytes, json_bytes: int | None, texts: Sequence[str]) -> tuple[bytes, int | None]:
    """A checked request with other texts, as many as it has: its body, and the length of the JSON part as before."""
    document = orjson.loads(body if json_bytes is None else memoryview(body)[:json_bytes])
    tensor = _only_input(document)
    parameters = _parameters(tensor)
    if "binary_data_size" not in parameters:
        tensor["data"] = list(texts)
        head, tail = orjson.dumps(document), b""
    else:
        tail = _pack("text", texts)
        parameters["binary_data_size"] = len(tail)
        head = orjson.dumps(document)
    return head + tail, None if json_bytes is None else len(head)


def _only_input(document: dict[str, Any]) -> dict[str, Any]:
    inputs = document.get("inputs")
    if type(inputs) is not list or len(inputs) != 1 or type(inputs[0]) is not dict:
        raise bad_request("inputs must hold exactly one tensor, named 'text'")
    tensor = inputs[0]
    if tensor.get("name") != "text":
        raise bad_request(f"unknown input {tensor.get('name')!r}; the input is named 'text'")
    if tensor.get("datatype") != "BYTES":
        raise bad_request(f"input 'text' must have datatype BYTES, not {tensor.get('datatype')!r}")
    return tensor


def _parameters(owner: dict[str, Any]) -> dict[str, Any]:
    parameters = owner.get("parameters") or {}
    if type(parameters) is not dict:
        raise bad_request("parameters must be an object")
    return parameters


def _json_texts(tensor: dict[str, Any]) -> list[str]:
    data = tensor.get("data")
    if type(data) is not list:
        raise bad_request("input 'text' needs data: a list of strings")
    if data and type(data[0]) is list:
        data = [item for row in data for item in (row if type(row) is list else [row])]
    for index, text in enumerate(data):
        if type(text) is not str:
            raise bad_request(f"text[{index}] must be a string, not {type(text).__name__}")
    return data


def _binary_texts(raw: memoryview, size: object) -> list[str]:
    """Elements as a 4-byte little-endian length and that many bytes."""
    if type(size) is not int or size != len(raw):
        raise bad_request(f"binary_data_size {size} of input 'text' does not match the {len(raw)} bytes that follow")
    texts: list[str] = []
    place = 0
    while place < size:
        if place + 4 > size:
            raise bad_request(f"text[{len(texts)}] is cut off")
        (length,) = struct.unpack_from("<I", raw, place)
        place += 4
        if place + length > size:
            raise bad_request(f"text[{len(texts)}] is cut off: {length} bytes announced, {size - place} there")
        try:
            texts.append(str(raw[place : place + length], "utf-8"))
        except UnicodeDecodeError as error:
            raise bad_request(f"text[{len(texts)}] is not valid UTF-8 at byte {error.start}") from error
        place += length
    return texts


def _check_shape(tensor: dict[str, Any], count: int) -> None:
    shape = tensor.get("shape")
    if shape not in ([count], [count, 1], [1, count]):
        raise bad_request(f"input 'text' has shape {shape} but {count} elements; the shape must be [{count}]")
    if not 1 <= count <= MAX_TEXTS:
        raise bad_request(f"a request holds 1 to {MAX_TEXTS} texts, not {count}")


def check_texts(texts: Sequence[str], max_text_bytes: int) -> None:
    """Refuses what no model should see.

    Raises:
        HttpError: 400 for an empty or blank text, 413 for one of more than `max_text_bytes`; names its index.
    """
    for index, text in enumerate(texts):
        if len(text) * 4 > max_text_bytes and len(text.encode()) > max_text_bytes:
            raise too_large(f"text[{index}] is longer than {max_text_bytes} bytes")
        if not text or text.isspace():
            raise bad_request(f"text[{index}] is empty")


def _wanted(document: dict[str, Any]) -> dict[str, bool]:
    """Output name to whether it travels in binary, in the order asked for."""
    default = bool(_parameters(document).get("binary_data_output", False))
    wanted = document.get("outputs")
    if not wanted:
        return dict.fromkeys(OUTPUTS, default)
    if type(wanted) is not list:
        raise bad_request("outputs must be a list")
    chosen: dict[str, bool] = {}
    for output in wanted:
        name = output.get("name") if type(output) is dict else None
        if name not in DATATYPES:
            raise bad_request(f"unknown output {name!r}; outputs are {', '.join(DATATYPES)}")
        chosen[name] = bool(_parameters(output).get("binary_data", default))
    return chosen


def _pack(name: str, values: Any) -> bytes:
    if name in VECTORS:
        return values.tobytes()
    if name == "score":
        return struct.pack(f"<{len(values)}f", *values)
    if name == "abstain":
        return bytes(values)
    return b"".join(struct.pack("<I", len(raw)) + raw for raw in (value.encode() for value in values))
