"""A model server that misbehaves on demand, on raw sockets: ``python -m tests.faulty_upstream VERSION PORT``.

``PUT /mode/NAME`` chooses how the next requests are met: `well`, `hang` (no byte ever), `half-close` (an end of
stream instead of an answer), `reset`, `drip` (a byte of the answer now and then), `cut` (half of an answer),
`garbage` (no HTTP), `nonsense` (HTTP 200 that is no answer), `endless` (a body without an end), `500`, `503`, or
`flaky` (every fifth request is reset). ``GET /count`` says how many predictions were asked for since.
"""

import asyncio
import json
import socket
import struct
import sys

VERSION, PORT = sys.argv[1], int(sys.argv[2])
OUTPUTS = [
    {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["card"]},
    {"name": "score", "datatype": "FP32", "shape": [1], "data": [0.75]},
    {"name": "abstain", "datatype": "BOOL", "shape": [1], "data": [False]},
]
ANSWER = json.dumps({"model_name": "support", "model_version": VERSION, "outputs": OUTPUTS}).encode()
state = {"mode": "well", "count": 0}


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            method, path = head.split(b" ", 2)[:2]
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
            await reader.readexactly(int(fields.get(b"content-length", 0)))
            if method == b"PUT":
                state.update(mode=path.decode().rsplit("/", 1)[-1], count=0)
                writer.write(http(b"{}"))
            elif method == b"GET":
                writer.write(http(json.dumps(state).encode()))
            elif not await predict(writer):
                return
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def predict(writer: asyncio.StreamWriter) -> bool:
    """Meets a request as the mode says; whether the connection goes on."""
    state["count"] += 1
    mode = state["mode"]
    if mode == "reset" or (mode == "flaky" and state["count"] % 5 == 0):
        end = writer.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        return False
    if mode in ("hang", "half-close"):
        if mode == "half-close":
            writer.write_eof()
        await asyncio.sleep(60)
        return False
    if mode == "drip":
        for place in range(len(ANSWER)):
            writer.write(http(ANSWER)[place : place + 1])
            await writer.drain()
            await asyncio.sleep(0.2)
        return False
    if mode == "endless":
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"100000\r\n" + b"x" * 2**20 + b"\r\n")
            await writer.drain()
    if mode == "cut":
        writer.write(http(ANSWER)[:-20])
        return False
    if mode == "garbage":
        writer.write(bytes(range(256)) * 8)
        return False
    answers = {
        "500": http(b'{"error": "no"}', "500 No"), "503": http(b"{}", "503 No"), "nonsense": http(b"[1]"),
    }  # fmt: skip
    writer.write(answers.get(mode, http(ANSWER)))
    return True


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", PORT)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
