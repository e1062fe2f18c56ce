"""Nobody shall make the gateway ask for what only its network can reach."""

import socket
from typing import Any

import pytest

from governance.access.addresses import check_url, forbidden, private_allowed
from governance.routes.tables import stored
from leitstand.errors import ConfigurationError
from leitstand.settings import GatewaySettings, KubernetesSettings, Settings
from leitstand.types import RouteTable, Target, utc_now
from services.upstream_addresses import CheckedResolver, ForbiddenAddress
from services.upstreams import UpstreamFailed, Upstreams

NEVER = (
    "169.254.169.254", "169.254.170.2", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200",
    "168.63.129.16", "192.0.0.192", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1",
    "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
)  # fmt: skip
PRIVATE = ("127.0.0.1", "::1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "fc00::1", "100.64.0.1", "::ffff:10.0.0.1")


@pytest.mark.parametrize("address", NEVER)
def test_metadata_and_link_local_addresses_are_never_allowed(address: str) -> None:
    assert forbidden(address, private=True) and forbidden(address, private=False)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_for_the_settings_to_allow(address: str) -> None:
    assert not forbidden(address, private=True)
    assert "private" in forbidden(address, private=False)


def test_public_addresses_are_allowed() -> None:
    assert not forbidden("8.8.8.8", private=False) and not forbidden("2606:4700::1111", private=False)
    assert forbidden("example.org", private=True)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "gopher://127.0.0.1:6379/_x", "ftp://host/", "//host", "host:80", "http://", "http://:80",
        "http://user:secret@host/", "http://user@host/", "http://host/?q=1", "http://host/#x", "http://ho st/",
        "http://host\\@evil/", "http://host:99999/", "http://[::1", "http://169.254.169.254/latest/meta-data",
        "http://[fd00:ec2::254]/", "http://[::ffff:a9fe:a9fe]:80", "http://metadata.google.internal/",
        "http://2852039166/", "http://169.254.43518/",
    ],
)  # fmt: skip
def test_a_route_table_takes_no_such_url(url: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be an upstream") as caught:
        table = RouteTable(
            use_case="a", stable=Target(version=1, url=url), changed_at=utc_now(), actor="t", reason="t"
        )  # fmt: skip
        stored(table, 0)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:3000", "https://api.example.com/v1", "http://bento.ns.svc:3000"])
def test_usual_urls_pass(url: str) -> None:
    check_url(url, private=True)


def test_where_private_addresses_are_allowed_by_default() -> None:
    assert private_allowed(Settings())
    assert not private_allowed(Settings(environment="production"))
    assert private_allowed(Settings(environment="production", kubernetes=KubernetesSettings(image="r/{name}")))
    assert not private_allowed(Settings(gateway=GatewaySettings(private_upstreams=False)))


class Names:
    """A resolver that answers what a test tells it to."""

    def __init__(self, *answers: str) -> None:
        self.answers = answers

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[dict[str, Any]]:
        return [
            {"hostname": host, "host": each, "port": port, "family": family, "proto": 0, "flags": 0}
            for each in self.answers
        ]


async def test_one_forbidden_address_among_several_refuses_a_name() -> None:
    resolver = CheckedResolver(private=True)
    resolver._resolver = Names("127.0.0.1", "169.254.169.254")  # type: ignore[assignment]
    with pytest.raises(ForbiddenAddress, match="link-local or metadata"):
        await resolver.resolve("innocent.example")
    resolver._resolver = Names("127.0.0.1")  # type: ignore[assignment]
    assert len(await resolver.resolve("innocent.example")) == 1


async def test_a_name_that_leads_inside_is_not_called() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        upstreams = Upstreams(private=False)
        await upstreams.open()
        try:
            for url in (f"http://localhost:{port}", f"http://127.0.0.1:{port}"):
                with pytest.raises(UpstreamFailed, match="private address") as caught:
                    await upstreams.call(Target(version=1, url=url), "/v2", None, {}, 5)
                assert caught.value.reason == "refused"
        finally:
            await upstreams.close()
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
