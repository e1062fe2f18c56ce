"""Bodies of the gateway's own API, checked on arrival."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

__all__ = ["Alternative", "FeedbackRequest", "FeedbackResponse", "PredictRequest", "PredictResponse", "Prediction",
    "Problem"]  # fmt: skip

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PredictRequest(_Body):
    """One text, or several."""

    model_config = ConfigDict(strict=True)

    text: str | None = None
    texts: list[str] | None = Field(default=None, min_length=1)
    top_k: int = Field(default=3, ge=1, le=1000, description="alternatives per text, best first")
    subject: str = Field(default="", max_length=256, description="whom the route is sticky to; or header x-subject")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.text is None) == (self.texts is None):
            raise ValueError("give either `text` or `texts`")
        return self


class Alternative(_Body):
    """A label and its calibrated probability."""

    label: str
    score: float


class Prediction(_Body):
    """What the model says about one text; `abstain`: below its threshold, ask a person."""

    label: str
    score: float
    abstain: bool
    top: list[Alternative]


class PredictResponse(_Body):
    """Predictions in the order of the texts, and who made them."""

    request_id: str
    use_case: str
    version: int
    route: str
    predictions: list[Prediction]


class FeedbackRequest(_Body):
    """What is known later about one answer. Without label and rating it withdraws the source's earlier word."""

    request_id: Name
    index: int = Field(default=0, ge=0, description="which text of the request")
    label: Name | None = None
    rating: int | None = Field(default=None, ge=-1, le=1, description="-1 bad, 0 neutral, 1 good")
    source: Name = Field(description="who says so: an agent's pseudonym or a system's name")
    feedback_id: Name | None = Field(default=None, description="idempotency key; without one each call is a new word")
    at: AwareDatetime | None = Field(default=None, description="when it was said; without it: now")


class FeedbackResponse(_Body):
    """How it was taken: `known` is false when this gateway did not see the request lately.

    `new_label`: the model does not have the label; the use case's `feedback.new_labels` decides what becomes of it.
    """

    feedback_id: str
    recorded: bool = Field(description="false: this id was recorded before, with the same content")
    known: bool
    new_label: bool = False
    at: datetime


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    hint: str | None = None
    request_id: str | None = None
