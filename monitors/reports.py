"""Evidently reports: one self-contained HTML page per window, and its snapshot in an Evidently workspace.

`build_report` compares a window with the reference in sections (data, texts, predictions, embeddings,
service, and quality where people gave labels). The page's face is ours: the calibrated verdict, how the
rows were sampled, how exact that is, and what was left out. A section that Evidently cannot draw becomes
a sentence on the page, never a crash. Files are written whole or not at all; building again replaces them.

The only module that imports Evidently. Limits: `EmbeddingsDrift`, text-content drift and descriptors are
not used (quadratic, failing on small vocabularies, wanting a network); Evidently's own marks are not
calibrated and decide nothing. A page is about 4 MB, nearly all of it Evidently's script.
"""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from leitstand.errors import PermanentBackendError
from leitstand.files import digest_bytes, write_text
from leitstand.pages import render
from leitstand.types import DriftReport, utc_now
from monitors.report_data import MINIMUM_ROWS, ReportData, prepare
from monitors.report_record import WindowReport, file_stem, project_id, snapshot_path

with warnings.catch_warnings():  # evidently 0.7 uses what litestar and numpy call deprecated
    warnings.simplefilter("ignore")
    from evidently import BinaryClassification, DataDefinition, Dataset, MulticlassClassification, Report
    from evidently.core.report import Snapshot
    from evidently.core.serialization import ReportModel, SnapshotModel
    from evidently.legacy.renderers.html_widgets import text_widget
    from evidently.presets import ClassificationPreset, DataDriftPreset, DataSummaryPreset
    from evidently.sdk.models import PanelMetric, ProjectModel
    from evidently.sdk.panels import line_plot_panel
    from evidently.ui.workspace import Workspace

__all__ = ["SAMPLE_ROWS", "ReportFiles", "Subject", "build_report"]

SAMPLE_ROWS = 10_000
_TEMPLATES = Path(__file__).parent / "templates"
_CSS = {"drifted": "fail", "ok": "pass", "insufficient": "open", "not judged": "open"}
# The page asks nobody for anything, whatever its script would like.
_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; font-src data:; img-src data: blob:\">"
)
_SECTIONS = {
    "prediction": ("Predictions", "Predicted labels, their calibrated scores, and how often the model abstained."),
    "embedding": ("Embeddings", "Distance to the reference's centroid and the reference's principal components."),
    "text": ("Texts", "Length, shares and language of the texts; the texts themselves are not kept."),
    "service": ("Service", "Latency as the caller saw it."),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a report is about.

    Attributes:
        use_case: Name of the use case.
        title: Its title for people.
        version: Model version that answered in the window.
        start: Start of the window, UTC.
        end: End of the window, UTC, exclusive.
    """

    use_case: str
    title: str
    version: int
    start: datetime
    end: datetime


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """One built report.

    Attributes:
        html: The page.
        json: The record beside it (`WindowReport`).
        record: The same, read.
        sampled_from: Rows of the window.
        sampled_rows: Rows of it that the page was computed on.
        seconds: Wall-clock time.
    """

    html: Path
    json: Path
    record: WindowReport
    sampled_from: int
    sampled_rows: int
    seconds: float


def build_report(
    reference: pa.Table,
    window: pa.Table,
    *,
    subject: Subject,
    out: Path,
    drift: DriftReport | None = None,
    workspace: Path | None = None,
    sample_rows: int = SAMPLE_ROWS,
    seed: int = 0,
    whole: pa.Table | None = None,
) -> ReportFiles:
    """Builds the report of one window and writes page and record into `out`.

    Args:
        reference: Rows the window is compared with, in the columns of the inference log; `label` and `score`
            are needed, other columns are compared when both tables have them.
        window: Rows of the window, with the feedback columns where there is feedback. May be empty.
        subject: What the report is about.
        out: Folder of the use case's reports; made when missing.
        drift: The detectors' verdict, shown on the page's face.
        workspace: Evidently workspace that gets the snapshot; None leaves it out.
        sample_rows: Most rows of either table that are drawn from.
        seed: Decides which rows.
        whole: When `window` is a sample that was drawn already: ``label`` and ``feedback_label`` of every row.

    Raises:
        ConfigurationError: The reference is empty, or a table has another schema; nothing is written.
    """
    started = time.perf_counter()
    data = prepare(reference, window, sample_rows=sample_rows, seed=seed, whole=whole)
    rows = len(window if whole is None else whole)
    notes = list(data.notes)
    snapshot = None
    if len(data.window) >= MINIMUM_ROWS:
        snapshot = _snapshot(data, subject, notes)
    else:
        notes = [f"The window holds {rows} rows; fewer than {MINIMUM_ROWS} are not compared with anything."]
    stem = file_stem(subject.start, subject.end, subject.version)
    record = WindowReport(
        use_case=subject.use_case, title=subject.title, version=subject.version,
        window_start=subject.start, window_end=subject.end, rows=rows, reference_rows=len(reference),
        labelled_rows=data.labelled_rows, sampled_rows=len(data.window), sampled_reference_rows=len(data.reference),
        sampling=data.sampling, exactness=data.exactness, notes=tuple(notes), drift=drift,
        metrics=_metrics(snapshot), html=f"{stem}.html", html_digest="", built_at=utc_now(), seconds=0.0,
    )  # fmt: skip
    page = _page(record, snapshot)
    html = write_text(out / record.html, page)
    if snapshot is not None and workspace is not None:
        _keep(snapshot, subject, stem, workspace)
    seconds = round(time.perf_counter() - started, 3)
    record = record.model_copy(update={"html_digest": digest_bytes(page.encode()), "seconds": seconds})
    json = write_text(out / f"{stem}.json", record.model_dump_json(indent=1))
    return ReportFiles(
        html=html, json=json, record=record, sampled_from=rows, sampled_rows=len(data.window), seconds=seconds
    )


def _snapshot(data: ReportData, subject: Subject, notes: list[str]) -> Snapshot:
    """Runs every section on its own, so that one that fails leaves the others, and joins what they drew."""
    parts: list[tuple[str, str, SnapshotModel]] = []
    for title, lead, make in _plan(data, notes):
        try:
            with warnings.catch_warnings():  # of numpy and sklearn, about columns that the notes speak of
                warnings.simplefilter("ignore")
                parts.append((title, lead, make().to_snapshot_model()))
        except Exception as error:
            notes.append(f"{title}: Evidently could not draw this section ({type(error).__name__}: {error}).")
    widgets: list[Any] = []
    results, order = {}, []
    for title, lead, part in parts:
        widgets += [text_widget(title=title, text=lead), *part.widgets]
        results |= part.metric_results
        order += [key for key in part.top_level_metrics if key not in order]
    facts: dict[str, Any] = {
        "version": str(subject.version),
        "window": f"{subject.start:%Y-%m-%d %H:%M} to {subject.end:%Y-%m-%d %H:%M} UTC",
        "sampling": data.sampling,
    }
    joined = SnapshotModel(
        report=ReportModel(items=[]), name=file_stem(subject.start, subject.end, subject.version),
        timestamp=subject.end.astimezone(UTC).replace(tzinfo=None), metadata=facts, tags=[f"v{subject.version}"],
        metric_results=results, top_level_metrics=order, widgets=widgets, tests_widgets=[],
    )  # fmt: skip
    return Snapshot.load_model(joined)


def _plan(data: ReportData, notes: list[str]) -> Iterator[tuple[str, str, Any]]:
    """Title, lead and what runs each section, in the order of the page."""
    columns = [*data.numbers, *data.categories]
    if not columns:
        return
    definition = DataDefinition(numerical_columns=list(data.numbers), categorical_columns=list(data.categories))
    now, before = (Dataset.from_pandas(frame, data_definition=definition) for frame in (data.window, data.reference))
    if len(data.labelled_window) >= MINIMUM_ROWS:
        lead = f"On {len(data.labelled_window):,} rows of the window that people labelled."
        yield "Quality", lead, lambda: _quality(data.labelled_window, data.labelled_reference)
    else:
        notes.append(
            f"Quality: {data.labelled_rows} rows of the window have a feedback label; {MINIMUM_ROWS} are needed."
        )
    for group, (title, lead) in _SECTIONS.items():
        names = list(data.groups.get(group, ()))
        if names:
            yield title, lead, lambda names=names: Report([_distances(names)]).run(now, before)
    summary, lead = DataSummaryPreset(columns=columns), "Volume, missing values and distributions of the sampled rows."
    yield "Data", lead, lambda: Report([summary]).run(now, before)


def _distances(columns: list[str]) -> DataDriftPreset:
    """Distances, whatever the number of rows: Evidently's choice turns to p-values at 1,000, and the history breaks."""
    return DataDriftPreset(columns=columns, num_method="wasserstein", cat_method="jensenshannon")


def _quality(window: pd.DataFrame, reference: pd.DataFrame) -> Snapshot:
    labels = sorted(set(window["label"]) | set(window["feedback_label"]))
    names: dict[str, Any] = {"target": "feedback_label", "prediction_labels": "label"}
    task: Any = MulticlassClassification(**names)
    if len(labels) == 2:  # noqa: PLR2004 -- evidently takes any two labels for a binary task
        task = BinaryClassification(**names, pos_label=labels[1])
        if set(reference["label"]) | set(reference["feedback_label"]) != set(labels):
            reference = reference.iloc[:0]
    definition = DataDefinition(classification=[task], categorical_columns=["label", "feedback_label"])
    current = Dataset.from_pandas(window, data_definition=definition)
    base = Dataset.from_pandas(reference, data_definition=definition) if len(reference) else None
    return Report([ClassificationPreset()]).run(current, base)


def _metrics(snapshot: Snapshot | None) -> dict[str, float | None]:
    """Evidently's single numbers by metric; those of one label each are left out."""
    if snapshot is None:
        return {}
    found: dict[str, float | None] = {}
    for metric in snapshot.dict()["metrics"]:
        value = metric.get("value")
        values = value if isinstance(value, dict) and set(value) <= {"count", "share"} else {"": value}
        for part, number in values.items():
            if isinstance(number, int | float):  # numpy's float64 is a float
                name = f"{metric['metric_name']}.{part}" if part else metric["metric_name"]
                found[name] = float(number) if math.isfinite(number) else None
    return found


def _page(record: WindowReport, snapshot: Snapshot | None) -> str:
    context = {"record": record, "css": _CSS[record.verdict], "has_widgets": snapshot is not None}
    face = render("report_face.html", search=_TEMPLATES, **context)
    if snapshot is None:
        from markupsafe import Markup  # noqa: PLC0415 -- comes with jinja2, which pages load when used

        title = f"{record.title}: drift report"
        return render("empty_report.html", search=_TEMPLATES, title=title, face=Markup(face), minimum=MINIMUM_ROWS)  # noqa: S704
    return _with_face(snapshot.get_html_str(as_iframe=False), face, f"{record.title} v{record.version}: drift report")


def _with_face(page: str, face: str, title: str) -> str:
    head, body, rest = page.partition("<body>")
    if not body:
        raise PermanentBackendError(
            "Evidently's page has no <body> to put the report's face into", hint="install a tested evidently version"
        )
    head = head.replace("<head>", f"<head>{_POLICY}<title>{_escaped(title)}</title>", 1)
    return head + body + face + rest


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _keep(snapshot: Snapshot, subject: Subject, stem: str, folder: Path) -> None:
    """Puts the snapshot into the workspace, whole, under an id that its window decides."""
    _open_project(subject, folder)
    write_text(snapshot_path(folder, subject.use_case, stem), snapshot.dumps())


def _open_project(subject: Subject, folder: Path) -> None:
    """Makes the use case's project, with its dashboard, where the workspace has none."""
    folder.mkdir(parents=True, exist_ok=True)
    workspace = Workspace(str(folder))
    identity = project_id(subject.use_case)
    if workspace.get_project(identity) is None:
        model = ProjectModel(id=identity, name=subject.use_case, description=subject.title)
        project = workspace.add_project(model)
        for panel in _panels():
            project.dashboard.add_panel(panel)


def _panels() -> Sequence[Any]:
    def drift(*columns: str) -> list[PanelMetric]:
        return [PanelMetric(legend=name, metric="ValueDrift", metric_labels={"column": name}) for name in columns]

    note = "Wasserstein distance in reference deviations, or Jensen-Shannon distance; not calibrated"
    return [
        line_plot_panel("Drift of predictions and embeddings", drift("label", "score", "embedding distance"), note),
        line_plot_panel("Drift of texts", drift("words", "tokens", "upper_share", "language"), note),
        line_plot_panel(
            "Accuracy", [PanelMetric(legend="accuracy", metric="Accuracy")], "on rows with feedback labels"
        ),
    ]
