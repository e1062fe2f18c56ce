"""What the log looks like, and where it goes."""

import json
import logging
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import structlog

from leitstand.events import DataIngested, RotatingLog, announce, configure_logging


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    yield
    root.handlers[:] = kept
    root.setLevel(level)


def lines(stream: StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_a_line_of_the_elastic_common_schema() -> None:
    stream = StringIO()
    configure_logging(stream=stream)
    announce(DataIngested(use_case="support", digest="abc", rows=3, quarantined=0))
    (line,) = lines(stream)
    assert list(line)[:3] == ["@timestamp", "log.level", "message"]
    assert (line["log.level"], line["service"]["name"]) == ("info", "leitstand")
    assert line["event"] == {"action": "leitstand.data.ingested"}
    assert line["leitstand"]["digest"] == "abc"
    assert line["ecs.version"]


def test_an_exception_has_its_stack_and_no_local_variables() -> None:
    for style in ("ecs", "console"):
        stream = StringIO()
        configure_logging(stream=stream, style=style)
        secret = "hunter" + "2"
        try:
            raise ValueError("wrong")
        except ValueError:
            structlog.get_logger().exception("It failed")
        assert secret == "hunter2"
        assert "ValueError: wrong" in stream.getvalue()
        assert secret not in stream.getvalue()


def test_libraries_write_the_same_kind_of_line() -> None:
    stream = StringIO()
    configure_logging(stream=stream, libraries=True)
    logging.getLogger("some.library").warning('a "quoted" %s', "word")
    logging.getLogger("some.library").info("not important")
    (line,) = lines(stream)
    assert line["message"] == 'a "quoted" word'
    assert line["log"]["logger"] == "some.library"
    assert line["service"]["name"] == "leitstand"


def test_the_console_is_for_people() -> None:
    stream = StringIO()
    configure_logging(stream=stream, style="console")
    structlog.get_logger().info("Hello", count=3)
    assert "Hello" in stream.getvalue() and "count=3" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_a_full_file_is_rotated_and_no_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "gateway.jsonl"
    stream = RotatingLog(path, max_bytes=2000, backups=2)
    configure_logging(stream=stream)
    for number in range(30):
        structlog.get_logger().info("A line", number=number)
    stream.close()
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["gateway.jsonl", "gateway.jsonl.1", "gateway.jsonl.2"]
    numbers = sorted(json.loads(line)["number"] for file in files for line in file.read_text().splitlines())
    assert numbers == list(range(numbers[0], 30))
    assert all(file.stat().st_size <= 2000 for file in files)
