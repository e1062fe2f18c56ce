"""A chat with everything on: masked on the way in, blocked on the way out, paid and recorded."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest

from governance.audit.opening import open_key_store, trail_folder
from governance.audit.reading import Reader
from leitstand.errors import NotFoundError
from leitstand.settings import Settings
from leitstand.sse import EventReader
from tests.chat_for_tests import KEY, ChatGateway, ChatUpstream, chat_gateway, chat_upstream, until, write_use_case

IBAN = "DE89370400440532013000"
GUARDS = {
    "input": [{"rule": "personal_data", "action": "mask", "kinds": ["iban"]}],
    "output": [{"rule": "terms", "action": "block", "phrases": ["forbidden word"], "code": "forbidden"}],
}
PRICES = {"per_million_tokens_in": "1", "per_million_tokens_out": "2"}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatUpstream]:
    with chat_upstream(tmp_path_factory.mktemp("protected-upstream")) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: ChatUpstream) -> Iterator[ChatGateway]:
    home = tmp_path_factory.mktemp("protected-gateway")
    budgets = {"prices": PRICES, "max_tokens_out": 20}
    write_use_case(home, "helper", guards=GUARDS, budgets=budgets)
    write_use_case(home, "careful", guards=GUARDS, budgets=budgets, chat={"stream": "buffered"})
    write_use_case(home, "small", budgets={"use_case": {"tokens_per_day": 400}, "max_tokens_out": 20})
    with chat_gateway(home, f"http://127.0.0.1:{upstream.port}") as running:
        for name in ("helper", "careful", "small"):
            running.route(name, upstream.target)
        yield running


def events(response: httpx.Response) -> list[Any]:
    data = [event.data for event in EventReader().feed(response.content)]
    return [json.loads(each) if each != "[DONE]" else each for each in data]


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk != "[DONE]")


def records(gateway: ChatGateway, request_id: str) -> list[Any]:
    settings = Settings(home=gateway.home)
    reader = Reader(trail_folder(settings), open_key_store(settings))
    with suppress(NotFoundError):
        return [(record, reader.open(record)) for record in reader.find(request_id)]
    return []


@pytest.mark.parametrize("stream", [True, False])
def test_the_model_never_sees_what_is_masked_and_the_caller_gets_it_back(
    gateway: ChatGateway, upstream: ChatUpstream, stream: bool
) -> None:
    response = gateway.chat(f"say your account {IBAN} is fine", stream=stream)
    seen = upstream.seen()["requests"][-1]["body"]["messages"][-1]["content"]
    assert IBAN not in seen and "IBAN" in seen
    said = text_of(events(response)) if stream else response.json()["choices"][0]["message"]["content"]
    assert said == f"your account {IBAN} is fine"


def test_a_blocked_word_ends_the_stream_with_its_reason_before_it_leaves(gateway: ChatGateway) -> None:
    before = "harmless words " * 40
    response = gateway.chat(f"say {before}and a forbidden word at the end", stream=True)
    chunks = events(response)
    assert response.status_code == 200 and chunks[-1] == "[DONE]"
    assert chunks[-2]["choices"][0]["finish_reason"] == "content_filter"
    assert chunks[-2]["leitstand"]["blocked"] == ["terms.forbidden"]
    assert text_of(chunks).startswith("harmless words") and "forbidden" not in text_of(chunks)


@pytest.mark.parametrize("fields", [{"stream": False}, {"stream": True}, {"stream": True, "model": "careful"}])
def test_what_is_blocked_before_anything_left_is_refused(gateway: ChatGateway, fields: dict[str, Any]) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "say a forbidden word"}]
        with pytest.raises(openai.PermissionDeniedError) as refusal:
            client.chat.completions.create(**{"model": "helper", "messages": messages} | fields)
    assert refusal.value.code == "content_filter"
    assert refusal.value.body["reasons"] == ["terms.forbidden"]  # type: ignore[index]


@pytest.mark.parametrize("model", ["helper", "careful"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_record_of_a_chat_names_parameters_tokens_cost_and_both_texts(
    gateway: ChatGateway, model: str, stream: bool
) -> None:
    response = gateway.chat("say hello there", stream=stream, seed=7, temperature=0.5, model=model)
    ((record, opened),) = records(gateway, response.headers["x-request-id"])
    told = events(response)[-2]["leitstand"] if stream else {"cost": response.headers["x-leitstand-cost"]}
    assert told["cost"] == "0.000007"
    assert record.parameters == {"seed": 7, "temperature": 0.5, "max_tokens": 20}
    assert (record.tokens_in, record.tokens_out, record.cost_micros, record.status) == (3, 2, 7, 200)
    assert "say hello there" in str(opened.input) and "hello there" in str(opened.output)


@pytest.mark.parametrize("stream", [True, False])
def test_a_recorded_chat_is_asked_again_with_the_key_and_as_a_whole(
    gateway: ChatGateway, upstream: ChatUpstream, stream: bool
) -> None:
    response = gateway.chat("say hello there", stream=stream, seed=7)
    environment = os.environ | gateway.environment
    command = [sys.executable, "-m", "leitstand.cli", "replay", response.headers["x-request-id"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("identical: helper:1"), done.stderr
    sent = upstream.seen()["requests"][-1]
    assert sent["body"] == {
        "model": "tiny-1", "messages": [{"role": "user", "content": "say hello there"}], "seed": 7, "max_tokens": 20,
    }  # fmt: skip
    assert sent["headers"]["authorization"] == f"Bearer {KEY}"


def test_what_was_said_until_a_caller_went_away_is_recorded_and_paid(gateway: ChatGateway) -> None:
    body = {"model": "helper", "stream": True, "messages": [{"role": "user", "content": "slow 5"}]}
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, timeout=30) as response:
        next(response.iter_bytes())
    request_id = response.headers["x-request-id"]
    until(lambda: records(gateway, request_id), "the record")
    ((record, opened),) = records(gateway, request_id)
    assert record.status == 499 and record.tokens_out > 0 and record.cost_micros > 0
    assert "word" in str(opened.output)


def test_a_budget_is_held_for_the_longest_answer_and_given_back(gateway: ChatGateway) -> None:
    statuses = [gateway.chat("say hello there", model="small", stream=bool(i % 2)).status_code for i in range(60)]
    assert statuses[0] == 200 and statuses[-1] == 429
    # Each asks for at most 15 + 16 + 64 + 20 tokens and uses 5 of them.
    assert 50 <= statuses.count(200) <= 80
    refusal = gateway.chat("say hello there", model="small")
    assert refusal.json()["error"]["type"] == "rate_limit_error" and int(refusal.headers["retry-after"]) > 0
