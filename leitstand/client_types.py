"""What the client of the gateway returns and raises. Fields that a newer gateway adds are ignored."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from leitstand.errors import BackendError, LeitstandError

__all__ = [
    "Alternative",
    "Answer",
    "Conflict",
    "ContentRefused",
    "FeedbackTaken",
    "Forbidden",
    "GatewayProblem",
    "GatewayUnreachable",
    "InvalidRequest",
    "Job",
    "JobAnswer",
    "JobError",
    "JobEvent",
    "JobFailed",
    "LimitReached",
    "NotAuthenticated",
    "NotFound",
    "Prediction",
    "Unavailable",
    "problem_of",
]

MAX_TEXT = 500


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Alternative(_Result):
    """A label and its calibrated probability."""

    label: str
    score: float


class Prediction(_Result):
    """What the model says about one text; `abstain`: below its threshold, ask a person."""

    label: str
    score: float
    abstain: bool
    top: tuple[Alternative, ...] = ()


class Answer(_Result):
    """Predictions in the order of the texts, and who made them. Keep `request_id`: feedback names it."""

    request_id: str
    use_case: str
    version: int
    route: str
    predictions: tuple[Prediction, ...]
    overhead_ms: float | None = Field(default=None, description="time spent in the gateway itself")
    cost: str = Field(default="", description="decimal number in the currency of the use case; empty: no price")

    @property
    def label(self) -> str:
        """The label of the only text."""
        (prediction,) = self.predictions
        return prediction.label


class FeedbackTaken(_Result):
    """How feedback was taken."""

    feedback_id: str
    recorded: bool
    known: bool
    new_label: bool = False
    at: datetime


class JobError(_Result):
    """Why the last attempt, or the job, failed."""

    code: str
    detail: str


class Job(_Result):
    """Where a job stands."""

    id: str
    use_case: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    texts: int
    texts_done: int = 0
    texts_refused: int = 0
    attempts: int = 0
    error: JobError | None = None
    created_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("done", "failed", "cancelled")


class JobEvent(_Result):
    """Where a job stood when something happened."""

    id: str
    state: str
    texts: int = 0
    texts_done: int = 0
    attempts: int = 0
    last: bool = False


class JobAnswer(_Result):
    """The answer to one text of a job: a prediction, or why there is none."""

    request_id: str = ""
    index: int = 0
    label: str = ""
    score: float = 0.0
    abstain: bool = False
    top: tuple[Alternative, ...] = ()
    version: int = 0
    route: str = ""
    error: JobError | None = None


class GatewayProblem(LeitstandError):
    """The gateway answered that it will not or cannot.

    Attributes:
        status: HTTP status.
        request_id: Names the request in the gateway's log and audit trail.
        retry_after_s: When the same request may succeed; None: it does not say.
        problem: The whole problem body (RFC 9457), as it came.
    """

    def __init__(
        self, status: int, message: str, *, hint: str | None = None, request_id: str = "",
        retry_after_s: float | None = None, problem: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message, hint=hint)
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.problem = problem or {}


class InvalidRequest(GatewayProblem):
    """400, 413, 422: the request itself is wrong."""


class NotAuthenticated(GatewayProblem):
    """401: no credential, or one that is not valid."""


class Forbidden(GatewayProblem):
    """403: the credential does not allow it."""


class ContentRefused(Forbidden):
    """403: a guard does not let a text pass; `reasons` are its reason codes."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reason codes, like ``injection.override``."""
        return tuple(map(str, self.problem.get("reasons", ())))


class NotFound(GatewayProblem):
    """404: no such use case, version or job."""


class Conflict(GatewayProblem):
    """409: it contradicts what is known already."""


class LimitReached(GatewayProblem):
    """429: a rate or budget is used up; `limit` names it."""

    @property
    def limit(self) -> str:
        """Name of the limit."""
        return str(self.problem.get("limit", ""))


class Unavailable(GatewayProblem):
    """5xx: the gateway or the model behind it cannot answer now."""


class GatewayUnreachable(BackendError):
    """No answer came: no connection, a broken one, or none in time."""


class JobFailed(LeitstandError):
    """A job ended without a result; `job` says how."""

    def __init__(self, job: Job) -> None:
        why = f": {job.error.detail}" if job.error else ""
        super().__init__(f"Job {job.id} is {job.state}{why}")
        self.job = job


KINDS: dict[int, type[GatewayProblem]] = {
    400: InvalidRequest, 413: InvalidRequest, 422: InvalidRequest, 401: NotAuthenticated, 403: Forbidden,
    404: NotFound, 409: Conflict, 429: LimitReached,
}  # fmt: skip
SERVER_ERROR = 500


def problem_of(status: int, document: Any, text: str, request_id: str, retry_after_s: float | None) -> GatewayProblem:
    """The exception for an answer that is an error.

    Args:
        status: HTTP status.
        document: Its body when that is JSON, else None.
        text: Its body.
        request_id: From its header.
        retry_after_s: From its header.
    """
    problem = document if isinstance(document, dict) else {}
    kind = KINDS.get(status, Unavailable if status >= SERVER_ERROR else GatewayProblem)
    if kind is Forbidden and "reasons" in problem:
        kind = ContentRefused
    message = str(problem.get("detail") or problem.get("error") or text[:MAX_TEXT] or f"the gateway answered {status}")
    return kind(
        status, message, hint=problem.get("hint"), request_id=str(problem.get("request_id") or request_id),
        retry_after_s=retry_after_s, problem=problem,
    )  # fmt: skip
