"""The key `audit` of the use-case file: what is recorded about every inference."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from leitstand.specs.base import Spec

__all__ = ["AuditSpec"]

# A bare `off` is false in YAML.
Mode = Annotated[Literal["strict", "relaxed", "off"], BeforeValidator(lambda said: "off" if said is False else said)]


class AuditSpec(Spec):
    """How durable the record of an inference must be, and whether it holds the texts."""

    mode: Mode | None = Field(
        default=None,
        description="strict: no answer leaves before its record is on disk; relaxed: within LEITSTAND_AUDIT__FLUSH_S; "
        "null: as LEITSTAND_AUDIT__MODE says",
    )
    content: bool = Field(default=True, description="whether records hold the encrypted input and output")
