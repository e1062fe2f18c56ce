"""The pipeline's last stage: the record of every inference, refused and failed ones included.

Strict: the answer waits until its record is on disk, and becomes a 503 when that cannot be. Relaxed: it does not wait,
and what is lost is counted. Input and output are what the model saw and gave. Of requests that were turned away before
any model was asked (no credentials, no budget, no such use case) the texts are not kept: strangers could fill the disk
with them.

A stage that knows more leaves it in ``exchange.notes["audit"]``: ``parameters`` (decoding, seed), ``sources``,
``bento``, and ``output``, a JSON value, where the answer is no single reply.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any, Literal

from governance.audit.keys import Scope
from governance.audit.records import Content, Entry
from governance.audit.trail import AuditUnavailable, Trail
from leitstand.errors import ContentBlocked, LeitstandError, NotFoundError, PolicyDenied
from leitstand.settings import Settings
from leitstand.specs.audit import AuditSpec
from leitstand.usecase import find, load
from services.errors import HttpError
from services.exchange import Exchange, TextPayload
from services.gateway_metrics import AUDIT_RECORDS, AUDIT_UP
from services.problems import problem_for
from services.scheduling import Overloaded

__all__ = ["Auditor", "audit_specs"]

Mode = Literal["strict", "relaxed", "off"]
OK = 200
CLIENT_GONE = 499
SHOWN = 300
KNOWN = 1000
TURNED_AWAY = (PolicyDenied, NotFoundError, HttpError, Overloaded)


class Auditor:
    """A `Policy` that writes records.

    Args:
        trail: Where they go; started and closed by `start` and `close`.
        mode: Of use cases that do not say.
        specs: The key `audit` of a use case.
    """

    def __init__(self, trail: Trail, mode: Mode, specs: Callable[[str], AuditSpec]) -> None:
        self._trail = trail
        self._mode = mode
        self._specs = specs
        self._strict_seen = mode == "strict"
        AUDIT_UP.set_function(lambda: float(not trail.down))

    @property
    def down(self) -> str:
        """Why no record can be written, where records must be; else empty."""
        return self._trail.down if self._strict_seen else ""

    @property
    def state(self) -> str:
        """``ok``, or why no record can be written."""
        return self._trail.down or "ok"

    async def start(self) -> None:
        """Opens the trail, or leaves that to its writer when it takes long."""
        await asyncio.to_thread(self._trail.start, 5.0)

    async def close(self) -> None:
        """Returns when everything is written."""
        await asyncio.to_thread(self._trail.close)

    async def __call__(self, exchange: Exchange) -> None:
        """Writes the record.

        Raises:
            AuditUnavailable: It must be durable and cannot be.
        """
        spec = self._specs(exchange.use_case)
        mode = spec.mode or self._mode
        if mode == "off":
            return
        entry = entry_of(exchange, content=spec.content)
        if mode == "relaxed":
            AUDIT_RECORDS.labels(mode, "queued" if self._trail.later(entry) else "lost").inc()
            return
        self._strict_seen = True
        try:
            await self._trail.durable(entry)
        except AuditUnavailable:
            AUDIT_RECORDS.labels(mode, "unavailable").inc()
            raise
        AUDIT_RECORDS.labels(mode, "durable").inc()


def entry_of(exchange: Exchange, *, content: bool = True) -> Entry:
    """The record of an exchange that is over, at this moment.

    Args:
        exchange: After its last stage but this one.
        content: Whether texts and answer are kept.
    """
    ended, caller = datetime.now(UTC), exchange.caller
    known = caller.subject if caller.method != "anonymous" else ""
    subject = exchange.subject or known
    said: dict[str, Any] = exchange.notes.get("audit", {})
    entry = Entry(Scope(caller.tenant, subject, None if subject else ended.date()), _facts(exchange, said, ended))
    if subject:
        entry.who = Content("json", {"subject": exchange.subject, "caller": known})
    error = exchange.error
    if content and (not isinstance(error, TURNED_AWAY) or isinstance(error, ContentBlocked)):
        entry.input, entry.output = _input(exchange), _output(exchange, said)
    return entry


def audit_specs(settings: Settings) -> Callable[[str], AuditSpec]:
    """Reads the key `audit` of a use case once; the defaults where there is no readable file."""
    read: dict[str, AuditSpec] = {}

    def spec(use_case: str) -> AuditSpec:
        found = read.get(use_case)
        if found is None:
            if len(read) >= KNOWN:  # names come from clients
                read.clear()
            try:
                found = load(find(use_case, settings.usecases)).audit
            except (LeitstandError, OSError, ValueError):
                found = AuditSpec()
            read[use_case] = found
        return found

    return spec


def _facts(exchange: Exchange, said: dict[str, Any], ended: datetime) -> dict[str, Any]:
    """Everything that is not encrypted."""
    caller, used = exchange.caller, exchange.usage
    status, problem = _outcome(exchange)
    parameters = getattr(exchange.payload, "parameters", None)
    return {
        "request_id": exchange.request_id,
        "started_at": ended - timedelta(seconds=perf_counter() - exchange.arrived),
        "ended_at": ended,
        "tenant": caller.tenant,
        "method": caller.method,
        "key_id": caller.key_id,
        "use_case": exchange.use_case[:128],
        "route": exchange.route,
        "version": exchange.version,
        "bento": said.get("bento", ""),
        "path": exchange.path[:256],
        "parameters": said.get("parameters") or (parameters() if parameters is not None else {}),
        "sources": said.get("sources", ()),
        "verdicts": exchange.verdicts,
        "policy": exchange.policy_digest,
        "tokens_in": used.tokens_in,
        "tokens_out": used.tokens_out,
        "cost_micros": used.cost_micros,
        "status": status,
        "problem": problem,
    }


def _outcome(exchange: Exchange) -> tuple[int, str]:
    error = exchange.error
    if error is None:
        return (exchange.reply.status if exchange.reply else OK), ""
    if isinstance(error, asyncio.CancelledError):
        return CLIENT_GONE, "the caller went away"
    said = error.message if isinstance(error, LeitstandError | HttpError) else type(error).__name__
    return problem_for(error)[0], said[:SHOWN]


def _input(exchange: Exchange) -> Content:
    payload = exchange.payload
    if isinstance(payload, TextPayload):
        return Content("texts", payload.texts())
    body, headers = payload.request(())
    kind = headers.get("content-type", "application/octet-stream")
    length = headers.get("inference-header-content-length")
    return Content(f"{kind}; head={length}" if length else kind, body)


def _output(exchange: Exchange, said: dict[str, Any]) -> Content | None:
    if "output" in said:
        return Content("json", said["output"])
    reply = exchange.reply
    if reply is None:
        return None
    if reply.status == OK and exchange.payload.asks_for_outputs:
        try:
            made = exchange.predictions()
        except LeitstandError:
            return Content(reply.content_type, reply.body)
        return Content("predictions", {"labels": made.labels, "scores": made.scores, "abstain": made.abstain})
    head = f"; head={reply.head_bytes}" if reply.head_bytes is not None else ""
    return Content(f"{reply.content_type}{head}", reply.body)
