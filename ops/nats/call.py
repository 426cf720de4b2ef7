"""A command does one thing on nats-server, and ends."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from ops.nats.access import NatsAccess
from ops.nats.errors import TransportUnavailable, UnusableServer
from ops.nats.link import NatsLink

T = TypeVar("T")


def on_nats(
    nats: NatsAccess, work: Callable[[NatsLink], Awaitable[T]], *, name: str, shown: tuple[type[Exception], ...]
) -> T:
    """Runs *work* on a connection called *name*, and returns what it returns.

    Raises click.ClickException where the server cannot be used, and for each error of *shown*, whose text is for the
    user.
    """

    async def run() -> T:
        link = await NatsLink.connect(nats, name=name)
        try:
            return await work(link)
        finally:
            await link.close()

    expected: tuple[type[Exception], ...] = (TransportUnavailable, UnusableServer, *shown)
    try:
        return asyncio.run(run())
    except expected as error:
        raise click.ClickException(str(error)) from error
