"""Counts in Redis: for gateways on several machines. Turn on its append-only file to survive a crash.

One script does everything, so that a request's limits cost one round trip, and calls that wait go together.
All keys lie in one slot: a cluster keeps the counts of all use cases on one of its nodes.
"""

from collections.abc import Sequence
from typing import Any

import orjson
import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from governance.budgets.batching import Batcher
from governance.budgets.port import Answer, BudgetChange, Charge, Level
from governance.budgets.redis_script import SCRIPT
from leitstand.errors import ConfigurationError, PermanentBackendError, TransientBackendError

__all__ = ["RedisBudgetStore"]

PREFIX = "{leitstand:budgets}"
STATES = ("refused", "held", "other day")


class RedisBudgetStore:
    """`BudgetStore` on a Redis server. For one event loop.

    Args:
        uri: ``redis://[user:password@]host:port/db`` or ``rediss://...``.
        timeout_s: For one answer.

    Raises:
        ConfigurationError: `uri` is not a Redis URI.
    """

    def __init__(self, uri: str, timeout_s: float = 0.5) -> None:
        try:
            self._client: Any = redis.asyncio.Redis.from_url(
                uri, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, max_connections=4,
                # A connection that a restarted server closed is noticed when it is used. Every call may be repeated.
                retry=Retry(NoBackoff(), 1, supported_errors=(exceptions.ConnectionError,)),
            )  # fmt: skip
        except ValueError as error:
            raise ConfigurationError(
                f"Not a Redis URI: {error}", hint="set LEITSTAND_BUDGETS__URI=redis://host:6379/0"
            ) from error
        self._script = self._client.register_script(SCRIPT)
        self._batches = Batcher(self._run)
        pool = self._client.connection_pool.connection_kwargs
        self._where = f"redis at {pool.get('host', pool.get('path'))}:{pool.get('port', '')}"

    async def hold(self, hold: str, charges: Sequence[Charge], lease_ms: int) -> Answer:
        state, now, refused, wait, left = await self._call("hold", hold, lease_ms, _text(charges))
        return Answer(STATES[state], now, refused - 1, wait, tuple(left))

    async def settle(self, hold: str, used: Sequence[int], late: Sequence[Charge] = ()) -> bool:
        return bool(await self._call("settle", hold, used, _text(late)))

    async def renew(self, holds: Sequence[str], lease_ms: int) -> None:
        if holds:
            await self._call("renew", holds, lease_ms)

    async def reconcile(self, lease_ms: int) -> int:
        return await self._call("reconcile", lease_ms)

    async def levels(self, charges: Sequence[Charge]) -> Sequence[Level]:
        return [Level(*level) for level in await self._call("levels", [tuple(charge) for charge in charges])]

    async def now_ms(self) -> int:
        return await self._call("now")

    async def grant(self, charge: Charge, change: BudgetChange) -> None:
        await self._call("grant", tuple(charge), change.amount, change.model_dump_json())

    async def reset(self, charge: Charge, change: BudgetChange) -> int:
        unknown = change.model_copy(update={"amount": 0})
        return await self._call("reset", tuple(charge), unknown.model_dump_json())

    async def changes(self) -> Sequence[BudgetChange]:
        records = await self._translated(self._client.lrange(f"{PREFIX}:changes", 0, -1))
        return [BudgetChange.model_validate_json(record) for record in records]

    async def keys(self, start_ms: int) -> Sequence[str]:
        head, tail = f"{PREFIX}:d:", f":{start_ms}"

        async def scan() -> list[str]:
            pattern = f"{head}*{tail}"  # braces and colons mean nothing special in a pattern
            return [key.decode() async for key in self._client.scan_iter(match=pattern, count=1000)]

        return sorted(key.removeprefix(head).removesuffix(tail) for key in await self._translated(scan()))

    async def close(self) -> None:
        """Waits for the calls on their way, and closes the connections."""
        await self._batches.close()
        await self._client.aclose()

    async def _call(self, *call: Any) -> Any:
        return await self._batches.call(call)

    async def _run(self, calls: Sequence[Any]) -> Sequence[Any]:
        return await self._translated(self._script(keys=[PREFIX], args=[orjson.dumps(calls)]))

    async def _translated(self, answer: Any) -> Any:
        try:
            return await answer
        except (exceptions.AuthenticationError, exceptions.AuthorizationError) as error:
            raise PermanentBackendError(f"{self._where} refuses us: {error}", hint="check user and password") from error
        except exceptions.ReadOnlyError as error:
            raise TransientBackendError(f"{self._where} is a replica: {error}", hint="wait for the failover") from error
        except exceptions.ResponseError as error:
            if str(error).startswith(("LOADING", "CLUSTERDOWN", "MASTERDOWN", "BUSY")):
                raise TransientBackendError(f"{self._where} is not ready: {error}", hint="wait for it") from error
            raise PermanentBackendError(f"{self._where} cannot do it: {error}", hint="see the server's log") from error
        except (exceptions.RedisError, OSError) as error:
            raise TransientBackendError(f"{self._where} does not answer: {error}", hint="is it running?") from error


def _text(charges: Sequence[Charge]) -> str:
    return orjson.dumps([tuple(charge) for charge in charges]).decode()
