"""In-memory ports for unit tests: real behaviour without files or servers, so no test needs a mock.

Import as ``from tests.fakes import InMemoryTracker``. Each fake passes the same contract suite as the
adapters (``tests/contracts/``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leitstand.files import digest_file, digest_json

__all__ = ["InMemoryRun", "InMemoryTracker", "KeywordClassifier", "KeywordPredictions"]


@dataclass
class InMemoryRun:
    """A `TrackedRun` whose contents are plain attributes, to be read by assertions."""

    run_id: str
    use_case: str
    job: str
    config: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    tables: dict[str, tuple[tuple[str, ...], list[list[Any]]]] = field(default_factory=dict)
    artifacts: list[tuple[str, str, str, dict[str, Any]]] = field(default_factory=list)
    summaries: dict[str, Any] = field(default_factory=dict)
    state: str = "running"
    starts: int = 0

    @property
    def url(self) -> str:
        return f"memory:{self.run_id}"

    def log(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        last = self.history[-1][0] if self.history else -1
        self.history.append((last + 1 if step is None else step, dict(metrics)))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.tables[name] = (tuple(columns), [list(row) for row in rows])

    def log_artifact(self, name: str, kind: str, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
        digest = _digest(path)
        if not any((known, at) == (name, digest) for known, _, at, _ in self.artifacts):
            self.artifacts.append((name, kind, digest, dict(metadata or {})))

    def summary(self, values: Mapping[str, Any]) -> None:
        self.summaries.update(values)

    def finish(self, *, failed: bool = False) -> None:
        if self.state == "running":
            self.state = "failed" if failed else "finished"

    def series(self, name: str) -> list[tuple[int, float]]:
        """The points of one metric, in the order they were logged."""
        return [(step, metrics[name]) for step, metrics in self.history if name in metrics]


class InMemoryTracker:
    """An `ExperimentTracker` that keeps its runs in ``runs``, by id."""

    def __init__(self) -> None:
        self.runs: dict[str, InMemoryRun] = {}

    def start(
        self,
        *,
        use_case: str,
        job: str,
        config: Mapping[str, Any],
        tags: Sequence[str] = (),
        run_id: str | None = None,
    ) -> InMemoryRun:
        run_id = run_id or f"run{len(self.runs) + 1:05d}"
        run = self.runs.setdefault(run_id, InMemoryRun(run_id=run_id, use_case=use_case, job=job))
        run.config.update(config)
        run.tags, run.state, run.starts = tuple(tags), "running", run.starts + 1
        return run


def _digest(path: Path) -> str:
    if path.is_file():
        return digest_file(path)
    files = sorted(item for item in path.rglob("*") if item.is_file())
    return digest_json([(str(item.relative_to(path)), digest_file(item)) for item in files])


@dataclass(frozen=True)
class KeywordPredictions:
    """Answers of a `KeywordClassifier`."""

    labels: list[str]
    scores: np.ndarray
    abstain: np.ndarray
    probabilities: np.ndarray


class KeywordClassifier:
    """A classifier without weights: the label whose keyword stands in the text, case-sensitively.

    Without any keyword the answer is uniform, so it abstains. `wrong_for` maps a word to the label that
    it provokes, which makes the classifier biased on purpose. ``asked`` counts the texts.
    """

    engine = "fake"

    def __init__(self, keywords: Mapping[str, str], *, wrong_for: Mapping[str, str] | None = None) -> None:
        self.keywords, self.wrong_for = dict(keywords), dict(wrong_for or {})
        self.names = list(keywords)
        self.asked = 0

    def predict(self, texts: Sequence[str]) -> KeywordPredictions:
        self.asked += len(texts)
        rows = np.stack([self._row(text) for text in texts])
        best = rows.argmax(axis=1)
        scores = rows.max(axis=1)
        return KeywordPredictions([self.names[i] for i in best], scores, scores < 0.5, rows)

    def _row(self, text: str) -> np.ndarray:
        hits = [name for name, word in self.keywords.items() if word in text]
        hits = [name for word, name in self.wrong_for.items() if word in text] or hits
        row = np.full(len(self.names), 1.0, dtype=np.float32)
        if hits:
            row[self.names.index(hits[0])] = 9.0 * len(self.names)
        return row / row.sum()
