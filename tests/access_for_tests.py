"""An issuer of tokens in memory, whose keys and claims a test chooses."""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

import orjson
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from governance.access.tokens import SigningKey, TokenRules, read_keys

ISSUER, AUDIENCE = "https://issuer.example", "urn:leitstand:gateway"
NOW = 1_800_000_000.0
RULES = TokenRules(issuer=ISSUER, audience=AUDIENCE)


def claims(**changes: Any) -> dict[str, Any]:
    """Claims of a token that is good at `NOW`; a change to None takes a claim away."""
    good = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "tenant": "acme", "scope": "support:predict support:feedback",
        "iat": NOW - 10, "nbf": NOW - 10, "exp": NOW + 300, "jti": "t-1",
    }  # fmt: skip
    return {name: value for name, value in (good | changes).items() if value is not None}


class Registry(JWSRegistry):
    """Signs with anything, also with what nobody should accept."""

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]

    def check_header(self, header: Any) -> None:
        """Everything passes."""


class TestIssuer:
    """Keys by algorithm, named by it."""

    __test__ = False

    def __init__(self) -> None:
        self.private: dict[str, Any] = {
            "RS256": RSAKey.generate_key(2048, {"kid": "RS256"}),
            "ES256": ECKey.generate_key("P-256", {"kid": "ES256"}),
            "EdDSA": OKPKey.generate_key("Ed25519", {"kid": "EdDSA"}),
        }

    def jwks(self, *algorithms: str) -> dict[str, Any]:
        names = algorithms or tuple(self.private)
        return {"keys": [self.private[name].as_dict(private=False) for name in names]}

    def keys(self) -> Mapping[str, SigningKey]:
        return read_keys(self.jwks())

    def sign(self, algorithm: str = "ES256", *, header: Mapping[str, Any] | None = None, **changes: Any) -> str:
        """A token; `header` changes its header, the rest its claims."""
        start = {"alg": algorithm, "typ": "at+jwt", "kid": algorithm} | dict(header or {})
        start = {name: value for name, value in start.items() if value is not None}
        return sign(start, claims(**changes), self.private[algorithm])


def sign(header: Mapping[str, Any], said: dict[str, Any], key: Any) -> str:
    return jwt.encode(dict(header), said, key, registry=Registry(strict_check_header=False), default_type=None)


def forge(header: Mapping[str, Any], said: Mapping[str, Any], secret: bytes = b"") -> str:
    """A token as an attacker writes it: unsigned, or with HMAC-SHA256 under any secret."""
    parts = [_part(orjson.dumps(dict(each))) for each in (header, said)]
    signed = ".".join(parts).encode()
    signature = hmac.digest(secret, signed, "sha256") if secret else b""
    return f"{signed.decode()}.{_part(signature)}"


def _part(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
