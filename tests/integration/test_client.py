"""The typed client against a real gateway with a real queue and worker, and against a server that refuses at first."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from leitstand.client import AsyncClient, Client
from leitstand.client_calls import Retries
from leitstand.client_types import Conflict, GatewayUnreachable, InvalidRequest, JobFailed, NotFound, Unavailable
from tests.integration.test_jobs import Site, site_running
from tests.servers import free_ports


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_running(tmp_path_factory.mktemp("client"), "redis", "upstream", "gateway", "worker-0") as made:
        yield made


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    with Client(site.url) as made:
        yield made


def test_a_prediction_and_what_was_right(client: Client) -> None:
    answer = client.predict("support", "a card", "another", request_id="order-17", subject="someone")
    assert [prediction.label for prediction in answer.predictions] == ["card", "card"]
    assert (answer.request_id, answer.version, answer.route) == ("order-17", 1, "stable")
    assert answer.overhead_ms is not None and answer.overhead_ms > 0
    first = client.feedback("support", "order-17", label="pin", source="agent-7", feedback_id="t-1")
    again = client.feedback("support", "order-17", label="pin", source="agent-7", feedback_id="t-1")
    assert (first.recorded, again.recorded, first.known) == (True, False, True)
    with pytest.raises(Conflict):
        client.feedback("support", "order-17", label="fee", source="agent-7", feedback_id="t-1")


def test_refusals_are_exceptions_of_their_kind(client: Client) -> None:
    with pytest.raises(NotFound, match="nobody"):
        client.predict("nobody", "a")
    with pytest.raises(InvalidRequest) as raised:
        client.predict("support", "a", top_k=0)
    assert raised.value.request_id


def test_a_job_is_followed_to_its_answers(client: Client) -> None:
    job = client.submit("support", ["a card"] * 6 + [""], idempotency_key="k-1")
    assert client.submit("support", ["a card"] * 6 + [""], idempotency_key="k-1").id == job.id
    seen = list(client.events("support", job.id))
    assert seen[-1].last and seen[-1].state == "done" and seen[-1].texts_done == 7
    assert list(client.events("support", job.id, after=seen[-1].id)) == []
    answers = client.wait("support", job.id, timeout_s=30)
    assert [answer.label for answer in answers[:6]] == ["card"] * 6
    assert answers[6].error is not None and answers[6].label == ""


def test_a_job_without_a_result_says_why(client: Client) -> None:
    job = client.submit("support", ["slow"] * 40)
    with pytest.raises(Conflict):
        client.result("support", job.id)
    client.cancel("support", job.id)
    with pytest.raises(JobFailed, match="cancelled") as raised:
        client.wait("support", job.id, timeout_s=30)
    assert raised.value.job.id == job.id
    with pytest.raises(NotFound):
        client.job("support", "01900000-0000-7000-8000-000000000000")


async def test_the_asynchronous_client_does_the_same(site: Site) -> None:
    async with AsyncClient(site.url) as client:
        answer = await client.predict("support", "a card")
        assert answer.label == "card"
        assert (await client.feedback("support", answer.request_id, rating=1, source="a")).known
        job = await client.submit("support", ["a card"] * 5)
        assert [event async for event in client.events("support", job.id)][-1].state == "done"
        assert len(await client.wait("support", job.id, timeout_s=30)) == 5
        assert (await client.job("support", job.id)).ended
        with pytest.raises(Conflict):
            await client.cancel("support", job.id)
        with pytest.raises(NotFound):
            await client.predict("nobody", "a")


def test_openais_client_takes_the_options(site: Site) -> None:
    with Client(site.url, token="t") as client, openai.OpenAI(**client.openai_options()) as asked:
        assert list(asked.models.list()) == []


class Scripted(BaseHTTPRequestHandler):
    """Answers what the server's script says, one entry per request, and notes the headers."""

    def do_GET(self) -> None:
        status, headers, body = self.server.script.pop(0)  # type: ignore[attr-defined]
        self.server.seen.append(dict(self.headers))  # type: ignore[attr-defined]
        if status == 0:
            self.close_connection = True
            return
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name is the base class's
        pass


JOB = {"id": "j", "use_case": "support", "state": "running", "texts": 3, "texts_done": 1}


@pytest.fixture
def scripted() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.script, server.seen = [], []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_a_busy_gateway_is_asked_again_after_the_time_that_it_names(scripted: Any) -> None:
    tokens = iter(["old", "new", "newer"])
    scripted.script = [(503, {"Retry-After": "0"}, {"detail": "busy"}), (0, {}, b""), (200, {}, JOB)]
    with Client(url_of(scripted), token=lambda: next(tokens), retries=Retries(first_s=0.01)) as client:
        assert client.job("support", "j").texts_done == 1
    assert [each["authorization"] for each in scripted.seen] == ["Bearer old", "Bearer new", "Bearer newer"]


def test_a_long_wait_is_the_callers_decision(scripted: Any) -> None:
    scripted.script = [(503, {"Retry-After": "600"}, {"detail": "busy"})]
    with Client(url_of(scripted)) as client, pytest.raises(Unavailable) as raised:
        client.job("support", "j")
    assert raised.value.retry_after_s == 600 and len(scripted.seen) == 1


def test_events_go_on_where_they_broke_off(scripted: Any) -> None:
    def event(place: int, kind: str) -> bytes:
        return f'id: {place}-0\nevent: {kind}\ndata: {{"state": "running", "texts_done": {place}}}\n\n'.encode()

    stream = {"content-type": "text/event-stream"}
    scripted.script = [(200, stream, event(1, "progress")), (0, {}, b""), (200, stream, event(2, "end"))]
    with Client(url_of(scripted)) as client:
        assert [each.texts_done for each in client.events("support", "j")] == [1, 2]
    assert [each.get("last-event-id") for each in scripted.seen] == [None, "1-0", "1-0"]


async def test_where_nobody_listens_the_error_says_so() -> None:
    (port,) = free_ports(1)
    rules = Retries(attempts=2, first_s=0.01)
    with (
        Client(f"http://127.0.0.1:{port}", retries=rules) as client,
        pytest.raises(GatewayUnreachable, match=str(port)),
    ):
        client.predict("support", "a")
    async with AsyncClient(f"http://127.0.0.1:{port}", retries=rules) as other:
        with pytest.raises(GatewayUnreachable, match=str(port)):
            await other.predict("support", "a")


def test_the_page_about_the_client_is_true(site: Site, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (project / "docs/how-to/call-the-gateway.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.S)).replace("http://127.0.0.1:8080", site.url)
    exec(compile(code, "call-the-gateway.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("card 0.75 1 ")
    assert "done 2 of 2" in printed and "404 No routes for use case 'nobody'" in printed
    assert printed.splitlines()[-2:] == ["10", "[]"]
