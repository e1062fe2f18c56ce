"""A Bento with a fault, for the demo's canary: ``python -m flows.demo.faulty TAG HOST PORT``.

The Bento itself is served by ``bentoml serve`` behind a small proxy that answers every third inference with 500, as an
artifact does that breaks on some inputs only. Readiness, metadata and every other answer are the Bento's own.
"""

import asyncio
import contextlib
import itertools
import signal
import socket
import sys

import aiohttp
from aiohttp import web

__all__ = ["command", "main"]

EVERY = 3
HOP = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})


def command(tag: str, host: str, port: int) -> list[str]:
    """The command line, as `flows.deploying.LocalDeployer` wants it."""
    return [sys.executable, "-m", "flows.demo.faulty", tag, host, str(port)]


async def main(tag: str, host: str, port: int) -> None:
    """Serves until SIGTERM or until the Bento ends."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        inner = probe.getsockname()[1]
    bento = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bentoml", "serve", tag, "--host", host, "--port", str(inner)
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        async with aiohttp.ClientSession(f"http://{host}:{inner}", auto_decompress=False) as session:
            runner = web.AppRunner(_app(session), access_log=None)
            await runner.setup()
            await web.TCPSite(runner, host, port).start()
            ended = asyncio.create_task(bento.wait())
            await asyncio.wait([ended, asyncio.create_task(stopped.wait())], return_when=asyncio.FIRST_COMPLETED)
            await runner.cleanup()
    finally:
        with contextlib.suppress(ProcessLookupError):
            bento.terminate()
        await bento.wait()


def _app(session: aiohttp.ClientSession) -> web.Application:
    counter = itertools.count(1)

    async def handle(request: web.Request) -> web.Response:
        if request.method == "POST" and request.path.endswith("/infer") and next(counter) % EVERY == 0:
            return web.json_response({"error": "this Bento is broken on purpose"}, status=500)
        sent = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        try:
            async with session.request(
                request.method, request.path_qs, data=await request.read(), headers=sent
            ) as reply:  # fmt: skip
                back = {name: value for name, value in reply.headers.items() if name.lower() not in HOP}
                return web.Response(status=reply.status, body=await reply.read(), headers=back)
        except aiohttp.ClientError:
            return web.Response(status=503)

    app = web.Application(client_max_size=4 * 2**20)
    app.router.add_route("*", "/{path:.*}", handle)
    return app


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
