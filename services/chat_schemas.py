"""Bodies of the OpenAI-compatible chat API, as far as the gateway understands them.

What is not understood is kept in `model_extra`, for `services.chat_payload` to refuse by name.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = ["ChatMessage", "ChatRequest", "StreamOptions", "TextPart"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """One message; of its content only text is taken."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=256)]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None


class StreamOptions(_Body):
    """What a stream tells besides the text."""

    include_usage: bool | None = None


class ResponseFormat(_Body):
    """Plain text, or any JSON object."""

    type: Literal["text", "json_object"]


class ChatRequest(_Body):
    """A chat completion request."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=128)] = Field(
        description="`use_case`, or `use_case@version`"
    )
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    n: Literal[1] | None = None
    response_format: ResponseFormat | None = None
    user: str | None = Field(default=None, max_length=256, description="whom the route is sticky to; not passed on")
    metadata: dict[str, Any] | None = Field(default=None, description="not passed on")
    store: Literal[False] | None = Field(default=None, description="not passed on: providers keep nothing")
