"""Reading bodies and sending answers as a bare ASGI application does."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from services.errors import Response, bad_request, too_large

__all__ = ["EXCHANGE", "ClientGone", "read_body", "respond"]

EXCHANGE = "leitstand.exchange"
"""Where a scope holds the request's `services.exchange.Exchange`, for the layers outside."""


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


async def read_body(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]], headers: Mapping[bytes, bytes], limit: int
) -> bytes:
    """The whole body.

    Raises:
        HttpError: 413 above `limit` bytes, announced or counted; what is too much is not kept.
        ClientGone: It never came to its end.
    """
    announced = headers.get(b"content-length")
    if announced is not None:
        if not announced.isdigit():
            raise bad_request("content-length is not a number")
        if int(announced) > limit:
            raise too_large(f"the body has {int(announced)} bytes, at most {limit} are accepted")
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large(f"the body has more than {limit} bytes")
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def respond(send: Callable[[MutableMapping[str, Any]], Awaitable[None]], response: Response) -> None:
    """Sends status, headers and body."""
    status, headers, body = response
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
