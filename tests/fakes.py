"""In-memory ports for unit tests: real behaviour without files or servers, so no test needs a mock.

Import as ``from tests.fakes import InMemoryTracker``. Each fake passes the same contract suite as the
adapters (``tests/contracts/``).
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from governance.access.api_keys import ApiKey, ended, unknown_key
from governance.routes.tables import conflict, stored
from leitstand.errors import ConflictError, IntegrityError, NotFoundError
from leitstand.files import digest_file, digest_json
from leitstand.types import (
    Feedback,
    LedgerEntry,
    ModelCandidate,
    ModelRef,
    ModelVersion,
    RouteTable,
    WindowRow,
    utc_now,
)  # fmt: skip
from models.artifact import verify
from models.ledger import entry_hash
from models.registry.facts import check_candidate
from models.registry.wandb_rows import Row

__all__ = [
    "InMemoryApiKeys",
    "InMemoryFeedbackLog",
    "InMemoryInferenceLog",
    "InMemoryRegistry",
    "InMemoryRouteStore",
    "InMemoryRun",
    "InMemoryTracker",
    "InMemoryWandb",
    "KeywordClassifier",
    "KeywordPredictions",
]


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
    it provokes, which makes the classifier biased on purpose; a word of `silent_for` makes it abstain.
    ``asked`` counts the texts.
    """

    engine = "fake"

    def __init__(
        self,
        keywords: Mapping[str, str],
        *,
        wrong_for: Mapping[str, str] | None = None,
        silent_for: Collection[str] = (),
    ) -> None:
        self.keywords, self.wrong_for, self.silent_for = dict(keywords), dict(wrong_for or {}), silent_for
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
        if hits and not any(word in text for word in self.silent_for):
            row[self.names.index(hits[0])] = 9.0 * len(self.names)
        return row / row.sum()


class InMemoryRegistry:
    """A `ModelRegistry` in dictionaries, with its ledger in `moves`."""

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        self.moves: list[LedgerEntry] = []
        self._clock = clock
        self._versions: dict[tuple[str, int], ModelVersion] = {}
        self._aliases: dict[tuple[str, str], int] = {}
        self._files: dict[tuple[str, int], dict[str, bytes]] = {}
        self._attachments: dict[tuple[str, int], dict[str, bytes]] = {}

    def register(self, candidate: ModelCandidate) -> ModelVersion:
        check_candidate(candidate)
        for version in self.versions(candidate.name):
            if version.key == candidate.key:
                return version
        number = 1 + len(self.versions(candidate.name))
        where = (candidate.name, number)
        folder = candidate.model_dir
        self._files[where] = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        self._attachments[where] = {name: path.read_bytes() for name, path in candidate.attachments.items()}
        facts = candidate.model_dump(exclude={"model_dir", "attachments"})
        self._versions[where] = ModelVersion(version=number, created_at=self._clock(), **facts)
        return self.get(ModelRef(name=candidate.name, version=number))

    def get(self, ref: ModelRef) -> ModelVersion:
        number = ref.version if ref.version is not None else self._aliases.get((ref.name, ref.alias or ""), 0)
        where = (ref.name, number)
        if where not in self._versions:
            raise NotFoundError(f"Model version '{ref}' is not in the registry")
        mine = sorted(alias for (name, alias), held in self._aliases.items() if (name, held) == where)
        update = {"aliases": tuple(mine), "attachments": tuple(sorted(self._attachments[where]))}
        return self._versions[where].model_copy(update=update)

    def versions(self, name: str) -> Sequence[ModelVersion]:
        numbers = sorted((number for known, number in self._versions if known == name), reverse=True)
        return [self.get(ModelRef(name=name, version=number)) for number in numbers]

    def names(self) -> Sequence[str]:
        return sorted({name for name, _ in self._versions})

    def fetch(self, ref: ModelRef, target: Path) -> ModelVersion:
        version = self.get(ref)
        for name, content in self._files[version.name, version.version].items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
        verify(target)
        return version

    def attachment(self, ref: ModelRef, name: str, target: Path) -> Path:
        version = self.get(ref)
        if name not in version.attachments:
            raise NotFoundError(f"'{version.ref}' has no attachment '{name}'")
        target.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(self._attachments[version.name, version.version][name])
        return target / name

    def attach(self, ref: ModelRef, files: Mapping[str, Path]) -> None:
        version = self.get(ref)
        there = self._attachments[version.name, version.version]
        contents = {name: path.read_bytes() for name, path in files.items()}
        for name, content in contents.items():
            if there.get(name, content) != content:
                raise ConflictError(f"'{name}' is attached already, with other bytes")
        there.update(contents)

    def set_alias(self, ref: ModelRef, alias: str, *, actor: str, reason: str, evidence: str = "") -> LedgerEntry:
        version = self.get(ref)
        return self._move(version.name, alias, version.version, actor, reason, evidence)

    def remove_alias(self, name: str, alias: str, *, actor: str, reason: str) -> LedgerEntry:
        if (name, alias) not in self._aliases:
            raise NotFoundError(f"'{name}' has no alias '{alias}'")
        return self._move(name, alias, None, actor, reason, "")

    def verify_moves(self, name: str) -> None:
        held = {entry.alias: entry.version for entry in self.moves if entry.name == name}
        for alias, version in held.items():
            if self._aliases.get((name, alias)) != version:
                raise IntegrityError(f"Alias '{name}@{alias}' is not where the ledger put it")

    def _move(self, name: str, alias: str, version: int | None, actor: str, reason: str, evidence: str) -> LedgerEntry:
        previous = self._aliases.get((name, alias))
        if previous == version:
            return next(entry for entry in reversed(self.moves) if (entry.name, entry.alias) == (name, alias))
        if version is None:
            del self._aliases[name, alias]
        else:
            self._aliases[name, alias] = version
        draft = LedgerEntry(
            sequence=len(self.moves) + 1, at=self._clock(), name=name, alias=alias, version=version,
            previous=previous, actor=actor, reason=reason, evidence=evidence,
            previous_hash=self.moves[-1].hash if self.moves else "", hash="",
        )  # fmt: skip
        self.moves.append(draft.model_copy(update={"hash": entry_hash(draft)}))
        return self.moves[-1]


class InMemoryWandb:
    """`WandbCalls` as W&B's documentation describes it: numbers from v0, one holder per alias, `latest` moves."""

    def __init__(self) -> None:
        self.collections: dict[str, list[Row]] = {}
        self.files: dict[tuple[str, int], dict[str, bytes]] = {}
        self.attachments: dict[str, tuple[str, bytes]] = {}
        self.notes: dict[str, str] = {}

    def names(self) -> list[str]:
        return list(self.collections)

    def rows(self, name: str) -> list[Row]:
        return list(self.collections.get(name, []))

    def add(self, name: str, folder: Path, facts: dict[str, str]) -> int:
        rows = self.collections.setdefault(name, [])
        number = len(rows) + 1
        paths = [path for path in folder.rglob("*") if path.is_file()]
        self.files[name, number] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        rows.append(Row(number, dict(facts), (f"v{number - 1}",), utc_now()))
        self.set_alias(name, number, "latest")
        return number

    def download(self, name: str, version: int, target: Path) -> None:
        for path, content in self.files[name, version].items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(content)

    def put_attachment(self, key: str, path: Path) -> None:
        self.attachments[key] = (path.name, path.read_bytes())

    def get_attachment(self, key: str, target: Path) -> None:
        name, content = self.attachments[key]
        (target / name).write_bytes(content)

    def set_facts(self, name: str, version: int, facts: dict[str, str]) -> None:
        self.collections[name][version - 1].facts.update(facts)

    def set_alias(self, name: str, version: int, alias: str) -> None:
        for row in self.rows(name):
            self.remove_alias(name, row.version, alias)
        row = self.collections[name][version - 1]
        self.collections[name][version - 1] = replace(row, aliases=(*row.aliases, alias))

    def remove_alias(self, name: str, version: int, alias: str) -> None:
        row = self.collections[name][version - 1]
        kept = tuple(other for other in row.aliases if other != alias)
        self.collections[name][version - 1] = replace(row, aliases=kept)

    def note(self, name: str, text: str | None = None) -> str:
        if text is not None:
            self.notes[name] = text
        return self.notes.get(name, "")


class InMemoryApiKeys:
    """An `ApiKeyStore` in a dictionary."""

    def __init__(self) -> None:
        self.keys: dict[str, ApiKey] = {}
        self.changes = 0

    def add(self, key: ApiKey) -> None:
        if key.key_id in self.keys:
            raise ConflictError(f"There is a key with the id '{key.key_id}' already")
        self.keys[key.key_id] = key
        self.changes += 1

    def end(self, key_id: str, at: datetime, why: Literal["rotated", "revoked"]) -> ApiKey:
        if key_id not in self.keys:
            raise unknown_key(key_id)
        self.keys[key_id] = ended(self.keys[key_id], at, why)
        self.changes += 1
        return self.keys[key_id]

    def all(self) -> Sequence[ApiKey]:
        return list(self.keys.values())

    def revision(self) -> int:
        return self.changes


class InMemoryRouteStore:
    """A `RouteStore` in a dictionary. Set ``down`` to an error to have every call raise it."""

    def __init__(self) -> None:
        self.tables: dict[str, list[RouteTable]] = {}
        self.down: Exception | None = None
        self._lock = threading.Lock()

    def read(self, use_case: str) -> RouteTable | None:
        self._check()
        return self.tables[use_case][-1] if use_case in self.tables else None

    def write(self, table: RouteTable, *, expected: int) -> RouteTable:
        self._check()
        new = stored(table, expected)
        with self._lock:
            kept = self.tables.get(table.use_case, [])
            if len(kept) != expected:
                raise conflict(table.use_case, expected, len(kept))
            self.tables[table.use_case] = [*kept, new]
        return new

    def names(self) -> Sequence[str]:
        return sorted(self.revisions())

    def revisions(self) -> Mapping[str, int]:
        self._check()
        return {name: len(kept) for name, kept in self.tables.items()}

    def history(self, use_case: str) -> Sequence[RouteTable]:
        self._check()
        return list(self.tables.get(use_case, []))

    def _check(self) -> None:
        if self.down is not None:
            raise self.down


class InMemoryInferenceLog:
    """An `InferenceLog` whose rows are a list."""

    def __init__(self) -> None:
        self.rows: list[WindowRow] = []
        self.texts: list[str] = []
        self.closed = False

    def append(self, rows: Sequence[WindowRow], texts: Sequence[str] = ()) -> None:
        self.rows.extend(rows)
        self.texts.extend(texts)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class InMemoryFeedbackLog:
    """A `FeedbackLog` in a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[str, Feedback] = {}

    def record(self, feedback: Feedback) -> bool:
        before = self.kept.setdefault(feedback.feedback_id, feedback)
        if before is feedback:
            return True
        if before != feedback:
            raise ConflictError(f"Feedback '{feedback.feedback_id}' was recorded before with other content")
        return False

    def entries(self, use_case: str, *, since: datetime | None = None) -> Sequence[Feedback]:
        kept = [entry for entry in self.kept.values() if entry.use_case == use_case]
        return [entry for entry in kept if since is None or entry.at >= since]
