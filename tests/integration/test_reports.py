"""Drift reports drawn by the real Evidently, shown by a real browser and by Evidently's own server."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from leitstand.errors import ConfigurationError
from leitstand.files import digest_file
from leitstand.types import DriftReport, DriftScore
from monitors.report_record import WindowReport, project_id, snapshot_id
from monitors.reports import ReportFiles, Subject, build_report
from tests.report_windows_for_tests import LABELS, START, window_table
from tests.servers import free_ports, running, wait_until

HOUR = timedelta(hours=1)
FEW = ["label", "score", "feedback_label"]
REFERENCE = window_table(500, seed=1, feedback=1.0)
DRIFT = DriftReport(
    use_case="support", version=3, window_start=START, window_end=START + HOUR, rows=600, reference_rows=500,
    reference_digest="x", drifted=True,
    scores=(
        DriftScore(detector="mmd", column="embedding", family="embedding", value=0.02, threshold=0.006, p_value=0.001,
            drifted=True, rows=600),
    ),
)  # fmt: skip


def subject(hour: int = 0, title: str = "Support") -> Subject:
    start = START + hour * HOUR
    return Subject(use_case="support", title=title, version=3, start=start, end=start + HOUR)


def build(folder: Path, window: pa.Table, reference: pa.Table = REFERENCE, **options: object) -> ReportFiles:
    return build_report(reference, window, subject=subject(), out=folder / "support", **options)  # type: ignore[arg-type]


def sections(files: ReportFiles) -> list[str]:
    """Titles of the sections, as the page's data has them."""
    found = re.findall(r'"title": ?"(Quality|Predictions|Embeddings|Texts|Service|Data)"', files.html.read_text())
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def full(home: Path) -> ReportFiles:
    """A drifted window of which 300 of 600 rows are drawn."""
    window = window_table(600, seed=2, shift=0.6, feedback=0.3)
    return build(home, window, drift=DRIFT, workspace=home / "evidently", sample_rows=300, seed=4)


def test_a_report_covers_quality_predictions_embeddings_texts_and_data(full: ReportFiles):
    assert sections(full) == ["Quality", "Predictions", "Embeddings", "Texts", "Service", "Data"]
    metrics = full.record.metrics
    assert metrics["Accuracy(classification_name=default)"] == pytest.approx(0.9, abs=0.07)
    drifted = {name for name in metrics if name.startswith("ValueDrift")}
    for column in ("label", "score", "words", "language", "embedding distance", "embedding PC1"):
        assert any(f"column={column}," in name for name in drifted), column


def test_drift_is_measured_alike_in_small_and_large_windows_so_that_the_history_compares(full: ReportFiles):
    methods = {re.sub(r".*method=([^,]*),.*", r"\1", name) for name in full.record.metrics if name.startswith("Value")}
    assert methods == {"wasserstein", "jensenshannon"}


def test_the_face_says_verdict_sampling_and_exactness_and_keeps_them_apart_from_evidentlys_marks(full: ReportFiles):
    face = html.unescape(full.html.read_text().partition("<body>")[2].partition("</section>")[0])
    for text in (
        ">drifted<", "mmd", "300 of the 600 rows of the window, drawn at random", "300 of the 500 rows of the ref",
        "standard error", "Kolmogorov-Smirnov", "Evidently's: distances against its fixed limit", 'href="index.html"',
    ):  # fmt: skip
        assert text in face, text
    assert (full.sampled_from, full.sampled_rows) == (600, 300)


def test_the_record_is_enough_for_machines_and_vouches_for_the_page(full: ReportFiles):
    record = WindowReport.model_validate_json(full.json.read_bytes())
    assert record == full.record and record.verdict == "drifted" and record.drift == DRIFT
    assert record.html_digest == digest_file(full.html)
    assert full.html.with_suffix(".json") == full.json


def test_a_browser_without_a_network_shows_the_whole_report(full: ReportFiles, tmp_path: Path):
    page = full.html.read_text()
    assert "default-src 'none'" in page.partition("<title>")[0]
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", re.sub(r"<script.*?</script>", "", page, flags=re.S))
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "chromium is missing: install it, the report is shown by a real browser"
    shown = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", f"--proxy-server={dead}", "--proxy-bypass-list=<-loopback>",
            "--virtual-time-budget=10000", "--dump-dom", full.html.as_uri(),
        ],
        capture_output=True, text=True, timeout=90, check=True,
    ).stdout  # fmt: skip
    body = re.sub(r"<script.*?</script>", "", shown.partition("</section>")[2], flags=re.S)
    for text in ("Classification Model Performance", "Data Drift Summary", "embedding distance", "Dataset Summary"):
        assert text in body, text


def test_building_the_same_window_again_replaces_it(tmp_path: Path):
    again = [build(tmp_path, window_table(n).select(FEW), workspace=tmp_path / "evidently") for n in (50, 60)]
    assert again[0].html == again[1].html and again[1].record.rows == 60
    (snapshot,) = (tmp_path / "evidently" / str(project_id("support")) / "snapshots").iterdir()
    assert snapshot.name == f"{snapshot_id('support', again[1].record.stem)}.json"
    assert [path.name for path in again[0].html.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("rows", [0, 1, 9])
def test_empty_and_tiny_windows_give_a_page_that_says_so(tmp_path: Path, rows: int):
    files = build(tmp_path, window_table(rows, feedback=1.0), drift=None)
    page = files.html.read_text()
    assert f"The window holds {rows} rows; fewer than 10 are not compared" in page
    assert "Evidently" not in page and files.record.metrics == {}


def test_a_window_of_ten_rows_is_drawn(tmp_path: Path):
    files = build(tmp_path, window_table(10, feedback=1.0))
    assert sections(files) == ["Quality", "Predictions", "Embeddings", "Texts", "Service", "Data"]


def without(table: pa.Table, *names: str) -> pa.Table:
    """The table with these columns null in every row."""
    for name in names:
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(name), pa.nulls(len(table), table.schema.field(name).type))
    return table


def test_constant_and_empty_columns_are_left_out_and_the_rest_is_drawn(tmp_path: Path):
    window = without(window_table(60, seed=2), "words", "digit_share", "language", "latency_ms")
    files = build(tmp_path, window)
    assert sections(files) == ["Predictions", "Embeddings", "Texts", "Data"]
    notes = " ".join(files.record.notes)
    assert "“words” has no value in the window" in notes and "could not draw" not in notes


def test_a_window_with_nothing_but_nulls_still_gives_a_page(tmp_path: Path):
    table = window_table(60, with_embeddings=False)
    names = [name for name in table.schema.names if name not in ("request_id", "at", "embedding", "probabilities")]
    files = build(tmp_path, without(table, *names))
    assert sections(files) == [] and "“score” has no value in the window" in " ".join(files.record.notes)


@pytest.mark.parametrize(
    ("truth", "predicted"), [(0, 0), (0, 1), (None, 0), (None, None)], ids=["one", "swapped", "one answer", "two"]
)
def test_quality_is_drawn_with_one_or_two_labels_and_with_labels_the_model_does_not_know(
    tmp_path: Path, truth: int | None, predicted: int | None
):
    table = window_table(40, feedback=1.0)
    mixed = pa.array([("new label" if i % 2 else LABELS[0]) for i in range(40)])
    for name, choice in (("feedback_label", truth), ("label", predicted)):
        values = mixed if choice is None else pa.array([LABELS[choice]] * 40)
        table = table.set_column(table.schema.get_field_index(name), name, values)
    files = build(tmp_path, table.select(FEW), REFERENCE.select(FEW))
    assert "Quality" in sections(files), files.record.notes
    share = (
        sum(a == b for a, b in zip(table["label"].to_pylist(), table["feedback_label"].to_pylist(), strict=True)) / 40
    )
    assert files.record.metrics["Accuracy(classification_name=default)"] == pytest.approx(share)


def test_without_feedback_the_report_says_why_quality_is_missing(tmp_path: Path):
    files = build(tmp_path, window_table(60).select(FEW), REFERENCE.select(FEW))
    assert "Quality" not in sections(files)
    assert "Quality: 0 rows of the window have a feedback label; 10 are needed." in files.record.notes


def test_a_reference_of_another_schema_writes_nothing(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"reference\.score is missing"):
        build(tmp_path, window_table(60), pa.table({"label": ["a"], "age": [3]}), workspace=tmp_path / "evidently")
    assert list(tmp_path.iterdir()) == []


def test_names_from_outside_cannot_write_into_the_page(tmp_path: Path):
    label = "</script><script>alert(1)</script>"
    window = window_table(60, labels=(label, "b", "c"), feedback=1.0).select(FEW)
    files = build_report(REFERENCE.select(FEW), window, subject=subject(title="<img src=x>"), out=tmp_path)
    page = files.html.read_text()
    assert "<script>alert(1)" not in page and "<img src=x>" not in page


def test_evidentlys_own_ui_lists_the_project_and_its_snapshots(tmp_path: Path):
    workspace = tmp_path / "evidently"
    for hour in (0, 1):
        build_report(
            REFERENCE.select(FEW), window_table(60, seed=hour, feedback=0.5).select(FEW), subject=subject(hour),
            out=tmp_path / "support", workspace=workspace,
        )  # fmt: skip
    port = free_ports(1)[0]
    command = [
        str(Path(sys.executable).with_name("evidently")), "ui", "--host", "127.0.0.1", "--port", str(port),
        "--workspace", str(workspace),
    ]  # fmt: skip

    def ask(path: str) -> object:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=10) as answer:
            return json.load(answer)

    def ready() -> bool:
        try:
            return bool(ask("version"))
        except OSError:
            return False

    log = tmp_path / "log"
    with running(command, log, env=dict(os.environ) | {"DO_NOT_TRACK": "true"}) as process:
        wait_until(ready, process, log, "Evidently's UI")
        (project,) = ask("projects")  # type: ignore[misc]
        assert (project["name"], project["description"]) == ("support", "Support")
        snapshots = ask(f"projects/{project['id']}/reports")
        assert {item["metadata"]["window"][:16] for item in snapshots} == {"2026-11-24 08:00", "2026-11-24 09:00"}  # type: ignore[union-attr]
