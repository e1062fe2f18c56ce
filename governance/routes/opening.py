"""Chooses the route store from the settings."""

from pathlib import Path

from governance.routes.sqlite import SqliteRouteStore
from leitstand.errors import ConfigurationError, MissingExtraError
from leitstand.ports import RouteStore
from leitstand.settings import Settings

__all__ = ["open_route_store"]


def open_route_store(settings: Settings) -> RouteStore:
    """The store of `settings.gateway.routes_uri`; by default SQLite below `home`. Connects when first used.

    Raises:
        ConfigurationError: The URI names a kind of store that there is not.
        MissingExtraError: It is Redis or PostgreSQL, and its client is not installed.
    """
    uri = settings.gateway.routes_uri
    if uri.startswith(("redis://", "rediss://", "unix://")):
        try:
            from governance.routes.redis import RedisRouteStore  # noqa: PLC0415 -- an optional dependency
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "Route tables in Redis need its client", hint="pip install 'leitstand[gateway]'"
            ) from error
        return RedisRouteStore(uri)
    if uri.startswith(("postgresql://", "postgres://")):
        try:
            from governance.routes.postgres import PostgresRouteStore  # noqa: PLC0415 -- an optional dependency
        except ImportError as error:
            raise MissingExtraError(
                "Route tables in PostgreSQL need its client", hint="pip install 'leitstand[postgres]'"
            ) from error
        return PostgresRouteStore(uri)
    if "://" in uri:
        raise ConfigurationError(
            f"Route tables cannot be kept at '{uri}'",
            hint="give redis://host:port/db, postgresql://host/database, or the path of a file",
        )
    return SqliteRouteStore(Path(uri) if uri else settings.root / "routes" / "routes.db")
