"""`leitstand reports`: what it prints, and what it says when there is nothing."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from leitstand.commands.reports import app
from leitstand.errors import NotFoundError
from monitors.report_index import write_index
from monitors.report_record import WindowReport, file_stem

START = datetime(2026, 11, 24, 8, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reports of `support`: two windows, of which the older has lost its page."""
    monkeypatch.setenv("LEITSTAND_HOME", str(tmp_path))
    monkeypatch.setenv("LEITSTAND_USECASES", str(project / "usecases"))
    folder = tmp_path / "reports" / "support"
    folder.mkdir(parents=True)
    for hour in (0, 1):
        start, end = START + timedelta(hours=hour), START + timedelta(hours=hour + 1)
        report = WindowReport(
            use_case="support", title="Support", version=3, window_start=start, window_end=end, rows=1200,
            reference_rows=3000, labelled_rows=40, sampled_rows=1200, sampled_reference_rows=3000, sampling="All.",
            html=file_stem(start, end, 3) + ".html", html_digest="", built_at=end, seconds=1.0,
        )  # fmt: skip
        (folder / f"{report.stem}.json").write_text(report.model_dump_json())
        if hour:
            (folder / report.html).write_text("page")
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_list_shows_newest_first_and_json_is_for_machines(folder: Path):
    lines = run("list", "support").stdout.splitlines()
    assert lines[1].startswith("20261124T090000Z-60m-v3") and "not judged" in lines[1] and "1,200" in lines[1]
    (newest,) = json.loads(run("list", "support", "--limit", "1", "--json").stdout)
    assert (newest["verdict"], newest["window_start"]) == ("not judged", "2026-11-24T09:00:00Z")


def test_path_prints_the_index_the_latest_and_a_named_report(folder: Path):
    write_index(folder, "support", title="Support", now=START)
    assert run("path", "support").stdout.strip() == str(folder / "index.html")
    for name in ("latest", "20261124T09"):
        assert run("path", "support", name).stdout.strip() == str(folder / "20261124T090000Z-60m-v3.html")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["path", "support"], "index.html"),
        (["path", "support", "20261124T08"], "removed by retention"),
        (["path", "support", "2025"], "leitstand reports list support"),
        (["list", "suport"], "did you mean 'support'"),
        (["ui"], "build a report first"),
    ],
)
def test_what_is_not_there_is_said_with_the_next_step(folder: Path, arguments: list[str], said: str):
    with pytest.raises(NotFoundError) as caught:
        run(*arguments)
    assert said in str(caught.value)


def test_a_damaged_record_is_named_on_stderr_and_the_rest_is_listed(folder: Path):
    (folder / "cut.json").write_text("{")
    done = run("list", "support")
    assert "cut.json" in done.stderr and "20261124T090000Z" in done.stdout
