"""Requests and responses of the Open Inference Protocol, as bytes."""

import json
import struct
from typing import Any

import numpy as np
import pytest

from services.batching import Answer
from services.errors import HttpError
from services.inference_protocol import decode_request, encode_response

ANSWERS = [
    Answer("card", 0.75, False, np.array([0.75, 0.25], np.float32)),
    Answer("geldautomat ü", 0.5, True, np.array([0.5, 0.5], np.float32)),
]


def body(*texts: Any, **changes: Any) -> bytes:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)} | changes
    return json.dumps({"inputs": [tensor]}).encode()


def binary(*texts: bytes, size: int | None = None) -> tuple[bytes, int]:
    raw = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)],
        "parameters": {"binary_data_size": len(raw) if size is None else size}}  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + raw, len(head)


def test_json_texts_are_read() -> None:
    request = decode_request(body("where is my card", "💥"), None, 1000)
    assert request.texts == ["where is my card", "💥"]
    assert request.outputs == {"label": False, "score": False, "abstain": False}


@pytest.mark.parametrize("binary_data", [False, True])
def test_vectors_travel_row_by_row(binary_data: bool) -> None:
    outputs = [{"name": "probabilities", "parameters": {"binary_data": binary_data}}]
    raw = json.dumps({**json.loads(body("a", "b")), "outputs": outputs}).encode()
    content, head = encode_response("support", "7", decode_request(raw, None, 100), ANSWERS)
    (tensor,) = json.loads(content[:head])["outputs"]
    assert (tensor["datatype"], tensor["shape"]) == ("FP32", [2, 2])
    values = np.frombuffer(content[head:], "<f4").tolist() if binary_data else tensor["data"]
    assert values == [0.75, 0.25, 0.5, 0.5]


def test_binary_texts_are_read() -> None:
    raw, head = binary("ü".encode(), b"card")
    request = decode_request(raw, head, 1000)
    assert request.texts == ["ü", "card"]
    assert all(request.outputs.values())


@pytest.mark.parametrize(
    ("raw", "status", "says"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "JSON object"),
        (b'{"inputs": []}', 400, "exactly one tensor"),
        (b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["\xff"]}]}', 400, "UTF-8"),
        (body("a", name="texts"), 400, "unknown input 'texts'"),
        (body("a", datatype="FP32"), 400, "must have datatype BYTES"),
        (body("a", shape=[2]), 400, "shape [2] but 1 elements"),
        (body("a", shape="x"), 400, "shape"),
        (body("a", data="a"), 400, "a list of strings"),
        (body("a", 3), 400, "text[1] must be a string"),
        (body("a", ""), 400, "text[1] is empty"),
        (body(" \t\n"), 400, "text[0] is empty"),
        (body(), 400, "1 to 1024 texts"),
        (body("a", "x" * 1001), 413, "text[1] is longer than 1000 bytes"),
        (body("€" * 400), 413, "text[0] is longer than 1000 bytes"),
        (body("a", parameters=[]) .replace(b'"parameters": []', b'"parameters": [1]'), 400, "parameters"),
    ],
)  # fmt: skip
def test_a_bad_request_names_what_is_wrong(raw: bytes, status: int, says: str) -> None:
    with pytest.raises(HttpError) as error:
        decode_request(raw, None, 1000)
    assert error.value.status == status
    assert says in error.value.message


def test_invalid_utf8_in_a_binary_tensor_names_the_element() -> None:
    raw, head = binary(b"fine", b"bad \xff")
    with pytest.raises(HttpError, match=r"text\[1\] is not valid UTF-8 at byte 4"):
        decode_request(raw, head, 1000)


def test_a_binary_tensor_that_is_cut_off_is_refused() -> None:
    raw, head = binary(b"card")
    with pytest.raises(HttpError, match="does not match"):
        decode_request(raw[:-1], head, 1000)
    broken = raw[:head] + struct.pack("<I", 99) + b"card"
    with pytest.raises(HttpError, match="cut off"):
        decode_request(broken, head, 1000)
    with pytest.raises(HttpError, match="not within the body"):
        decode_request(raw, len(raw) + 1, 1000)


def test_control_characters_are_answered() -> None:
    assert decode_request(body("a\u0000b\u001b[31m"), None, 1000).texts == ["a\u0000b\u001b[31m"]


def test_a_json_response_holds_the_wanted_outputs_in_order() -> None:
    raw = json.dumps({"id": "7", "inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}],
        "outputs": [{"name": "score"}, {"name": "label"}]}).encode()  # fmt: skip
    content, head = encode_response("support", "7", decode_request(raw, None, 1000), ANSWERS)
    assert head is None
    document = json.loads(content)
    assert (document["id"], document["model_name"], document["model_version"]) == ("7", "support", "7")
    assert [output["name"] for output in document["outputs"]] == ["score", "label"]
    assert document["outputs"][0] == {"name": "score", "datatype": "FP32", "shape": [2], "data": [0.75, 0.5]}


def test_a_binary_response_carries_each_tensor_after_the_json() -> None:
    raw, head = binary(b"a", b"b")
    content, size = encode_response("support", "7", decode_request(raw, head, 1000), ANSWERS)
    assert size is not None
    tail = content[size:]
    label = struct.pack("<I", 4) + b"card" + struct.pack("<I", 14) + "geldautomat ü".encode()
    assert tail == label + struct.pack("<2f", 0.75, 0.5) + b"\x00\x01"


def test_an_unknown_output_is_refused() -> None:
    raw = body("a")[:-1] + b', "outputs": [{"name": "logits"}]}'
    with pytest.raises(HttpError, match="unknown output 'logits'"):
        decode_request(raw, None, 1000)
