"""Feedback about answers: labels and ratings by request id, in SQLite (WAL), and what they amount to.

`record` is idempotent by ``feedback_id``. Feedback for an unknown request is kept too: the answer may reach the
inference log later than the person's click. `effective` is pure and does not depend on the order of arrival.
Safe with threads and processes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from leitstand.errors import ConflictError
from leitstand.settings import Settings
from leitstand.state_file import StateFile, micros
from leitstand.types import Feedback

__all__ = ["SqliteFeedbackLog", "effective", "open_feedback_log"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS feedback (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, feedback_id TEXT NOT NULL UNIQUE, use_case TEXT NOT NULL,
    at_us INTEGER NOT NULL, record TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS feedback_by_use_case ON feedback (use_case, at_us);
"""


def open_feedback_log(settings: Settings) -> "SqliteFeedbackLog":
    """The log in the file that ``monitoring.feedback`` names; empty: below `home`."""
    path = settings.monitoring.feedback
    return SqliteFeedbackLog(Path(path).expanduser().absolute() if path else settings.root / "feedback" / "feedback.db")


def effective(entries: Iterable[Feedback]) -> dict[tuple[str, int], Feedback]:
    """What counts about each answer, by request id and index; answers whose feedback was all withdrawn are absent.

    The newest label and the newest rating of a source count (by `at`, then by `feedback_id`). An entry with a
    rating only leaves the source's label; one with neither withdraws both. Across sources the label that most
    sources give wins, on a tie the one given last; the rating is the newest. The result is the newest entry for
    the winning label with that rating; ``label`` is None where there are ratings only.

    Any order of `entries`, and repeating some, gives the same result.
    """
    by_answer: dict[tuple[str, int], dict[str, list[Feedback]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        by_answer[entry.request_id, entry.index][entry.source].append(entry)
    settled = {answer: _settle(sources.values()) for answer, sources in by_answer.items()}
    return {answer: entry for answer, entry in settled.items() if entry is not None}


def _age(entry: Feedback) -> tuple[datetime, str]:
    return entry.at, entry.feedback_id


def _settle(sources: Iterable[list[Feedback]]) -> Feedback | None:
    labels: list[Feedback] = []
    ratings: list[Feedback] = []
    for said in sources:
        label, rating = _standing(said)
        labels += [label] if label else []
        ratings += [rating] if rating else []
    rating = max(ratings, key=_age, default=None)
    if not labels:
        return rating and rating.model_copy(update={"label": None})
    votes = Counter(entry.label for entry in labels)
    winner = max(labels, key=lambda entry: (votes[entry.label], _age(entry)))
    return winner.model_copy(update={"rating": rating.rating if rating else None})


def _standing(said: Iterable[Feedback]) -> tuple[Feedback | None, Feedback | None]:
    """The entries of one source whose label and whose rating stand."""
    label = rating = None
    for entry in sorted(said, key=_age):
        if entry.label is None and entry.rating is None:
            label = rating = None
        label = entry if entry.label is not None else label
        rating = entry if entry.rating is not None else rating
    return label, rating


class SqliteFeedbackLog:
    """`FeedbackLog` in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path, SCHEMA)

    def record(self, feedback: Feedback) -> bool:
        """Durable when it returns; False when this id was recorded before.

        Raises:
            ConflictError: The id was recorded before with other content.
            TransientBackendError: Another process held the file for half a minute.
        """
        values = (
            feedback.feedback_id, feedback.use_case, micros(feedback.at), feedback.model_dump_json(),
        )  # fmt: skip
        statement = "INSERT OR IGNORE INTO feedback (feedback_id, use_case, at_us, record) VALUES (?, ?, ?, ?)"
        with self._file.transaction() as connection:
            if connection.execute(statement, values).rowcount:
                return True
            (known,) = connection.execute(
                "SELECT record FROM feedback WHERE feedback_id = ?", (feedback.feedback_id,)
            ).fetchone()
        if Feedback.model_validate_json(known) != feedback:
            raise ConflictError(
                f"Feedback '{feedback.feedback_id}' was recorded before with other content",
                hint="send a correction under a new feedback_id",
            )
        return False

    def entries(self, use_case: str, *, since: datetime | None = None) -> Sequence[Feedback]:
        """In the order of recording; `since` compares with the feedback's own time and is inclusive."""
        query = "SELECT record FROM feedback WHERE use_case = ? AND at_us >= ? ORDER BY sequence"
        with self._file.reading() as connection:
            rows = connection.execute(query, (use_case, micros(since) if since else -(2**63))).fetchall()
        return [Feedback.model_validate_json(record) for (record,) in rows]

    def close(self) -> None:
        """Closes this thread's connection; the next call opens another."""
        self._file.close()
