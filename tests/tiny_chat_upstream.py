"""An OpenAI-compatible API of a few lines, for what a real one does not do on demand.

Run as ``python -m tests.tiny_chat_upstream PORT KEY``. The last message's first word says what happens:

    say TEXT        answers TEXT, word by word when streamed        nousage TEXT    the same without counts
    status N        answers with status N                           long N          N words
    die / dielate   the process ends before / in the middle         reset           the connection ends in the middle
    hang / hanglate no byte ever / none after the first word        slow N          a word every N milliseconds
    garbage         no JSON                                         erroring        an error event in the middle
    nodone TEXT     no [DONE]                                       crlf TEXT       CRLF, comments, bytes one by one
    plain TEXT      an answer as a whole although a stream was asked for

``GET /seen`` lists the bodies and headers of the requests, and how many streams were given up by their reader.
"""

import asyncio
import json
import os
import sys
from typing import Any

import uvicorn

KEY = sys.argv[2] if len(sys.argv) > 2 else ""
SEEN: dict[str, Any] = {"requests": [], "given_up": 0, "open": 0}
LIMIT = 200


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["path"] == "/seen":
        await whole(send, 200, SEEN)
        return
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    asked = json.loads(body)
    SEEN["requests"] = [*SEEN["requests"], {"headers": headers, "body": asked}][-LIMIT:]
    if KEY and headers.get("authorization") != f"Bearer {KEY}":
        await whole(send, 401, {"error": {"message": f"Incorrect API key {headers.get('authorization')}"}})
        return
    last = asked["messages"][-1]["content"]
    text = last if isinstance(last, str) else last[-1]["text"]
    order, _, rest = text.partition(" ")
    SEEN["open"] += 1
    try:
        await obey(order, rest, asked, receive, send)
    finally:
        SEEN["open"] -= 1


async def obey(order: str, rest: str, asked: dict[str, Any], receive: Any, send: Any) -> None:
    if order == "status":
        extra = [(b"retry-after", b"7")] if rest == "429" else []
        error = {"message": f"status {rest} on purpose", "code": "context_length_exceeded"}
        await whole(send, int(rest), {"error": error}, extra)
    elif order == "die":
        os._exit(9)
    elif order == "hang":
        await gone(receive)
    elif asked.get("stream") and order != "plain":
        await stream(order, rest, asked, receive, send)
    elif order == "garbage":
        await whole(send, 200, "no completion")
    else:
        words = written(order, rest)
        document = {
            "id": "up-1", "object": "chat.completion", "created": 1, "model": "tiny-1", "system_fingerprint": "fp-1",
            "choices": [{
                "index": 0, "finish_reason": "stop",
                "message": {"role": "assistant", "content": "".join(words), "reasoning_content": "hidden"},
            }],
        }  # fmt: skip
        await whole(send, 200, document if order == "nousage" else document | {"usage": usage(asked, words)})


async def stream(order: str, rest: str, asked: dict[str, Any], receive: Any, send: Any) -> None:
    watching = asyncio.create_task(gone(receive))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    pause_s = int(rest) / 1000 if order == "slow" else 0.0
    words = written(order, rest)
    await event(send, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]}, order)
    for sent, word in enumerate(words, start=1):
        if watching.done():
            SEEN["given_up"] += 1
            return
        await event(send, {"choices": [{"index": 0, "delta": {"content": word}}]}, order)
        if sent == 1 and order in ("dielate", "reset", "hanglate", "erroring", "garbage"):
            await spoil(order, send, watching)
            return
        await asyncio.sleep(pause_s)
    await event(send, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, order)
    if order != "nousage" and asked.get("stream_options", {}).get("include_usage"):
        await event(send, {"choices": [], "usage": usage(asked, words)}, order)
    if order != "nodone":
        await raw(send, b"data: [DONE]\n\n")
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    watching.cancel()


async def spoil(order: str, send: Any, watching: "asyncio.Task[None]") -> None:
    if order == "dielate":
        os._exit(9)
    if order == "reset":
        raise ConnectionResetError("on purpose")
    if order == "hanglate":
        await watching
        SEEN["given_up"] += 1
        return
    said = b'data: {"error": {"message": "overloaded on purpose"}}\n\n' if order == "erroring" else b"data: {no\n\n"
    await raw(send, said)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def written(order: str, rest: str) -> list[str]:
    if order == "long":
        return ["word "] * int(rest)
    if order == "slow":
        return ["word "] * 1000
    words = rest.split(" ")
    return [word if place == 0 else f" {word}" for place, word in enumerate(words)]


def usage(asked: dict[str, Any], words: list[str]) -> dict[str, int]:
    read = sum(len(str(message["content"]).split()) for message in asked["messages"])
    return {"prompt_tokens": read, "completion_tokens": len(words), "total_tokens": read + len(words)}


async def event(send: Any, document: dict[str, Any], order: str) -> None:
    head = {"id": "up-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny-1"}
    data = json.dumps(head | document, ensure_ascii=False).encode()
    if order != "crlf":
        await raw(send, b"data: " + data + b"\n\n")
        return
    for byte in b": a comment\r\nid: 5\r\ndata: " + data + b"\r\n\r\n":
        await raw(send, bytes([byte]))


async def raw(send: Any, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def whole(send: Any, status: int, document: Any, headers: Any = ()) -> None:
    head = [(b"content-type", b"application/json"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": json.dumps(document).encode()})


async def gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical", access_log=False)
