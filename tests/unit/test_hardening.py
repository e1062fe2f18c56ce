"""What every request must keep to, and what every answer carries."""

import json
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from joserfc.jwe import JWERegistry, decrypt_compact, encrypt_compact
from joserfc.jwk import ECKey, OctKey, RSAKey

from leitstand.errors import AuthenticationFailed, ConfigurationError, ScopeMissing
from leitstand.types import Caller
from services.authentication import OpenAccess
from services.errors import HttpError
from services.guarded import Guarded
from services.hardening import Hardened
from services.json_depth import refuse_deep
from services.payload_encryption import HEADERS, Encrypted, open_jwe_key

Headers = Sequence[tuple[bytes, bytes]]
GATEWAY_KEY = ECKey.generate_key("P-256")
REGISTRY = JWERegistry(HEADERS, ["ECDH-ES+A256KW", "RSA-OAEP-256", "RSA-OAEP", "A256GCM", "dir", "DEF"])


class Echo:
    """Answers with the body that came, and remembers what it saw."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": body[:3], "more_body": True})
        await send({"type": "http.response.body", "body": body[3:]})


async def call(
    app: Any, headers: Headers = (), body: bytes = b"", path: str = "/", method: str = "POST"
) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": method, "path": path, "headers": list(headers)}, receive, send)
    content = b"".join(each["body"] for each in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), content


async def test_every_answer_carries_security_headers() -> None:
    _, headers, _ = await call(Hardened(Echo()))
    assert headers[b"x-content-type-options"] == b"nosniff" and headers[b"cache-control"] == b"no-store"
    assert b"strict-transport-security" not in headers
    _, headers, _ = await call(Hardened(Echo(), tls=True))
    assert b"strict-transport-security" in headers


async def test_too_many_or_too_large_headers_are_refused() -> None:
    echo = Echo()
    app = Hardened(echo, max_headers=5, max_header_bytes=1024)
    assert (await call(app, [(b"a", b"b")] * 5))[0] == 200
    for headers in ([(b"a", b"b")] * 6, [(b"a", b"x" * 1024)]):
        status, sent, _ = await call(app, headers)
        assert status == 431 and sent[b"x-content-type-options"] == b"nosniff"
    assert len(echo.scopes) == 1


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key", b"x-subject", b"content-length"])
async def test_a_header_that_decides_something_comes_once(name: bytes) -> None:
    status, _, body = await call(Hardened(Echo()), [(name, b"1"), (name, b"2")])
    assert status == 400 and b"twice" in body


async def test_cors_is_closed_unless_an_origin_is_named() -> None:
    origin = (b"origin", b"https://app.example")
    _, headers, _ = await call(Hardened(Echo()), [origin])
    assert not [name for name in headers if name.startswith(b"access-control")]
    app = Hardened(Echo(), origins=["https://app.example"])
    status, headers, _ = await call(app, [origin], method="OPTIONS")
    assert status == 204 and headers[b"access-control-allow-origin"] == b"https://app.example"
    assert b"access-control-allow-credentials" not in headers
    for other in (b"https://app.example.evil", b"null", b"http://app.example"):
        _, headers, _ = await call(app, [(b"origin", other)])
        assert b"access-control-allow-origin" not in headers and headers[b"vary"] == b"origin"


def test_deep_json_is_refused_before_it_is_parsed() -> None:
    refuse_deep(b"[" * 32 + b"]" * 32, 32)
    refuse_deep(orjson.dumps({"texts": ["[" * 5000, '"{{{{' * 5000, "\\" * 99]}), 4)
    refuse_deep(orjson.dumps([[1, {}]] * 5000), 3)
    for deep in (b"[" * 33 + b"]" * 33, b"[" * 10**6, b'{"a":' * 10**5):
        with pytest.raises(HttpError) as caught:
            refuse_deep(deep, 32)
        assert caught.value.status == 400


class Known(OpenAccess):
    """One caller with some scopes; everybody without the header is unknown."""

    async def identify(self, headers: Any) -> Caller:
        if b"authorization" not in headers:
            raise AuthenticationFailed("Not authenticated: no credential")
        return Caller("ada", scopes=frozenset(headers[b"authorization"].decode().split()))

    def permit(self, caller: Caller, use_case: str, action: str) -> None:
        if f"{use_case}:{action}" not in caller.scopes:
            raise ScopeMissing("may not", scope=f"{use_case}:{action}")


class _Guarded(Guarded):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open = False


@pytest.mark.parametrize(
    ("path", "scopes", "status"),
    [
        ("/livez", None, 200), ("/readyz", None, 200), ("/livez/", None, 401), ("/metrics", None, 401),
        ("/metrics", "support:predict", 403), ("/metrics", "metrics:read", 200), ("/metrics/", "", 403),
        ("/openapi.json", None, 401), ("/openapi.json", "", 200), ("/v1/support/feedback", None, 401),
        ("/v1/support/feedback", "support:predict", 403), ("/v1/support/feedback", "support:feedback", 200),
        ("/v1/support/feedback/", "", 403), ("//v1/support/feedback", "", 403),
        ("/v1/support/jobs/17/result", "support:jobs", 200), ("/v1/support/anything/new", "", 403),
        ("/v1/chat/completions", None, 401), ("/v1/chat/completions", "", 200), ("/unknown", None, 401),
    ],
)  # fmt: skip
async def test_routes_are_closed_unless_a_scope_opens_them(path: str, scopes: str | None, status: int) -> None:
    headers = [] if scopes is None else [(b"authorization", scopes.encode())]
    assert (await call(_Guarded(Echo(), Known(), "scope"), headers, path=path))[0] == status


async def test_metrics_are_open_or_off_when_the_settings_say_so() -> None:
    assert (await call(_Guarded(Echo(), Known(), "open"), path="/metrics"))[0] == 200
    assert (await call(_Guarded(Echo(), Known(), "off"), [(b"authorization", b"metrics:read")], path="/metrics"))[
        0
    ] == 404
    assert (await call(Guarded(Echo(), OpenAccess(), "scope"), path="/metrics"))[0] == 200
    assert (await call(Guarded(Echo(), OpenAccess(), "off"), path="/metrics"))[0] == 404


def encrypted(body: bytes, key: Any = GATEWAY_KEY, alg: str = "ECDH-ES+A256KW", **header: Any) -> bytes:
    return encrypt_compact({"alg": alg, "enc": "A256GCM", **header}, body, key, registry=REGISTRY).encode()


JOSE = [(b"content-type", b"application/jose"), (b"content-length", b"7"), (b"authorization", b"x")]


async def test_an_encrypted_body_is_decrypted_and_its_answer_encrypted_to_the_caller() -> None:
    for own in (ECKey.generate_key("P-256"), RSAKey.generate_key(2048)):
        echo = Echo()
        body = encrypted(b'{"text": "secret"}', reply_jwk=own.as_dict(private=False))
        status, headers, answer = await call(Encrypted(echo, GATEWAY_KEY, 10_000), JOSE, body)
        assert status == 200 and headers[b"content-type"] == b"application/jose" and b"secret" not in answer
        assert headers[b"content-length"] == str(len(answer)).encode()
        found = decrypt_compact(answer, own, registry=REGISTRY)
        assert found.plaintext == b'{"text": "secret"}' and found.protected["cty"] == "text/plain"
        seen = dict(echo.scopes[0]["headers"])
        assert seen[b"content-type"] == b"application/json" and seen[b"content-length"] == b"18"
        assert seen[b"authorization"] == b"x"


async def test_without_a_reply_key_the_answer_is_plain_and_other_bodies_pass() -> None:
    app = Encrypted(Echo(), GATEWAY_KEY, 10_000)
    assert (await call(app, JOSE, encrypted(b"{}")))[2] == b"{}"
    assert (await call(app, [(b"content-type", b"application/json")], b"[1]"))[2] == b"[1]"


async def test_what_cannot_be_decrypted_never_arrives() -> None:
    other, own = ECKey.generate_key("P-256"), ECKey.generate_key("P-256")
    good = encrypted(b"{}")
    secret = OctKey.generate_key(256)
    weak = {"kty": "oct", "k": "AAAA"}
    for body in (
        b"", b"nonsense", good[:-1] + (b"A" if good[-1:] != b"A" else b"B"), encrypted(b"{}", other),
        encrypted(b"{}", secret, "dir"), encrypted(b"x" * 5000, zip="DEF"), encrypted(b"{}", reply_jwk=weak),
        encrypted(b"{}", reply_jwk=own.as_dict(private=True)), b"x" * 20_000,
    ):  # fmt: skip
        echo = Echo()
        status, _, answer = await call(Encrypted(echo, GATEWAY_KEY, 10_000), JOSE[:1], body)
        assert status in (400, 413) and not echo.scopes, body[:40]
        assert json.loads(answer)["status"] == status


def test_the_key_for_encrypted_bodies_is_a_private_one(tmp_path: Any) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(GATEWAY_KEY.as_pem(private=True))
    assert open_jwe_key(path).is_private
    for content in (GATEWAY_KEY.as_pem(private=False), b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="no key for encrypted bodies"):
            open_jwe_key(path)
