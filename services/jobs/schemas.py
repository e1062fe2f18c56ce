"""Bodies of the job routes."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from services.jobs.records import JobStatus, Priority, State

__all__ = ["JobError", "JobRequest", "JobResponse", "JobResult"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class JobRequest(_Body):
    """Texts to be answered when there is time."""

    model_config = ConfigDict(strict=True, json_schema_extra={"examples": [{"texts": ["my card is lost"]}]})

    texts: list[str] = Field(min_length=1)
    top_k: int = Field(default=3, ge=1, le=1000, description="alternatives per text, best first")
    subject: str = Field(default="", max_length=256, description="whom the route is sticky to; or header x-subject")
    priority: Priority = Field(
        default="normal",
        description="`high` is taken before the others; who asks for more than allowed gets what is allowed",
    )


class JobError(_Body):
    """Why the last attempt, or the job, failed."""

    code: str
    detail: str


class JobResponse(_Body):
    """Where a job stands.

    `attempts` counts how often a worker began it; `texts_refused` are texts that a guard or the model refused: each
    has an error in its place of the result.
    """

    id: str
    use_case: str
    state: State
    cancelling: bool
    priority: Priority
    texts: int
    texts_done: int
    texts_refused: int
    attempts: int
    error: JobError | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    retry_at: datetime | None = Field(description="when a job that waits for its retry is tried again")
    expires_at: datetime | None = Field(description="when the job and its result are erased")
    links: dict[str, str]

    @classmethod
    def of(cls, status: JobStatus) -> Self:
        """What a caller may know."""
        path = f"/v1/{status.use_case}/jobs/{status.id}"
        error = JobError(code=status.error_code, detail=status.error) if status.error_code else None
        known = {name: getattr(status, name) for name in cls.model_fields if hasattr(status, name) and name != "error"}
        return cls(**known, error=error, links={"self": path, "result": f"{path}/result", "events": f"{path}/events"})


class JobResult(_Body):
    """Answers in the order of the texts: a prediction with who made it, or an error.

    `request_id` and `index` name an answer for feedback.
    """

    id: str
    use_case: str
    predictions: list[dict[str, Any]]
