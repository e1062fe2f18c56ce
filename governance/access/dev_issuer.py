"""A token issuer for one machine: keys below `home`, no server. Only in environment=local, on both sides.

It lets tutorials, tests and first steps use real tokens before an identity provider is there. Whoever can read the
key file can be anybody, so a gateway outside `local` does not even look for it.
"""

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import orjson
from filelock import FileLock
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from governance.access.tokens import SigningKey, TokenRules, read_keys
from leitstand.errors import ConfigurationError, IntegrityError
from leitstand.files import write_text
from leitstand.settings import Settings

__all__ = ["AUDIENCE", "ISSUER", "KID_PREFIX", "DevKeys", "dev_rules", "has_dev_issuer", "issue", "open_dev_keys"]

ISSUER = "urn:leitstand:dev"
AUDIENCE = "urn:leitstand:gateway"
KID_PREFIX = "leitstand-dev-"
LONGEST = timedelta(days=30)


def issue(settings: Settings, *, subject: str, tenant: str, scopes: Sequence[str], ttl: timedelta) -> str:
    """A signed token; makes the issuer's key when there is none yet.

    Raises:
        ConfigurationError: The environment is not `local`, or the time to live is not above 0 and at most 30 days.
    """
    _only_local(settings)
    if not timedelta() < ttl <= LONGEST:
        raise ConfigurationError("A token lives at least a moment and at most 30 days", hint="give another --ttl")
    key = _key(settings)
    now = int(time.time())
    claims = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": subject, "tenant": tenant, "scope": " ".join(scopes),
        "iat": now, "nbf": now, "exp": now + int(ttl.total_seconds()), "jti": str(uuid.uuid4()),
    }  # fmt: skip
    header = {"alg": "ES256", "typ": "at+jwt", "kid": key.kid}
    return jwt.encode(header, claims, key, algorithms=["ES256"])


def dev_rules(max_bytes: int) -> TokenRules:
    """What a token of this issuer must say."""
    return TokenRules(
        issuer=ISSUER, audience=AUDIENCE, algorithms=("ES256",), types=("at+jwt",), max_bytes=max_bytes,
        leeway_s=0,
    )  # fmt: skip


def has_dev_issuer(settings: Settings) -> bool:
    """Whether tokens of this issuer may be accepted here, and it has a key."""
    return settings.environment == "local" and _public(settings).is_file()


def open_dev_keys(settings: Settings) -> "DevKeys":
    """The issuer's public keys.

    Raises:
        ConfigurationError: The environment is not `local`.
    """
    _only_local(settings)
    return DevKeys(_public(settings))


class DevKeys:
    """`KeySource` on the JWKS file; read again when a key is asked for that it did not hold."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = -1
        self._keys: Mapping[str, SigningKey] = {}
        self._generation = 0

    def generation(self) -> int:
        """See `KeySource.generation`."""
        return self._generation

    async def keys(self, wanted: str) -> Mapping[str, SigningKey]:
        """See `KeySource.keys`."""
        if wanted not in self._keys:
            self._read()
        return self._keys

    def _read(self) -> None:
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._keys = read_keys(orjson.loads(self._path.read_bytes()))
                self._stamp = stamp
                self._generation += 1
        except FileNotFoundError:
            self._keys = {}
        except ValueError as error:
            raise IntegrityError(
                f"{self._path} is no key file: {error}", hint="delete its folder; `leitstand token issue` makes another"
            ) from error


def _key(settings: Settings) -> ECKey:
    folder = _public(settings).parent
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "key.json"
    with FileLock(folder / ".lock"):
        if path.is_file():
            try:
                return ECKey.import_key(orjson.loads(path.read_bytes()))
            except (ValueError, JoseError) as error:
                raise IntegrityError(f"{path} is no key: {error}", hint="delete its folder") from error
        key = ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256"}, private=True)
        document = {**key.as_dict(private=True), "kid": KID_PREFIX + key.thumbprint()}
        made = ECKey.import_key(document)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(orjson.dumps(document))
        write_text(_public(settings), orjson.dumps({"keys": [made.as_dict(private=False)]}).decode())
    return made


def _public(settings: Settings) -> Path:
    return settings.root / "access" / "dev-issuer" / "jwks.json"


def _only_local(settings: Settings) -> None:
    if settings.environment != "local":
        raise ConfigurationError(
            f"The built-in issuer is for environment=local, this is {settings.environment}",
            hint="use your identity provider (LEITSTAND_ACCESS__ISSUER), or an API key: `leitstand keys create`",
        )
