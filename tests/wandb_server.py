"""A local server that speaks as much of W&B's API as ``wandb sync`` and an online run use.

It keeps what it receives (runs, streamed history lines, artifacts, files), so tests see what really leaves
this machine. Like W&B it commits an artifact once per name and digest. It is not W&B: what the real
server validates beyond the key is not checked here.
"""

import base64
import contextlib
import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["KEY", "WandbServer", "wandb_server"]

KEY = "k" * 40


class WandbServer:
    """What arrived: `history` by run id, `artifacts` by (collection, digest), `uploads` by path."""

    def __init__(self) -> None:
        self.url = ""
        self.lock = threading.Lock()
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.artifacts: dict[tuple[str, str], str] = {}
        self.uploads: dict[str, bytes] = {}
        self.operations: list[str] = []

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The ``data`` of a GraphQL answer."""
        self.operations.append(operation)
        handler = getattr(self, f"_on_{operation}", None)
        return handler(variables) if handler else {}

    def _on_UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        run_id = variables["name"] or "unnamed"
        inserted = run_id not in self.runs
        known = self.runs.setdefault(run_id, {})
        known.update({key: value for key, value in variables.items() if value is not None})
        project = {"name": variables.get("project") or "leitstand", "entity": {"name": "team"}}
        bucket = {"id": f"id-{run_id}", "name": run_id, "displayName": run_id, "config": "{}", "project": project}
        return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": inserted}}

    def _on_RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run_id = variables["name"]
        if run_id not in self.runs:
            return {"model": {"bucket": None}}
        lines = self.history.get(run_id, {})
        tail = [json.dumps(lines[max(lines)])] if lines else []
        bucket = {
            "id": f"id-{run_id}", "name": run_id, "summaryMetrics": "{}", "displayName": run_id, "config": "{}",
            "historyLineCount": len(lines), "historyTail": json.dumps(tail), "logLineCount": 0,
            "eventsLineCount": 0, "eventsTail": "[]", "tags": [], "wandbConfig": '{"t": 1}',
        }  # fmt: skip
        return {"model": {"id": "p", "name": "leitstand", "bucket": bucket}}

    def _on_CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        facts = variables["input"]
        key = (facts["artifactCollectionName"], facts["digest"])
        state = "COMMITTED" if key in self.artifacts else "PENDING"
        identity = self.artifacts.get(key) or base64.b64encode("\n".join(key).encode()).decode()
        return {"createArtifact": {"artifact": {"id": identity, "state": state, "artifactSequence": {}}}}

    def _on_CreateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        upload = {"id": "file", "name": "manifest", "displayName": "m", "uploadHeaders": []}
        upload["uploadUrl"] = f"{self.url}/upload/manifest"
        return {"createArtifactManifest": {"artifactManifest": {"id": "manifest", "file": upload}}}

    def _on_CreateArtifactFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        specs = variables["input"]["artifactFiles"] if "input" in variables else variables["artifactFiles"]
        nodes = [
            {
                "id": spec["name"], "name": spec["name"], "displayName": spec["name"], "uploadHeaders": [],
                "uploadUrl": f"{self.url}/upload/{spec['name']}", "storagePath": spec["name"],
                "uploadMultipartUrls": None, "artifact": {"id": spec["artifactID"]},
            }
            for spec in specs
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _on_CommitArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        identity = variables["artifactID"]
        collection, digest = base64.b64decode(identity).decode().split("\n")
        self.artifacts[(collection, digest)] = identity
        return {"commitArtifact": {"artifact": {"id": identity, "digest": digest}}}

    def _on_CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        """Takes one file-stream request: history lines by offset."""
        chunk = body.get("files", {}).get("wandb-history.jsonl")
        if chunk:
            lines = self.history.setdefault(run_id, {})
            for index, line in enumerate(chunk["content"]):
                lines[chunk["offset"] + index] = json.loads(line)
        if body.get("complete"):
            self.runs.setdefault(run_id, {})["exitcode"] = body.get("exitcode")


def _handler(server: WandbServer) -> type[http.server.BaseHTTPRequestHandler]:
    expected = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle()

        def do_POST(self) -> None:
            body = self._body()
            if self.headers.get("Authorization") != expected:
                return self._answer({"errors": [{"message": "permission denied"}]}, 401)
            if self.path.endswith("/file_stream"):
                with server.lock:
                    server.stream(self.path.split("/")[-2], json.loads(body))
                return self._answer({})
            query = json.loads(body)
            operation = query.get("operationName") or query["query"].split()[1].split("(")[0]
            with server.lock:
                data = server.answer(operation, query.get("variables") or {})
            return self._answer({"data": data})

        def do_PUT(self) -> None:
            body = self._body()
            with server.lock:
                server.uploads[self.path.removeprefix("/upload/")] = body
            self._answer({})

        def do_GET(self) -> None:
            self._answer({})

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _answer(self, content: dict[str, Any], status: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


@contextlib.contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Serves on a free port of loopback until the block ends."""
    state = WandbServer()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
