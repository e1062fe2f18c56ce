"""API keys in Redis: for gateways on several machines.

``{leitstand:keys}`` is a hash of id to record, ``{leitstand:keys}:revision`` a counter; the braces keep both in one
slot of a cluster. A change and its count are one transaction. Safe with threads and processes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

import redis
from redis import exceptions

from governance.access.api_keys import ApiKey, ended, unknown_key
from governance.access.api_keys_sqlite import read_key
from leitstand.errors import ConfigurationError, ConflictError, PermanentBackendError, TransientBackendError

__all__ = ["RedisApiKeys"]

KEYS, REVISION = "{leitstand:keys}", "{leitstand:keys}:revision"
TIMEOUT_S = 2.0


class RedisApiKeys:
    """`ApiKeyStore` on a Redis server.

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
                f"Not a Redis URI: {error}", hint="set LEITSTAND_ACCESS__KEYS_URI=redis://host:6379/0"
            ) from error

    def add(self, key: ApiKey) -> None:
        """See `ApiKeyStore.add`."""

        def change(pipe: Any) -> None:
            if pipe.hexists(KEYS, key.key_id):
                raise ConflictError(f"There is a key with the id '{key.key_id}' already")
            self._write(pipe, key)

        with _translated():
            self._client.transaction(change, KEYS)

    def end(self, key_id: str, at: datetime, why: Literal["rotated", "revoked"]) -> ApiKey:
        """See `ApiKeyStore.end`."""
        result: list[ApiKey] = []

        def change(pipe: Any) -> None:
            record = pipe.hget(KEYS, key_id)
            if record is None:
                raise unknown_key(key_id)
            result[:] = [ended(read_key(record), at, why)]
            self._write(pipe, result[0])

        with _translated():
            self._client.transaction(change, KEYS)
        return result[0]

    def all(self) -> Sequence[ApiKey]:
        """See `ApiKeyStore.all`."""
        with _translated():
            records = self._client.hvals(KEYS)
        return sorted(map(read_key, records), key=lambda key: (key.created_at, key.key_id))

    def revision(self) -> int:
        """See `ApiKeyStore.revision`."""
        with _translated():
            return int(self._client.get(REVISION) or 0)

    def close(self) -> None:
        """Closes the connections; the next call opens another."""
        self._client.close()

    @staticmethod
    def _write(pipe: Any, key: ApiKey) -> None:
        pipe.multi()
        pipe.hset(KEYS, key.key_id, key.model_dump_json())
        pipe.incr(REVISION)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.ResponseError) as error:
        raise PermanentBackendError(f"The store of API keys refuses: {error}", hint="check its URI") from error
    except (exceptions.RedisError, OSError) as error:
        raise TransientBackendError(
            f"The store of API keys does not answer: {error}", hint="is Redis running?"
        ) from error
