"""What happened in a demo, when, and with which numbers: the record that the table, the page and ``--json`` show.

Pure. Times are UTC; seconds count from the start of the demo.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from flows.demo.traffic import Answer

__all__ = ["Entry", "Link", "Point", "Step", "Timeline", "rolling"]


@dataclass(frozen=True)
class Entry:
    """One thing that happened; `requests` is how many requests had been answered by then."""

    at: datetime
    step: int
    text: str
    requests: int
    kind: str = ""


@dataclass(frozen=True)
class Link:
    """A page to open."""

    title: str
    url: str
    what: str


@dataclass
class Step:
    """One numbered part of the demo."""

    number: int
    title: str
    why: str
    started: datetime
    ended: datetime | None = None
    happened: bool = False

    @property
    def seconds(self) -> float:
        """How long it took; 0 while it runs."""
        return (self.ended - self.started).total_seconds() if self.ended else 0.0


@dataclass(frozen=True)
class Point:
    """Accuracy of the last answers up to a request."""

    request: int
    value: float
    version: int


@dataclass
class Timeline:
    """Everything that a demo leaves to look at.

    Attributes:
        started: When it began.
        steps: In order.
        entries: In order.
        answers: Of every request of stable traffic, in order.
        numbers: Results by name.
        links: Pages to open.
        rollouts: Ids of the rollouts that there were.
    """

    started: datetime
    steps: list[Step] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    rollouts: list[str] = field(default_factory=list)

    def begin(self, title: str, why: str, now: datetime) -> Step:
        """Opens the next step."""
        step = Step(len(self.steps) + 1, title, why, now)
        self.steps.append(step)
        return step

    def note(self, text: str, now: datetime, kind: str = "") -> Entry:
        """Adds an entry to the running step. `kind` marks the curve: ``drift``, ``promoted``, ..."""
        entry = Entry(now, self.steps[-1].number if self.steps else 0, text, len(self.answers), kind)
        self.entries.append(entry)
        return entry

    def moment(self, kind: str) -> Entry | None:
        """The first entry of a kind."""
        return next((entry for entry in self.entries if entry.kind == kind), None)

    def minutes_between(self, first: str, last: str) -> float | None:
        """Minutes from the first entry of one kind to the first of another; None when one is missing."""
        a, b = self.moment(first), self.moment(last)
        return (b.at - a.at).total_seconds() / 60 if a and b else None

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json`` and for benchmarks."""
        return {
            "started": self.started.isoformat(),
            "steps": [
                {"number": s.number, "title": s.title, "seconds": round(s.seconds, 1), "happened": s.happened}
                for s in self.steps
            ],
            "events": [
                {"at": e.at.isoformat(), "step": e.step, "text": e.text, "requests": e.requests, "kind": e.kind}
                for e in self.entries
            ],
            "numbers": self.numbers,
            "links": [{"title": link.title, "url": link.url} for link in self.links],
        }


def rolling(answers: Sequence[Answer], width: int, every: int) -> list[Point]:
    """Accuracy over the last `width` answers, at every `every`-th request once there are enough."""
    right = [0]
    for answer in answers:
        right.append(right[-1] + (answer.right and not answer.failed))
    return [
        Point(end, (right[end] - right[end - width]) / width, answers[end - 1].version or 0)
        for end in range(width, len(answers) + 1, every)
    ]
