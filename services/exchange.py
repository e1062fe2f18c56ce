"""One request on its way through the gateway's pipeline, without any transport.

The payload is either texts or the bytes of an Open Inference Protocol request, passed through unread; its
texts, and the predictions of an answer, are decoded only when a stage asks for them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

from leitstand.types import Caller, Usage, Verdict
from services.chat_payload import ChatPayload
from services.inference_protocol import decode_request, replace_texts
from services.upstream_codec import Predictions, decode_answer, encode_texts
from services.upstreams import HEAD_BYTES, Reply

__all__ = ["CHAT_NOTES", "Exchange", "Payload", "RawPayload", "TextPayload", "WritingPayload"]

CHAT_NOTES = "chat"
"""Key of `Exchange.notes`: the upstream's own names for an answer, and whether it counted its tokens."""
CONTENT_TYPE = {"content-type": "application/json"}
NOBODY, NOTHING = Caller(), Usage()


class Payload(Protocol):
    """What an exchange asks of an upstream."""

    asks_for_outputs: bool

    def texts(self) -> Sequence[str]:
        """The texts to judge, in order."""
        ...

    def replace(self, texts: Sequence[str]) -> None:
        """Puts `texts` in the place of `texts()`: as many, in the same order."""
        ...

    def request(self, outputs: Collection[str]) -> tuple[bytes, dict[str, str]]:
        """Body and headers of the call; `outputs` matters when `asks_for_outputs`."""
        ...


class WritingPayload(Payload, Protocol):
    """A payload whose answers are written text, which guards judge and replace; a classifier's labels are none."""

    def answers(self, reply: Reply) -> Sequence[str]:
        """The texts that the model wrote."""
        ...

    def with_answers(self, reply: Reply, texts: Sequence[str]) -> Reply:
        """The reply with other texts: as many, in the same order."""
        ...


class TextPayload:
    """Texts. Guards may replace them."""

    asks_for_outputs = True

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def texts(self) -> Sequence[str]:
        """See `Payload.texts`."""
        return self._texts

    def replace(self, texts: Sequence[str]) -> None:
        """See `Payload.replace`."""
        self._texts = texts

    def request(self, outputs: Collection[str]) -> tuple[bytes, dict[str, str]]:
        """See `Payload.request`."""
        return encode_texts(self._texts, outputs), CONTENT_TYPE


class RawPayload:
    """A protocol request as its bytes; unless a guard replaces its texts, nothing is changed and nothing is checked."""

    asks_for_outputs = False

    def __init__(self, body: bytes, headers: dict[str, str], head_bytes: int | None, max_text_bytes: int) -> None:
        self._body, self._headers, self._head_bytes, self._max = body, headers, head_bytes, max_text_bytes

    def texts(self) -> Sequence[str]:
        """See `Payload.texts`.

        Raises:
            HttpError: The bytes are not a request of the protocol.
        """
        return decode_request(self._body, self._head_bytes, self._max).texts

    def replace(self, texts: Sequence[str]) -> None:
        """See `Payload.replace`; the form of the request, JSON or binary, stays as it is.

        Raises:
            HttpError: The bytes are not a request of the protocol.
        """
        self._body, self._head_bytes = replace_texts(self._body, self._head_bytes, texts)
        self._headers = {name: value for name, value in self._headers.items() if name != HEAD_BYTES}
        if self._head_bytes is not None:
            self._headers[HEAD_BYTES] = str(self._head_bytes)

    def request(self, outputs: Collection[str]) -> tuple[bytes, dict[str, str]]:
        """See `Payload.request`."""
        return self._body, self._headers


@dataclass(slots=True)
class Exchange:
    """What the stages know and say about one request.

    Attributes:
        use_case: Whose routes and policies apply.
        request_id: Names the answer in logs and for feedback.
        subject: Whom the routing is sticky to, or empty; never logged as it is.
        payload: What is asked.
        path: Path of the call on the upstream.
        deadline: `perf_counter` time at which the caller has waited enough.
        wanted_version: The version that the caller insists on; None: as the routes say.
        arrived: `perf_counter` time of arrival.
        version: Version that answered, 0 before.
        route: ``stable``, ``canary``, ``pinned`` or ``fallback``; empty before routing.
        labels: The model's labels, when it tells.
        reply: The answer, None before.
        error: What ended the exchange without an answer.
        upstream_s: Time spent waiting for upstreams.
        headers: The request's headers, names in lower case; credentials among them, so never logged.
        response_headers: What stages add to the response, refused or not.
        caller: Who asks; set by authentication.
        verdicts: What the guards said, in order.
        usage: What was used, once it is known; before, what may be used at most.
        policy_digest: Digest of the guard policy that was applied.
        notes: What a stage leaves for a later one, by the name of the stage.
    """

    use_case: str
    request_id: str
    subject: str
    payload: Payload
    path: str
    deadline: float
    wanted_version: int | None = None
    arrived: float = field(default_factory=perf_counter)
    version: int = 0
    route: str = ""
    labels: tuple[str, ...] = ()
    reply: Reply | None = None
    error: BaseException | None = None
    upstream_s: float = 0.0
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    response_headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    caller: Caller = NOBODY
    verdicts: list[Verdict] = field(default_factory=list)
    usage: Usage = NOTHING
    policy_digest: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    _predictions: Predictions | None = None

    def take(self, reply: Reply) -> None:
        """Sets the answer, and of a written one what it used; guards that change one do the same."""
        self.reply, self._predictions = reply, None
        if reply.completion is not None and isinstance(self.payload, ChatPayload):
            self.usage = reply.usage or self.payload.guess(reply.completion.text)
            tokens = "guessed" if reply.usage is None else "counted"
            self.notes[CHAT_NOTES] = reply.completion.notes | {"tokens": tokens}

    def predictions(self) -> Predictions:
        """The answer's contents; call it only when `reply` has status 200.

        Raises:
            PermanentBackendError: They are not readable.
        """
        if self._predictions is None:
            assert self.reply is not None  # noqa: S101 -- the caller's mistake
            self._predictions = decode_answer(self.reply.body, self.reply.head_bytes)
        return self._predictions
