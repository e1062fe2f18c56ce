"""Route tables in Redis: for gateways on several machines. Turn on its append-only file to survive a crash.

``{leitstand:routes}`` is a hash of use case to revision, ``{leitstand:routes}:NAME`` a list of every revision
as JSON. The braces keep all keys in one slot of a Redis cluster. Safe with threads and processes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis import exceptions

from governance.routes.tables import conflict, read_table, stored
from leitstand.errors import ConfigurationError, PermanentBackendError, TransientBackendError
from leitstand.types import RouteTable

__all__ = ["RedisRouteStore"]

KEY = "{leitstand:routes}"
TIMEOUT_S = 2.0
# Redis runs a script without interleaving anything else, which makes it a compare-and-set.
WRITE = """
local revision = redis.call('LLEN', KEYS[2])
if revision ~= tonumber(ARGV[2]) then return revision end
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], revision + 1)
return -1
"""


class RedisRouteStore:
    """`RouteStore` on a Redis server.

    Args:
        uri: ``redis://[user:password@]host:port/db`` or ``rediss://...``.

    Raises:
        ConfigurationError: `uri` is not a Redis URI.
    """

    def __init__(self, uri: str) -> None:
        try:
            self._client: Any = redis.Redis.from_url(
                uri, decode_responses=True, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
            )
        except ValueError as error:
            raise ConfigurationError(
                f"Not a Redis URI: {error}", hint="set LEITSTAND_GATEWAY__ROUTES_URI=redis://host:6379/0"
            ) from error
        self._write = self._client.register_script(WRITE)
        pool = self._client.connection_pool.connection_kwargs
        self._where = f"redis at {pool.get('host', pool.get('path'))}:{pool.get('port', '')}"

    def read(self, use_case: str) -> RouteTable | None:
        with self._translated():
            record = self._client.lindex(_key(use_case), -1)
        return None if record is None else read_table(record, use_case)

    def write(self, table: RouteTable, *, expected: int) -> RouteTable:
        new = stored(table, expected)
        with self._translated():
            found = self._write(keys=[KEY, _key(new.use_case)], args=[new.use_case, expected, new.model_dump_json()])
        if found != -1:
            raise conflict(new.use_case, expected, found)
        return new

    def names(self) -> Sequence[str]:
        return sorted(self.revisions())

    def revisions(self) -> Mapping[str, int]:
        with self._translated():
            return {name: int(revision) for name, revision in self._client.hgetall(KEY).items()}

    def history(self, use_case: str) -> Sequence[RouteTable]:
        with self._translated():
            records = self._client.lrange(_key(use_case), 0, -1)
        return [read_table(record, use_case) for record in records]

    def close(self) -> None:
        """Closes the connections; the next call opens another."""
        self._client.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (exceptions.AuthenticationError, exceptions.AuthorizationError) as error:
            raise PermanentBackendError(f"{self._where} refuses us: {error}", hint="check user and password") from error
        except exceptions.ReadOnlyError as error:
            raise TransientBackendError(f"{self._where} is a replica: {error}", hint="wait for the failover") from error
        except exceptions.ResponseError as error:
            raise PermanentBackendError(f"{self._where} cannot do it: {error}", hint="see the server's log") from error
        except (exceptions.RedisError, OSError) as error:
            raise TransientBackendError(f"{self._where} does not answer: {error}", hint="is it running?") from error


def _key(use_case: str) -> str:
    return f"{KEY}:{use_case}"
