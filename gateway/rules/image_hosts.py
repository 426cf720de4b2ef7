"""Which hosts a gateway fetches images from: only those that its operator named. Pure."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from contracts.urls import NamedUrl
from gateway.rules.addresses import Network, allowing

OPTION: Final = "--images-allow-host"
NONE_ALLOWED: Final = (
    "this gateway fetches no images; send the file itself, a data URI, or a reference from POST /images "
    f"(an operator allows hosts with {OPTION})"
)
ANY: Final = "*"


class ImageHosts(Struct, frozen=True):
    """*names* are hosts in lower case, `*.example.com` for those below one, or `*` for all. From *networks* images may
    come by IP address, from a host that is not on the public internet, and by plain http."""

    names: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, allowed: Iterable[str | Network]) -> "ImageHosts":
        """What an operator allows by these names and networks."""
        every = tuple(allowed)
        names = tuple(each for each in every if isinstance(each, str))
        return cls(names, allowing(each for each in every if not isinstance(each, str)))

    def objection(self, url: NamedUrl) -> str | None:
        """Why no image is fetched from the host of *url*; None if its name, or the address in its place, is allowed.

        1. Nothing is fetched where no operator allowed anything.
        2. An address in the place of a name has to be in a network that was allowed.
        3. A name has to be allowed, by itself or by a pattern. Its addresses are judged when it is looked up.
        """
        if not self.names and not self.networks:  # 1
            return NONE_ALLOWED
        literal = url.literal
        host = url.host.removesuffix(".")
        if literal is not None:  # 2
            is_allowed = any(literal in network for network in self.networks)
        else:  # 3
            is_allowed = any(_fits(host, name) for name in self.names)
        return None if is_allowed else f"no images are fetched from {host}; an operator allows it with {OPTION}"


def _fits(host: str, name: str) -> bool:
    if name.startswith("*."):
        return host.endswith(name[1:]) and len(host) > len(name) - 1
    return name in (ANY, host)
