"""What a caller may ask of a model that writes, and what reaches it."""

import json
from typing import Any

import orjson
import pytest

from leitstand.specs.chat import ChatSpec
from leitstand.types import Usage
from services.chat_payload import BadChatRequest, ChatPayload, make_payload, read_chat_request

HELLO = {"role": "user", "content": "Grüße"}
RULES = ChatSpec(pass_fields=("min_p",))


def payload(spec: ChatSpec = RULES, default: int = 100, **fields: Any) -> ChatPayload:
    body = json.dumps({"model": "finance", "messages": [HELLO]} | fields).encode()
    return make_payload(read_chat_request(body), spec, default, max_texts=8)


def sent(made: ChatPayload) -> dict[str, Any]:
    return orjson.loads(made.request(())[0])


def test_texts_are_read_and_replaced_part_by_part() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    made = payload(messages=[{"role": "system", "content": "s"}, {"role": "user", "content": parts}])
    assert made.texts() == ["s", "a", "b"] and made.last_text() == "a\nb"
    made.replace(["S", "A", "B"])
    assert made.texts() == ["S", "A", "B"]
    assert [part["text"] for part in sent(made)["messages"][1]["content"]] == ["A", "B"]


def test_sampling_is_passed_on_and_what_identifies_the_caller_is_not() -> None:
    made = payload(temperature=0.5, seed=7, stop=["\n"], user="me", metadata={"a": "b"}, store=False, n=1)
    assert sent(made) == {"messages": [HELLO], "temperature": 0.5, "seed": 7, "stop": ["\n"], "max_tokens": 100}
    assert made.parameters() == {"temperature": 0.5, "seed": 7, "stop": ["\n"], "max_tokens": 100}


def test_a_stream_always_asks_for_the_counts() -> None:
    made = payload(stream=True)
    body, headers = made.request(())
    assert orjson.loads(body)["stream_options"] == {"include_usage": True} and not made.include_usage
    assert headers["accept"] == "text/event-stream"
    assert payload(stream=True, stream_options={"include_usage": True}).include_usage


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [({}, "max_tokens", 100), ({"max_tokens": 5}, "max_tokens", 5),
     ({"max_completion_tokens": 6}, "max_completion_tokens", 6)],
)  # fmt: skip
def test_every_answer_has_a_maximum(fields: dict[str, int], name: str, value: int) -> None:
    assert sent(payload(**fields))[name] == value
    assert sent(payload(ChatSpec(max_tokens=10), default=100))["max_tokens"] == 10


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"n": 2}, "n", "invalid_value"),
        ({"store": True}, "store", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"max_tokens": 5000}, "max_tokens", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [HELLO] * 9}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content",
         "invalid_value"),
        ({"messages": [HELLO | {"audio": "x"}]}, "messages[0].audio", "unsupported_parameter"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.type", "invalid_value"),
        ({"top_k": 5}, "top_k", "unsupported_parameter"),
        ({"seed": 10**30}, "seed", "invalid_value"),
        ({"min_p": 10**30}, "min_p", "invalid_value"),
    ],
)  # fmt: skip
def test_what_nobody_would_check_is_refused_by_name(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(BadChatRequest) as refusal:
        payload(**fields)
    assert (refusal.value.status, refusal.value.param, refusal.value.code) == (400, param, code)
    assert refusal.value.message


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{}", b"\xff", b"[" * 10_000, b'{"model": "\\ud800"}'])
def test_garbage_is_no_request(body: bytes) -> None:
    with pytest.raises(BadChatRequest):
        read_chat_request(body)


def test_a_use_case_may_let_a_field_pass() -> None:
    assert sent(payload(min_p=0.1))["min_p"] == 0.1


def test_empty_fields_as_clients_dump_them_are_no_reason_to_refuse() -> None:
    said = {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "annotations": [], "audio": None}
    assert sent(payload(messages=[said, HELLO], tools=None))["messages"][0] == {"role": "assistant", "content": "a"}


def test_the_estimate_is_no_less_than_any_tokenizer_makes() -> None:
    made = payload(max_tokens=9)
    assert made.estimate() == Usage(tokens_in=len("Grüße".encode()) + 16 + 64, tokens_out=9)
    assert made.guess("0123456789") == Usage(tokens_in=2, tokens_out=4)
