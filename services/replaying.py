"""Compares what was answered with what the same version answers to the same input now."""

from dataclasses import dataclass
from typing import Literal

import orjson

from leitstand.errors import PermanentBackendError
from services.upstream_codec import decode_answer

__all__ = ["Comparison", "compare"]

Outcome = Literal["identical", "within tolerance", "diverged"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of a replay.

    Attributes:
        outcome: ``identical``: label by label and score by score, or byte by byte where the answer has neither.
        largest: The largest difference of two scores; 0 where there are none.
        differences: What differs, the first few.
    """

    outcome: Outcome
    largest: float = 0.0
    differences: tuple[str, ...] = ()


def compare(form: str, before: bytes, now: bytes, now_head: int | None, tolerance: float) -> Comparison:
    """Compares two answers.

    Args:
        form: How the recorded output is written (`governance.audit.records.Content`).
        before: The recorded output in the clear.
        now: Body of the new answer.
        now_head: Length of its JSON part, when tensors follow in binary.
        tolerance: By which scores may differ.

    Raises:
        PermanentBackendError: The new answer is not readable.
    """
    if before == now:
        return Comparison("identical")
    if form == "predictions":
        recorded = orjson.loads(before)
        labels, scores = recorded["labels"], recorded["scores"]
    else:
        _, _, head = form.partition("; head=")
        try:
            old = decode_answer(before, int(head) if head else None)
        except PermanentBackendError:
            return _texts(before, now)
        labels, scores = old.labels, old.scores
    fresh = decode_answer(now, now_head)
    wrong = [f"text {i}: {a!r} was answered, now {b!r}" for i, (a, b) in enumerate(zip(labels, fresh.labels)) if a != b]  # noqa: B905
    if len(labels) != len(fresh.labels):
        wrong.append(f"{len(labels)} labels were answered, now {len(fresh.labels)}")
    gaps = [abs(a - b) for a, b in zip(scores, fresh.scores)]  # noqa: B905
    largest = max(gaps, default=0.0)
    wrong += [f"text {i}: the score moved by {gap:.2g}" for i, gap in enumerate(gaps) if gap > tolerance]
    if wrong:
        return Comparison("diverged", largest, tuple(wrong[:10]))
    return Comparison("within tolerance" if largest else "identical", largest)


def _texts(before: bytes, now: bytes) -> Comparison:
    """Chat answers: what was said counts, not ids and times around it."""
    said, says = _said(before), _said(now)
    if said is None or says is None:
        return Comparison("diverged", differences=("the answers differ, and are not readable",))
    if said == says:
        return Comparison("identical")
    same = next((i for i, (a, b) in enumerate(zip(said, says)) if a != b), min(len(said), len(says)))  # noqa: B905
    return Comparison("diverged", differences=(f"the texts differ from character {same} on",))


def _said(body: bytes) -> str | None:
    try:
        return "\n".join(str(choice["message"]["content"]) for choice in orjson.loads(body)["choices"])
    except (ValueError, KeyError, TypeError):
        return None
