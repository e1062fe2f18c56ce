"""The least that a proxy can do: a bare ASGI application that hands each request on and the answer back.

UPSTREAM=http://127.0.0.1:3972 uvicorn benchmarks.peers.reverse_proxy:app
"""

import os
from typing import Any

import aiohttp

UPSTREAM = os.environ.get("UPSTREAM", "http://127.0.0.1:3972")
KEPT = {b"content-type", b"authorization", b"x-request-id"}


class Proxy:
    """One pool of connections, no checks."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Hands one request on."""
        if scope["type"] != "http":
            return
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"] if name in KEPT}
        async with self._session.request(scope["method"], UPSTREAM + scope["path"], data=body, headers=headers) as got:
            content = await got.read()
            kind = got.headers.get("content-type", "application/json").encode()
        length = str(len(content)).encode()
        start = {"type": "http.response.start", "status": got.status}
        await send(start | {"headers": [(b"content-type", kind), (b"content-length", length)]})
        await send({"type": "http.response.body", "body": content})


app = Proxy()
