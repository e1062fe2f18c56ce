"""Requests at a fixed rate, whatever the server does: latency counts from when a request was due.

A closed loop (wrk) waits for a slow server and so hides its queue; this does not. About 0.1 ms of CPU per
request, which the result reports.
"""

import asyncio
import re
import time
from typing import Any

import numpy as np

__all__ = ["open_loop"]

HEAD = "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n{more}\r\n"
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def open_loop(
    port: int, path: str, bodies: list[bytes], rate: float, seconds: float, *, headers: str = ""
) -> dict[str, Any]:
    """Sends at `rate` for `seconds`; counts statuses and gives percentiles of the answered requests in ms.

    `headers` are further header lines, each with its CRLF.
    """
    return asyncio.run(_run(port, path, bodies, rate, seconds, headers))


async def _run(port: int, path: str, bodies: list[bytes], rate: float, seconds: float, more: str) -> dict[str, Any]:
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    taken: dict[int, list[float]] = {}
    errors = 0
    cpu, start = time.process_time(), time.perf_counter()

    async def one(body: bytes, due: float) -> None:
        nonlocal errors
        try:
            reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD.format(path=path, size=len(body), more=more).encode() + body)
            head = await reader.readuntil(b"\r\n\r\n")
            found = LENGTH.search(head)
            await reader.readexactly(int(found.group(1)) if found else 0)
        except (OSError, EOFError):
            errors += 1
            return
        taken.setdefault(int(head[9:12]), []).append((time.perf_counter() - due) * 1000)
        idle.append((reader, writer))

    tasks = set()
    total = int(rate * seconds)
    for number in range(total):
        due = start + number / rate
        pause = due - time.perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        task = asyncio.ensure_future(one(bodies[number % len(bodies)], due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    sent_s = time.perf_counter() - start
    if tasks:
        await asyncio.wait(tasks, timeout=30)
    good = np.array(taken.get(200, [0.0]))
    p50, p95, p99 = np.percentile(good, [50, 95, 99])
    return {
        "rate": round(rate, 1), "sent": total, "sent_rate": round(total / sent_s, 1), "seconds": round(sent_s, 2),
        "answered": len(taken.get(200, [])), "goodput": round(len(taken.get(200, [])) / sent_s, 1),
        "shed": len(taken.get(503, [])),
        "errors": errors + sum(len(each) for status, each in taken.items() if status not in (200, 503)),
        "p50_ms": round(float(p50), 2), "p95_ms": round(float(p95), 2), "p99_ms": round(float(p99), 2),
        "shed_p99_ms": round(float(np.percentile(taken[503], 99)), 2) if 503 in taken else None,
        "client_cpu_ms": round((time.process_time() - cpu) / max(1, total) * 1000, 3),
    }  # fmt: skip
