"""A chat request on its way: its texts can be read and replaced, everything else was checked on arrival.

A field that nobody here knows is refused by name: it might carry text past the guards, or multiply what an
answer costs. Tools, images, audio and log probabilities are among them: the guards read texts only, and the
probabilities would tell what they masked. A use case lets single fields pass (`chat.pass_fields`).
"""

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import orjson
from pydantic import ValidationError

from leitstand.specs.chat import ChatSpec
from leitstand.types import Usage
from services.chat_schemas import ChatMessage, ChatRequest
from services.errors import HttpError
from services.openai_codec import Completion, completion_bytes
from services.upstreams import Reply

__all__ = ["EVENT_STREAM", "BadChatRequest", "ChatPayload", "make_payload", "read_chat_request", "whole"]

EVENT_STREAM = "text/event-stream"
PASSED = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop", "response_format",
)  # fmt: skip
# What a chat template adds to the texts, as far as it was seen; the guess is on the safe side.
TOKENS_PER_MESSAGE, TOKENS_PER_REQUEST = 16, 64


class BadChatRequest(HttpError):
    """A request that is refused for what it says; `param` names the field, `code` the kind of mistake."""

    def __init__(self, message: str, param: str, code: str = "invalid_value") -> None:
        super().__init__(400, message)
        self.param = param
        self.code = code


class ChatPayload:
    """Messages and sampling parameters; the model's name is the upstream's own and is added where it is called.

    Args:
        request: The request, checked.
        max_tokens: The most that the answer may have.
        more: Fields that are passed on unread.
    """

    asks_for_outputs = False

    def __init__(self, request: ChatRequest, max_tokens: int, more: dict[str, Any] | None = None) -> None:
        self._messages = [
            {"role": message.role, "content": _content(message)} | ({"name": message.name} if message.name else {})
            for message in request.messages
        ]
        self._rest = request.model_dump(include=set(PASSED), exclude_none=True) | (more or {})
        self._old_name = request.max_completion_tokens is None
        self.max_tokens = max_tokens
        self.stream = bool(request.stream)
        self.include_usage = bool(request.stream_options and request.stream_options.include_usage)

    def texts(self) -> Sequence[str]:
        """The texts of all messages, in order; a message of several parts has several."""
        texts: list[str] = []
        for message in self._messages:
            content = message["content"]
            texts += _parts(content)
        return texts

    def replace(self, texts: Sequence[str]) -> None:
        """Puts `texts` in the place of `texts()`."""
        rest = iter(texts)
        for message in self._messages:
            content = message["content"]
            if isinstance(content, str):
                message["content"] = next(rest)
            else:
                message["content"] = [{"type": "text", "text": next(rest)} for _ in content]

    def prompts(self) -> list[str]:
        """The texts of system messages, which an answer should not repeat."""
        roles = ("system", "developer")
        contents = [message["content"] for message in self._messages if message["role"] in roles]
        return [part for content in contents for part in _parts(content)]

    def last_text(self) -> str:
        """What the caller said last: the last message, its parts joined."""
        content = self._messages[-1]["content"]
        return "\n".join(_parts(content))

    def request(self, outputs: Collection[str]) -> tuple[bytes, dict[str, str]]:
        """Body without a model, and headers; `outputs` means nothing here."""
        body: dict[str, Any] = {"messages": self._messages, **self._rest}
        body["max_tokens" if self._old_name else "max_completion_tokens"] = self.max_tokens
        headers = {"content-type": "application/json"}
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            headers["accept"] = EVENT_STREAM
        return orjson.dumps(body), headers

    def answers(self, reply: Reply) -> Sequence[str]:
        """The one text of the answer."""
        return () if reply.completion is None else (reply.completion.text,)

    def with_answers(self, reply: Reply, texts: Sequence[str]) -> Reply:
        """The answer with another text."""
        if reply.completion is None:
            return reply
        (text,) = texts
        return whole(replace(reply.completion, text=text))

    def unstreamed(self) -> "ChatPayload":
        """The same request for an answer as a whole."""
        other = copy(self)
        other.stream = False
        return other

    def parameters(self) -> dict[str, Any]:
        """How the answer is sampled, for the record."""
        return {**self._rest, "max_tokens": self.max_tokens}

    def estimate(self) -> Usage:
        """The most that it may use: no tokenizer in use makes more tokens than there are bytes of UTF-8."""
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in self.texts())
        tokens = size + TOKENS_PER_MESSAGE * len(self._messages) + TOKENS_PER_REQUEST
        return Usage(tokens_in=tokens, tokens_out=self.max_tokens)

    def guess(self, answer: str) -> Usage:
        """What it probably used when nobody says: a token per three characters, rounded up."""
        read = sum(map(len, self.texts()))
        return Usage(tokens_in=-(-read // 3), tokens_out=min(-(-len(answer) // 3), self.max_tokens))


def read_chat_request(body: bytes) -> ChatRequest:
    """The request in `body`.

    Raises:
        BadChatRequest: It is none; the first mistake is named.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from error


def make_payload(request: ChatRequest, spec: ChatSpec, default_max_tokens: int, max_texts: int) -> ChatPayload:
    """The payload of a request, by the rules of its use case.

    Args:
        request: What was asked.
        spec: The use case's key `chat`.
        default_max_tokens: Of a request that names no maximum.
        max_texts: Messages, and parts of messages, at most.

    Raises:
        BadChatRequest: It asks for what the rules do not allow.
    """
    more = _extras(request, spec)
    asked = request.max_completion_tokens or request.max_tokens
    if asked is not None and asked > spec.max_tokens:
        field = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
        raise BadChatRequest(f"{field} is {asked}, at most {spec.max_tokens} are allowed", field)
    payload = ChatPayload(request, asked or min(default_max_tokens, spec.max_tokens), more)
    count = len(payload.texts())
    if count > max_texts:
        raise BadChatRequest(f"messages hold {count} texts, at most {max_texts} are accepted", "messages")
    return payload


def whole(completion: Completion) -> Reply:
    """A completion as the reply that later stages work with."""
    notes = completion.notes
    body = completion_bytes(completion, request_id=notes.get("id", ""), model=notes.get("model", ""), created=0)
    return Reply(200, body, "application/json", usage=completion.usage, completion=completion)


def _content(message: ChatMessage) -> str | list[dict[str, str]]:
    if isinstance(message.content, str):
        return message.content
    return [{"type": "text", "text": part.text} for part in message.content]


def _parts(content: str | list[dict[str, str]]) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content]


def _extras(request: ChatRequest, spec: ChatSpec) -> dict[str, Any]:
    """The fields that are passed on unread; empty ones, as clients send them, are left out."""
    for place, message in enumerate(request.messages):
        _refuse(message.model_extra, f"messages[{place}].")
        for part in message.content if isinstance(message.content, list) else ():
            _refuse(part.model_extra, f"messages[{place}].content.")
    for name in ("stream_options", "response_format"):
        part = getattr(request, name)
        _refuse(part.model_extra if part else None, f"{name}.")
    extra = request.model_extra or {}
    _refuse({name: value for name, value in extra.items() if name not in spec.pass_fields}, "")
    more = {name: value for name, value in extra.items() if name in spec.pass_fields}
    for name, value in more.items():
        try:
            orjson.dumps(value)
        except TypeError as error:  # a number of more than 64 bits
            raise BadChatRequest(f"{name}: {error}", name) from error
    return more


def _refuse(extra: dict[str, Any] | None, place: str) -> None:
    for name, value in (extra or {}).items():
        if value is not None and value != []:
            field = f"{place}{name}"[:80]
            raise BadChatRequest(f"'{field}' is not supported here", field, "unsupported_parameter")


def _refused(error: ValidationError) -> BadChatRequest:
    """The first mistake in OpenAI's words; what a content of another kind is not, is said plainly."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = [str(part) for part in first["loc"] if not (isinstance(part, str) and ("[" in part or part == "str"))]
    place = ".".join(path)[:80]
    if first["type"] == "json_invalid":
        return BadChatRequest(f"the body is not JSON: {first['msg']}"[:200], "", "invalid_json")
    if "content" in path:
        return BadChatRequest(f"{place}: content is a text, or a list of parts of type `text`", place)
    return BadChatRequest(f"{place}: {first['msg']}"[:300], place)
