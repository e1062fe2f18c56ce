"""Rows of the inference log that tests write."""

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from leitstand.types import Feedback, WindowRow

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
_BASE = WindowRow(
    request_id="r0", index=0, at=NOON, use_case="support", version=3, route="stable", subject="s1", label="card",
    score=0.75, abstain=False, probabilities=np.array([0.75, 0.25], "<f2").tobytes(),
    embedding=np.arange(4, dtype="<f2").tobytes(), characters=20, words=4, tokens=6, digit_share=0.25,
    upper_share=0.5, non_ascii_share=0.0, language="en", latency_ms=12.5,
)  # fmt: skip


def row(number: int = 0, **changes: Any) -> WindowRow:
    """A row; `number` sets its request id and moves it by that many seconds after noon."""
    base: dict[str, Any] = {"request_id": f"r{number}", "at": NOON + timedelta(seconds=number)}
    return dataclasses.replace(_BASE, **(base | changes))


def rows(count: int, start: int = 0, **changes: Any) -> list[WindowRow]:
    """`count` rows with different request ids."""
    return [row(number, **changes) for number in range(start, start + count)]


def said(number: int = 0, label: str | None = "card_arrival", **changes: Any) -> Feedback:
    """Feedback about `row(number)`, an hour later."""
    base: dict[str, Any] = {
        "feedback_id": f"f{number}", "request_id": f"r{number}", "use_case": "support", "label": label,
        "source": "agent-1", "at": NOON + timedelta(hours=1, seconds=number),
    }  # fmt: skip
    return Feedback(**(base | changes))
