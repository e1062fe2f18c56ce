"""Reads runs back from W&B's folders on this disk, offline and online ones alike.

A run that was continued has several folders with one id; they are merged here: configuration and
summary of the later one win, curves are joined by our own ``step``. Nothing is asked of a server.
"""

import glob
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

import structlog
from filelock import FileLock, Timeout

from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError, bounded
from models.tracking.runfile import read_run_file

__all__ = ["LOCK_NAME", "STEP", "LoggedArtifact", "LoggedRun", "LoggedTable", "find_run", "last_step", "read_runs"]

STEP = "step"
LOCK_NAME = "leitstand.lock"


@dataclass(frozen=True)
class LoggedTable:
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class LoggedArtifact:
    name: str
    kind: str
    digest: str
    size_bytes: int


@dataclass
class LoggedRun:
    """One run, merged over its folders.

    Attributes:
        history: Metric name to points (step, value), steps rising.
        system: System metric name to points (seconds since the start, value).
        state: ``finished``, ``failed``, ``running``, or ``crashed`` (no end was recorded, no process holds it).
        duration_s: Time spent in all its folders together.
        complete: False when a folder's run file was cut off.
    """

    run_id: str
    project: str
    use_case: str
    job: str
    started: datetime
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    tables: dict[str, LoggedTable] = field(default_factory=dict)
    artifacts: tuple[LoggedArtifact, ...] = ()
    system: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    state: str = "crashed"
    duration_s: float = 0.0
    complete: bool = True
    host: str = ""
    folders: tuple[Path, ...] = ()


def read_runs(root: Path, *, use_case: str | None = None) -> list[LoggedRun]:
    """All runs below ``root/wandb``, newest first. A file that cannot be read is logged and left out.

    Args:
        root: The settings' `root`.
        use_case: Only runs of this use case.
    """
    segments: dict[str, list[LoggedRun]] = {}
    for file in sorted((root / "wandb").glob("*run-*/*.wandb")):
        segment = _read_segment(file)
        if segment and use_case in (None, segment.use_case):
            segments.setdefault(segment.run_id, []).append(segment)
    runs = [_merge(sorted(parts, key=lambda part: part.started)) for parts in segments.values()]
    return sorted(runs, key=lambda run: run.started, reverse=True)


def find_run(runs: Sequence[LoggedRun], reference: str) -> LoggedRun:
    """The run named by an id, the start of an id, ``latest``, or ``latest~N`` (N before the latest).

    Args:
        runs: Newest first.
        reference: What the user wrote.

    Raises:
        NotFoundError: No run matches.
        ConfigurationError: Several runs match.
    """
    if match := re.fullmatch(r"latest(?:~(\d+))?", reference):
        index = int(match[1] or 0)
        matches = list(runs[index : index + 1])
    else:
        matches = [run for run in runs if run.run_id == reference]
        matches = matches or [run for run in runs if run.run_id.startswith(reference)]
    if not matches:
        raise NotFoundError(f"no run '{reference}' among {len(runs)}", hint="list runs with `leitstand runs list`")
    if len(matches) > 1:
        names = bounded([run.run_id for run in matches])
        raise ConfigurationError(f"'{reference}' names {len(matches)} runs: {names}", hint="write more of the id")
    return matches[0]


def last_step(root: Path, run_id: str) -> int | None:
    """The highest step that any folder of the run holds; None when nothing was logged."""
    segments = [_read_segment(file) for file in (root / "wandb").glob(f"*run-*/run-{glob.escape(run_id)}.wandb")]
    steps = [points[-1][0] for run in segments if run for points in run.history.values()]
    return max(steps, default=None)


def _read_segment(file: Path) -> LoggedRun | None:
    try:
        content = read_run_file(file)
    except (IntegrityError, OSError) as error:
        structlog.get_logger().warning("a run file cannot be read", path=str(file), reason=str(error))
        return None
    by_kind: dict[str, list[Any]] = {}
    for record in content.records:
        kind = record.WhichOneof("record_type") or ""
        by_kind.setdefault(kind, []).append(getattr(record, kind, None))
    if "run" not in by_kind:
        return None
    first, last = by_kind["run"][0], by_kind["run"][-1]
    segment = LoggedRun(
        run_id=first.run_id, project=first.project, use_case=first.run_group, job=first.job_type,
        started=first.start_time.ToDatetime(tzinfo=UTC), tags=tuple(last.tags), host=first.host,
        complete=content.complete, folders=(file.parent,),
    )  # fmt: skip
    for update in [run.config for run in by_kind["run"]] + by_kind.get("config", []):
        _apply(segment.config, update.update)
    charts = dict(segment.config.pop("_wandb", {})).get("visualize", {})
    for update in by_kind.get("summary", []):
        _apply(segment.summary, update.update)
    _add_history(segment, by_kind.get("history", []), file.parent / "files")
    segment.tables = {_table_name(name, charts): table for name, table in segment.tables.items()}
    _add_system(segment, by_kind.get("stats", []))
    segment.summary = {
        key: value for key, value in segment.summary.items()
        if not key.startswith("_") and key != STEP and not (isinstance(value, dict) and "_type" in value)
    }  # fmt: skip
    segment.artifacts = tuple(dict.fromkeys(_artifacts(by_kind.get("artifact", []))))
    segment.state = _state(by_kind.get("exit", []), file.parent)
    ends = [exit_.runtime for exit_ in by_kind.get("exit", [])]
    segment.duration_s = max([segment.duration_s, *map(float, ends)])
    return segment


def _apply(target: dict[str, Any], items: Iterable[Any]) -> dict[str, Any]:
    """Applies W&B's key-value updates; `nested_key` is a path, `key` a single name."""
    for item in items:
        path = list(item.nested_key) or [item.key]
        place = target
        for name in path[:-1]:
            inner = place.get(name)
            place[name] = inner if isinstance(inner, dict) else {}
            place = place[name]
        place[path[-1]] = json.loads(item.value_json)
    return target


def _add_history(segment: LoggedRun, rows: Iterable[Any], files: Path) -> None:
    for row in rows:
        values = _apply({}, row.item)
        segment.duration_s = max(segment.duration_s, float(values.get("_runtime", 0.0)))
        step = int(values.get(STEP, row.step.num))
        for name, value in values.items():
            if isinstance(value, dict) and value.get("_type") == "table-file":
                _add_table(segment, name, files / value["path"])
            elif _is_number(value) and name != STEP and not name.startswith("_"):
                segment.history.setdefault(name, []).append((step, float(value)))


def _add_table(segment: LoggedRun, name: str, path: Path) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        structlog.get_logger().warning("a table of a run cannot be read", path=str(path), reason=str(error))
        return
    rows = tuple(tuple(row) for row in content["data"])
    segment.tables[name] = LoggedTable(columns=tuple(map(str, content["columns"])), rows=rows)


def _table_name(name: str, charts: Mapping[str, Any]) -> str:
    """The name we logged a table by: W&B files the rows of chart ``x`` under ``x_table``."""
    chart = name.removesuffix("_table")
    return chart if chart in charts else name


def _add_system(segment: LoggedRun, samples: Iterable[Any]) -> None:
    for sample in samples:
        at = (sample.timestamp.ToDatetime(tzinfo=UTC) - segment.started).total_seconds()
        segment.duration_s = max(segment.duration_s, at)
        for item in sample.item:
            value = json.loads(item.value_json)
            if _is_number(value):
                segment.system.setdefault(item.key, []).append((max(0.0, at), float(value)))


def _artifacts(records: Iterable[Any]) -> Iterable[LoggedArtifact]:
    """Artifacts that the run logged itself; W&B's own copies of tables are left out."""
    for record in records:
        if record.type != "run_table":
            size = sum(entry.size for entry in record.manifest.contents)
            yield LoggedArtifact(record.name, record.type, record.digest, size)


def _state(exits: Sequence[Any], folder: Path) -> str:
    if exits:
        return "failed" if exits[-1].exit_code else "finished"
    return "running" if _is_held(folder / LOCK_NAME) else "crashed"


def _is_held(lock: Path) -> bool:
    """Whether a living process holds the lock; the kernel frees it when that process dies."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _merge(segments: list[LoggedRun]) -> LoggedRun:
    merged = segments[0]
    for segment in segments[1:]:
        for name, points in segment.history.items():
            joined = dict(merged.history.get(name, [])) | dict(points)
            merged.history[name] = sorted(joined.items())
        for name, samples in segment.system.items():
            offset = merged.duration_s
            merged.system.setdefault(name, []).extend((offset + at, value) for at, value in samples)
        merged.config |= segment.config
        merged.summary |= segment.summary
        merged.tables |= segment.tables
        merged.artifacts = tuple(dict.fromkeys(merged.artifacts + segment.artifacts))
        merged.tags = tuple(dict.fromkeys(merged.tags + segment.tags))
        merged.duration_s += segment.duration_s
        merged.state = segment.state
        merged.complete = merged.complete and segment.complete
        merged.folders += segment.folders
    merged.history = {name: sorted(dict(points).items()) for name, points in merged.history.items()}
    return merged


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
