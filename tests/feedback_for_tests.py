"""Feedback entries for tests."""

from datetime import UTC, datetime, timedelta

from leitstand.types import Feedback

__all__ = ["said"]

START = datetime(2026, 11, 1, tzinfo=UTC)


def said(
    request_id: str, label: str | None, source: str, hour: float, *, rating: int | None = None, index: int = 0
) -> Feedback:
    """What `source` said about an answer, `hour` hours after the start."""
    return Feedback(
        feedback_id=f"{request_id}/{index}/{source}/{hour}", request_id=request_id, index=index, use_case="tiny",
        label=label, rating=rating, source=source, at=START + timedelta(hours=hour),
    )  # fmt: skip
