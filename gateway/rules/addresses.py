"""Which IP addresses a gateway connects to for its callers: none inside its own network. Pure.

A caller chooses the address of a webhook or of an image (server-side request forgery). An address that is not on the
public internet is refused, unless the operator allowed it. An address that hands out credentials of a cloud machine is
always refused.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# IANA's registries of special-purpose addresses, and ranges beside them that are no single hosts. Python's own
# `is_global` is asked as well, but some versions of it do not know all of these.
REFUSED: Final[tuple[Network, ...]] = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("::/128", "::1/128", "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23"),
        *("2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
)
# Where clouds hand out the credentials of a machine; some of them are public addresses.
METADATA: Final[tuple[Address, ...]] = tuple(
    ip_address(text)
    for text in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "168.63.129.16")
) + tuple(ip_address(text) for text in ("192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"))
PLAIN: Final = "plain http is for addresses that the operator allowed; use https"
_LOOPBACK: Final = IPv4Network("127.0.0.0/8")
_LOOPBACK_6: Final = IPv6Network("::1/128")


def allowing(networks: Iterable[Network]) -> tuple[Network, ...]:
    """The networks that an operator allows by *networks*: 127.0.0.0/8 as a whole includes the loopback of IPv6, since
    `localhost` is both."""
    named = tuple(networks)
    return (*named, _LOOPBACK_6) if _LOOPBACK in named else named


def objection(address: Address, allowed: Sequence[Network], *, option: str) -> str | None:
    """Why the gateway may not connect to *address*; None if it may. *option* is the option by which an operator allows
    a network.

    1. An IPv6 address that has an IPv4 address inside, or the scope of one link, is refused.
    2. An address that hands out credentials is refused, whatever is allowed.
    3. The gateway may connect to what the operator allowed.
    4. What is not on the public internet is refused.
    """
    if isinstance(address, IPv6Address) and (address.ipv4_mapped is not None or address.scope_id is not None):  # 1
        inside = address.ipv4_mapped
        return (
            f"{address} belongs to one link only"
            if inside is None
            else f"{address} is another form of {inside}; write it in that form"
        )
    if address in METADATA:  # 2
        return f"{address} hands out credentials of cloud machines"
    if is_allowed(address, allowed):  # 3
        return None
    if not address.is_global or address.is_multicast or any(address in network for network in REFUSED):  # 4
        return f"{address} is not on the public internet; an operator allows it with {option}"
    return None


def is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether the operator allowed the network of *address*; plain HTTP is allowed there as well."""
    return any(address in network for network in allowed)


def objection_to(
    addresses: Sequence[Address], allowed: Sequence[Network], *, is_plain: bool, option: str
) -> str | None:
    """Why the gateway may not connect to a host that has these *addresses*; *is_plain*: it would be without TLS.

    Every address counts, and not only the first: which of them is used is chance.
    """
    if not addresses:
        return "its name resolves to no address"
    for address in addresses:
        found = objection(address, allowed, option=option)
        if found is not None:
            return found
        if is_plain and not is_allowed(address, allowed):
            return PLAIN
    return None
