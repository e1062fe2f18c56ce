"""The key `audit` of the use-case file: what is recorded about every inference."""

from typing import Literal

from pydantic import Field, field_validator

from leitstand.specs.base import Spec

__all__ = ["AuditSpec"]


class AuditSpec(Spec):
    """How durable the record of an inference must be, and whether it holds the texts."""

    mode: Literal["strict", "relaxed", "off"] | None = Field(
        default=None,
        description="strict: no answer leaves before its record is on disk; relaxed: within LEITSTAND_AUDIT__FLUSH_S; "
        "null: as LEITSTAND_AUDIT__MODE says",
    )
    content: bool = Field(default=True, description="whether records hold the encrypted input and output")

    @field_validator("mode", mode="before")
    @classmethod
    def _off_is_a_word(cls, said: object) -> object:
        """A bare `off` is false in YAML."""
        return "off" if said is False else said
