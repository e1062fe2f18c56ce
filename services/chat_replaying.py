"""Asks an OpenAI-compatible API again what a record says was asked, with the same parameters and as a whole."""

import asyncio

import orjson

from governance.access.addresses import private_allowed
from leitstand.errors import PermanentBackendError
from leitstand.settings import Settings
from leitstand.types import Target
from services.chat_upstream import ChatCalls
from services.tls import upstream_context
from services.upstreams import CHAT_PATH, Reply, Upstreams

__all__ = ["ask_again"]

OK = 200
STREAMED = ("stream", "stream_options")


def ask_again(settings: Settings, target: Target, body: bytes) -> bytes:
    """The body of the answer.

    Args:
        settings: Keys, deadlines and certificates of this installation.
        target: The API.
        body: The recorded request, in the clear.

    Raises:
        UpstreamFailed: It did not answer.
        PermanentBackendError: It refused.
    """
    asked = {name: value for name, value in orjson.loads(body).items() if name not in STREAMED}
    reply = asyncio.run(_call(settings, target, orjson.dumps(asked)))
    if reply.status != OK:
        raise PermanentBackendError(
            f"{target.url} answered {reply.status}: {reply.body[:200].decode(errors='replace')}"
        )
    return reply.body


async def _call(settings: Settings, target: Target, body: bytes) -> Reply:
    upstreams = Upstreams(
        connect_s=settings.gateway.connect_s, chats=ChatCalls(settings.chat), context=upstream_context(settings.tls),
        private=private_allowed(settings),
    )  # fmt: skip
    await upstreams.open()
    try:
        headers = {"content-type": "application/json"}
        return await upstreams.call(target, CHAT_PATH, body, headers, settings.chat.deadline_s)
    finally:
        await upstreams.close()
