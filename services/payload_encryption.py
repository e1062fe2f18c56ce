"""Bodies that only the gateway can read: JWE (RFC 7516), for callers behind proxies that end their TLS.

A request with ``content-type: application/jose`` holds a compact JWE to the gateway's public key (ECDH-ES+A256KW or
RSA-OAEP-256, A256GCM). When its protected header holds the caller's public key as ``reply_jwk``, the answer is
encrypted to that. The key stands inside the header that the encryption authenticates, so that nobody on the way can
exchange it for another in a message that somebody else encrypted. Compressed content is refused.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwe import JWERegistry, decrypt_compact, encrypt_compact
from joserfc.jwk import ECKey, RSAKey
from joserfc.registry import HeaderParameter

from leitstand.errors import ConfigurationError
from services.asgi import ClientGone, read_body, respond
from services.errors import HttpError, bad_request
from services.problems import problem_for

__all__ = ["JOSE", "Encrypted", "open_jwe_key"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
PrivateKey = ECKey | RSAKey

JOSE = b"application/jose"
ALGORITHMS = ("ECDH-ES+A256KW", "RSA-OAEP-256", "A256GCM")
FITTING = {"EC": "ECDH-ES+A256KW", "RSA": "RSA-OAEP-256"}
REPLY_KEY = "reply_jwk"
HEADERS = {REPLY_KEY: HeaderParameter("public key that the answer is encrypted to", "jwk")}
MAX_HEADER = 4096


class Encrypted:
    """Decrypts what comes encrypted and encrypts its answer; passes everything else on.

    Args:
        app: The gateway.
        key: Its private key.
        max_body: Longer requests are refused unread.
    """

    def __init__(self, app: App, key: PrivateKey, max_body: int) -> None:
        self._app, self._key, self._max_body = app, key, max_body
        self._registry = _registry(max_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http" or _content_type(scope) != JOSE:
            await self._app(scope, receive, send)
            return
        try:
            body = await read_body(receive, dict(scope["headers"]), self._max_body)
            text, reply_key = self._decrypted(body)
        except ClientGone:
            return
        except HttpError as error:
            await respond(send, problem_for(error))
            return
        kept = [(name, value) for name, value in scope["headers"] if name not in (b"content-type", b"content-length")]
        kept += [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
        messages = iter([{"type": "http.request", "body": text, "more_body": False}])

        async def replay() -> MutableMapping[str, Any]:
            return next(messages, None) or await receive()

        answer = _Answer(reply_key, send) if reply_key else None
        await self._app({**scope, "headers": kept}, replay, answer or send)

    def _decrypted(self, body: bytes) -> tuple[bytes, PrivateKey | None]:
        try:
            found = decrypt_compact(body, self._key, registry=self._registry)
            asked = found.protected.get(REPLY_KEY)
            return found.plaintext or b"", _public(asked) if asked is not None else None
        except (JoseError, ValueError, TypeError, KeyError, RecursionError):
            raise bad_request(
                f"the body cannot be decrypted: a compact JWE to the gateway's key with {', '.join(ALGORITHMS)}"
            ) from None


class _Answer:
    """Holds the answer back until it is whole, and sends it encrypted."""

    def __init__(self, key: PrivateKey, send: Send) -> None:
        self._key, self._send = key, send
        self._start: MutableMapping[str, Any] = {}
        self._parts: list[bytes] = []

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))
            if not message.get("more_body"):
                await self._finish()
        else:
            await self._send(message)

    async def _finish(self) -> None:
        said = dict(self._start["headers"])
        header = {
            "alg": FITTING[self._key.key_type], "enc": "A256GCM",
            "cty": said.get(b"content-type", b"application/json").decode("latin-1"),
        }  # fmt: skip
        text = b"".join(self._parts)
        body = encrypt_compact(header, text, self._key, registry=_registry(2 * len(text) + MAX_HEADER)).encode()
        replaced = (b"content-type", b"content-length")
        headers = [(name, value) for name, value in self._start["headers"] if name not in replaced]
        headers += [(b"content-type", JOSE), (b"content-length", str(len(body)).encode())]
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def open_jwe_key(path: Path) -> PrivateKey:
    """The gateway's private key.

    Raises:
        ConfigurationError: No readable PEM file with an EC key (P-256, P-384, P-521) or an RSA key of 2048 bits.
    """
    try:
        pem = path.read_bytes()
        for kind in (ECKey, RSAKey):
            try:
                key = kind.import_key(pem)
            except (ValueError, TypeError, JoseError):
                continue
            if key.is_private:
                return key
        raise ValueError("no private EC or RSA key")
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} holds no key for encrypted bodies: {error}",
            hint="make one: openssl ecparam -name prime256v1 -genkey -noout -out jwe.pem",
        ) from error


def _public(document: object) -> PrivateKey:
    """The caller's key, without what must not be in it.

    Raises:
        HttpError: 400, it is none, or a weak or private one.
    """
    if isinstance(document, dict) and "d" not in document and document.get("kty") in FITTING:
        kind = ECKey if document["kty"] == "EC" else RSAKey
        key = kind.import_key(json.loads(json.dumps(document)))
        if kind is ECKey or key.public_key.key_size >= 2048:  # noqa: PLR2004
            return key
    raise bad_request(f"{REPLY_KEY} is no public EC or RSA key")


def _registry(max_bytes: int) -> JWERegistry:
    registry = JWERegistry(HEADERS, ALGORITHMS, strict_check_header=True)
    registry.max_protected_header_length = MAX_HEADER
    registry.max_ciphertext_length = max_bytes
    return registry


def _content_type(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"content-type":
            return value.partition(b";")[0].strip().lower()
    return b""
