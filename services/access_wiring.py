"""The gateway's `Access` from the settings; refuses an installation that would be open to strangers."""

import ssl
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import structlog

from governance.access.dev_issuer import dev_rules, has_dev_issuer, open_dev_keys
from governance.access.issuer_keys import Fetch, IssuerKeys
from governance.access.key_ring import KeyRing
from governance.access.opening import open_api_keys
from governance.access.tokens import TokenRules, TokenVerifier
from leitstand.errors import (
    ConfigurationError,
    LeitstandError,
    NotFoundError,
    PermanentBackendError,
    TransientBackendError,
)  # fmt: skip
from leitstand.settings import Settings
from leitstand.specs.access import AccessSpec
from leitstand.usecase import find, load
from services.authentication import Access, Authenticator, Issuer, OpenAccess
from services.tls import client_context

__all__ = ["http_fetch", "is_loopback", "is_required", "open_access"]

logger = structlog.get_logger()

FETCH_S = 3.0
MAX_DOCUMENT = 512 * 1024


def open_access(settings: Settings) -> Access:
    """Who may use the gateway. Nothing is fetched yet.

    Raises:
        ConfigurationError: It would answer anybody outside this machine, or nobody at all.
    """
    if not is_required(settings):
        return OpenAccess()
    chosen = settings.access
    ring = KeyRing(open_api_keys(settings), keep_s=chosen.keys_keep_s)
    dev = (
        Issuer(TokenVerifier(dev_rules(chosen.max_token_bytes)), open_dev_keys(settings)) if _local(settings) else None
    )
    return Authenticator(
        issuer=_issuer(settings) if chosen.issuer else None, dev_issuer=dev, ring=ring,
        specs=lambda use_case: _spec(settings, use_case), max_bytes=chosen.max_token_bytes,
        remembered=chosen.cached_tokens,
    )  # fmt: skip


def is_required(settings: Settings) -> bool:
    """Whether callers must show who they are.

    Raises:
        ConfigurationError: Access is off where strangers could come, or required with nobody who could get in.
    """
    host, mode = settings.gateway.host, settings.access.mode
    exposed = not (_local(settings) and is_loopback(host))
    where = f"environment={settings.environment}, bound to {host}"
    if mode == "off" and exposed:
        raise ConfigurationError(
            f"The gateway would answer everybody: access.mode is off ({where})",
            hint="set LEITSTAND_ACCESS__MODE=required; off is for environment=local on 127.0.0.1",
        )
    if mode == "off" or (not mode and not exposed):
        return False
    if not settings.access.issuer and not has_dev_issuer(settings) and not _has_keys(settings):
        raise ConfigurationError(
            f"The gateway asks for credentials, and there are none ({where})",
            hint="name a token issuer with LEITSTAND_ACCESS__ISSUER and __AUDIENCE, or run `leitstand keys create`",
        )
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def http_fetch(ca: Path | None = None) -> Fetch:
    """Reads documents of the issuer over HTTP: no redirects, bounded in time and size."""
    context = client_context(ca)

    async def fetch(url: str) -> bytes:
        timeout = aiohttp.ClientTimeout(total=FETCH_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
                session.get(url, allow_redirects=False, ssl=context) as response,
            ):
                if response.status != 200:  # noqa: PLR2004
                    raise TransientBackendError(f"{_origin(url)} answered {response.status}")
                return await _bounded(response)
        except (aiohttp.ClientError, TimeoutError, ssl.SSLError, ValueError) as error:
            said = f"{type(error).__name__}: {error}" if str(error) else "no answer in time"
            raise TransientBackendError(f"{_origin(url)} cannot be read: {said}") from error

    return fetch


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(64 * 1024):
        size += len(part)
        if size > MAX_DOCUMENT:
            raise ValueError(f"more than {MAX_DOCUMENT} bytes")
        parts.append(part)
    return b"".join(parts)


def _issuer(settings: Settings) -> Issuer:
    chosen = settings.access
    rules = TokenRules(
        issuer=chosen.issuer, audience=chosen.audience, algorithms=chosen.algorithms,
        types=tuple(each.lower().removeprefix("application/") for each in chosen.token_types),
        leeway_s=chosen.leeway_s, scope_claim=chosen.scope_claim, tenant_claim=chosen.tenant_claim,
        default_tenant=chosen.default_tenant, max_bytes=chosen.max_token_bytes,
    )  # fmt: skip
    keys = IssuerKeys(
        chosen.issuer, http_fetch(chosen.issuer_ca), jwks_url=chosen.jwks_url, ttl_s=chosen.jwks_ttl_s,
        keep_s=chosen.jwks_keep_s, pause_s=chosen.jwks_pause_s,
    )  # fmt: skip
    return Issuer(TokenVerifier(rules), keys)


def _spec(settings: Settings, use_case: str) -> AccessSpec:
    """The use case's; a use case without a file here has the default scopes. A broken file lets nobody in."""
    try:
        path = find(use_case, settings.usecases)
    except NotFoundError:
        return AccessSpec()
    try:
        return load(path).access
    except LeitstandError as error:
        logger.error("The use-case file cannot be read, so nobody is let in", use_case=use_case, cause=error.message)
        raise PermanentBackendError(
            f"The policy of '{use_case}' cannot be read", hint="see the gateway's log"
        ) from error


def _has_keys(settings: Settings) -> bool:
    """Whether there is an API key; a store that does not answer now may hold some, and lets nobody in meanwhile."""
    try:
        return bool(open_api_keys(settings).all())
    except ConfigurationError:
        raise
    except LeitstandError:
        return True


def _local(settings: Settings) -> bool:
    return settings.environment == "local"


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
