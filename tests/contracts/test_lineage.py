"""One contract for every lineage sink, and every event against the OpenLineage schemas, offline."""

import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import structlog
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource

from governance.lineage import (
    Lineage,
    RunRef,
    bento_dataset,
    endpoint_dataset,
    file_dataset,
    model_dataset,
    open_lineage,
    snapshot_dataset,
    source_dataset,
    source_datasets,
)
from governance.lineage_sinks import CompositeSink, FileSink, HttpSink
from leitstand.errors import ConfigurationError, ValidationFailed
from leitstand.settings import LineageSettings, S3Settings, Settings
from leitstand.types import ModelRef, Snapshot
from models.data import ingest
from tests.data_for_tests import sound_rows, use_case, write_data

SPEC = Path(__file__).parents[1] / "fixtures" / "openlineage"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Event = dict[str, Any]


@dataclass
class Marquez:
    """A server that takes lineage events over HTTP and remembers them."""

    url: str
    received: list[tuple[str, Mapping[str, str], Event]]


@contextmanager
def marquez(status: int = 201) -> Iterator[Marquez]:
    received: list[tuple[str, Mapping[str, str], Event]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, dict(self.headers), json.loads(body)))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield Marquez(f"http://127.0.0.1:{server.server_port}", received)
        server.shutdown()
        thread.join()


class ListSink:
    """Keeps events in memory."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Mapping[str, Any]) -> None:
        self.events.append(dict(event))


def lines(path: Path) -> list[Event]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(params=["memory", "file", "http", "composite"])
def sink_and_events(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Callable[[], list[Event]]]]:
    """A sink, and a function that gives what has arrived once it is closed."""
    file = FileSink(tmp_path / "lineage" / "events.jsonl")
    if request.param == "memory":
        memory = ListSink()
        yield memory, lambda: memory.events
    elif request.param == "file":
        yield file, lambda: lines(file.path)
    else:
        with marquez() as server:
            sink = HttpSink(server.url) if request.param == "http" else CompositeSink([file, HttpSink(server.url)])
            yield sink, lambda: [event for _, _, event in server.received]


def test_a_sink_delivers_every_event_unchanged_and_in_order(sink_and_events) -> None:
    sink, events = sink_and_events
    sent = [{"number": number, "text": "Grüße 🙂\n"} for number in range(50)]
    for event in sent:
        sink.emit(event)
    if hasattr(sink, "close"):
        sink.close()
        sink.close()
    assert events() == sent


def test_every_sink_gets_valid_events_of_a_run(sink_and_events) -> None:
    sink, events = sink_and_events
    lineage = Lineage(sink, commit=COMMIT)
    with lineage.run(
        "tiny.train", inputs=[source_dataset("s3://bucket/a/b.csv")], owner="tests", description="x"
    ) as run:
        run.add_output(model_dataset(ModelRef(name="tiny", version=1)))
    lineage.close()
    found = events()
    assert [event["eventType"] for event in found] == ["START", "COMPLETE"]
    assert len({event["run"]["runId"] for event in found}) == 1
    for event in found:
        assert_valid(event)
    assert found[1]["outputs"][0]["name"] == "tiny:1"


# The events


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, sound_rows(20))
    return ingest(use_case(folder), home=folder / "home", s3=S3Settings())


def _schemas() -> dict[str, Any]:
    files = [SPEC / "OpenLineage.json", *sorted((SPEC / "facets").glob("*.json"))]
    return {schema["$id"]: schema for schema in map(json.loads, (file.read_text(encoding="utf-8") for file in files))}


SCHEMAS = _schemas()
REGISTRY: Registry[Any] = Registry().with_resources(
    (uri, Resource.from_contents(schema)) for uri, schema in SCHEMAS.items()
)


def check(instance: Any, uri: str) -> None:
    assert uri.partition("#")[0] in SCHEMAS, f"{uri} is no schema of the specification"
    Draft202012Validator({"$ref": uri}, registry=REGISTRY, format_checker=FormatChecker()).validate(instance)


def facets_of(event: Event) -> Iterator[tuple[str, Event]]:
    holders = [event["run"].get("facets", {}), event["job"].get("facets", {})]
    for dataset in [*event.get("inputs", []), *event.get("outputs", [])]:
        holders += [dataset.get(key, {}) for key in ("facets", "inputFacets", "outputFacets")]
    for holder in holders:
        yield from holder.items()


def assert_valid(event: Event) -> None:
    """The event against the core schema, and each facet against its own, under the name that it gives the facet."""
    check(event, event["schemaURL"])
    for name, facet in facets_of(event):
        check(facet, facet["_schemaURL"])
        assert facet["_producer"] == event["producer"]
        assert name in SCHEMAS[facet["_schemaURL"].partition("#")[0]]["properties"]


def test_the_validation_of_events_would_notice_a_wrong_one() -> None:
    sink = ListSink()
    with Lineage(sink, commit=COMMIT).run("job"):
        pass
    event = sink.events[0]
    event["job"]["facets"]["sourceCodeLocation"].pop("type")
    with pytest.raises(Exception, match="'type' is a required property"):
        assert_valid(event)


def test_ingestion_tells_schema_quality_code_and_versions(snapshot: Snapshot) -> None:
    sink = ListSink()
    lineage = Lineage(sink, commit=COMMIT, source_url="https://code.example/leitstand")
    with lineage.run("tiny.ingest", inputs=source_datasets(snapshot)) as run:
        run.add_output(snapshot_dataset(snapshot))
    start, complete = sink.events
    assert_valid(start)
    assert_valid(complete)
    train = next(item for item in complete["inputs"] if item["name"].endswith("train.csv"))
    assert train["namespace"] == "file"
    assert train["facets"]["version"]["datasetVersion"] == snapshot.source_digests["train"]
    assert train["inputFacets"]["dataQualityMetrics"]["rowCount"] == 20
    assertions = train["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert all(item["success"] for item in assertions)
    assert "train: labels are known" in {item["name"] for item in assertions}
    (output,) = complete["outputs"]
    assert [field["name"] for field in output["facets"]["schema"]["fields"]] == ["text", "label"]
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 30
    assert complete["job"]["facets"]["sourceCodeLocation"]["version"] == COMMIT
    assert complete["job"]["facets"]["sourceCodeLocation"]["repoUrl"] == "https://code.example/leitstand"


def test_what_one_run_writes_is_what_the_next_one_reads(snapshot: Snapshot) -> None:
    sink = ListSink()
    lineage = Lineage(sink)
    with lineage.run("tiny.ingest") as run:
        run.add_output(snapshot_dataset(snapshot))
    with lineage.run("tiny.train", inputs=[snapshot_dataset(snapshot)]):
        pass
    written, read = sink.events[1]["outputs"][0], sink.events[3]["inputs"][0]
    assert (written["namespace"], written["name"]) == (read["namespace"], read["name"])
    assert read["inputFacets"]["dataQualityMetrics"]["rowCount"] == 30
    for event in sink.events:
        assert_valid(event)


def test_an_error_passes_through_after_a_fail_event() -> None:
    sink = ListSink()
    with pytest.raises(ValueError, match="no such"), Lineage(sink).run("tiny.train"):
        raise ValueError("no such column")
    assert [event["eventType"] for event in sink.events] == ["START", "FAIL"]
    assert sink.events[1]["run"]["facets"]["errorMessage"]["message"] == "ValueError: no such column"
    assert_valid(sink.events[1])


def test_a_refused_data_set_is_a_fail_event_that_tells_what_was_wrong(tmp_path: Path) -> None:
    sink = ListSink()
    write_data(tmp_path, sound_rows(4))
    tiny = use_case(tmp_path)
    with pytest.raises(ValidationFailed), Lineage(sink).run("tiny.ingest"):
        ingest(tiny, home=tmp_path / "home", s3=S3Settings())
    event = sink.events[1]
    assert_valid(event)
    train = next(item for item in event["inputs"] if item["name"].endswith("train.csv"))
    failed = [item for item in train["inputFacets"]["dataQualityAssertions"]["assertions"] if not item["success"]]
    assert [item["name"] for item in failed] == ["train: rows"]
    assert (failed[0]["actual"], failed[0]["expected"]) == ("4", "at least 5 (min_rows)")


def test_an_interrupt_is_an_abort() -> None:
    sink = ListSink()
    with pytest.raises(KeyboardInterrupt), Lineage(sink).run("tiny.train"):
        raise KeyboardInterrupt
    assert sink.events[1]["eventType"] == "ABORT"
    assert_valid(sink.events[1])


def test_a_run_inside_another_is_its_child_and_knows_the_root() -> None:
    sink = ListSink()
    lineage = Lineage(sink)
    with lineage.run("tiny.lifecycle") as root, lineage.run("tiny.train") as middle, lineage.run("tiny.epoch"):
        pass
    parent = sink.events[2]["run"]["facets"]["parent"]
    assert (parent["run"]["runId"], parent["job"]["name"]) == (middle.run_id, "tiny.train")
    assert parent["root"]["run"]["runId"] == root.run_id
    assert "parent" not in sink.events[0]["run"]["facets"]
    for event in sink.events:
        assert_valid(event)


def test_a_run_can_belong_to_one_of_another_process() -> None:
    sink = ListSink()
    ref = RunRef("other", "flow", "01234567-89ab-7def-8123-456789abcdef")
    with Lineage(sink).run("tiny.train", parent=ref):
        pass
    assert sink.events[0]["run"]["facets"]["parent"]["job"] == {"namespace": "other", "name": "flow", "facets": {}}
    assert_valid(sink.events[0])


@pytest.mark.parametrize(
    ("dataset", "namespace", "name"),
    [
        (source_dataset("s3://bucket/a/b.csv"), "s3://bucket", "a/b.csv"),
        (source_dataset("/data/a.csv"), "file", "/data/a.csv"),
        (source_dataset("file:///data/a.csv"), "file", "/data/a.csv"),
        (file_dataset(Path("/data/x/report.json")), "file", "/data/x/report.json"),
        (model_dataset(ModelRef(name="support", version=7)), "leitstand.models", "support:7"),
        (bento_dataset("support:abc"), "bentoml", "support:abc"),
        (endpoint_dataset("http://127.0.0.1:3000/v2/models/support"), "http://127.0.0.1:3000", "/v2/models/support"),
        (endpoint_dataset("https://user:secret@host"), "https://host", "/"),
    ],
)
def test_datasets_are_named_by_the_convention(dataset, namespace: str, name: str) -> None:
    assert (dataset.namespace, dataset.name) == (namespace, name)


# Faults


def _emit_many(path: str, name: int) -> None:
    sink = FileSink(Path(path))
    for number in range(50):
        sink.emit({"writer": name, "number": number, "padding": "x" * 5_000})


def test_processes_that_write_one_file_at_once_lose_and_mix_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "events.jsonl"
    writers = [context.Process(target=_emit_many, args=(str(path), name)) for name in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    found = [(event["writer"], event["number"]) for event in lines(path)]
    assert sorted(found) == [(name, number) for name in range(3) for number in range(50)]


def test_a_line_that_a_kill_cut_short_spoils_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"whole": 1}\n{"cut sh')
    FileSink(path).emit({"next": 2})
    assert path.read_text().splitlines() == ['{"whole": 1}', '{"cut sh', '{"next": 2}']


def test_a_file_that_cannot_be_written_is_logged_once_and_does_not_raise(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sink = FileSink(tmp_path / "file" / "events.jsonl")
    with structlog.testing.capture_logs() as logs:
        for number in range(3):
            sink.emit({"number": number})
    assert [log["event"] for log in logs] == ["lineage events are lost"]


def test_an_endpoint_that_nobody_answers_neither_blocks_nor_breaks_the_run() -> None:
    with structlog.testing.capture_logs() as logs:
        sink = HttpSink("http://127.0.0.1:9", timeout_s=0.2, flush_s=1)
        began = time.monotonic()
        for number in range(100):
            sink.emit({"number": number})
        assert time.monotonic() - began < 0.5
        sink.close()
        assert time.monotonic() - began < 3
    assert [log["event"] for log in logs] == ["lineage events are lost"]


def test_an_endpoint_that_refuses_is_logged_once(tmp_path: Path) -> None:
    file = FileSink(tmp_path / "events.jsonl")
    with structlog.testing.capture_logs() as logs, marquez(status=422) as server:
        sink = CompositeSink([HttpSink(server.url), file])
        for number in range(3):
            sink.emit({"number": number})
        sink.close()
        assert len(server.received) == 3
    assert len(logs) == 1
    assert "422" in logs[0]["leitstand"]["error"]
    assert len(lines(file.path)) == 3


def test_a_full_queue_drops_events_instead_of_waiting() -> None:
    with structlog.testing.capture_logs() as logs:
        sink = HttpSink("http://127.0.0.1:9", timeout_s=0.2, capacity=5, flush_s=0.1)
        for number in range(200):
            sink.emit({"number": number})
        sink.close()
    assert logs


def test_settings_open_a_file_and_an_endpoint_with_its_key(tmp_path: Path) -> None:
    with marquez() as server:
        settings = Settings(home=tmp_path, lineage=LineageSettings(url=f"{server.url}/base", api_key="secret"))  # type: ignore[arg-type]
        lineage = open_lineage(settings, commit=COMMIT)
        with lineage.run("tiny.train"):
            pass
        lineage.close()
        (first, headers, event), _ = server.received
    assert first == "/base/api/v1/lineage"
    assert headers["Authorization"] == "Bearer secret"
    assert lines(tmp_path / "lineage" / "events.jsonl")[0] == event
    assert_valid(event)


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="LEITSTAND_LINEAGE__URL"):
        HttpSink("marquez:5000")
