"""The gateway's API without any transport: what is sent, what comes back, and when it is sent again.

Everything here may be repeated: a prediction changes nothing, feedback carries an id and a job an idempotency key, so
that the second of two equal requests changes nothing either.
"""

import json
import math
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import ValidationError

from leitstand.client_types import Answer, FeedbackTaken, GatewayProblem, Job, JobAnswer, JobEvent, problem_of
from leitstand.errors import PermanentBackendError
from leitstand.sse import ServerEvent

__all__ = ["Call", "Retries", "cancel", "event_of", "feedback", "job", "predict", "read", "result", "submit"]

T = TypeVar("T")
AGAIN = (429, 503)
OK_BELOW = 300


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how its answer is read."""

    method: str
    path: str
    parse: Callable[[Any, Mapping[str, str]], T]
    body: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Retries:
    """When a call is made again: after 429, 503 and a broken connection.

    Attributes:
        attempts: Calls in all.
        longest_s: A longer wait is not waited; the problem is raised at once.
        first_s: Mean of the first pause where the gateway names none; doubled each time.
    """

    attempts: int = 3
    longest_s: float = 10.0
    first_s: float = 0.2

    def pause_s(self, error: Exception, attempt: int) -> float | None:
        """Seconds before the next attempt; None: there is none. `attempt` counts from 1."""
        if attempt >= self.attempts:
            return None
        told = None
        if isinstance(error, GatewayProblem):
            if error.status not in AGAIN:
                return None
            told = error.retry_after_s
        pause = self.first_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311 -- no secret
        pause = pause if told is None else told + pause / 10
        return pause if pause <= self.longest_s else None


def predict(use_case: str, texts: Sequence[str], *, top_k: int, subject: str, request_id: str) -> Call[Answer]:
    """Predictions for texts."""

    def parse(document: Any, headers: Mapping[str, str]) -> Answer:
        known = {"cost": headers.get("x-leitstand-cost", "")}
        overhead = headers.get("x-leitstand-overhead-ms")
        return Answer.model_validate(document | known | ({"overhead_ms": float(overhead)} if overhead else {}))

    body: dict[str, Any] = {"texts": list(texts), "top_k": top_k} | ({"subject": subject} if subject else {})
    headers = {"x-request-id": request_id} if request_id else {}
    return Call("POST", f"/v1/{_part(use_case)}/predict", parse, body, headers)


def feedback(use_case: str, request_id: str, **said: Any) -> Call[FeedbackTaken]:
    """What was right, or how good it was."""
    said["feedback_id"] = said.get("feedback_id") or str(uuid.uuid4())
    body = {"request_id": request_id} | {name: value for name, value in said.items() if value is not None}
    return Call(
        "POST", f"/v1/{_part(use_case)}/feedback", lambda document, _: FeedbackTaken.model_validate(document), body
    )


def submit(
    use_case: str, texts: Sequence[str], *, top_k: int, subject: str, priority: str, idempotency_key: str
) -> Call[Job]:
    """A job."""
    body: dict[str, Any] = {"texts": list(texts), "top_k": top_k, "priority": priority}
    body |= {"subject": subject} if subject else {}
    headers = {"idempotency-key": idempotency_key or str(uuid.uuid4())}
    return Call("POST", f"/v1/{_part(use_case)}/jobs", _job, body, headers)


def job(use_case: str, job_id: str) -> Call[Job]:
    """Where a job stands."""
    return Call("GET", job_path(use_case, job_id), _job)


def cancel(use_case: str, job_id: str) -> Call[Job]:
    """Ends a job."""
    return Call("DELETE", job_path(use_case, job_id), _job)


def result(use_case: str, job_id: str) -> Call[tuple[JobAnswer, ...]]:
    """The answers of a job that is done."""

    def parse(document: Any, _: Mapping[str, str]) -> tuple[JobAnswer, ...]:
        return tuple(map(JobAnswer.model_validate, document["predictions"]))

    return Call("GET", f"{job_path(use_case, job_id)}/result", parse)


def job_path(use_case: str, job_id: str) -> str:
    """Path of a job."""
    return f"/v1/{_part(use_case)}/jobs/{_part(job_id)}"


def event_of(event: ServerEvent) -> JobEvent:
    """A job's event.

    Raises:
        PermanentBackendError: It is none.
    """
    try:
        return JobEvent.model_validate(json.loads(event.data) | {"id": event.id, "last": event.event == "end"})
    except (ValueError, TypeError) as error:
        raise PermanentBackendError(f"The gateway's event is not readable: {error}"[:300]) from error


def read(call: Call[T], status: int, headers: Mapping[str, str], body: bytes) -> T:
    """What the answer says.

    Raises:
        GatewayProblem: It is an error.
        PermanentBackendError: It is not what a gateway answers.
    """
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if status >= OK_BELOW:
        text = body.decode("utf-8", "replace")
        raise problem_of(status, document, text, headers.get("x-request-id", ""), _seconds(headers.get("retry-after")))
    try:
        return call.parse(document, headers)
    except (ValidationError, LookupError, TypeError, ValueError) as error:
        raise PermanentBackendError(
            f"{call.method} {call.path}: the answer is not one of a gateway: {error}"[:300], hint="check the URL"
        ) from error


def _job(document: Any, headers: Mapping[str, str]) -> Job:
    return Job.model_validate(document)


def _part(name: str) -> str:
    if not name:
        raise ValueError("a use case or job has a name")
    return quote(name, safe="")


def _seconds(said: str | None) -> float | None:
    """Of a Retry-After: a number of seconds, or a date."""
    if said is None:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
