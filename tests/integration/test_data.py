"""From source files to a snapshot or a refusal, with the real validation engine, and from a real S3 server."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from governance.validation_report import ValidationReport
from leitstand.errors import IntegrityError, NotFoundError, ValidationFailed
from leitstand.files import atomic_dir
from leitstand.settings import S3Settings, Settings, quiet_environment
from leitstand.types import Snapshot
from models.data import ingest, latest, load_split, source_digest
from tests.data_for_tests import LABELS, Pair, as_csv, sound_rows, use_case, write_data
from tests.servers import S3Server

S3 = S3Settings()


Rows = Sequence[Pair] | bytes


def ingested(folder: Path, train: Rows, test: Rows | None = None, **data: Any) -> Snapshot:
    write_data(folder / "source", train, test)
    return ingest(use_case(folder / "source", **data), home=folder / "home", s3=S3)


def refused(folder: Path, train: Rows, test: Rows | None = None, **data: Any) -> str:
    """The message of the refusal; checks that the page it names exists and repeats every failure."""
    with pytest.raises(ValidationFailed) as caught:
        ingested(folder, train, test, **data)
    error = caught.value
    assert error.failures
    assert error.hint
    page = Path(error.hint.rpartition(" ")[2])
    assert "rejected" in page.read_text(encoding="utf-8")
    report = ValidationReport.model_validate_json((page.parent / "report.json").read_bytes())
    assert report.failures == list(error.failures)
    assert not (folder / "home" / "data" / "tiny" / "latest").exists()
    return str(error)


def quarantine(snapshot: Snapshot) -> list[dict]:
    assert snapshot.quarantine_file
    return [json.loads(line) for line in snapshot.quarantine_file.read_text(encoding="utf-8").splitlines()]


def test_sound_data_becomes_a_snapshot_that_reads_back(tmp_path: Path) -> None:
    rows = sound_rows(20)
    snapshot = ingested(tmp_path, rows)
    train = load_split(snapshot, "train")
    assert train.texts == [text for text, _ in rows]
    assert [LABELS[index] for index in train.labels] == [label for _, label in rows]
    assert train.labels.dtype == "int64"
    assert snapshot.quarantined == 0
    assert latest("tiny", tmp_path / "home") == snapshot
    page = snapshot.report_html.read_text(encoding="utf-8")  # type: ignore[union-attr]
    assert "CC0-1.0" in page
    assert "src=" not in page
    assert "http" not in page


def test_the_same_rows_in_another_format_give_the_same_snapshot_and_a_new_report(tmp_path: Path) -> None:
    first = ingested(tmp_path, sound_rows(20))
    stored = first.splits["train"].path.stat().st_mtime_ns
    write_data(tmp_path / "other", sound_rows(20), ending=".parquet")
    other = use_case(tmp_path / "other", train="train.parquet", test="test.parquet")
    second = ingest(other, home=tmp_path / "home", s3=S3)
    assert second.digest == first.digest
    assert second.splits == first.splits
    assert second.splits["train"].path.stat().st_mtime_ns == stored
    assert second.sources["train"].endswith("train.parquet")


def test_ingesting_again_changes_nothing(tmp_path: Path) -> None:
    first = ingested(tmp_path, sound_rows(20))
    before = first.report_json.stat().st_mtime_ns  # type: ignore[union-attr]
    assert ingested(tmp_path, sound_rows(20)) == first
    assert first.report_json.stat().st_mtime_ns == before  # type: ignore[union-attr]


def test_damaged_rows_are_noticed_and_mended_by_ingesting_again(tmp_path: Path) -> None:
    snapshot = ingested(tmp_path, sound_rows(20))
    path = snapshot.splits["train"].path
    path.write_bytes(snapshot.splits["test"].path.read_bytes())
    with pytest.raises(IntegrityError, match=r"train\.parquet"):
        load_split(snapshot, "train")
    path.write_bytes(b"PAR1")
    with pytest.raises(IntegrityError, match=r"train\.parquet"):
        load_split(snapshot, "train")
    assert len(load_split(ingested(tmp_path, sound_rows(20)), "train").texts) == 20


def test_a_few_bad_rows_are_set_aside_with_their_reasons(tmp_path: Path) -> None:
    bad: list[Pair] = [
        ("", "card"), ("🙂" * 8, "card"), ("bell\x07 rings at the bank", "card"), ("y" * 10_000_000, "card"),
        ("where is my money?", "unheard of"), ("caf\udce9 au lait in the bank", "card"),
    ]  # fmt: skip
    snapshot = ingested(tmp_path, as_csv(sound_rows(40) + bad))
    assert snapshot.quarantined == len(bad)
    assert snapshot.splits["train"].rows == 40
    assert [line["reason"] for line in quarantine(snapshot)] == [
        "empty", "no_letters", "control_characters", "too_long", "unknown_label", "not_utf8",
    ]  # fmt: skip
    assert [line["number"] for line in quarantine(snapshot)] == list(range(41, 47))
    assert snapshot.quarantine_file.stat().st_size < 5_000  # type: ignore[union-attr]


def test_texts_that_stand_in_test_leave_train_and_do_not_count_as_quarantined(tmp_path: Path) -> None:
    test = sound_rows(19, start=100)
    snapshot = ingested(tmp_path, [*sound_rows(20), ("  " + str(test[0][0]), test[0][1])], test)
    assert snapshot.quarantined == 0
    assert snapshot.splits["train"].rows == 20
    assert snapshot.splits["test"].rows == 19
    assert [line["reason"] for line in quarantine(snapshot)] == ["also_in_test"]
    report = ValidationReport.model_validate_json(snapshot.report_json.read_bytes())  # type: ignore[union-attr]
    assert (report.leaked_exact, report.leaked_stripped, report.leaked_normalised) == (0, 1, 1)


def test_missing_columns_are_refused_with_those_there_are_and_the_closest(tmp_path: Path) -> None:
    message = refused(tmp_path, as_csv(sound_rows(20), ("text", "lable")))
    assert "train: column 'label': observed only text, lable in" in message
    assert "did you mean 'lable'?" in message


def test_unknown_labels_are_refused_by_name_and_number(tmp_path: Path) -> None:
    rows = sound_rows(20) + [(str(text), "cards") for text, _ in sound_rows(10, start=50)]
    message = refused(tmp_path, rows)
    assert "train: labels are known: observed 10 of 30 (33.33%): 'cards' in 10, did you mean 'card'?" in message
    assert "allowed at most 20.00% of rows (max_quarantined)" in message
    assert "train: quarantined rows: observed 10 of 30 (33.33%): unknown_label 10;" in message


def test_labels_that_differ_by_a_digit_are_told_apart(tmp_path: Path) -> None:
    def numbered(rows: Sequence[Pair], label: str) -> list[Pair]:
        return [(text, label if number % 2 else "tier 1") for number, (text, _) in enumerate(rows)]

    test = numbered(sound_rows(10, start=100), "tier 2")
    labels = ["tier 1", "tier 2"]
    assert ingested(tmp_path / "a", numbered(sound_rows(20), "tier 2"), test, labels=labels).quarantined == 0
    message = refused(tmp_path / "b", numbered(sound_rows(20), "tier 3"), test, labels=labels)
    assert "labels are known: observed 10 of 20 (50.00%): 'tier #' in 10" in message


def test_another_encoding_is_refused_with_file_and_byte(tmp_path: Path) -> None:
    rows = [(f"Ich hätte gern Auskunft Nummer {number}", "card") for number in range(20)]
    data = as_csv(rows).decode().encode("latin-1")
    message = refused(tmp_path, data)
    assert f"the first at byte offset {data.index(0xE4)} of {tmp_path / 'source' / 'train.csv'}" in message


@pytest.mark.parametrize(
    ("data", "named"), [(b"", "the file is empty"), (b"text,label\nx\n", "line 2: 1 fields, but the header has 2")]
)
def test_a_file_that_cannot_be_read_is_refused_with_a_report(tmp_path: Path, data: bytes, named: str) -> None:
    assert named in refused(tmp_path, data)


@pytest.mark.parametrize(
    ("train", "limits", "named"),
    [
        (b"text,label\n", {}, "train: rows: observed 0; allowed at least 5 (min_rows)"),
        (sound_rows(4), {}, "train: rows: observed 4; allowed at least 5 (min_rows)"),
        (sound_rows(20) * 2, {"max_duplicates": 0.1}, "train: duplicates: observed 20 of 40 (50.00%)"),
        ([(text, "card") for text, _ in sound_rows(20)], {}, "train: rows per label: observed 0 for 'refund'"),
        (sound_rows(20, start=100), {}, "test: leakage into train: observed 10 of 10 (100.00%)"),
        (
            [(f"Wann kommt meine neue Karte Nummer {number} endlich an?", LABELS[number % 2]) for number in range(20)],
            {},
            "train: language: observed 20 of 20 (100.00%)",
        ),
    ],
    ids=["no rows", "rows", "duplicates", "labels", "leakage", "language"],
)
def test_each_limit_refuses_with_observed_and_allowed(tmp_path: Path, train, limits, named: str) -> None:
    assert named in refused(tmp_path, train, expectations=limits)


def test_source_digest_follows_bytes_labels_and_limits(tmp_path: Path) -> None:
    write_data(tmp_path, sound_rows(20))
    first = source_digest(use_case(tmp_path), S3)
    assert source_digest(use_case(tmp_path), S3) == first
    assert source_digest(use_case(tmp_path, expectations={"min_rows": 6}), S3) != first
    assert source_digest(use_case(tmp_path, labels=["refund", "card"]), S3) != first
    write_data(tmp_path, sound_rows(21))
    assert source_digest(use_case(tmp_path), S3) != first


def test_without_an_ingestion_there_is_no_latest(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="tiny"):
        latest("tiny", tmp_path)


def test_data_is_read_from_s3(tmp_path: Path, s3_server: S3Server) -> None:
    from models.blobs.s3 import S3BlobStore

    write_data(tmp_path / "source", sound_rows(20), ending=".jsonl")
    prefix = s3_server.prefix()
    store = S3BlobStore(prefix, s3_server.settings)
    for name in ("train.jsonl", "test.jsonl"):
        store.put_file(name, tmp_path / "source" / name)
    remote = use_case(tmp_path, train=f"{prefix}/train.jsonl", test=f"{prefix}/test.jsonl")
    snapshot = ingest(remote, home=tmp_path / "home", s3=s3_server.settings)
    assert snapshot.sources["train"] == f"{prefix}/train.jsonl"
    assert snapshot.digest == ingested(tmp_path, sound_rows(20)).digest
    gone = use_case(tmp_path, train=f"{prefix}/gone.jsonl", test=f"{prefix}/test.jsonl")
    with pytest.raises(NotFoundError, match=r"gone\.jsonl"):
        ingest(gone, home=tmp_path / "home", s3=s3_server.settings)


def test_writers_that_store_the_same_folder_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    target, start = tmp_path / "snapshot", threading.Barrier(8)

    def store(_: int) -> None:
        start.wait()
        for _ in range(25):
            with atomic_dir(target) as part:
                for name in ("a", "b"):
                    (part / name).write_text(name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store, range(8)))
    assert sorted(path.name for path in target.iterdir()) == ["a", "b"]
    assert list(tmp_path.iterdir()) == [target]


def test_the_command_validates_and_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    from typer.testing import CliRunner

    from leitstand.commands.data import app

    folder = tmp_path / "usecases" / "tiny"
    shutil.copytree(project / "usecases" / "support", folder)
    text = (folder / "usecase.yaml").read_text(encoding="utf-8")
    (folder / "usecase.yaml").write_text(text.replace("name: support", "name: tiny"), encoding="utf-8")
    for name in quiet_environment(Settings()):  # so that what the command sets is taken back afterwards
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("LEITSTAND_HOME", str(tmp_path))
    monkeypatch.setenv("LEITSTAND_USECASES", str(folder.parent))
    runner = CliRunner()
    result = runner.invoke(app, ["validate", "tiny", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["rows"] == {"train": 9996, "test": 3080}
    assert (facts["quarantined"], facts["leaked"], facts["labels"]) == (0, 7, 77)
    assert json.loads(runner.invoke(app, ["show", "tiny", "--json"]).stdout) == facts
    assert "train 9,996, test 3,080" in runner.invoke(app, ["show", "tiny"]).stdout
    (folder / "data" / "train.csv").write_text("text,kind\n")
    failed = runner.invoke(app, ["validate", "tiny", "--json"])
    assert isinstance(failed.exception, ValidationFailed)
    assert "column 'category'" in json.loads(failed.stdout)["failures"][0]


STORE_FOREVER = """
import sys
from pathlib import Path
from governance.rows import Row
from governance.validation_report import ValidationReport
from models.snapshots import store_snapshot
rows = [Row(number, f"text number {number} " * 20, "card") for number in range(200_000)]
report = ValidationReport(
    use_case="tiny", passed=True, source_digest="sha256:" + "0" * 64, licence="", attribution="", results=(), splits={}
)
store_snapshot(Path(sys.argv[1]), ["card"], {"train": rows, "test": rows}, report, [])
"""


def test_a_kill_while_storing_leaves_no_snapshot(tmp_path: Path, project: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", STORE_FOREVER, str(tmp_path)], cwd=project)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*.part/train.parquet")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("[!.]*"))
