"""Looks at every address right before it is connected to: a name may resolve to what nobody shall ask for."""

import errno
import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from governance.access.addresses import forbidden

__all__ = ["CheckedResolver", "ForbiddenAddress"]


class ForbiddenAddress(OSError):
    """A name resolves to an address that must not be connected to."""


class CheckedResolver(AbstractResolver):
    """The system's resolver; one forbidden address among several refuses the name."""

    def __init__(self, *, private: bool) -> None:
        self._private = private
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `AbstractResolver.resolve`.

        Raises:
            ForbiddenAddress: See there.
        """
        found = await self._resolver.resolve(host, port, family)
        for each in found:
            why = forbidden(each["host"], private=self._private)
            if why:
                raise ForbiddenAddress(errno.EACCES, f"{host} resolves to {each['host']}: {why}")
        return found

    async def close(self) -> None:
        """See `AbstractResolver.close`."""
        await self._resolver.close()
