"""The record of one window's report: a JSON file beside the HTML page, and the names both go by.

The index page, the command line and retention read these records; none of them needs Evidently.
"""

import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from leitstand.types import DriftReport

__all__ = ["Verdict", "WindowReport", "file_stem", "project_id", "snapshot_id", "snapshot_path"]

Verdict = Literal["drifted", "ok", "insufficient", "not judged"]
_NAMESPACE = uuid.UUID("5b0f6c1e-8d0c-5b57-9a55-0d1f6f6a2b11")


class WindowReport(BaseModel):
    """What a report says, for machines. `html` names the page in the same folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    use_case: str
    title: str
    version: int
    window_start: AwareDatetime
    window_end: AwareDatetime
    rows: int = Field(description="rows of the window")
    reference_rows: int
    labelled_rows: int = Field(description="rows of the window with a feedback label")
    sampled_rows: int = Field(description="rows of the window that the page was computed on")
    sampled_reference_rows: int
    sampling: str = Field(description="how the rows were chosen, in a sentence")
    exactness: tuple[str, ...] = Field(default=(), description="how exact the page's numbers are")
    notes: tuple[str, ...] = Field(default=(), description="what was left out, and why")
    drift: DriftReport | None = Field(default=None, description="the calibrated verdict; None when nobody judged")
    metrics: dict[str, float | None] = Field(default_factory=dict, description="Evidently's numbers by metric")
    html: str
    html_digest: str
    built_at: AwareDatetime
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """The verdict of the calibrated detectors; Evidently's own marks have no say in it."""
        if self.drift is None:
            return "not judged"
        if self.drift.insufficient:
            return "insufficient"
        return "drifted" if self.drift.drifted else "ok"

    @property
    def stem(self) -> str:
        """The name of the report's files without suffix."""
        return file_stem(self.window_start, self.window_end, self.version)

    @property
    def length(self) -> timedelta:
        """From the window's start to its end."""
        return self.window_end - self.window_start


def file_stem(start: datetime, end: datetime, version: int) -> str:
    """``20261124T080000Z-60m-v3``: sorts by time; an hourly and a nightly report of one start differ."""
    seconds = round((end - start).total_seconds())
    length = f"{seconds // 60}m" if seconds % 60 == 0 else f"{seconds}s"
    return f"{start:%Y%m%dT%H%M%SZ}-{length}-v{version}"


def project_id(use_case: str) -> uuid.UUID:
    """The id of the use case's project in the Evidently workspace; the same on every machine."""
    return uuid.uuid5(_NAMESPACE, use_case)


def snapshot_id(use_case: str, stem: str) -> uuid.UUID:
    """The id of a report's snapshot; building the report again replaces it."""
    return uuid.uuid5(project_id(use_case), stem)


def snapshot_path(workspace: Path, use_case: str, stem: str) -> Path:
    """Where an Evidently workspace keeps the snapshot of a report."""
    return workspace / str(project_id(use_case)) / "snapshots" / f"{snapshot_id(use_case, stem)}.json"
