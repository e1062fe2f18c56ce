"""A real model behind a real gateway: llama.cpp's server and SmolLM2, asked by OpenAI's own client."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from leitstand.types import Target
from tests.chat_for_tests import KEY, ChatGateway, answers, chat_gateway, until
from tests.servers import free_ports, running, wait_until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    (port,) = free_ports(1)
    log = tmp_path_factory.mktemp("llama") / "log"
    with running([sys.executable, "-m", "tests.llama_server", str(port), KEY], log) as process:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), process, log, "llama.cpp")
        yield Target(version=1, url=f"http://127.0.0.1:{port}/v1", kind="openai", model="smollm2", key="tiny")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, model: Target) -> Iterator[ChatGateway]:
    home: Path = tmp_path_factory.mktemp("gateway")
    with chat_gateway(home, model.url.removesuffix("/v1"), LEITSTAND_CHAT__IDLE_S="20") as running_gateway:
        running_gateway.route("helper", model)
        yield running_gateway


@pytest.fixture
def client(gateway: ChatGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, text: str = "Name three colours.", **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="helper", messages=messages, seed=1, temperature=0, **fields)


def test_a_model_answers_and_its_tokens_are_counted(client: openai.OpenAI) -> None:
    answer = ask(client, max_tokens=12)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 12 and answer.usage.prompt_tokens > 5
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_the_stream_of_the_same_seed_is_the_same_text(client: openai.OpenAI) -> None:
    whole = ask(client, max_tokens=12).choices[0].message.content
    chunks = list(ask(client, max_tokens=12, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole
    assert len(chunks) > 5 and chunks[-1].usage.completion_tokens <= 12


def test_a_conversation_longer_than_the_model_reads_is_the_callers_mistake(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context"):
        ask(client, "word " * 5000, max_tokens=5)


def test_a_caller_who_goes_away_leaves_the_model_free(client: openai.OpenAI, gateway: ChatGateway) -> None:
    gone = gateway.metric("gateway_streams_total", ended="gone")
    with ask(client, "Count to one thousand.", max_tokens=1000, stream=True) as stream:
        next(iter(stream))
    until(lambda: gateway.metric("gateway_streams_total", ended="gone") == gone + 1, "the gateway to notice")
    assert ask(client, max_tokens=4).choices[0].message.content
