"""What a record holds: as it is written (`Entry`), and as it is read (`InferenceRecord`, `TrailEvent`).

Input and output are as the model saw and gave them: what a guard masked before the call is masked here, too.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from governance.audit.keys import Scope, SubjectKey
from leitstand.types import Verdict

__all__ = ["Content", "Entry", "InferenceRecord", "Sealed", "TrailEvent", "encode", "place"]


@dataclass(frozen=True, slots=True)
class Content:
    """A text or body in the clear.

    Attributes:
        form: ``texts`` (a JSON list), ``predictions`` or ``json`` (a JSON document), or a media type.
        value: What is to be written as JSON, or bytes that are kept as they are.
    """

    form: str
    value: Any

    def plain(self) -> bytes:
        """The bytes that are encrypted."""
        return self.value if isinstance(self.value, bytes) else orjson.dumps(self.value)


@dataclass(slots=True)
class Entry:
    """One inference on its way into the trail.

    Attributes:
        scope: Whose key encrypts it.
        facts: The fields of `InferenceRecord` that are not encrypted, as JSON can hold them.
        input: What was asked, or None when it is not kept.
        output: What was answered, or None when there was no answer.
        who: The subject and the caller by name, or None when nobody was named.
    """

    scope: Scope
    facts: dict[str, Any]
    input: Content | None = None
    output: Content | None = None
    who: Content | None = None


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Sealed(_Read):
    """An encrypted input or output."""

    form: str
    size: int = Field(alias="bytes", description="length in the clear")
    sealed: str = Field(description="base64 of nonce and AES-256-GCM ciphertext, bound to chain, sequence and field")
    hash: str = Field(description="HMAC-SHA256 of the plaintext under a key that is erased with the subject's")


class InferenceRecord(_Read):
    """What happened around one inference. ``extra`` fields of newer versions are left out."""

    schema_version: Literal[1] = 1
    kind: Literal["inference"] = "inference"
    chain: str
    sequence: int
    previous_hash: str
    hash: str
    request_id: str
    started_at: AwareDatetime
    ended_at: AwareDatetime
    tenant: str
    subject: str = Field(description="random name, `s-…`; `t-…` is shared by all requests of a day that named nobody")
    method: str = Field(default="anonymous", description="how the caller proved who it is")
    key_id: str = Field(default="", description="id of the API key or token")
    use_case: str
    route: str = ""
    version: int = 0
    bento: str = Field(default="", description="digest of the Bento, when the upstream told it")
    path: str = ""
    parameters: Mapping[str, Any] = Field(default_factory=dict, description="decoding parameters, seed included")
    who: Sealed | None = Field(default=None, description="subject and caller by name")
    input: Sealed | None = None
    output: Sealed | None = None
    sources: Sequence[Any] = Field(default=(), description="what was retrieved for the answer")
    verdicts: tuple[Verdict, ...] = ()
    policy: str = Field(default="", description="digest of the guard policy")
    tokens_in: int = 0
    tokens_out: int = 0
    cost_micros: int = 0
    status: int = Field(description="HTTP status of the answer; 499: the caller went away")
    problem: str = Field(default="", description="why it was refused or failed")

    @property
    def id(self) -> str:
        """Names the record: chain and sequence."""
        return f"{self.chain}:{self.sequence}"


class TrailEvent(_Read):
    """What happened to the trail itself: opened, closed, recovered, resumed, lost, erased, pruned."""

    schema_version: Literal[1] = 1
    kind: str
    chain: str
    sequence: int
    previous_hash: str
    hash: str
    at: AwareDatetime
    details: Mapping[str, Any] = Field(default_factory=dict)


def encode(entry: Entry, key: SubjectKey, chain: str, sequence: int) -> bytes:
    """The body of a record, encrypted for its place."""
    record = {"schema_version": 1, "kind": "inference", **entry.facts, "subject": key.name}
    for name, content in (("who", entry.who), ("input", entry.input), ("output", entry.output)):
        if content is not None:
            record[name] = _seal(content, key, place(chain, sequence, name))
    return orjson.dumps(record, option=orjson.OPT_UTC_Z, default=_readable)


def place(chain: str, sequence: int, name: str) -> bytes:
    """What a ciphertext is bound to, so that it opens in its own record only."""
    return f"{chain}:{sequence}:{name}".encode()


def _seal(content: Content, key: SubjectKey, bound_to: bytes) -> dict[str, Any]:
    plain = content.plain()
    sealed = b64encode(key.seal(plain, bound_to)).decode()
    return {"form": content.form, "bytes": len(plain), "sealed": sealed, "hash": key.hash(plain)}


def _readable(value: object) -> Any:
    """Sets, tuples of odd things and other leftovers of stages become text instead of a lost record."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
