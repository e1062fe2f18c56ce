"""Chooses where API keys are kept."""

from pathlib import Path

from governance.access.api_keys import ApiKeyStore
from governance.access.api_keys_sqlite import SqliteApiKeys
from leitstand.errors import ConfigurationError, MissingExtraError
from leitstand.settings import Settings

__all__ = ["open_api_keys"]

REDIS = ("redis://", "rediss://", "unix://")


def open_api_keys(settings: Settings) -> ApiKeyStore:
    """The store of `settings.access.keys_uri`; empty: the Redis of the route tables, or SQLite below `home`.

    Raises:
        ConfigurationError: The URI names a kind of store that there is not.
        MissingExtraError: It is Redis, and its client is not installed.
    """
    uri = settings.access.keys_uri
    if not uri and settings.gateway.routes_uri.startswith(REDIS):
        uri = settings.gateway.routes_uri
    if uri.startswith(REDIS):
        try:
            from governance.access.api_keys_redis import RedisApiKeys  # noqa: PLC0415 -- an optional dependency
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "API keys in Redis need its client", hint="pip install 'leitstand[gateway]'"
            ) from error
        return RedisApiKeys(uri)
    if "://" in uri:
        raise ConfigurationError(
            f"API keys cannot be kept at '{uri}'", hint="give redis://host:port/db, or the path of a file"
        )
    return SqliteApiKeys(Path(uri) if uri else settings.root / "access" / "api_keys.db")
