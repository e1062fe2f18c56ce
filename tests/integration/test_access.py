"""A protected gateway as a process: keys that come and go, tokens of this machine, TLS on both sides, and exposure."""

import io
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from joserfc.jwe import JWERegistry, decrypt_compact, encrypt_compact
from joserfc.jwk import ECKey

from governance.routes.opening import open_route_store
from leitstand.cli import main
from leitstand.errors import TransientBackendError
from leitstand.own_calls import ask_gateway
from leitstand.settings import AccessSettings, Settings
from leitstand.specs.access import AccessSpec
from leitstand.types import RouteTable, Target, utc_now
from services.payload_encryption import HEADERS
from tests.certificates import Authority
from tests.gateway_processes import Gateway, Upstream, answers, gateway_running, until
from tests.servers import free_ports, running, wait_until

REQUIRED = {"LEITSTAND_ACCESS__MODE": "required"}
BODY = {"texts": ["a card"]}


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def leitstand(home: Path, *arguments: str, **settings: str) -> Done:
    """Runs the command in this process: starting another costs more than what it does."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["leitstand", *arguments])
        for name, value in {"LEITSTAND_HOME": str(home), **settings}.items():
            patch.setenv(name, value)
        try:
            main(list(arguments))
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def new_key(home: Path, *scopes: str) -> tuple[str, str]:
    """A key and its id, from the command."""
    wanted = [part for scope in scopes for part in ("--scope", scope)]
    done = leitstand(home, "keys", "create", "--subject", "worker", "--json", *wanted)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    return made["key"], made["key_id"]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    made = Upstream(1, free_ports(1)[0], tmp_path_factory.mktemp("upstream"))
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("gateway")
    (home / "jwe.pem").write_bytes(ECKey.generate_key("P-256").as_pem(private=True))
    new_key(home)
    with gateway_running(home, **REQUIRED, LEITSTAND_GATEWAY__JWE_KEY=str(home / "jwe.pem")) as running_gateway:
        running_gateway.route(upstream)
        yield running_gateway


def status(gateway: Gateway, key: str) -> int:
    return gateway.predict("a card", **{"x-api-key": key}).status_code


def test_a_key_counts_soon_after_it_is_made_and_not_a_second_after_it_is_revoked(gateway: Gateway) -> None:
    key, key_id = new_key(gateway.home, "support:predict")
    until(lambda: status(gateway, key) == 200, "the new key")
    done = leitstand(gateway.home, "keys", "revoke", key_id)
    revoked_at = time.monotonic()
    assert done.returncode == 0, done.stderr
    until(lambda: status(gateway, key) == 401, "the revocation")
    assert time.monotonic() - revoked_at < 5
    assert "was revoked" in gateway.predict("a", **{"x-api-key": key}).json()["detail"]


def test_a_rotated_key_and_its_successor_both_count_during_the_overlap(gateway: Gateway) -> None:
    key, key_id = new_key(gateway.home, "support:predict")
    done = leitstand(gateway.home, "keys", "rotate", key_id, "--json")
    fresh = json.loads(done.stdout)
    assert fresh["replaces"] == key_id and fresh["scopes"] == ["support:predict"]
    until(lambda: status(gateway, fresh["key"]) == 200, "the new key")
    assert status(gateway, key) == 200
    leitstand(gateway.home, "keys", "rotate", fresh["key_id"], "--overlap-hours", "0")
    until(lambda: status(gateway, fresh["key"]) == 401, "the end of the replaced key")
    listed = leitstand(gateway.home, "keys", "list", "--all", "--json").stdout
    states = {each["key_id"]: each["state"] for each in json.loads(listed)}
    assert states[key_id] == "rotated, still counts" and states[fresh["key_id"]] == "rotated"
    assert key not in listed and "digest" not in listed
    assert leitstand(gateway.home, "keys", "rotate", fresh["key_id"]).returncode == 1
    assert leitstand(gateway.home, "keys", "revoke", "0" * 16).returncode == 1


def test_a_token_of_this_machine_opens_what_it_names(gateway: Gateway) -> None:
    done = leitstand(gateway.home, "token", "issue", "--subject", "ada", "--scope", "support:predict", "--ttl", "60")
    token = done.stdout.strip()
    assert gateway.predict("a", authorization=f"Bearer {token}").status_code == 200
    assert gateway.predict("a", use_case="finance", authorization=f"Bearer {token}").status_code == 403
    outside = leitstand(gateway.home, "token", "issue", "--subject", "a", LEITSTAND_ENVIRONMENT="production")
    assert outside.returncode == 2 and "environment=local" in outside.stderr


def test_rollouts_read_the_metrics_with_their_own_key(gateway: Gateway) -> None:
    key, _ = new_key(gateway.home, "metrics:read")
    settings = Settings(home=gateway.home, access=AccessSettings(client_key=key))  # type: ignore[arg-type]
    until(lambda: httpx.get(f"{gateway.url}/metrics", headers={"x-api-key": key}).status_code == 200, "the key")
    assert b"gateway_authentications_total" in ask_gateway(settings, f"{gateway.url}/metrics")
    with pytest.raises(OSError, match="401"):
        ask_gateway(Settings(), f"{gateway.url}/metrics")


def test_an_encrypted_request_is_answered_encrypted(gateway: Gateway) -> None:
    key, _ = new_key(gateway.home, "support:predict")
    until(lambda: status(gateway, key) == 200, "the key")
    registry = JWERegistry(HEADERS, ["ECDH-ES+A256KW", "A256GCM"])
    theirs, mine = ECKey.import_key((gateway.home / "jwe.pem").read_bytes()), ECKey.generate_key("P-256")
    header = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "reply_jwk": mine.as_dict(private=False)}
    body = encrypt_compact(header, json.dumps(BODY), theirs, registry=registry)
    response = httpx.post(
        f"{gateway.url}/v1/support/predict", content=body,
        headers={"content-type": "application/jose", "x-api-key": key},
    )  # fmt: skip
    assert response.status_code == 200 and response.headers["content-type"] == "application/jose"
    document = json.loads(decrypt_compact(response.content, mine, registry=registry).plaintext or b"")
    assert document["predictions"][0]["label"] == "card"


@pytest.mark.parametrize("action", ["jobs", "feedback"])
def test_a_strangers_body_is_not_waited_for(gateway: Gateway, action: str) -> None:
    address = httpx.URL(gateway.url)
    head = f"POST /v1/support/{action} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"
    with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")


def test_limits_hold_before_anything_is_parsed(gateway: Gateway) -> None:
    key, _ = new_key(gateway.home, "support:predict")
    until(lambda: status(gateway, key) == 200, "the key")
    url, known = f"{gateway.url}/v1/support/predict", {"x-api-key": key, "content-type": "application/json"}
    deep = httpx.post(url, content=b'{"texts":' + b"[" * 5000, headers=known)
    assert deep.status_code == 400 and "nested deeper" in deep.json()["detail"]
    many = httpx.post(url, json=BODY, headers=known | {f"x-{number}": "y" for number in range(80)})
    assert many.status_code == 431
    twice = httpx.post(url, json=BODY, headers=[("x-api-key", key), ("x-api-key", key)])
    assert twice.status_code == 400 and "twice" in twice.json()["detail"]
    assert (
        httpx.options(url, headers={"origin": "https://evil.example"}).headers.get("access-control-allow-origin")
        is None
    )


@pytest.mark.parametrize(
    ("settings", "saying"),
    [
        ({"LEITSTAND_GATEWAY__HOST": "0.0.0.0"}, "there are none"),
        ({"LEITSTAND_TLS__CERT": "/nowhere.pem", "LEITSTAND_TLS__KEY": "/nowhere.key"}, "TLS cannot use"),
    ],
    ids=["exposed", "no certificate"],
)
def test_a_gateway_that_would_be_open_to_strangers_does_not_start(
    tmp_path: Path, settings: dict[str, str], saying: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leitstand.cli", "gateway", "--port", str(free_ports(1)[0])], capture_output=True,
        text=True, check=False, timeout=120, env=os.environ | {"LEITSTAND_HOME": str(tmp_path)} | settings,
    )  # fmt: skip
    assert done.returncode == 2 and saying in done.stderr, done.stderr
    assert "Fix:" in done.stderr


def test_tls_in_front_and_mutual_tls_behind(tmp_path: Path) -> None:
    ours, strangers = Authority(tmp_path), Authority(tmp_path, "strangers")
    front, server, client, stranger = (
        ours.issue("front"),
        ours.issue("server"),
        ours.issue("client"),
        strangers.issue("x"),
    )
    (port,) = free_ports(1)
    command = [
        sys.executable, "-m", "uvicorn", "tests.tiny_upstream:app", "--host", "127.0.0.1", "--port", str(port),
        "--ssl-certfile", str(server.cert), "--ssl-keyfile", str(server.key), "--ssl-ca-certs", str(ours.file),
        "--ssl-cert-reqs", "2", "--log-level", "warning",
    ]  # fmt: skip
    trusting = ssl.create_default_context(cafile=str(ours.file))
    showing = ssl.create_default_context(cafile=str(ours.file))
    showing.load_cert_chain(client.cert, client.key)
    url, log = f"https://127.0.0.1:{port}", tmp_path / "upstream.log"
    with running(command, log) as process:
        wait_until(lambda: _answers(url, showing), process, log, "the upstream")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{url}/v2", verify=trusting)
        for shown, expected in ((client, 200), (stranger, 503)):
            home = tmp_path / shown.cert.stem
            store = open_route_store(Settings(home=home))
            table = RouteTable(
                use_case="support", stable=Target(version=0, url=url), changed_at=utc_now(), actor="t", reason="t"
            )
            store.write(table, expected=0)
            tls = {
                "LEITSTAND_TLS__CERT": str(front.cert), "LEITSTAND_TLS__KEY": str(front.key),
                "LEITSTAND_TLS__UPSTREAM_CA": str(ours.file), "LEITSTAND_TLS__UPSTREAM_CERT": str(shown.cert),
                "LEITSTAND_TLS__UPSTREAM_KEY": str(shown.key),
            }  # fmt: skip
            asked = shown is client
            tls |= {"LEITSTAND_TLS__CLIENT_CA": str(ours.file)} if asked else {}
            with _https_gateway(home, showing, **tls) as gateway_url:
                response = httpx.post(f"{gateway_url}/v1/support/predict", json=BODY, verify=showing, timeout=30)
                assert response.status_code == expected, response.text
                assert _answers(gateway_url, trusting) != asked, "a certificate is asked for"
                assert "strict-transport-security" in response.headers
                assert not answers(gateway_url.replace("https", "http") + "/readyz")


def _answers(url: str, context: ssl.SSLContext) -> bool:
    try:
        return httpx.get(f"{url}/v2", verify=context).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def _https_gateway(home: Path, context: ssl.SSLContext, **settings: str) -> Iterator[str]:
    (port,) = free_ports(1)
    url, log = f"https://127.0.0.1:{port}", home / "gateway.log"
    environment = os.environ | {"LEITSTAND_HOME": str(home), "LEITSTAND_GATEWAY__PORT": str(port)} | settings

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz", verify=context).status_code == 200
        except httpx.HTTPError:
            return False

    with running([sys.executable, "-m", "leitstand.cli", "gateway"], log, env=environment) as process:
        wait_until(ready, process, log, "the gateway")
        yield url


def test_bentos_see_the_gateways_secret_and_callers_secrets_do_not_reach_them(tmp_path: Path) -> None:
    log, (port,) = tmp_path / "seen", free_ports(1)
    script = (
        "import sys, json, http.server\n"
        "class Seen(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        print(dict(self.headers), flush=True)\n"
        "        self.send_response(401); self.send_header('content-length', '0'); self.end_headers()\n"
        "    do_POST = do_GET\n"
        f"http.server.HTTPServer(('127.0.0.1', {port}), Seen).serve_forever()\n"
    )
    secret = "s" * 40
    key, _ = new_key(tmp_path / "home", "support:predict")
    with running([sys.executable, "-c", script], log) as process:
        wait_until(lambda: _listens(port), process, log, "the upstream")
        settings = {**REQUIRED, "LEITSTAND_SERVING__TOKEN": secret}
        with gateway_running(tmp_path / "home", **settings) as gateway:
            gateway.route(Upstream(1, port, tmp_path))
            gateway.predict("a", **{"x-api-key": key})
            until(lambda: secret in log.read_text(), "the call")
        assert f"'authorization': 'Bearer {secret}'" in log.read_text().replace("Authorization", "authorization")
        assert key not in log.read_text()
        assert secret not in (tmp_path / "home" / "gateway.log").read_text()


def _listens(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/")
    except httpx.HTTPError:
        return False
    return True


def test_a_key_store_that_is_away_lets_nobody_in() -> None:
    from governance.access.opening import open_api_keys

    with pytest.raises(TransientBackendError):
        open_api_keys(Settings(access=AccessSettings(keys_uri="redis://127.0.0.1:1/0"))).all()


def test_the_commands_of_the_how_to_work_as_printed(tmp_path: Path, project: Path, upstream: Upstream) -> None:
    page = (project / "docs" / "how-to" / "protect-a-bento.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    (port,) = free_ports(1)
    script = "set -eu\ntrap 'kill $(jobs -p) || true' EXIT\n" + "\n".join(blocks)
    script = script.replace("127.0.0.1:3000", f"127.0.0.1:{upstream.port}").replace(
        "localhost:8080", f"127.0.0.1:{port}"
    )
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LEITSTAND_HOME": str(tmp_path / "home"),
        "LEITSTAND_GATEWAY__PORT": str(port),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HTTP/1.1 401" in done.stdout and "www-authenticate: Bearer" in done.stdout
    assert done.stdout.count('"route":"stable"') == 2
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    spec = AccessSpec.model_validate(yaml.safe_load(shown)["access"])
    assert spec.scope("support", "predict") == "tickets.read" and spec.tenants == ("acme",)
    names = re.findall(r"LEITSTAND_([A-Z_]+)=", page)
    known = {f"{group}__{name}".upper() for group in ("access", "tls", "gateway", "serving") for name in
             type(getattr(Settings(), group)).model_fields}  # fmt: skip
    assert set(names) - {"ENVIRONMENT"} <= known
