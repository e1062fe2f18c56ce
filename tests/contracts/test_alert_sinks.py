"""What every alert sink promises, against real servers: HTTP, SMTP with STARTTLS, and an Alertmanager."""

import base64
import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from leitstand.errors import BackendError, ConfigurationError, PermanentBackendError, TransientBackendError
from leitstand.ports import AlertSink
from leitstand.settings import AlertSettings, SmtpSettings
from leitstand.types import Alert, Severity
from monitors.alerts import make_alert
from monitors.sinks.alertmanager import AlertmanagerSink
from monitors.sinks.opening import open_sinks
from monitors.sinks.slack import SlackSink
from monitors.sinks.smtp import SmtpSink
from monitors.sinks.webhook import SIGNATURE_HEADER, WebhookSink, signature
from tests.servers import free_ports, running, wait_until

SECRET = "secret-in-the-address"
SINKS = ("webhook", "slack", "alertmanager", "e-mail")


@dataclass
class Told:
    """What a receiver understood."""

    title: str
    text: str
    resolved: bool
    identity: str


@dataclass
class Receiver:
    """A server, a sink that talks to it, and what arrived."""

    sink: AlertSink
    received: Callable[[], list[Told]]
    other: Callable[[int], AlertSink] = field(repr=False)
    """The same sink for another port."""
    answer: Callable[[int], None] | None = None
    """Makes the server answer with these codes, one per request, before it is well again."""


def alert(severity: Severity = Severity.WARNING, **more: Any) -> Alert:
    made = make_alert(
        "quality-loss", "support", severity, "Quality loss: retrain", "accuracy 0.80 < 0.91 & falling <b>",
        now=datetime.now(UTC) - timedelta(minutes=5), runbooks="https://docs.example/runbooks",
    )  # fmt: skip
    return made.model_copy(update=more)


def ended(made: Alert) -> Alert:
    return made.model_copy(update={"resolved": True, "resolved_at": datetime.now(UTC), "notification": 2})


class Inbox(BaseHTTPRequestHandler):
    """Keeps each POST; answers with the codes of `server.codes` first."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        codes = self.server.codes  # type: ignore[attr-defined]
        code = codes.pop(0) if codes else 200
        if code == 200:
            self.server.posts.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))  # type: ignore[attr-defined]
        self.send_response(code)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def http_server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Inbox)
    server.posts, server.codes = [], []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def webhook(stack: ExitStack, tmp_path: Path) -> Receiver:
    server = stack.enter_context(http_server())

    def received() -> list[Told]:
        found = []
        for _, headers, body in server.posts:  # type: ignore[attr-defined]
            assert headers["content-type"].startswith("application/cloudevents+json")
            assert headers[SIGNATURE_HEADER] == signature("key", body)
            event = json.loads(body)
            assert event["specversion"] == "1.0" and event["source"] == "/leitstand/support"
            data = event["data"]
            resolved = event["type"] == "leitstand.alert.resolved"
            found.append(Told(data["title"], f"{data['body']} {data['runbook']}", resolved, event["id"]))
        return found

    def sink(port: int) -> AlertSink:
        return WebhookSink(f"http://127.0.0.1:{port}/{SECRET}", secret="key", timeout_s=0.5)

    return Receiver(sink(server.server_port), received, sink, server.codes.append)  # type: ignore[attr-defined]


def slack(stack: ExitStack, tmp_path: Path) -> Receiver:
    server = stack.enter_context(http_server())

    def received() -> list[Told]:
        found = []
        for _, headers, body in server.posts:  # type: ignore[attr-defined]
            assert headers["content-type"].startswith("application/json")
            message = json.loads(body)
            text = message["attachments"][0]["text"]
            assert "<b>" not in text  # nothing that Slack would interpret
            plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
            found.append(Told(message["text"], plain, message["text"].startswith("[resolved]"), body.decode()))
        return found

    def sink(port: int) -> AlertSink:
        return SlackSink(f"http://127.0.0.1:{port}/services/{SECRET}", timeout_s=0.5)

    return Receiver(sink(server.server_port), received, sink, server.codes.append)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def alertmanager_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    assert program, "Alertmanager is missing: `make test` installs it where apt-get works"
    folder, port = tmp_path_factory.mktemp("alertmanager"), free_ports(1)[0]
    (folder / "config.yml").write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
    command = [
        program, f"--config.file={folder / 'config.yml'}", f"--storage.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/-/ready", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    with running(command, folder / "log") as process:
        wait_until(ready, process, folder / "log", "Alertmanager")
        yield url


def alertmanager(url: str, use_case: str) -> Receiver:
    def received() -> list[Told]:
        everything = httpx.get(f"{url}/api/v2/alerts", params={"active": "true"}, trust_env=False).json()
        own = [a for a in everything if a["labels"]["use_case"] == use_case]
        return [
            Told(
                a["annotations"]["summary"],
                f"{a['annotations']['description']} {a['annotations']['runbook_url']}",
                False,
                a["fingerprint"] + a["labels"]["severity"],
            )
            for a in own
        ]

    def sink(port: int) -> AlertSink:
        return AlertmanagerSink(f"http://127.0.0.1:{port}", timeout_s=0.5)

    return Receiver(AlertmanagerSink(url, timeout_s=5), received, sink)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


class Mailbox:
    """An SMTP server's memory."""

    def __init__(self) -> None:
        self.mails: list[bytes] = []
        self.codes: list[int] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        code = self.codes.pop(0) if self.codes else 250
        if code == 250:
            assert envelope.rcpt_tos == ["ops@example.org", "lead@example.org"]
            self.mails.append(envelope.content)
        return f"{code} says the test"


def check_login(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    return AuthResult(success=(data.login, data.password) == (b"leitstand", SECRET.encode()), handled=False)


def mail_settings(port: int, **more: Any) -> SmtpSettings:
    return SmtpSettings.model_validate(
        {"host": "127.0.0.1", "port": port, "user": "leitstand", "password": SECRET,
         "recipients": ["ops@example.org", "lead@example.org"], **more}
    )  # fmt: skip


def mail(stack: ExitStack, certificate: tuple[Path, Path]) -> Receiver:
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_tls.load_cert_chain(*certificate)
    box = Mailbox()
    controller = Controller(
        box, hostname="127.0.0.1", port=free_ports(1)[0], tls_context=server_tls, require_starttls=True,
        authenticator=check_login, auth_required=True,
    )  # fmt: skip
    controller.start()
    stack.callback(controller.stop)
    trust = ssl.create_default_context(cafile=str(certificate[0]))

    def received() -> list[Told]:
        found = []
        for raw in box.mails:
            parsed = message_from_bytes(raw, policy=policy.default)
            text = " ".join(parsed.get_content().split())
            found.append(
                Told(parsed["subject"], text, parsed["subject"].startswith("[resolved]"), parsed["message-id"])
            )
        return found

    def sink(port: int) -> AlertSink:
        return SmtpSink(mail_settings(port), timeout_s=0.5, tls=trust)

    return Receiver(sink(controller.port), received, sink, box.codes.append)


@pytest.fixture(params=SINKS)
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Receiver]:
    with ExitStack() as stack:
        match request.param:
            case "webhook":
                yield webhook(stack, tmp_path)
            case "slack":
                yield slack(stack, tmp_path)
            case "alertmanager":
                yield alertmanager(request.getfixturevalue("alertmanager_url"), "support")
            case _:
                yield mail(stack, request.getfixturevalue("certificate"))


def test_an_alert_arrives_with_title_text_and_runbook(receiver: Receiver):
    receiver.sink.send(alert())
    (told,) = receiver.received()
    assert "Quality loss: retrain" in told.title and not told.resolved
    assert "accuracy 0.80 < 0.91 & falling <b>" in told.text
    assert "https://docs.example/runbooks/quality-loss.md" in told.text


def test_the_end_of_trouble_arrives_too(receiver: Receiver):
    begun = alert(Severity.CRITICAL)
    receiver.sink.send(begun)
    receiver.sink.send(ended(begun))
    told = receiver.received()
    if receiver.sink.name == "alertmanager":
        assert told == []  # it shows what is firing
    else:
        assert [each.resolved for each in told] == [False, True]


def test_the_same_alert_twice_has_one_identity(receiver: Receiver):
    made = alert()
    receiver.sink.send(made)
    receiver.sink.send(made)
    assert len({told.identity for told in receiver.received()}) == 1


def test_a_server_that_is_not_there_is_a_transient_error_without_secrets(receiver: Receiver):
    with pytest.raises(TransientBackendError) as caught:
        receiver.other(free_ports(1)[0]).send(alert())
    assert SECRET not in str(caught.value) and SECRET not in receiver.sink.name


def test_a_server_that_never_answers_is_left_after_the_time_out(receiver: Receiver):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        begin = time.monotonic()
        with pytest.raises(TransientBackendError):
            receiver.other(silent.getsockname()[1]).send(alert())
        assert time.monotonic() - begin < 60


@pytest.mark.parametrize("name", ["webhook", "slack", "e-mail"])
def test_a_momentary_failure_is_tried_again_and_a_refusal_is_not(
    name: str, tmp_path: Path, certificate: tuple[Path, Path]
):
    momentary, final = ("451", "550") if name == "e-mail" else ("503", "404")
    with ExitStack() as stack:
        made = {"webhook": webhook, "slack": slack}.get(name)
        receiver = made(stack, tmp_path) if made else mail(stack, certificate)
        assert receiver.answer
        for _ in range(2):
            receiver.answer(int(momentary))
        receiver.sink.send(alert())
        assert len(receiver.received()) == 1
        receiver.answer(int(final))
        with pytest.raises(PermanentBackendError, match=final):
            receiver.sink.send(alert())
        for _ in range(3):
            receiver.answer(int(momentary))
        with pytest.raises(TransientBackendError, match=momentary):
            receiver.sink.send(alert())


def test_an_escalation_leaves_one_alert_firing_in_alertmanager(alertmanager_url: str):
    receiver = alertmanager(alertmanager_url, "escalating")
    receiver.sink.send(alert(use_case="escalating", key="escalating/quality-loss"))
    receiver.sink.send(alert(Severity.CRITICAL, use_case="escalating", key="escalating/quality-loss"))
    assert [told.identity.endswith("critical") for told in receiver.received()] == [True]


def test_a_mail_is_not_sent_to_a_server_that_cannot_encrypt_or_is_not_trusted(certificate: tuple[Path, Path]):
    box = Mailbox()
    plain = Controller(box, hostname="127.0.0.1", port=free_ports(1)[0])
    plain.start()
    try:
        with pytest.raises(PermanentBackendError, match="SMTPNotSupportedError"):
            SmtpSink(mail_settings(plain.port), timeout_s=2).send(alert())
        with ExitStack() as stack:
            trusted = mail(stack, certificate)
            with pytest.raises(BackendError, match="SSLCertVerificationError"):
                SmtpSink(mail_settings(trusted.sink._settings.port), timeout_s=2).send(alert())  # type: ignore
            wrong = mail_settings(trusted.sink._settings.port, password="wrong")  # type: ignore[attr-defined]
            trust = ssl.create_default_context(cafile=str(certificate[0]))
            with pytest.raises(PermanentBackendError, match="535"):
                SmtpSink(wrong, timeout_s=2, tls=trust).send(alert())
        SmtpSink(mail_settings(plain.port, user="", starttls=False), timeout_s=2).send(alert(title="one\r\nBcc: x"))
    finally:
        plain.stop()
    parsed = message_from_bytes(box.mails[0], policy=policy.default)
    assert parsed["bcc"] is None and parsed["subject"] == "[warning] one Bcc: x (support)"
    assert base64.b64encode(SECRET.encode()) not in box.mails[0]


def test_settings_open_the_sinks_they_name():
    assert open_sinks(AlertSettings()) == ()
    named = AlertSettings.model_validate(
        {"webhook_url": "https://h/x", "slack_url": "https://h/y", "alertmanager_url": "http://h:9093",
         "smtp": {"host": "h", "recipients": ["a@example.org"]}}
    )  # fmt: skip
    assert [sink.name for sink in open_sinks(named)] == list(SINKS)
    with pytest.raises(ConfigurationError, match=r"alerts\.slack_url is not an HTTP URL") as caught:
        open_sinks(AlertSettings.model_validate({"slack_url": f"slack/{SECRET}"}))
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigurationError, match="no recipients"):
        open_sinks(AlertSettings(smtp=SmtpSettings(host="h")))
