"""The log's way out, with a real rsyslog: into Elasticsearch's bulk protocol and Datadog's TCP intake."""

import gzip
import json
import os
import socketserver
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import structlog
import yaml

from leitstand.events import RotatingLog, configure_logging
from tests.gateway_processes import until
from tests.servers import free_ports, running, system_tool

FOLDER = Path(__file__).parents[2] / "deploy" / "logging"


@contextmanager
def elastic(port: int, got: list[tuple[dict, dict]]) -> Iterator[None]:
    """Takes bulk requests as Elasticsearch does: an action line, a document line, and so on."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({"status": "green"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            lines = [json.loads(line) for line in body.splitlines() if line]
            got.extend(zip(lines[::2], lines[1::2], strict=True))
            self.answer({"errors": False, "items": [{"index": {"status": 201}} for _ in lines[::2]]})

        def do_HEAD(self) -> None:
            self.answer({})

        def answer(self, document: dict) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        yield from _served(server)


@contextmanager
def intake(port: int, got: list[str]) -> Iterator[None]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                got.append(line.decode().rstrip("\n"))

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address, daemon_threads, block_on_close = True, True, False

    with Server(("127.0.0.1", port), Handler) as server:
        yield from _served(server)


def _served(server: socketserver.BaseServer) -> Iterator[None]:
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def rsyslog(tmp_path: Path, config: str, **settings: str) -> Iterator[None]:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    environment = os.environ | {
        "LEITSTAND_LOGS": str(tmp_path / "logs" / "*.jsonl"), "RSYSLOG_WORK": str(work),
    } | settings  # fmt: skip
    command = [system_tool("rsyslogd"), "-n", "-f", str(FOLDER / config), "-i", str(tmp_path / "pid")]
    checked = subprocess.run([*command, "-N1"], env=environment, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    with running(command, tmp_path / "rsyslog.log", env=environment) as process:
        yield
        process.terminate()
        process.wait(20)


def write(stream: RotatingLog, start: int, count: int) -> None:
    configure_logging(stream=stream)
    for number in range(start, start + count):
        structlog.get_logger().info('A "quoted" line, ü', **{"event.sequence": number, "trace.id": f"{number:032x}"})


def numbers(documents: list[dict]) -> list[int]:
    return sorted(document["event"]["sequence"] for document in documents)


def test_lines_reach_elasticsearch_also_those_written_while_it_was_away_or_rotated(tmp_path: Path) -> None:
    got: list[tuple[dict, dict]] = []
    (port,) = free_ports(1)
    stream = RotatingLog(tmp_path / "logs" / "gateway.jsonl", max_bytes=200_000, backups=3)
    write(stream, 0, 50)
    settings = {"ELASTIC_URL": f"http://127.0.0.1:{port}", "ELASTIC_USER": "u", "ELASTIC_PASSWORD": "p"}
    with rsyslog(tmp_path, "rsyslog-elasticsearch.conf", **settings):
        with elastic(port, got):
            until(lambda: len(got) == 50, "the first lines")
        write(stream, 50, 50)
        with elastic(port, got):
            until(lambda: len({each["event"]["sequence"] for _, each in got}) == 100, "the lines of the gap")
    stream.close()
    action, document = got[0]
    assert action["index"]["_index"] == "leitstand-logs"
    assert document["message"] == 'A "quoted" line, ü' and document["log.level"] == "info"
    assert set(numbers([each for _, each in got])) == set(range(100))


def test_lines_reach_datadogs_intake_with_the_key_in_front(tmp_path: Path) -> None:
    got: list[str] = []
    (port,) = free_ports(1)
    stream = RotatingLog(tmp_path / "logs" / "gateway.jsonl", max_bytes=10**6, backups=3)
    write(stream, 0, 50)
    settings = {"DATADOG_HOST": "127.0.0.1", "DATADOG_PORT": str(port), "DATADOG_KEY": "k" * 32,
        "RSYSLOG_DRIVER": "ptcp", "RSYSLOG_TLS": "0"}  # fmt: skip
    with intake(port, got), rsyslog(tmp_path, "rsyslog-datadog.conf", **settings):
        until(lambda: len(got) == 50, "the lines")
    stream.close()
    keys, lines = zip(*(line.split(" ", 1) for line in got), strict=True)
    assert set(keys) == {"k" * 32}
    assert numbers([json.loads(line) for line in lines]) == list(range(50))


def test_the_other_shippers_files_read_the_same_log_and_hold_no_secret() -> None:
    for name in ("fluent-bit.yaml", "vector.yaml"):
        text = (FOLDER / name).read_text()
        document = yaml.safe_load(text)
        assert document and "logs/*.jsonl" in text
        assert "${DATADOG_KEY}" in text and "${ELASTIC_PASSWORD}" in text
