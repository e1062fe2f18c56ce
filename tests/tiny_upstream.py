"""A model server of a few lines: ``/v2`` for the use case `support`, every answer the same but for its version.

Run as ``python -m tests.tiny_upstream VERSION PORT``. A text ``crash`` ends the process, ``wrong`` is answered 500,
``slow`` after two seconds, an empty one 400. Version 1 says `card`, the others say `pin`.
``/seen`` tells the headers of the latest request.
"""

import asyncio
import json
import os
import sys
from typing import Any

import numpy as np
import uvicorn

SEEN: dict[str, str] = {}
LABELS = ("card", "pin", "fee")
VERSION = sys.argv[1] if len(sys.argv) > 1 else "0"
METADATA = {
    "name": "support", "versions": [VERSION], "platform": "tiny",
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "score", "datatype": "FP32", "shape": [-1]},
        {"name": "abstain", "datatype": "BOOL", "shape": [-1]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3], "parameters": {"labels": LABELS}},
        {"name": "embedding", "datatype": "FP32", "shape": [-1, -1]},
    ],
}  # fmt: skip


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    told = SEEN if scope["path"] == "/seen" else METADATA
    status, headers, content = 200, [(b"content-type", b"application/json")], json.dumps(told).encode()
    if scope["method"] == "POST":
        SEEN.update({name.decode(): value.decode() for name, value in scope["headers"] if name != b"authorization"})
        try:
            status, content, head = await answer(json.loads(body))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            status, content, head = 400, b'{"error": "no request of the protocol"}', 0
        if head:
            headers = [(b"inference-header-content-length", str(head).encode())]
    headers.append((b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def answer(asked: dict[str, Any]) -> tuple[int, bytes, int]:
    texts = asked["inputs"][0]["data"]
    if "crash" in texts:
        os._exit(9)
    if "wrong" in texts:
        return 500, b'{"error": "wrong on purpose"}', 0
    if "" in texts:
        return 400, b'{"error": "text[0] is empty"}', 0
    if "slow" in texts:
        await asyncio.sleep(2)
    wanted = asked.get("outputs") or [{"name": name} for name in ("label", "score", "abstain")]
    outputs, tail = [], b""
    for output in wanted:
        binary = output.get("parameters", {}).get("binary_data", False)
        made, raw = tensor(output["name"], len(texts), binary)
        outputs.append(made)
        tail += raw
    head = json.dumps({"model_name": "support", "model_version": VERSION, "outputs": outputs}).encode()
    return 200, head + tail, len(head) if tail else 0


def tensor(name: str, count: int, binary: bool) -> tuple[dict[str, Any], bytes]:
    label = LABELS[0 if VERSION == "1" else 1]
    kind, row = {
        "label": ("BYTES", label), "score": ("FP32", 0.75), "abstain": ("BOOL", False),
        "probabilities": ("FP32", [0.75, 0.25, 0.0] if label == "card" else [0.25, 0.75, 0.0]),
        "embedding": ("FP32", [0.5, -0.5, 1.0, 0.0]),
    }[name]  # fmt: skip
    values = [row] * count
    shape = [count, len(row)] if isinstance(row, list) else [count]
    made: dict[str, Any] = {"name": name, "datatype": kind, "shape": shape}
    if not binary:
        return made | {"data": np.ravel(values).tolist()}, b""
    if kind == "BYTES":
        raw = b"".join(len(label).to_bytes(4, "little") + label.encode() for _ in values)
    else:
        raw = np.asarray(values, "<f4" if kind == "FP32" else "?").tobytes()
    return made | {"parameters": {"binary_data_size": len(raw)}}, raw


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
