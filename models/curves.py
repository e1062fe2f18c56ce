"""Training curves: every point goes to the tracker, to ``curves.csv`` and to whoever watches.

The points are kept in memory and travel in the checkpoints, so that a resumed run's curves have no gap
and no point twice. ``curves.csv`` is written whole, atomically.
"""

import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from leitstand.files import write_text
from leitstand.ports import Progress, TrackedRun

__all__ = ["COLUMNS", "Curves"]

COLUMNS = ("step", "epoch", "split", "loss", "accuracy", "learning_rate", "grad_norm", "examples_per_second")


class Curves:
    """Collects the points of one run.

    Args:
        file: The CSV.
        run: The tracker's run, or None on ranks that do not lead.
        total: Steps of the whole run.
        progress: Called with steps done, steps in total and the latest numbers. A terminal also shows a bar.
    """

    def __init__(self, file: Path, run: TrackedRun | None, total: int, progress: Progress | None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._file, self._run, self._total = file, run, total
        self._bar: Bar | None = None
        self._watchers = [progress] if progress else []
        if run is not None and sys.stderr.isatty():
            self._watchers.append(self._show)

    def add(self, step: int, epoch: float, split: str, **numbers: float) -> None:
        """Records one point after `step` steps; `numbers` are columns of the CSV."""
        self.rows.append({"step": step, "epoch": round(epoch, 4), "split": split, **numbers})
        if self._run is not None:
            self._run.log({f"{split}/{name}": value for name, value in numbers.items()} | {"epoch": epoch}, step=step)

    def advance(self, step: int, **numbers: float) -> None:
        """Tells the watcher that `step` steps are done."""
        for watch in self._watchers:
            watch(step, self._total, numbers)

    def write(self) -> Path:
        """Writes the CSV and returns its path."""
        buffer = io.StringIO()
        writer: csv.DictWriter[str] = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in self.rows)
        return write_text(self._file, buffer.getvalue())

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, step: int, total: int, numbers: Mapping[str, float]) -> None:
        if self._bar is None:
            columns = ("{task.description}", BarColumn(), "{task.completed}/{task.total}", "{task.fields[numbers]}")
            self._bar = Bar(
                *(TextColumn(c) if isinstance(c, str) else c for c in columns),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar.add_task("training", total=total, numbers="")
            self._bar.start()
        text = " ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self._bar.update(self._bar.task_ids[0], completed=step, numbers=text)
