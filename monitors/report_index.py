"""The index page of a use case's drift reports, rebuilt from the JSON records on disk, and their retention.

A record that is missing its page, or cannot be read, does not stop the page: it says so. Nothing here needs
Evidently or a server.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from leitstand.pages import write_page
from leitstand.types import Metric
from monitors.report_charts import accuracy_chart, score_chart, strongest
from monitors.report_record import WindowReport, snapshot_path

__all__ = ["Retention", "read_records", "retain", "write_index"]

_TEMPLATES = Path(__file__).parent / "templates"
_CSS = {"drifted": "fail", "ok": "pass", "insufficient": "open", "not judged": "soft"}
_CHARTED = 90
_HOUR, _DAY = 3600, 86_400


@dataclass(frozen=True)
class Retention:
    """How long reports are kept. A page has 4 MB, its record 10 kB.

    Attributes:
        pages: Age after which the page and the snapshot of an ordinary window go.
        remarkable_pages: The same for windows that drifted or are at least half a day long.
        records: Age after which the record goes too, and with it the window's line in the index.
    """

    pages: timedelta = timedelta(days=7)
    remarkable_pages: timedelta = timedelta(days=90)
    records: timedelta = timedelta(days=365)


def read_records(folder: Path) -> tuple[list[WindowReport], list[tuple[str, str]]]:
    """The records in `folder`, newest window first, and name and reason of each file that is none."""
    reports: list[WindowReport] = []
    problems: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*.json")):
        try:
            report = WindowReport.model_validate_json(path.read_bytes())
        except ValidationError as error:
            problems.append((path.name, _why(error)))
        except OSError as error:
            problems.append((path.name, error.strerror or "cannot be read"))
        else:
            reports.append(report)
    known = {report.html for report in reports} | {Path(name).with_suffix(".html").name for name, _ in problems}
    problems += [
        (path.name, "a page without its record; the build was interrupted")
        for path in sorted(folder.glob("*.html"))
        if path.name not in known and path.name != "index.html"
    ]
    reports.sort(key=lambda report: (report.window_end, report.window_start, report.version), reverse=True)
    return reports, problems


def write_index(folder: Path, use_case: str, *, title: str, now: datetime) -> Path:
    """Writes ``index.html`` into `folder` from what is there, and returns its path."""
    reports, problems = read_records(folder)
    charted = reports[:_CHARTED][::-1]
    return write_page(
        folder / "index.html",
        "report_index.html",
        search=_TEMPLATES,
        title=f"Drift reports: {title}",
        use_case=use_case,
        reports=reports,
        problems=problems,
        pages={path.name for path in folder.glob("*.html")},
        css=_CSS,
        scores=score_chart(charted),
        accuracy=accuracy_chart(charted),
        strongest=strongest,
        shown=_shown,
        length=_length,
        now=now,
    )


def retain(folder: Path, rules: Retention, *, now: datetime, workspace: Path | None = None) -> Sequence[str]:
    """Removes what is older than `rules` allow, and returns the names of the removed files of `folder`.

    The newest window is always kept whole. Files that are no records are not touched.
    """
    removed: list[str] = []
    for report in read_records(folder)[0][1:]:
        age = now - report.window_end
        if age > (rules.remarkable_pages if _is_remarkable(report) else rules.pages):
            removed += _remove(folder / report.html)
            if workspace is not None:
                _remove(snapshot_path(workspace, report.use_case, report.stem))
        if age > rules.records:
            removed += _remove(folder / f"{report.stem}.json")
    return removed


def _is_remarkable(report: WindowReport) -> bool:
    return report.verdict == "drifted" or report.length >= timedelta(hours=12)


def _remove(path: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        return [path.name]
    return []


def _why(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where + ': ' if where else ''}{first['msg']}"


def _shown(metric: Metric | None) -> str:
    return "–" if metric is None or metric.value is None else f"{metric.value:.4f}"


def _length(report: WindowReport) -> str:
    seconds = round(report.length.total_seconds())
    for size, unit in ((_DAY, "d"), (_HOUR, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
