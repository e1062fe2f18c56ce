"""How commands and flows ask the gateways and Bentos of this installation: with our credentials, and nobody else.

Redirects are not followed: the credential would go along.
"""

import ssl
import urllib.request
from functools import lru_cache
from pathlib import Path
from typing import Any

from leitstand.settings import Settings

__all__ = ["ask_bento", "ask_gateway", "is_ready"]


def ask_gateway(settings: Settings, url: str, timeout_s: float = 2.0) -> bytes:
    """GETs from a gateway, with the key `access.client_key` when there is one.

    Raises:
        OSError: No answer, or another status than 2xx.
    """
    key = settings.access.client_key
    headers = {"x-api-key": key.get_secret_value()} if key else {}
    return _ask(urllib.request.Request(url, headers=headers), settings.access.client_ca, timeout_s)  # noqa: S310


def ask_bento(settings: Settings, url: str, body: bytes | None = None, timeout_s: float = 30.0) -> bytes:
    """GETs, or POSTs JSON, with the secret `serving.token` when there is one.

    Raises:
        OSError: No answer, or another status than 2xx.
    """
    token = settings.serving.token
    headers = {"content-type": "application/json"}
    headers |= {"authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    return _ask(urllib.request.Request(url, body, headers), settings.tls.upstream_ca, timeout_s)  # noqa: S310


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@lru_cache(maxsize=8)
def _opener(ca: Path | None) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    if ca is not None:
        context.load_verify_locations(ca)
    return urllib.request.build_opener(_Stay, urllib.request.HTTPSHandler(context=context))


def _ask(request: urllib.request.Request, ca: Path | None, timeout_s: float) -> bytes:
    if request.type not in ("http", "https"):
        raise OSError(f"{request.full_url} is no address of a server")
    with _opener(ca).open(request, timeout=timeout_s) as answer:
        return answer.read()


def is_ready(url: str, timeout_s: float = 2.0) -> bool:
    """Whether the service at `url` says that it is warm and takes requests.

    Certificates are not looked at: nothing secret is sent, and on loopback they seldom name this address.
    """
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=timeout_s, context=_anybody()) as answer:  # noqa: S310
            return answer.status == 200  # noqa: PLR2004
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=1)
def _anybody() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
