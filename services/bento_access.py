"""Who may ask a Bento: whoever shows the secret that the gateway shares with it. Probes and metrics are open.

A Bento decides nothing about people: scopes, budgets, guards and records are the gateway's, and the secret keeps
callers from going around it. Light on purpose: this is part of every Bento.
"""

import hmac
from collections.abc import MutableMapping
from typing import Any

import orjson

from leitstand.errors import ConfigurationError
from leitstand.settings import Settings
from services.errors import JSON, Response

__all__ = ["BentoAccess", "bento_access", "refuse_open"]

OPEN = frozenset({"/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready"})
SCHEME = b"bearer "


class BentoAccess:
    """Compares in constant time with every accepted secret; without any, everybody may ask."""

    def __init__(self, *tokens: str) -> None:
        self._tokens = tuple(token.encode() for token in tokens)

    def refusal(self, scope: MutableMapping[str, Any]) -> Response | None:
        """The answer to who may not ask; None for who may."""
        if not self._tokens or scope["path"] in OPEN:
            return None
        shown = b""
        for name, value in scope["headers"]:
            if name == b"authorization" and value[: len(SCHEME)].lower() == SCHEME:
                shown = value[len(SCHEME) :].strip()
        if sum(hmac.compare_digest(shown, token) for token in self._tokens):
            return None
        said = orjson.dumps({"error": "this model answers its gateway only"})
        return 401, [JSON, (b"www-authenticate", b'Bearer realm="leitstand-bento"')], said


def bento_access(settings: Settings) -> BentoAccess:
    """By the accepted secrets: the present one, and the previous one while it is being exchanged."""
    serving = settings.serving
    return BentoAccess(
        *(each.get_secret_value() for each in (serving.token, serving.previous_token) if each is not None)
    )


def refuse_open(settings: Settings) -> None:
    """Returns when strangers cannot use this Bento.

    Raises:
        ConfigurationError: There is no secret, and the environment is not `local`.
    """
    if settings.serving.token is None and settings.environment != "local":
        raise ConfigurationError(
            f"This Bento would answer everybody (environment={settings.environment})",
            hint="give gateway and Bentos the same LEITSTAND_SERVING__TOKEN: openssl rand -hex 32",
        )
