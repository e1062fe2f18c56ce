"""The OpenAI chat API as bytes: what an upstream says is read strictly, what a caller gets is written anew.

Only text, its end and the counts are taken over. Reasoning, tool calls and whatever else a provider adds did not
pass a guard, and stays here.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson

from leitstand.errors import PermanentBackendError
from leitstand.types import Usage

__all__ = [
    "DONE",
    "Completion",
    "Piece",
    "UpstreamReports",
    "chunk_bytes",
    "completion_bytes",
    "error_bytes",
    "error_text",
    "event",
    "read_chunk",
    "read_completion",
    "usage_document",
]

DONE = b"data: [DONE]\n\n"
FINISHED = {"stop", "length", "content_filter", "tool_calls", "function_call"}


class UpstreamReports(PermanentBackendError):
    """An upstream says in the middle of a stream that it cannot go on."""


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer as a whole.

    Attributes:
        text: What the model wrote.
        finish_reason: Why it ended.
        usage: Tokens, when the upstream counts them.
        notes: The upstream's own id, model and fingerprint, for the record.
    """

    text: str
    finish_reason: str
    usage: Usage | None
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer that is being written.

    Attributes:
        text: What came; may be empty.
        finish_reason: Why it ended; empty before the end.
        usage: Tokens, when this part tells.
        notes: See `Completion.notes`.
        reasons: Why a guard ended it, as reason codes.
    """

    text: str = ""
    finish_reason: str = ""
    usage: Usage | None = None
    notes: dict[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


def read_completion(body: bytes) -> Completion:
    """Reads the body of an answer with status 200.

    Raises:
        PermanentBackendError: It is no chat completion.
    """
    try:
        document = orjson.loads(body)
        choice = document["choices"][0]
        text = choice["message"]["content"] or ""
        if not isinstance(text, str):
            raise TypeError("content is no text")
        return Completion(text, _reason(choice) or "stop", _usage(document), _notes(document))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PermanentBackendError(f"The upstream's answer is no chat completion: {error!r}"[:300]) from error


def read_chunk(data: str) -> Piece:
    """Reads the data of one event of a stream.

    Raises:
        UpstreamReports: It is an error.
        PermanentBackendError: It is no chunk.
    """
    try:
        document = orjson.loads(data)
        if document.get("error"):
            raise UpstreamReports(f"The upstream reports: {_said(document)}")
        choices = document.get("choices") or ()
        if not choices:
            return Piece(usage=_usage(document), notes=_notes(document))
        choice = choices[0]
        text = (choice.get("delta") or {}).get("content") or ""
        if not isinstance(text, str):
            raise TypeError("content is no text")
        return Piece(text, _reason(choice), _usage(document), _notes(document))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PermanentBackendError(f"The upstream's stream is not readable: {error!r}"[:300]) from error


def error_text(body: bytes) -> str:
    """What an error body says, shortened."""
    try:
        return _said(orjson.loads(body))
    except (ValueError, AttributeError):
        return body[:200].decode("utf-8", "replace")


def completion_bytes(
    completion: Completion, *, request_id: str, model: str, created: int, usage: Usage | None = None
) -> bytes:
    """The body that a caller gets; `usage` where the completion does not tell."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": completion.text, "refusal": None},
        "finish_reason": completion.finish_reason,
        "logprobs": None,
    }
    document = {"id": request_id, "object": "chat.completion", "created": created, "model": model, "choices": [choice]}
    if (used := completion.usage or usage) is not None:
        document["usage"] = usage_document(used)
    if fingerprint := completion.notes.get("system_fingerprint"):
        document["system_fingerprint"] = fingerprint
    return orjson.dumps(document)


def chunk_bytes(delta: dict[str, str] | None, *, head: dict[str, Any], finish_reason: str = "", **more: Any) -> bytes:
    """An event of a stream; without a delta it has no choice (the counts).

    Args:
        delta: What is added.
        head: ``id``, ``object``, ``created`` and ``model``, the same in the whole stream.
        finish_reason: Of the last choice.
        more: Further keys, like ``usage``.
    """
    choices: list[dict[str, Any]] = []
    if delta is not None:
        choices.append({"index": 0, "delta": delta, "finish_reason": finish_reason or None})
    return event(head | {"choices": choices} | more)


def error_bytes(error: dict[str, Any]) -> bytes:
    """The event that ends a stream which cannot go on."""
    return event({"error": error})


def event(document: dict[str, Any]) -> bytes:
    """`document` as the data of one event."""
    return b"data: " + orjson.dumps(document) + b"\n\n"


def usage_document(usage: Usage) -> dict[str, int]:
    """Usage in OpenAI's words."""
    return {
        "prompt_tokens": usage.tokens_in,
        "completion_tokens": usage.tokens_out,
        "total_tokens": usage.tokens_in + usage.tokens_out,
    }


def _usage(document: dict[str, Any]) -> Usage | None:
    """The counts; those that cannot be true are none."""
    said = document.get("usage")
    if not isinstance(said, dict):
        return None
    read, written = said.get("prompt_tokens"), said.get("completion_tokens", 0)
    if not (isinstance(read, int) and isinstance(written, int) and read >= 0 and written >= 0):
        return None
    return Usage(tokens_in=read, tokens_out=written)


def _notes(document: dict[str, Any]) -> dict[str, str]:
    names = ("id", "model", "system_fingerprint")
    return {name: value[:200] for name in names if isinstance(value := document.get(name), str)}


def _reason(choice: dict[str, Any]) -> str:
    """Why it ended, as far as OpenAI's API knows the reason; a provider's own counts as an ordinary end."""
    said = choice.get("finish_reason")
    if not said:
        return ""
    return said if said in FINISHED else "stop"


def _said(document: Any) -> str:
    """OpenAI's ``{"error": {"message": ...}}``, or what others make of it."""
    error = document.get("error", document.get("detail", document))
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:300]
