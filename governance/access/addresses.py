"""Where a gateway may send requests: nobody shall make it ask for what only this network can reach.

Checked when a route table is written (form, literal addresses) and again for every address that a name resolves to,
right before it is connected to, so that a name that changes its mind gains nothing. Cloud metadata services,
link-local, multicast and unspecified addresses are never allowed; private ones and loopback by the settings.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from leitstand.errors import ConfigurationError
from leitstand.settings import Settings

__all__ = ["check_url", "forbidden", "private_allowed"]

METADATA = tuple(
    map(ip_network, ("fd00:ec2::/32", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", "fd20:ce::254/128"))
)
NAT64 = ip_network("64:ff9b::/96")
NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data"})


def private_allowed(settings: Settings) -> bool:
    """Whether upstreams may have private addresses; by default where they must: on one machine and in a cluster."""
    chosen = settings.gateway.private_upstreams
    return chosen if chosen is not None else settings.environment == "local" or bool(settings.kubernetes.image)


def forbidden(address: str, *, private: bool) -> str:
    """Why `address` (an IP) must not be connected to; empty when it may."""
    try:
        ip = _embedded(ip_address(address.partition("%")[0]))
    except ValueError:
        return "it is no IP address"
    if ip.is_link_local or any(ip in network for network in METADATA if network.version == ip.version):
        return "it is a link-local or metadata address"
    if ip.is_multicast or ip.is_unspecified or (ip.is_reserved and not ip.is_loopback):
        return "it is no address of a server"
    if not private and not ip.is_global:
        return "it is a private address, and gateway.private_upstreams does not allow those"
    return ""


def check_url(url: str, *, private: bool) -> None:
    """Refuses what is no plain HTTP address of an upstream.

    Raises:
        ConfigurationError: Another scheme, credentials, a query, no host, or a forbidden address.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise _refused(url, "it is no URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise _refused(url, "it is not http:// or https:// with a host")
    if parts.username is not None or parts.password is not None:
        raise _refused(f"{parts.scheme}://...@{host}", "it holds more than host and path: credentials")
    if parts.query or parts.fragment or any(ord(each) <= 0x20 or ord(each) == 0x7F for each in url) or "\\" in url:  # noqa: PLR2004
        raise _refused(url.partition("?")[0], "it holds more than host and path")
    if host.rstrip(".").lower() in NAMES:
        raise _refused(url, "it names a metadata service")
    if ":" in host or host.replace(".", "").isdigit():
        why = forbidden(host, private=private)
        if why:
            raise _refused(url, why)


def _embedded(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside of an IPv6 one, when there is one: that is where packets end."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or ip


def _refused(url: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"'{url}' cannot be an upstream: {why}", hint="write http://host:port or https://host")
