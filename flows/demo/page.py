"""The demo's last word: one self-contained page with the timeline, the accuracy curve, and what to open next."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.demo.case import NAME
from flows.demo.loop import Machinery
from flows.demo.timeline import Entry, Timeline, rolling
from flows.loop_view import decision_rows, retraining_rows
from flows.rollout_view import history_rows
from leitstand.pages import write_page

__all__ = ["Curve", "curve", "summary_rows", "write_timeline"]

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 1000, 330, 44, 78, 30
POINTS = 400
MARKS = {
    "rolled back": "bad canary rolled back", "onset": "new queues appear", "detected": "drift detected",
    "decided": "decision: retrain", "promoted": "promoted",
}  # fmt: skip
SUMMARY = (
    ("onset_to_detected_requests", "requests from the first new question to the alarm", "{:.0f}"),
    ("onset_to_retrained_minutes", "minutes to a retrained version", "{:.1f}"),
    ("onset_to_promoted_minutes", "minutes to its promotion", "{:.1f}"),
    ("calm_alarms", "false alarms before the drift", "{:.0f}"),
    ("accuracy_during", "accuracy while new queues were unknown", "{:.3f}"),
    ("accuracy_champion", "first champion, all queues", "{:.4f}"),
    ("accuracy_retrained", "retrained, all queues", "{:.4f}"),
    ("accuracy_everything", "trained with everything", "{:.4f}"),
    ("failed_requests", "client requests that failed", "{:.0f}"),
)


@dataclass(frozen=True)
class Mark:
    """A vertical line at a request, with its name on a row of its own."""

    x: float
    row: int
    anchor: str
    text: str


@dataclass(frozen=True)
class Curve:
    """An SVG drawing: `lines` are polylines as (version, points); the rest is its frame."""

    width: int
    height: int
    left: int
    top: int
    bottom: int
    lines: tuple[tuple[int, str], ...]
    marks: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]
    requests: int
    smoothed: int


def curve(timeline: Timeline) -> Curve | None:
    """The accuracy of the last answers over all requests; None with too few."""
    count = len(timeline.answers)
    smoothed = max(20, min(100, count // 20))
    points = rolling(timeline.answers, smoothed, max(1, count // POINTS))
    if not points:
        return None
    span = WIDTH - LEFT

    def x(request: float) -> float:
        return LEFT + span * request / count

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value)

    line = " ".join(f"{x(point.request):.1f},{y(point.value):.1f}" for point in points)
    marks = _marks([entry for entry in timeline.entries if entry.kind in MARKS], x)
    ticks = tuple((y(value), f"{value:.0%}") for value in (0.0, 0.25, 0.5, 0.75, 1.0))
    return Curve(WIDTH, HEIGHT, LEFT, TOP, BOTTOM, ((0, line),), marks, ticks, count, smoothed)


def summary_rows(timeline: Timeline) -> list[tuple[str, str]]:
    """Name and value of the results that are there."""
    numbers = timeline.numbers
    return [
        (title, form.format(numbers[name])) for name, title, form in SUMMARY if numbers.get(name) is not None
    ]  # fmt: skip


def write_timeline(machinery: Machinery, timeline: Timeline, out: Path) -> Path:
    """Writes the page and returns its path."""
    adapters, loop = machinery.adapters, machinery.loop
    return write_page(
        out, "demo.html", search=Path(__file__).parent / "templates",
        title="The closed loop, as it happened", timeline=timeline, curve=curve(timeline),
        summary=summary_rows(timeline), seconds=lambda at: (at - timeline.started).total_seconds(),
        histories={name: history_rows(adapters.rollouts.history(name)) for name in timeline.rollouts},
        decisions=decision_rows(sorted(loop.decisions.recent(NAME), key=lambda decision: decision.at)),
        retrainings=retraining_rows(loop.retrainings.recent(NAME)), ledger=machinery.ledger_rows(),
        pages=[(link, _relative(link.url, out)) for link in timeline.links],
    )  # fmt: skip


def _marks(entries: Sequence[Entry], x: Any) -> tuple[Mark, ...]:
    found = []
    for number, entry in enumerate(entries):
        place = x(entry.requests)
        found.append(Mark(place, number % len(MARKS), "end" if place > 0.8 * WIDTH else "start", MARKS[entry.kind]))
    return tuple(found)


def _relative(url: str, page: Path) -> str:
    """The link from the page's folder when it lies below it, so that the folder may be moved."""
    root = page.resolve().parent.as_uri() + "/"
    return url.removeprefix(root)
