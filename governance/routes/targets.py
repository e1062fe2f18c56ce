"""Targets as people write them.

    7=http://127.0.0.1:3000                                        a model Bento
    2=openai+https://api.example/v1?model=small-3&key=example      an OpenAI-compatible API

The URL of an API is what its clients call the base URL: ``/chat/completions`` is added to it. `key` names a secret of
the settings (`chat.keys`); the secret itself is written nowhere.
"""

from urllib.parse import parse_qs, quote, urlsplit

from pydantic import ValidationError

from leitstand.errors import ConfigurationError
from leitstand.types import Target

__all__ = ["read_target", "write_target"]

OPENAI = "openai+"
HINT = "write VERSION=URL, like 7=http://127.0.0.1:3000 or 2=openai+https://api.example/v1?model=NAME&key=NAME"


def read_target(text: str) -> Target:
    """The target that `text` writes.

    Raises:
        ConfigurationError: It writes none.
    """
    version, separator, url = text.partition("=")
    address = url.removeprefix(OPENAI)
    if not separator or not version.isdigit() or not address.startswith(("http://", "https://")):
        raise ConfigurationError(f"'{text}' is no target", hint=HINT)
    if address == url:
        return Target(version=int(version), url=url.rstrip("/"))
    base, _, query = address.partition("?")
    try:
        named = parse_qs(query, strict_parsing=bool(query), max_num_fields=2)
        host = urlsplit(base).hostname
        if not host or "model" not in named or set(named) - {"model", "key"} or any(len(v) > 1 for v in named.values()):
            raise ConfigurationError(
                f"'{text}' is no target: an API needs host and model, and may name a key", hint=HINT
            )
        return Target(
            version=int(version), url=base.rstrip("/"), kind="openai", model=named["model"][0],
            key=named.get("key", [""])[0],
        )  # fmt: skip
    except ValidationError as error:
        raise ConfigurationError(f"'{text}' is no target: {error.errors()[0]['msg']}", hint=HINT) from error
    except ValueError as error:
        raise ConfigurationError(f"'{text}' is no target: {error}", hint=HINT) from error


def write_target(target: Target) -> str:
    """The text that `read_target` understands."""
    if target.kind == "v2":
        return f"{target.version}={target.url}"
    key = f"&key={target.key}" if target.key else ""
    return f"{target.version}={OPENAI}{target.url}?model={quote(target.model, safe='/:.')}{key}"
