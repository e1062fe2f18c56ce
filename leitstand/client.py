"""A typed client of the gateway, for synchronous and asynchronous code. Needs `pip install 'leitstand[client]'`.

    with Client("https://gateway.example", token=token) as client:
        answer = client.predict("support", "My card has not arrived")
        client.feedback("support", answer.request_id, label="card_arrival", source="agent-7")

        job = client.submit("support", texts)
        answers = client.wait("support", job.id)

    openai.OpenAI(**client.openai_options()).chat.completions.create(model="finance", messages=...)

Problems are raised as `leitstand.client_types.GatewayProblem`, one class per kind. What may be repeated is repeated,
after the time that the gateway names. Both clients are safe to share, among threads and tasks respectively.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from leitstand import __version__, client_calls
from leitstand.client_calls import Call, Retries
from leitstand.client_types import (
    Answer,
    FeedbackTaken,
    GatewayProblem,
    GatewayUnreachable,
    Job,
    JobAnswer,
    JobEvent,
    JobFailed,
)
from leitstand.errors import MissingExtraError
from leitstand.sse import EventReader

try:
    import httpx
except ModuleNotFoundError as error:
    raise MissingExtraError("The client needs httpx", hint="pip install 'leitstand[client]'") from error

__all__ = ["AsyncClient", "Client"]

T = TypeVar("T")
Token = str | Callable[[], str]
NO_CONTENT = 204
PAUSE_S = 0.5
STANDARD = Retries()


class _Base:
    """What both clients know."""

    def __init__(self, url: str, token: Token, retries: Retries) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._retries = retries

    def openai_options(self) -> dict[str, str]:
        """Arguments for ``openai.OpenAI`` and ``openai.AsyncOpenAI``, so that they ask this gateway."""
        return {"base_url": f"{self._url}/v1", "api_key": self._credential() or "none"}

    def _credential(self) -> str:
        return self._token() if callable(self._token) else self._token

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        token = self._credential()
        return {"authorization": f"Bearer {token}"} | dict(more) if token else dict(more)

    def _unreachable(self, call_path: str, error: Exception) -> GatewayUnreachable:
        said = str(error) or type(error).__name__
        return GatewayUnreachable(f"{self._url}{call_path}: {said}", hint="does the gateway run there?")


class Client(_Base):
    """The gateway, for synchronous code.

    Args:
        url: Where it listens, like ``https://gateway.example``.
        token: Bearer token or API key, or what returns one that is valid now; empty: none.
        timeout_s: For one attempt.
        retries: When a call is made again.
        verify: Whether to check certificates, or an `ssl.SSLContext`.
    """

    def __init__(
        self, url: str, *, token: Token = "", timeout_s: float = 30.0, retries: Retries = STANDARD, verify: Any = True
    ) -> None:  # fmt: skip
        super().__init__(url, token, retries)
        self._http = httpx.Client(timeout=timeout_s, verify=verify, headers={"user-agent": f"leitstand/{__version__}"})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def predict(self, use_case: str, *texts: str, top_k: int = 3, subject: str = "", request_id: str = "") -> Answer:
        """Predictions for one text or several.

        Args:
            use_case: Name of the use case.
            *texts: What to judge.
            top_k: Alternatives per text.
            subject: Whom the route is sticky to.
            request_id: An id of your own; without one the gateway makes it.

        Raises:
            GatewayProblem: The gateway refuses, or cannot answer.
            GatewayUnreachable: No answer came.
        """
        return self._send(
            client_calls.predict(use_case, texts, top_k=top_k, subject=subject, request_id=request_id)
        )  # fmt: skip

    def feedback(
        self, use_case: str, request_id: str, *, source: str, label: str | None = None, rating: int | None = None,
        index: int = 0, feedback_id: str | None = None, at: datetime | None = None,
    ) -> FeedbackTaken:  # fmt: skip
        """Says what was right, or how good it was; raises as `predict`."""
        said = {"source": source, "label": label, "rating": rating, "index": index, "feedback_id": feedback_id}
        return self._send(client_calls.feedback(use_case, request_id, **said, at=at.isoformat() if at else None))

    def submit(
        self, use_case: str, texts: Sequence[str], *, top_k: int = 3, subject: str = "", priority: str = "normal",
        idempotency_key: str = "",
    ) -> Job:  # fmt: skip
        """Has many texts answered when there is time; raises as `predict`. The same key again is the same job."""
        return self._send(
            client_calls.submit(
                use_case, texts, top_k=top_k, subject=subject, priority=priority, idempotency_key=idempotency_key
            )
        )

    def job(self, use_case: str, job_id: str) -> Job:
        """Where a job stands; raises as `predict`."""
        return self._send(client_calls.job(use_case, job_id))

    def cancel(self, use_case: str, job_id: str) -> Job:
        """Ends a job; one that runs stops soon. Raises as `predict`."""
        return self._send(client_calls.cancel(use_case, job_id))

    def result(self, use_case: str, job_id: str) -> tuple[JobAnswer, ...]:
        """The answers of a job that is done; raises `Conflict` for others, and as `predict`."""
        return self._send(client_calls.result(use_case, job_id))

    def events(self, use_case: str, job_id: str, *, after: str = "") -> Iterator[JobEvent]:
        """A job's progress until it ends, across broken connections; raises as `predict`.

        Args:
            use_case: Name of the use case.
            job_id: The job.
            after: Id of the last event that is known.
        """
        path, failures = f"{client_calls.job_path(use_case, job_id)}/events", 0
        while True:
            reader = EventReader()
            try:
                with self._http.stream(
                    "GET", self._url + path, headers=self._headers({"last-event-id": after} if after else {})
                ) as response:
                    if response.status_code == NO_CONTENT:
                        return
                    if response.status_code >= client_calls.OK_BELOW:
                        client_calls.read(_EVENTS, response.status_code, response.headers, response.read())
                    for piece in response.iter_bytes():
                        failures = 0
                        for event in map(client_calls.event_of, reader.feed(piece)):
                            after = event.id
                            yield event
                            if event.last:
                                return
            except httpx.TransportError as error:
                failures += 1
                if failures >= self._retries.attempts:
                    raise self._unreachable(path, error) from error
            time.sleep(PAUSE_S)

    def wait(self, use_case: str, job_id: str, *, timeout_s: float = 3600.0) -> tuple[JobAnswer, ...]:
        """The answers of a job, when it is done.

        Raises:
            JobFailed: It ended otherwise.
            TimeoutError: It did not end in time; it goes on.
            GatewayProblem: As `predict`.
            GatewayUnreachable: As `predict`.
        """
        until = time.monotonic() + timeout_s
        while not (job := self.job(use_case, job_id)).ended:
            if time.monotonic() >= until:
                raise TimeoutError(f"job {job_id} is {job.state}, {job.texts_done} of {job.texts} texts are done")
            time.sleep(min(PAUSE_S, max(0.0, until - time.monotonic())))
        if job.state != "done":
            raise JobFailed(job)
        return self.result(use_case, job_id)

    def _send(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._once(call)
            except Exception as error:
                pause_s = self._retries.pause_s(error, attempt) if _repeatable(error) else None
                if pause_s is None:
                    raise
            time.sleep(pause_s)

    def _once(self, call: Call[T]) -> T:
        headers = self._headers(call.headers)
        try:
            response = self._http.request(call.method, self._url + call.path, json=call.body, headers=headers)
        except httpx.TransportError as error:
            raise self._unreachable(call.path, error) from error
        return client_calls.read(call, response.status_code, response.headers, response.content)


class AsyncClient(_Base):
    """The gateway, for asynchronous code; the same methods and arguments as `Client`."""

    def __init__(
        self, url: str, *, token: Token = "", timeout_s: float = 30.0, retries: Retries = STANDARD, verify: Any = True
    ) -> None:  # fmt: skip
        super().__init__(url, token, retries)
        agent = {"user-agent": f"leitstand/{__version__}"}
        self._http = httpx.AsyncClient(timeout=timeout_s, verify=verify, headers=agent)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """See `Client.close`."""
        await self._http.aclose()

    async def predict(
        self, use_case: str, *texts: str, top_k: int = 3, subject: str = "", request_id: str = ""
    ) -> Answer:
        """See `Client.predict`."""
        return await self._send(
            client_calls.predict(use_case, texts, top_k=top_k, subject=subject, request_id=request_id)
        )

    async def feedback(
        self, use_case: str, request_id: str, *, source: str, label: str | None = None, rating: int | None = None,
        index: int = 0, feedback_id: str | None = None, at: datetime | None = None,
    ) -> FeedbackTaken:  # fmt: skip
        """See `Client.feedback`."""
        said = {"source": source, "label": label, "rating": rating, "index": index, "feedback_id": feedback_id}
        return await self._send(
            client_calls.feedback(use_case, request_id, **said, at=at.isoformat() if at else None)
        )  # fmt: skip

    async def submit(
        self, use_case: str, texts: Sequence[str], *, top_k: int = 3, subject: str = "", priority: str = "normal",
        idempotency_key: str = "",
    ) -> Job:  # fmt: skip
        """See `Client.submit`."""
        return await self._send(
            client_calls.submit(
                use_case, texts, top_k=top_k, subject=subject, priority=priority, idempotency_key=idempotency_key
            )
        )

    async def job(self, use_case: str, job_id: str) -> Job:
        """See `Client.job`."""
        return await self._send(client_calls.job(use_case, job_id))

    async def cancel(self, use_case: str, job_id: str) -> Job:
        """See `Client.cancel`."""
        return await self._send(client_calls.cancel(use_case, job_id))

    async def result(self, use_case: str, job_id: str) -> tuple[JobAnswer, ...]:
        """See `Client.result`."""
        return await self._send(client_calls.result(use_case, job_id))

    async def events(self, use_case: str, job_id: str, *, after: str = "") -> AsyncIterator[JobEvent]:
        """See `Client.events`."""
        path, failures = f"{client_calls.job_path(use_case, job_id)}/events", 0
        while True:
            reader = EventReader()
            try:
                async with self._http.stream(
                    "GET", self._url + path, headers=self._headers({"last-event-id": after} if after else {})
                ) as response:
                    if response.status_code == NO_CONTENT:
                        return
                    if response.status_code >= client_calls.OK_BELOW:
                        client_calls.read(_EVENTS, response.status_code, response.headers, await response.aread())
                    async for piece in response.aiter_bytes():
                        failures = 0
                        for event in map(client_calls.event_of, reader.feed(piece)):
                            after = event.id
                            yield event
                            if event.last:
                                return
            except httpx.TransportError as error:
                failures += 1
                if failures >= self._retries.attempts:
                    raise self._unreachable(path, error) from error
            await asyncio.sleep(PAUSE_S)

    async def wait(self, use_case: str, job_id: str, *, timeout_s: float = 3600.0) -> tuple[JobAnswer, ...]:
        """See `Client.wait`."""
        until = time.monotonic() + timeout_s
        while not (job := await self.job(use_case, job_id)).ended:
            if time.monotonic() >= until:
                raise TimeoutError(f"job {job_id} is {job.state}, {job.texts_done} of {job.texts} texts are done")
            await asyncio.sleep(min(PAUSE_S, max(0.0, until - time.monotonic())))
        if job.state != "done":
            raise JobFailed(job)
        return await self.result(use_case, job_id)

    async def _send(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._once(call)
            except Exception as error:
                pause_s = self._retries.pause_s(error, attempt) if _repeatable(error) else None
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)

    async def _once(self, call: Call[T]) -> T:
        headers = self._headers(call.headers)
        try:
            response = await self._http.request(call.method, self._url + call.path, json=call.body, headers=headers)
        except httpx.TransportError as error:
            raise self._unreachable(call.path, error) from error
        return client_calls.read(call, response.status_code, response.headers, response.content)


def _repeatable(error: Exception) -> bool:
    return isinstance(error, GatewayUnreachable | GatewayProblem)


_EVENTS: Call[None] = Call("GET", "events", lambda document, headers: None)
