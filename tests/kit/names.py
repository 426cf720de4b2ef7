"""A DNS server of the tests' own, whose answers for a name may differ from one query to the next."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address
from typing import cast

import dns.asyncresolver
import dns.exception
import dns.message
import dns.rdatatype
import dns.rrset

from gateway.outbound.connecting import Resolve
from gateway.rules.addresses import Address
from tests.kit.support import BOUND_S, free_port


class NameServer(asyncio.DatagramProtocol):
    """A DNS server of the test's own. Each query gets the next of its answers; the last answer repeats."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.questions = 0
        self.port = free_port()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        asked = dns.message.from_wire(data)
        answer = dns.message.make_response(asked)
        question = asked.question[0]
        if question.rdtype == dns.rdatatype.A:
            self.questions += 1
            found = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if found:
                answer.answer.append(dns.rrset.from_text_list(question.name, 0, "IN", "A", list(found)))
        self._transport.sendto(answer.to_wire(), address)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Resolve]:
        """A resolver that queries this server, by real DNS over UDP."""
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", self.port)
        )
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], self.port
        resolver.lifetime = resolver.timeout = BOUND_S  # it asks once: a second question would get another answer
        resolver.cache = None

        async def resolve(host: str, port: int) -> Sequence[Address]:
            try:
                found = await resolver.resolve(f"{host}.", "A")
            except dns.exception.DNSException as error:
                raise OSError(type(error).__name__) from error
            return [ip_address(record.address) for record in found]

        try:
            yield resolve
        finally:
            transport.close()
