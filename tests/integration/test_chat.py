"""OpenAI's own client against a real gateway in front of an OpenAI-compatible API that misbehaves on demand."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pyarrow.parquet as pq
import pytest

from leitstand.sse import EventReader
from tests.chat_for_tests import KEY, ChatGateway, ChatUpstream, chat_gateway, chat_upstream, until


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatUpstream]:
    with chat_upstream(tmp_path_factory.mktemp("chat-upstream")) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: ChatUpstream) -> Iterator[ChatGateway]:
    home = tmp_path_factory.mktemp("chat-gateway")
    with chat_gateway(home, f"http://127.0.0.1:{upstream.port}") as running:
        running.route("helper", upstream.target)
        yield running


@pytest.fixture
def client(gateway: ChatGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, text: str, **fields: Any) -> Any:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    return client.chat.completions.create(model="helper", messages=messages, **fields)


def events(gateway: ChatGateway, text: str, **fields: Any) -> tuple[httpx.Response, list[str]]:
    response = gateway.chat(text, stream=True, **fields)
    return response, [event.data for event in EventReader().feed(response.content)]


def test_an_answer_reads_as_openais_own_and_says_who_gave_it(
    client: openai.OpenAI, upstream: ChatUpstream, gateway: ChatGateway
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="helper", messages=[{"role": "user", "content": "say hello there"}], temperature=0.1, seed=5, user="me"
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == "hello there" and answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 2)
    assert (answer.model, answer.id) == ("helper@1", raw.headers["x-request-id"])
    assert (raw.headers["x-leitstand-version"], raw.headers["x-leitstand-route"]) == ("1", "stable")
    assert raw.headers["x-leitstand-tokens"] == "counted"
    assert b"hidden" not in raw.content
    sent = upstream.seen()["requests"][-1]
    assert sent["body"] == {
        "model": "tiny-1", "messages": [{"role": "user", "content": "say hello there"}], "temperature": 0.1, "seed": 5,
        "max_tokens": 1024,
    }  # fmt: skip
    assert sent["headers"]["authorization"] == f"Bearer {KEY}"
    assert not {"cookie", "x-subject", "x-api-key"} & set(sent["headers"])


@pytest.mark.parametrize("order", ["say", "crlf", "nodone"])
def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI, order: str) -> None:
    chunks = list(ask(client, f"{order} grüße aus köln", stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "grüße aus köln"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices] == [None, None, None, "stop"]
    assert len({(chunk.id, chunk.model) for chunk in chunks}) == 1 and chunks[0].model == "helper@1"
    assert chunks[-1].usage.completion_tokens == 3 and not chunks[-1].choices


def test_pieces_arrive_while_the_model_still_writes(client: openai.OpenAI) -> None:
    with ask(client, "slow 50", stream=True) as stream:
        first = next(iter(stream))
    assert first.choices[0].delta.content == "word "


async def test_the_async_client_works_too(gateway: ChatGateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused") as client:
        stream: Any = await client.chat.completions.create(
            model="helper@1", messages=[{"role": "user", "content": "say hi"}], stream=True
        )
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "hi"


def test_models_are_the_use_cases_that_chat(client: openai.OpenAI, gateway: ChatGateway) -> None:
    assert [model.id for model in client.models.list()] == ["helper"]
    assert client.models.retrieve("helper").id == "helper"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "nobody"}, 404, None, "model_not_found"),
        ({"model": "helper@9"}, 404, None, "model_not_found"),
        ({"model": "helper@x"}, 400, "model", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools", "unsupported_parameter"),
        ({"messages": []}, 400, "messages", "invalid_value"),
        ({"temperature": 3}, 400, "temperature", "invalid_value"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_mistakes_are_named_in_openais_shape(
    gateway: ChatGateway, fields: dict[str, Any], status: int, param: str | None, code: str, stream: bool
) -> None:
    response = gateway.chat("say hi", stream=stream, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["message"] and error["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("order", "status", "kind"),
    [
        ("status 400", 400, openai.BadRequestError), ("status 401", 502, openai.InternalServerError),
        ("status 404", 502, openai.InternalServerError), ("status 429", 503, openai.InternalServerError),
        ("status 500", 502, openai.InternalServerError), ("status 302", 502, openai.InternalServerError),
        ("garbage", 502, openai.InternalServerError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [True, False])
def test_what_a_provider_refuses_is_told_apart(
    client: openai.OpenAI, order: str, status: int, kind: type[openai.APIStatusError], stream: bool
) -> None:
    if order == "garbage" and stream:
        order = "plain text"
    with pytest.raises(kind) as refusal:
        ask(client, order, stream=stream)
    assert refusal.value.status_code == status
    assert KEY not in str(refusal.value.body)
    if "429" in order:
        assert refusal.value.response.headers["retry-after"] == "7"
    if "400" in order:
        assert "on purpose" in refusal.value.message


@pytest.mark.parametrize(
    ("order", "reason"),
    [("reset", "broke off"), ("hanglate", "wrote nothing for 1.0 s"), ("erroring", "overloaded on purpose"),
     ("garbage", "not readable")],
)  # fmt: skip
def test_a_stream_that_breaks_off_ends_with_the_reason_and_is_counted(
    gateway: ChatGateway, client: openai.OpenAI, order: str, reason: str
) -> None:
    failed = gateway.metric("gateway_streams_total", ended="failed")
    text = ""
    with pytest.raises(openai.APIError, match=reason):
        for chunk in ask(client, f"{order} hi", stream=True):
            text += chunk.choices[0].delta.content or ""
    assert text == "hi"
    assert gateway.metric("gateway_streams_total", ended="failed") == failed + 1
    assert ask(client, "say hi").choices[0].message.content == "hi"


@pytest.mark.parametrize(("order", "said"), [("die", ""), ("dielate", "hi")])
@pytest.mark.parametrize("stream", [True, False])
def test_a_provider_that_is_killed_is_an_error_of_that_request_only(
    gateway: ChatGateway, client: openai.OpenAI, tmp_path_factory: pytest.TempPathFactory, order: str, said: str,
    stream: bool,
) -> None:  # fmt: skip
    with chat_upstream(tmp_path_factory.mktemp("mortal"), key="") as mortal:
        gateway.route("mortal", mortal.target.model_copy(update={"key": ""}))
        response = gateway.chat(f"{'die' if not stream else order} hi", model="mortal", stream=stream)
    if stream and said:
        assert response.status_code == 200 and "broke off" in response.text and "[DONE]" not in response.text
    else:
        assert response.status_code == 503 and response.json()["error"]["type"] == "overloaded_error"
    assert ask(client, "say hi").choices[0].message.content == "hi"


def test_a_caller_who_goes_away_ends_the_writing(gateway: ChatGateway, upstream: ChatUpstream) -> None:
    gone, given_up = gateway.metric("gateway_streams_total", ended="gone"), upstream.seen()["given_up"]
    body = {"model": "helper", "stream": True, "messages": [{"role": "user", "content": "slow 20"}]}
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, timeout=30) as response:
        next(response.iter_bytes())
    until(lambda: upstream.seen()["given_up"] == given_up + 1, "the upstream to be told")
    until(lambda: gateway.metric("gateway_streams_total", ended="gone") == gone + 1, "the gateway to notice")
    assert gateway.metric("gateway_requests_in_flight") == 0


def test_a_caller_who_goes_away_before_the_first_word_ends_the_call(
    gateway: ChatGateway, upstream: ChatUpstream
) -> None:
    before = upstream.seen()["open"]
    for stream in (True, False):
        body = {"model": "helper", "stream": stream, "messages": [{"role": "user", "content": "hang"}]}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=0.5)
    until(lambda: upstream.seen()["open"] == before, "the calls to end")
    until(lambda: gateway.metric("gateway_requests_in_flight") == 0, "the gateway to notice")


def test_tokens_that_nobody_counted_are_guessed_and_said_to_be(client: openai.OpenAI, gateway: ChatGateway) -> None:
    response = gateway.chat("nousage twelve characters")
    assert response.headers["x-leitstand-tokens"] == "guessed"
    assert response.json()["usage"] == {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
    _, data = events(gateway, "nousage twelve characters", stream_options={"include_usage": True})
    assert json.loads(data[-2])["usage"]["completion_tokens"] == 6 and data[-1] == "[DONE]"


def test_a_canary_that_dies_before_its_first_word_costs_nobody_an_answer(
    gateway: ChatGateway, upstream: ChatUpstream, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with chat_upstream(tmp_path_factory.mktemp("canary"), version=2) as canary:
        target = canary.target.model_copy(update={"key": ""})
    gateway.route("helper", upstream.target, canary=target, canary_percent=100.0)
    try:
        response, data = events(gateway, "say hi")
        assert (response.headers["x-leitstand-version"], response.headers["x-leitstand-route"]) == ("1", "stable")
        assert data[-1] == "[DONE]"
        assert gateway.chat("say hi").json()["model"] == "helper@1"
    finally:
        gateway.route("helper", upstream.target)


def test_a_shadow_is_asked_without_a_stream_and_never_returned(gateway: ChatGateway, upstream: ChatUpstream) -> None:
    shadow = upstream.target.model_copy(update={"version": 3})
    gateway.route("helper", upstream.target, shadow=shadow)
    name, labels = "gateway_shadow_answers_total", {"use_case": "helper", "outcome": "agree"}
    before = gateway.metric(name, **labels)
    try:
        response, _ = events(gateway, "say hi")
        assert response.headers["x-leitstand-version"] == "1"
        assert gateway.chat("say hi").status_code == 200
        until(lambda: gateway.metric(name, **labels) == before + 2, "the shadow's answers")
    finally:
        gateway.route("helper", upstream.target)


def test_the_key_goes_to_its_own_origin_only(
    gateway: ChatGateway, upstream: ChatUpstream, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with chat_upstream(tmp_path_factory.mktemp("stranger")) as stranger:
        gateway.route("stranger", stranger.target)
        response = gateway.chat("say hi", model="stranger")
        assert (response.status_code, stranger.seen()["requests"]) == (502, [])
        assert "belongs to another address" in response.json()["error"]["message"]
        gateway.route("stranger", stranger.target.model_copy(update={"key": ""}))
        assert gateway.chat("say hi", model="stranger").status_code == 502  # without its key it answers 401
        assert "authorization" not in stranger.seen()["requests"][0]["headers"]
    assert KEY not in (gateway.home / "gateway.log").read_text()


def test_the_inference_log_has_a_row_without_text_or_label(gateway: ChatGateway) -> None:
    request_id = gateway.chat("say a secret word").headers["x-request-id"]
    folder = gateway.home / "inference-log"

    def rows() -> list[dict[str, Any]]:
        if not folder.exists():
            return []
        table = pq.read_table(folder, partitioning=None)  # pyright: ignore[reportArgumentType]
        return [row for row in table.to_pylist() if row["request_id"] == request_id]

    until(rows, "the row")
    (row,) = rows()
    assert (row["label"], row["version"], row["route"], row["characters"], row["tokens"]) == ("", 1, "stable", 17, 4)
    assert not any(b"secret" in file.read_bytes() for file in folder.rglob("*.parquet"))


def test_many_streams_at_once_stay_apart(gateway: ChatGateway) -> None:
    seen: dict[int, str] = {}

    def one(number: int) -> None:
        _, data = events(gateway, f"say number {number} speaking")
        chunks = [json.loads(each) for each in data[:-1]]
        seen[number] = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {number: f"number {number} speaking" for number in range(16)}


def test_the_other_kind_of_route_is_pointed_out(gateway: ChatGateway) -> None:
    response = httpx.post(f"{gateway.url}/v1/helper/predict", json={"text": "hi"})
    assert response.status_code == 400 and "/v1/chat/completions" in response.json()["hint"]


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"{" * 1000, b'{"model": "helper", "messages": [{}]}'])
def test_garbage_is_refused_with_a_reason(gateway: ChatGateway, body: bytes) -> None:
    response = httpx.post(f"{gateway.url}/v1/chat/completions", content=body)
    assert response.status_code == 400 and response.json()["error"]["message"]
