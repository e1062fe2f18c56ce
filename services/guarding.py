"""The pipeline's stages `guard_input` and `guard_output`: what the use case's chain says, done.

A chain is read with the use-case file when routes of the use case appear; a change needs a restart. A use case without
a file or without `guards` costs one look-up. One whose file cannot be read is refused: nobody knows its rules.

A written answer is guarded as a whole in `guard_output`, or while it is streamed, by what `stream_guard` returns.
Masked values stay in ``exchange.notes`` and go with the request.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog

from governance.guards import Chain, Looked, Request, StreamGuard
from leitstand.errors import ContentBlocked, LeitstandError, TransientBackendError
from leitstand.types import Verdict
from leitstand.usecase import NAME_PATTERN, find, load
from services.exchange import Exchange
from services.gateway_metrics import GUARDED, VERDICTS
from services.guard_checks import CheckRunner

__all__ = ["PROMPTS", "SOURCES", "GuardedStream", "Guarding", "Guards", "stream_guard"]

PROMPTS = "system_prompts"
"""Key of `Exchange.notes`: system prompts of the request, list[str]; set it before the answer is guarded."""
SOURCES = "sources"
"""Key of `Exchange.notes`: retrieved texts that the answer may rest on, list[str]."""
INLINE_CHARACTERS = 20_000
NOTE = "guards"
OK = 200
T = TypeVar("T")

logger = structlog.get_logger()


class Guards:
    """What the guards know about one request; in ``exchange.notes["guards"]``, and never in a log.

    Args:
        chain: The chain that applies.
        texts: What the caller sent.
        looked: What became of it.
    """

    def __init__(self, chain: Chain, texts: Sequence[str], looked: Looked) -> None:
        self.chain, self.vault = chain, looked.vault
        self._texts = texts

    def __repr__(self) -> str:
        return f"Guards({self.vault!r})"

    def request(self, exchange: Exchange) -> Request:
        """What answers are compared with."""
        notes = exchange.notes
        return Request(self._texts, tuple(notes.get(SOURCES, ())), tuple(notes.get(PROMPTS, ())))

    def answers(self, texts: Sequence[str], request: Request) -> list[tuple[str, list[Verdict], ContentBlocked | None]]:
        """What becomes of whole answers."""
        return [self.chain.check_answer(text, request, self.vault, index) for index, text in enumerate(texts)]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do about answers."""
        return not self.chain.looks_at_answers and not len(self.vault)


class Guarding:
    """The two stages.

    Args:
        usecases: Folder of the use cases' folders.
    """

    def __init__(self, usecases: Path) -> None:
        self._usecases = usecases
        self._chains: dict[str, Chain | LeitstandError | None] = {}
        self._checks = CheckRunner()

    def prepare(self, use_case: str) -> None:
        """Reads the chain of a use case that has routes and compiles it, before its first request."""
        if use_case not in self._chains:
            self._chains[use_case] = self._read(use_case)

    async def guard_input(self, exchange: Exchange) -> None:
        """Judges and masks the texts of a request.

        Raises:
            ContentBlocked: A rule blocks.
            TransientBackendError: The use case's rules cannot be read.
            HttpError: The texts cannot be read.
        """
        chain = self._chain(exchange.use_case)
        if chain is None:
            return
        exchange.policy_digest = chain.digest
        texts = exchange.payload.texts()
        prompts = exchange.notes.get(PROMPTS, ())
        looked = await _look(chain, texts, prompts)
        exchange.notes[NOTE] = Guards(chain, texts, looked)
        checked: list[Verdict] = []
        if looked.blocked is None and chain.input_checks:
            own = frozenset(index for index, text in enumerate(texts) if text in prompts)
            checked = await self._checks.verdicts(chain.input_checks, looked.texts, "input", own)
        _record(exchange, [*looked.verdicts, *checked])
        if looked.blocked is not None:
            raise looked.blocked
        _refuse(checked, "text")
        if looked.texts is not texts and list(looked.texts) != list(texts):
            exchange.payload.replace(looked.texts)

    async def guard_output(self, exchange: Exchange) -> None:
        """Judges a written answer that is not streamed, and puts masked values back.

        Raises:
            ContentBlocked: A rule blocks.
        """
        guards = exchange.notes.get(NOTE)
        payload: Any = exchange.payload
        reply = exchange.reply
        if guards is None or guards.idle or reply is None or reply.status != OK or not hasattr(payload, "answers"):
            return
        texts = payload.answers(reply)
        if not texts:
            return
        request = guards.request(exchange)
        said = await _beside(texts, lambda: guards.answers(texts, request))
        verdicts = [verdict for _, some, _ in said for verdict in some]
        refused = next((blocked for _, _, blocked in said if blocked is not None), None)
        checked: list[Verdict] = []
        if refused is None:
            checked = await self._checks.verdicts(guards.chain.output_checks, texts, "output")
        _record(exchange, [*verdicts, *checked], answers=True)
        if refused is not None:
            raise refused
        _refuse(checked, "answer")
        guarded = [text for text, _, _ in said]
        if guarded != list(texts):
            exchange.take(payload.with_answers(reply, guarded))

    def close(self) -> None:
        """Lets go of the checks' threads."""
        self._checks.close()

    def _chain(self, use_case: str) -> Chain | None:
        chain = self._chains[use_case] if use_case in self._chains else self._read(use_case)
        if isinstance(chain, LeitstandError):
            raise TransientBackendError(
                f"The guards of '{use_case}' cannot be read, so nothing passes", hint="see the gateway's log"
            ) from chain
        return chain

    def _read(self, use_case: str) -> Chain | LeitstandError | None:
        """A use case without routes is read every time: its name may be anything, so it is not remembered."""
        if not re.fullmatch(NAME_PATTERN, use_case) or not (self._usecases / use_case / "usecase.yaml").is_file():
            return None
        try:
            spec = load(find(use_case, self._usecases)).guards
            if not spec.input and not spec.output:
                return None
            chain = Chain(spec)
            self._checks.prepare([*chain.input_checks, *chain.output_checks])
        except LeitstandError as error:
            logger.error("Guards cannot be read; the use case is refused", use_case=use_case, cause=error.message[:500])
            return error
        return chain


class GuardedStream:
    """A `StreamGuard` that tells the exchange and the metrics what it found, once, when it is over.

    Args:
        exchange: Whose answer is written.
        guard: Judges it.
    """

    def __init__(self, exchange: Exchange, guard: StreamGuard) -> None:
        self._exchange, self._guard, self._told = exchange, guard, False

    def feed(self, chunk: str) -> str:
        """See `StreamGuard.feed`."""
        try:
            return self._guard.feed(chunk)
        except ContentBlocked:
            self.close()
            raise

    def finish(self) -> str:
        """See `StreamGuard.finish`."""
        try:
            return self._guard.finish()
        finally:
            self.close()

    def close(self) -> None:
        """For a stream that ends early; harmless after `finish`."""
        if not self._told:
            self._told = True
            _record(self._exchange, self._guard.verdicts, answers=True)


def stream_guard(exchange: Exchange, index: int = 0) -> GuardedStream | None:
    """A guard for an answer of this exchange that is being written; None: it may leave as it comes.

    Checks by models are not made on streams.
    """
    guards = exchange.notes.get(NOTE)
    if guards is None or guards.idle:
        return None
    return GuardedStream(exchange, guards.chain.answer_guard(guards.request(exchange), guards.vault, index))


async def _look(chain: Chain, texts: Sequence[str], prompts: Sequence[str]) -> Looked:
    return await _beside(texts, lambda: chain.check_input(texts, prompts))


async def _beside(texts: Sequence[str], work: Callable[[], T]) -> T:
    """Long texts are looked at in a thread, so that others need not wait."""
    return await asyncio.to_thread(work) if sum(map(len, texts)) > INLINE_CHARACTERS else work()


def _record(exchange: Exchange, verdicts: list[Verdict], *, answers: bool = False) -> None:
    exchange.verdicts += verdicts
    for verdict in verdicts:
        VERDICTS.labels(exchange.use_case, verdict.stage, verdict.action, verdict.reason).inc(verdict.count)
        if verdict.action == "review":
            logger.info(
                "A text or answer is marked for review", **{"event.action": "leitstand.guard.review"},
                request=exchange.request_id, use_case=exchange.use_case, version=exchange.version,
                stage=verdict.stage, rule=verdict.rule, reason=verdict.reason, count=verdict.count,
            )  # fmt: skip
    if answers:
        actions = {verdict.action for verdict in verdicts}
        outcome = next((action for action in ("block", "review", "mask") if action in actions), "pass")
        GUARDED.labels(exchange.use_case, str(exchange.version), exchange.route, outcome).inc()


def _refuse(verdicts: Sequence[Verdict], what: str) -> None:
    blocking = [verdict for verdict in verdicts if verdict.action == "block"]
    if blocking:
        reasons = [verdict.reason for verdict in blocking]
        raise ContentBlocked(
            f"{what}[{blocking[0].index}] is not let through: {', '.join(reasons)}", reasons=reasons,
            hint="write it in other words, or ask the owner of the use case",
        )  # fmt: skip
