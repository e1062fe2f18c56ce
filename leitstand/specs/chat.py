"""The key `chat` of the use-case file: what a caller may ask of a model that writes."""

from typing import Literal

from pydantic import Field

from leitstand.specs.base import Spec

__all__ = ["ChatSpec"]


class ChatSpec(Spec):
    """Used where the route leads to an OpenAI-compatible API."""

    max_tokens: int = Field(
        default=4096, ge=1, le=10**7, description="tokens that a caller may ask for at most; more are answered 400"
    )
    stream: Literal["live", "buffered"] = Field(
        default="live",
        description="live: text leaves as it is written and checked; buffered: nothing leaves before all of it is "
        "checked and its record is written",
    )
    pass_fields: tuple[str, ...] = Field(
        default=(), description="fields that reach the upstream unread, like `min_p`; others are answered 400"
    )
