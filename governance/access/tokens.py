"""Verifies OAuth2 bearer tokens: JWTs that an issuer signed (RFC 7519, RFC 9068, best practices of RFC 8725).

Pure: keys come in, a `Caller` comes out. Signatures are joserfc's. What it must never accept, and why it does not:

- ``none``, HMAC with a public key as the secret, any algorithm that is not listed: the list is the settings',
  asymmetric only, and the algorithm must fit the type of the key that ``kid`` names;
- a key from the token itself (``jwk``, ``jku``, ``x5c``, ``x5u``): such headers are refused;
- another spelling of the same bytes (loose base64url): each part must be the canonical one;
- a token for somebody else: issuer and audience must be ours; ``typ`` must be an access token's.

Messages name the rule, never the token or a value of it.
"""

import binascii
import json
import math
import warnings
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey
from joserfc.jws import JWSRegistry, deserialize_compact

from leitstand.errors import AuthenticationFailed
from leitstand.types import Caller

__all__ = ["SigningKey", "TokenRules", "TokenVerifier", "Verified", "key_id_of", "read_keys"]

SigningKey = RSAKey | ECKey | OKPKey
FITTING: Mapping[str, tuple[str, str]] = {
    "RS256": ("RSA", ""), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519"), "Ed25519": ("OKP", "Ed25519"),
}  # fmt: skip
KEYS_FROM_OUTSIDE = ("jwk", "jku", "x5c", "x5u", "crit", "b64", "zip")
MAX_KEYS = 100
PARTS = 3
MAX_NAME = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What an accepted token must say.

    Attributes:
        issuer: Its ``iss``.
        audience: Its ``aud``, or one of them.
        algorithms: How it may be signed.
        types: Its ``typ``, in lower case.
        leeway_s: How far the issuer's clock may be off.
        scope_claim: Claim with the scopes.
        tenant_claim: Claim with the tenant.
        default_tenant: For tokens without that claim; empty: they are refused.
        max_bytes: Longer ones are not looked at.
    """

    issuer: str
    audience: str
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA", "Ed25519")
    types: tuple[str, ...] = ("at+jwt", "jwt")
    leeway_s: int = 15
    scope_claim: str = "scope"
    tenant_claim: str = "tenant"
    default_tenant: str = ""
    max_bytes: int = 8192


@dataclass(frozen=True, slots=True)
class Verified:
    """Who a credential speaks for.

    Attributes:
        caller: Who asks.
        until: Unix time at which it ends, leeway included.
        person: Whether it is one person's; the credential of a service stands for many.
    """

    caller: Caller
    until: float
    person: bool = True


class TokenVerifier:
    """Checks tokens against `rules`. Safe with threads."""

    def __init__(self, rules: TokenRules) -> None:
        self.rules = rules
        self._registry = _Registry(rules.algorithms, rules.max_bytes)

    def verify(self, token: str, keys: Mapping[str, SigningKey], now: float) -> Verified:
        """The caller of a token that passes every rule.

        Args:
            token: As it stands in the header.
            keys: The issuer's keys by id.
            now: Unix time.

        Raises:
            AuthenticationFailed: It does not pass; the message says which rule.
        """
        header = self._header(token)
        key = keys.get(header["kid"])
        if key is None:
            _refuse("no key of the issuer has the id that the token names")
        kind, curve = FITTING[header["alg"]]
        if key.key_type != kind or (curve and key.curve_name != curve):  # pyright: ignore[reportAttributeAccessIssue]
            _refuse("the token's algorithm does not fit the key that it names")
        if key.alg not in (None, header["alg"]):
            _refuse("the key that the token names is for another algorithm")
        try:
            claims = json.loads(deserialize_compact(token, key, registry=self._registry).payload or b"")
        except (JoseError, ValueError, TypeError, KeyError, RecursionError):
            _refuse("the token's signature or form is not valid")
        return self._judged(claims, now)

    def _header(self, token: str) -> dict[str, str]:
        parts = _parts(token, self.rules.max_bytes)
        header = _document(parts[0])
        if any(name in header for name in KEYS_FROM_OUTSIDE):
            _refuse("the token brings its own key or an extension; only the issuer's published keys count")
        if header.get("alg") not in self.rules.algorithms:
            _refuse(f"the token's algorithm is none of {', '.join(self.rules.algorithms)}")
        if _media_type(header.get("typ")) not in self.rules.types:
            _refuse("the token's typ is not that of an access token")
        if not isinstance(header.get("kid"), str):
            _refuse("the token does not name the key that signed it (kid)")
        return header

    def _judged(self, claims: Any, now: float) -> Verified:
        rules = self.rules
        if not isinstance(claims, dict):
            _refuse("the token holds no claims")
        if claims.get("iss") != rules.issuer:
            _refuse("the token is from another issuer")
        if rules.audience not in _names(claims.get("aud")):
            _refuse("the token is for another audience")
        until = _time(claims, "exp") + rules.leeway_s
        if now >= until:
            _refuse("the token has expired")
        for name, what in (("nbf", "is not valid yet"), ("iat", "was issued in the future")):
            if name in claims and _time(claims, name) > now + rules.leeway_s:
                _refuse(f"the token {what}")
        tenant = claims.get(rules.tenant_claim, rules.default_tenant)
        caller = Caller(
            subject=_name(claims.get("sub"), "subject (sub)"),
            tenant=_name(tenant, f"tenant ({rules.tenant_claim})"),
            scopes=frozenset(_words(claims.get(rules.scope_claim))),
            method="jwt",
            key_id=str(claims.get("jti", ""))[:MAX_NAME],
        )
        client = claims.get("client_id", claims.get("azp"))
        return Verified(caller, until, person=client != caller.subject)  # RFC 9068, section 2.2: a client's own token


def key_id_of(token: str, max_bytes: int) -> str:
    """The ``kid`` that a token claims, unverified: only to decide whether keys should be fetched again; or empty."""
    try:
        kid = _document(_parts(token, max_bytes)[0]).get("kid")
    except AuthenticationFailed:
        return ""
    return kid if isinstance(kid, str) else ""


def read_keys(document: Any) -> dict[str, SigningKey]:
    """The keys of a JWKS document that can verify signatures, by id.

    Symmetric keys, keys for encryption, weak ones and those without an id are left out: nothing they sign counts.

    Raises:
        ValueError: It is no JWKS document.
    """
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no list of keys")
    keys: dict[str, SigningKey] = {}
    for each in listed[:MAX_KEYS]:
        if not isinstance(each, dict) or each.get("use", "sig") != "sig" or not isinstance(each.get("kid"), str):
            continue
        if each.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        public = {name: value for name, value in each.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "oth")}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", SecurityWarning)  # RSA below 2048 bits
                key = JWKRegistry.import_key(public)
        except (JoseError, SecurityWarning, ValueError, TypeError, KeyError):
            continue
        if isinstance(key, RSAKey | ECKey | OKPKey):
            keys[each["kid"]] = key
    return keys


class _Registry(JWSRegistry):
    """joserfc's, without its warning at the name `EdDSA`, which the settings allow on purpose."""

    def __init__(self, algorithms: Collection[str], max_bytes: int) -> None:
        super().__init__(algorithms=algorithms, strict_check_header=False)
        self.max_header_length = self.max_payload_length = max_bytes

    def get_alg(self, name: str) -> Any:
        """The algorithm, when it is one of the allowed."""
        if name not in (self.allowed or ()):
            raise JoseError("unsupported_algorithm")
        return self.algorithms[name]


def _parts(token: str, max_bytes: int) -> list[bytes]:
    if len(token) > max_bytes:
        _refuse(f"the token is longer than {max_bytes} bytes")
    parts = token.split(".")
    if len(parts) != PARTS:
        _refuse("the token is no signed JWT: it does not have three parts")
    return [_decoded(part) for part in parts]


def _decoded(part: str) -> bytes:
    """The bytes of one part. Loose spellings (padding, unused bits, other characters) are refused."""
    try:
        raw = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        _refuse("the token is not base64url")
    if urlsafe_b64encode(raw).rstrip(b"=").decode() != part:
        _refuse("the token is not canonical base64url")
    return raw


def _document(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        _refuse("the token's header is not readable")
    return document


def _media_type(value: object) -> str:
    return value.lower().removeprefix("application/") if isinstance(value, str) else ""


def _names(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _words(value: object) -> list[str]:
    return value.split() if isinstance(value, str) else _names(value)


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(f"the token does not say when it ends ({name})" if name == "exp" else f"the token's {name} is no time")
    return float(value)


def _name(value: object, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        _refuse(f"the token names no usable {what}")
    return value


def _refuse(reason: str) -> NoReturn:
    raise AuthenticationFailed(
        f"Not authenticated: {reason}", code="invalid_token", hint="get a new token from the issuer for this gateway"
    )
