"""A small API server: enough of Kubernetes' verbs for kubectl to apply, list, watch and delete two kinds.

No controllers run behind it: a Deployment is available as soon as it is applied, unless its image says ``dead``.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

KINDS = {"deployments": ("apps/v1", "Deployment"), "services": ("v1", "Service")}


class Api(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.calls: list[str] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def do_GET(self) -> None:
        parts, query = self._asked()
        match parts:
            case ["api"]:
                self._answer({"kind": "APIVersions", "versions": ["v1"]})
            case ["apis"]:
                version = {"groupVersion": "apps/v1", "version": "v1"}
                group = {"name": "apps", "versions": [version], "preferredVersion": version}
                self._answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]})
            case ["api", "v1"]:
                self._answer(_resources("v1", "services", "Service"))
            case ["apis", "apps", "v1"]:
                self._answer(_resources("apps/v1", "deployments", "Deployment"))
            case [*_, "namespaces", _, kind]:
                self._list(kind, query)
            case [*_, "namespaces", _, kind, name]:
                found = self.server.objects.get((kind, name))
                self._answer(found) if found else self._missing(name)
            case _:
                self._missing(self.path)

    def do_PATCH(self) -> None:
        parts, query = self._asked()
        kind, name = parts[-2:]
        assert query["fieldManager"] == ["leitstand"]
        assert "apply-patch" in self.headers["content-type"]
        given = yaml.safe_load(self._body())
        metadata = given["metadata"] | {"generation": 1, "resourceVersion": "1", "uid": f"{kind}-{name}"}
        self.server.objects[kind, name] = given | {"metadata": metadata} | _status(kind, given)
        self._answer(self.server.objects[kind, name])

    def do_DELETE(self) -> None:
        kind, name = self._asked()[0][-2:]
        self._body()
        found = self.server.objects.pop((kind, name), None)
        self._answer({"kind": "Status", "apiVersion": "v1", "status": "Success"}) if found else self._missing(name)

    def _list(self, kind: str, query: dict[str, list[str]]) -> None:
        wanted = dict(part.split("=") for part in query.get("labelSelector", [""])[0].split(",") if part)
        name = query.get("fieldSelector", [""])[0].removeprefix("metadata.name=")
        version, singular = KINDS[kind]
        items = [
            item for (its_kind, its_name), item in self.server.objects.items()
            if its_kind == kind and name in ("", its_name) and wanted.items() <= item["metadata"]["labels"].items()
        ]  # fmt: skip
        if query.get("watch") == ["true"]:
            self._answer(None)
            return
        self._answer(
            {"kind": f"{singular}List", "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items}
        )

    def _asked(self) -> tuple[list[str], dict[str, list[str]]]:
        url = urlsplit(self.path)
        self.server.calls.append(f"{self.command} {url.path}")
        return url.path.strip("/").split("/"), parse_qs(url.query)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _missing(self, what: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
            "message": f"{what} not found", "details": {"name": what}}  # fmt: skip
        self._answer(status, 404)

    def _answer(self, document: dict[str, Any] | None, status: int = 200) -> None:
        content = json.dumps(document).encode() if document is not None else b""
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _resources(version: str, name: str, kind: str) -> dict[str, Any]:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    resource = {"name": name, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": [resource]}


def _status(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    if kind != "deployments":
        return {}
    count = given["spec"]["replicas"]
    dead = "dead" in given["spec"]["template"]["spec"]["containers"][0]["image"]
    ready = 0 if dead else count
    return {
        "status": {"observedGeneration": 1, "replicas": count, "updatedReplicas": count,
            "readyReplicas": ready, "availableReplicas": ready}
    }  # fmt: skip


@contextmanager
def serving() -> Iterator[Api]:
    """The server, on a free loopback port."""
    api = Api()
    thread = threading.Thread(target=api.serve_forever)
    thread.start()
    try:
        yield api
    finally:
        api.shutdown()
        thread.join()
        api.server_close()
