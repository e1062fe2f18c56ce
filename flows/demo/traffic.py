"""Clients of the gateway: a replay of rows one request each, and a stream that goes on while something else happens.

Each answer is remembered with the true queue of its text, so accuracy can be told for every moment. Nothing here knows
what the gateway does: a failed request is an answer without a version.
"""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import httpx

from flows.demo.scenario import Row
from leitstand.errors import TransientBackendError
from leitstand.types import utc_now

__all__ = ["Answer", "Client", "Stream", "accuracy"]

CLIENTS = 4
TIMEOUT_S = 10.0
OK = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """One request. Without a version it failed, and `problem` says how."""

    row: Row
    at: datetime
    request_id: str = ""
    version: int | None = None
    route: str = ""
    label: str = ""
    score: float = 0.0
    problem: str = ""

    @property
    def failed(self) -> bool:
        """Whether the caller got no prediction."""
        return self.version is None

    @property
    def right(self) -> bool:
        """Whether the text went to its true queue."""
        return self.label == self.row.label


def accuracy(answers: Sequence[Answer]) -> float | None:
    """Share of right answers; None without any."""
    given = [answer for answer in answers if not answer.failed]
    return sum(answer.right for answer in given) / len(given) if given else None


class Client:
    """Asks one use case of a gateway, from several threads.

    Args:
        url: The gateway's base URL.
        use_case: Name of the use case.
    """

    def __init__(self, url: str, use_case: str) -> None:
        self._path = f"/v1/{use_case}"
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)

    def ask(self, row: Row) -> Answer:
        """Sends one text; never raises for what the other side does."""
        try:
            reply = self._http.post(f"{self._path}/predict", json={"text": row.text, "top_k": 1})
            body = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            return Answer(row, utc_now(), problem=f"{type(error).__name__}: {error}")
        if reply.status_code != OK:
            return Answer(row, utc_now(), problem=f"{reply.status_code} {body.get('detail', '')}")
        (best,) = body["predictions"]
        return Answer(
            row, utc_now(), body["request_id"], body["version"], body["route"], best["label"], best["score"]
        )  # fmt: skip

    def replay(self, rows: Sequence[Row]) -> list[Answer]:
        """Sends every row once, `CLIENTS` at a time; answers in the order of the rows."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            return list(pool.map(self.ask, rows))

    def say_all(self, said: Sequence[tuple[str, str, str, str]]) -> None:
        """Sends labels as feedback: request id, label, source, and idempotency key of each.

        Raises:
            TransientBackendError: The gateway did not take one.
        """
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(self._say, said))

    def _say(self, said: tuple[str, str, str, str]) -> None:
        body = dict(zip(("request_id", "label", "source", "feedback_id"), said, strict=True))
        try:
            self._http.post(f"{self._path}/feedback", json=body).raise_for_status()
        except httpx.HTTPError as error:
            raise TransientBackendError(f"The gateway did not take feedback: {error}") from error

    @contextmanager
    def streaming(self, rows: Sequence[Row], *, rate: float, into: list[Answer]) -> Iterator["Stream"]:
        """Sends rows, over and over, at `rate` requests per second while the block runs; `into` gets answers too."""
        stream = Stream(self, rows, rate, into)
        with ThreadPoolExecutor(CLIENTS) as pool:
            futures = [pool.submit(stream.run) for _ in range(CLIENTS)]
            try:
                yield stream
            finally:
                stream.end()
        for future in futures:
            future.result()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()


class Stream:
    """Requests that do not stop. `answers` grows in the order of the answers."""

    def __init__(self, client: Client, rows: Sequence[Row], rate: float, into: list[Answer]) -> None:
        self.answers: list[Answer] = []
        self._into = into
        self._client, self._rows, self._pause_s = client, itertools.cycle(rows), CLIENTS / rate
        self._lock, self._end = threading.Lock(), threading.Event()

    def run(self) -> None:
        """One client, until the end; late ones do not catch up in a burst."""
        due = time.monotonic()
        while not self._end.is_set():
            with self._lock:
                row = next(self._rows)
            answer = self._client.ask(row)
            with self._lock:
                self.answers.append(answer)
                self._into.append(answer)
            due = max(due + self._pause_s, time.monotonic())
            due = max(due + self._pause_s, time.monotonic())
            self._end.wait(due - time.monotonic())

    def end(self) -> None:
        """No request starts after this; those on their way are answered."""
        self._end.set()
