"""The index of drift reports: rebuilt from records on disk, whatever their state."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from leitstand.errors import NotFoundError
from leitstand.settings import BlobSettings, Settings
from leitstand.types import DriftReport, DriftScore, Metric
from models.blobs.filesystem import FilesystemBlobStore
from monitors.report_charts import accuracy_chart, excess, score_chart, strongest
from monitors.report_index import Retention, read_records, retain, write_index
from monitors.report_record import WindowReport, file_stem, snapshot_path
from monitors.report_store import publish, publishes, withdraw

START = datetime(2026, 11, 24, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)
NOW = START + timedelta(days=1)


def score(value: float = 0.1, threshold: float = 0.2, *, drifted: bool = False, column: str = "words") -> DriftScore:
    return DriftScore(
        detector="psi", column=column, family="input", value=value, threshold=threshold, drifted=drifted, rows=900
    )


def report(
    hour: int = 0, *, scores: tuple[DriftScore, ...] | None = (score(),), insufficient: str = "",
    length: timedelta = HOUR, version: int = 3, estimated: float | None = None, title: str = "Support",
) -> WindowReport:  # fmt: skip
    start, end = START + hour * HOUR, START + hour * HOUR + length
    drift = None
    if scores is not None:
        drift = DriftReport(
            use_case="support", version=version, window_start=start, window_end=end, rows=900, reference_rows=3000,
            reference_digest="x", scores=scores, drifted=any(s.drifted for s in scores), insufficient=insufficient,
            estimated_accuracy=Metric(name="accuracy", value=estimated, examples=900) if estimated else None,
            reference_accuracy=0.93,
        )  # fmt: skip
    return WindowReport(
        use_case="support", title=title, version=version, window_start=start, window_end=end, rows=900,
        reference_rows=3000, labelled_rows=0, sampled_rows=900, sampled_reference_rows=3000, sampling="All.",
        drift=drift, html=file_stem(start, end, version) + ".html", html_digest="", built_at=end, seconds=1.0,
    )  # fmt: skip


def save(folder: Path, *reports: WindowReport, page: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for each in reports:
        (folder / f"{each.stem}.json").write_text(each.model_dump_json())
        if page:
            (folder / each.html).write_text("<p>page</p>")


def test_windows_stand_newest_first_with_links_that_lead_somewhere(tmp_path: Path):
    save(tmp_path, report(0), report(2), report(1))
    page = write_index(tmp_path, "support", title="Support", now=NOW).read_text()
    assert page.index("2026-11-24 10:00") < page.index("2026-11-24 09:00 <") < page.index("2026-11-24 08:00 <")
    for part in page.split('href="')[1:]:
        assert (tmp_path / part.split('"')[0]).is_file()


def test_the_verdict_is_the_detectors_and_every_kind_is_shown(tmp_path: Path):
    kinds = [
        report(0), report(1, scores=(score(0.5, drifted=True),)),
        report(2, scores=(), insufficient="12 rows, 500 needed"),
        report(3, scores=None),
    ]  # fmt: skip
    assert [each.verdict for each in kinds] == ["ok", "drifted", "insufficient", "not judged"]
    save(tmp_path, *kinds)
    page = write_index(tmp_path, "support", title="Support", now=NOW).read_text()
    for text in (">ok<", ">drifted<", ">insufficient<", ">not judged<", "12 rows, 500 needed"):
        assert text in page


def test_damaged_and_interrupted_files_are_named_and_stop_nothing(tmp_path: Path):
    save(tmp_path, report(0))
    (tmp_path / "cut.json").write_text('{"schema_version": 1, "use')
    (tmp_path / "newer.json").write_text(
        report(1).model_dump_json().replace('"schema_version":1', '"schema_version":9')
    )
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "orphan.html").write_text("x")
    save(tmp_path, report(5), page=False)
    reports, problems = read_records(tmp_path)
    assert [each.window_start.hour for each in reports] == [13, 8]
    assert {name for name, _ in problems} == {"cut.json", "newer.json", "folder.json", "orphan.html"}
    page = write_index(tmp_path, "support", title="Support", now=NOW).read_text()
    assert "no longer kept" in page and "schema_version" in page and "cut.json" in page


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path):
    page = write_index(tmp_path / "support", "support", title="Support", now=NOW).read_text()
    assert "No reports yet" in page and "drift-report/support" in page


def test_values_from_records_are_escaped(tmp_path: Path):
    save(tmp_path, report(0, scores=(score(0.5, drifted=True, column="<script>"),), title="<b>"))
    page = write_index(tmp_path, "support", title="<b>", now=NOW).read_text()
    assert "<script>" not in page and "<b>:" not in page and "&lt;script&gt;" in page


def test_the_page_needs_no_network_and_no_script(tmp_path: Path):
    save(tmp_path, report(0), report(1, estimated=0.9))
    page = write_index(tmp_path, "support", title="Support", now=NOW).read_text()
    assert "http://" not in page and "https://" not in page and "<script" not in page


@pytest.mark.parametrize(
    ("value", "threshold", "drifted", "expected"),
    [
        (0.4, 0.2, True, 2.0), (0.1, 0.2, False, 0.5), (0.8, 0.9, True, 1.125), (0.99, 0.9, False, 0.909),
        (0.0, 0.2, False, None), (0.2, 0.0, True, None), (-1.0, 0.2, False, None), (float("inf"), 1.0, True, None),
    ],
)  # fmt: skip
def test_excess_is_one_at_the_threshold_whichever_side_is_bad(
    value: float, threshold: float, drifted: bool, expected: float | None
):
    found = excess(score(value, threshold, drifted=drifted))
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-3))


def test_the_strongest_score_is_one_that_drifted_if_any_did():
    near, beyond = score(0.19, 0.2), score(0.0, 0.0, drifted=True, column="language")
    assert strongest(report(scores=(near, beyond))) == beyond
    assert strongest(report(scores=None)) is None


def test_charts_stay_inside_their_frame_and_break_the_line_at_a_new_version():
    chart = score_chart([report(0), report(1, scores=(score(1e9, 1e-3, drifted=True),)), report(2, version=4)])
    assert chart is not None
    (series,) = chart.series
    assert len(series["runs"]) == 2
    for x, y, _, _ in series["dots"]:
        assert 0 <= x <= chart.width and 0 <= y <= chart.height
    assert score_chart([report(0, scores=None)]) is None and accuracy_chart([report(0)]) is None
    one = accuracy_chart([report(0, estimated=1.0)])
    assert one is not None and one.has_reference


def test_hourly_and_nightly_reports_of_one_start_have_files_of_their_own():
    stems = {report(0).stem, report(0, length=timedelta(days=1)).stem, report(0, version=4).stem,
        report(0, length=timedelta(seconds=90)).stem}  # fmt: skip
    assert len(stems) == 4
    assert report(0).stem == "20261124T080000Z-60m-v3"


def test_retention_drops_pages_first_then_records_and_keeps_remarkable_windows_longer(tmp_path: Path):
    folder, workspace = tmp_path / "support", tmp_path / "evidently"
    plain, drifted, nightly, newest = (
        report(0), report(1, scores=(score(0.5, drifted=True),)), report(2, length=timedelta(hours=24)), report(40),
    )  # fmt: skip
    save(folder, plain, drifted, nightly, newest)
    (folder / "notes.json").write_text("{}")
    snapshot = snapshot_path(workspace, "support", plain.stem)
    snapshot.parent.mkdir(parents=True)
    snapshot.write_text("{}")
    removed = retain(folder, Retention(), now=START + timedelta(days=10), workspace=workspace)
    assert removed == [plain.html] and not snapshot.exists()
    removed = retain(folder, Retention(), now=START + timedelta(days=400), workspace=workspace)
    assert {newest.html, f"{newest.stem}.json", "notes.json"} == {p.name for p in folder.iterdir()}
    assert f"{plain.stem}.json" in removed and drifted.html in removed
    assert retain(folder, Retention(), now=START + timedelta(days=400)) == []


def test_publishing_keeps_names_and_withdrawing_follows_retention(tmp_path: Path):
    folder, blobs = tmp_path / "support", FilesystemBlobStore(tmp_path / "bucket")
    one = report(0)
    save(folder, one)
    write_index(folder, "support", title="Support", now=NOW)
    keys = publish(blobs, folder, "support", [one.stem])
    assert keys == [f"reports/support/{one.html}", f"reports/support/{one.stem}.json", "reports/support/index.html"]
    assert list(blobs.list("reports/")) == sorted(keys)
    withdraw(blobs, "support", [one.html, "never-there.html"])
    assert one.html not in str(list(blobs.list()))


def test_a_report_that_was_not_built_cannot_be_published_and_nothing_is_stored(tmp_path: Path):
    blobs = FilesystemBlobStore(tmp_path / "bucket")
    save(tmp_path / "support", report(0))
    with pytest.raises(NotFoundError, match="missing-stem"):
        publish(blobs, tmp_path / "support", "support", [report(0).stem, "missing-stem"])
    assert list(blobs.list()) == []


def test_reports_are_published_only_where_the_settings_name_a_store(tmp_path: Path):
    assert not publishes(Settings(home=tmp_path))
    assert publishes(Settings(home=tmp_path, blobs=BlobSettings(uri="s3://bucket/prefix")))
