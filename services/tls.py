"""TLS of the gateway: what it shows to callers, and how it knows its upstreams. TLS 1.2 or newer, always."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leitstand.errors import ConfigurationError
from leitstand.settings import TlsSettings

__all__ = ["client_context", "server_options", "upstream_context"]


def client_context(ca: Path | None = None, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """Verifies names and certificates of servers; shows `cert` when they ask.

    Raises:
        ConfigurationError: A file is missing, or no certificate or key.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise _unusable((ca, cert, key), error) from error
    return context


def upstream_context(settings: TlsSettings) -> ssl.SSLContext:
    """For calls to upstreams: our CA beside the system's, and our certificate (mutual TLS) where there is one."""
    context = client_context(None, settings.upstream_cert, settings.upstream_key)
    try:
        if settings.upstream_ca is not None:
            context.load_verify_locations(settings.upstream_ca)
    except (OSError, ssl.SSLError) as error:
        raise _unusable((settings.upstream_ca,), error) from error
    return context


def server_options(settings: TlsSettings) -> Mapping[str, Any]:
    """The arguments of `uvicorn.Config`; none without a certificate.

    Raises:
        ConfigurationError: A file is missing, or certificate and key do not fit together.
    """
    if settings.cert is None or settings.key is None:
        return {}
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.cert, settings.key)
        if settings.client_ca is not None:
            context.load_verify_locations(settings.client_ca)
    except (OSError, ssl.SSLError) as error:
        raise _unusable((settings.cert, settings.key, settings.client_ca), error) from error
    options = {"ssl_certfile": str(settings.cert), "ssl_keyfile": str(settings.key)}
    if settings.client_ca is not None:
        return {**options, "ssl_ca_certs": str(settings.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options


def _unusable(files: tuple[Path | None, ...], error: Exception) -> ConfigurationError:
    names = ", ".join(str(each) for each in files if each is not None) or "the system's certificates"
    return ConfigurationError(f"TLS cannot use {names}: {error}", hint="give readable PEM files that belong together")
