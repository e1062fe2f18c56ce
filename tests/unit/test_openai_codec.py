"""What is taken over from an upstream's answer, and what a caller gets."""

import orjson
import pytest

from leitstand.errors import PermanentBackendError
from leitstand.types import Usage
from services import openai_codec as codec

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def completion(**changes: object) -> bytes:
    choice = {"message": {"role": "assistant", "content": "hi", "reasoning_content": "secret"}, "finish_reason": "stop"}
    document = {"id": "u-1", "model": "small", "choices": [choice], "usage": USAGE, "timings": {"x": 1}}
    return orjson.dumps(document | changes)


def test_a_completion_keeps_text_end_and_counts_and_nothing_else() -> None:
    read = codec.read_completion(completion())
    assert read == codec.Completion("hi", "stop", Usage(3, 2), {"id": "u-1", "model": "small"})
    written = orjson.loads(codec.completion_bytes(read, request_id="r-1", model="finance@2", created=5))
    assert written["id"] == "r-1" and written["model"] == "finance@2" and written["usage"] == USAGE
    assert written["choices"][0]["message"] == {"role": "assistant", "content": "hi", "refusal": None}
    assert b"secret" not in codec.completion_bytes(read, request_id="", model="", created=0)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b"{}", b'{"choices": []}', b'{"choices": [{}]}', completion(choices=[{"message": None}]),
        completion(choices=[{"message": {"content": 5}}]), completion(choices={"0": 1}),
    ],
)  # fmt: skip
def test_what_is_no_completion_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(PermanentBackendError):
        codec.read_completion(body)


@pytest.mark.parametrize("usage", [None, 5, {}, {"prompt_tokens": -1}, {"prompt_tokens": "3"}, {"prompt_tokens": 1.5}])
def test_counts_that_cannot_be_true_are_none(usage: object) -> None:
    assert codec.read_completion(completion(usage=usage)).usage is None


@pytest.mark.parametrize(
    ("data", "piece"),
    [
        ('{"choices":[{"delta":{"role":"assistant","content":null},"finish_reason":null}]}', codec.Piece()),
        ('{"choices":[{"delta":{"content":"a"}}]}', codec.Piece("a")),
        ('{"choices":[{"delta":{"reasoning_content":"a"}}]}', codec.Piece()),
        ('{"choices":[{"delta":{},"finish_reason":"eos"}]}', codec.Piece(finish_reason="stop")),
        ('{"choices":[{"finish_reason":"length"}]}', codec.Piece(finish_reason="length")),
        ('{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}', codec.Piece(usage=Usage(3, 2))),
        ('{"usage":null}', codec.Piece()),
    ],
)
def test_chunks_are_read(data: str, piece: codec.Piece) -> None:
    assert codec.read_chunk(data) == piece


@pytest.mark.parametrize(
    "data", ["", "x", "[]", "5", '{"choices":5}', '{"choices":[5]}', '{"choices":[{"delta":{"content":1}}]}']
)
def test_what_is_no_chunk_is_said_to_be_none(data: str) -> None:
    with pytest.raises(PermanentBackendError):
        codec.read_chunk(data)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "too long", "code": 1}}', "too long"), (b'{"error": "too long"}', "too long"),
        (b'{"detail": "too long"}', "too long"), (b"too long", "too long"), (b"[1]", "[1]"), (b"\xff", "\ufffd"),
    ],
)  # fmt: skip
def test_errors_are_read_whatever_their_shape(body: bytes, text: str) -> None:
    assert codec.error_text(body) == text


def test_an_error_in_a_stream_is_the_upstreams() -> None:
    with pytest.raises(codec.UpstreamReports, match="overloaded"):
        codec.read_chunk('{"error": {"message": "overloaded"}}')
