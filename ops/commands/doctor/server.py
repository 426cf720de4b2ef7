"""Looks at a nats-server that runs: its clock beside this machine's, its streams, buckets and consumers."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import nats.errors
from nats.js.errors import NotFoundError

from contracts.settings import SettingsError, load_settings
from contracts.topology import TASKS, Topology, bucket_stream
from ops.commands.doctor.findings import Finding
from ops.commands.doctor.verdicts import judge_skew
from ops.nats.access import NatsAccess
from ops.nats.errors import TransportUnavailable, UnusableServer
from ops.nats.link import NatsLink
from ops.nats.provisioning import differences, wanted

CONNECT_WAIT_S: Final = 2.0
# Limits of a stream that an operator may have set; how long tasks are kept is not known here.
LIMITS: Final = ("max_bytes", "max_msgs", "max_msg_size")


async def clock(server: NatsAccess) -> Finding:
    """This machine's clock beside that of *server*, if one runs there."""
    try:
        link = await NatsLink.connect(server, name="doctor", wait_s=CONNECT_WAIT_S)
    except TransportUnavailable:
        found = f"nothing to compare with: no nats-server runs at {server.urls}"
        return Finding(what="clock", level="ok", found=found)
    except UnusableServer as error:
        return Finding(
            what="clock", level="missing", found=f"the server at {server.urls} is unusable", advice=str(error)
        )
    try:
        await link.streams.state(bucket_stream(TASKS))  # its replies carry the server's time
        return judge_skew(await link.clock.measure_skew_s())
    except NotFoundError:
        found = f"the server at {server.urls} holds no KV {TASKS}, whose answers carry its time"
        return Finding(what="clock", level="note", found=found, advice="run `warmlane provision` once")
    except (TransportUnavailable, UnusableServer, nats.errors.Error) as error:
        return Finding(
            what="clock", level="note", found=f"the server at {server.urls} does not answer", advice=str(error)
        )
    finally:
        await link.close()


def queue(server: NatsAccess, settings: Path | None, profile: str) -> Iterator[Finding]:
    """The streams that these settings want and *server* lacks; nothing if no server runs there."""
    with contextlib.suppress(SettingsError):  # the line about the models reports it
        found = asyncio.run(_lacks(server, wanted(load_settings(settings).catalog(profile), keep_s=0)))
        if found is not None:
            yield found


async def _lacks(server: NatsAccess, want: Topology) -> Finding | None:
    """What a running server lacks, or limits so tightly that it would lose tasks; None if there is no usable server."""
    try:
        link = await NatsLink.connect(server, name="doctor", wait_s=CONNECT_WAIT_S)
    except (TransportUnavailable, UnusableServer):  # the line about the clock reports it
        return None
    try:
        found = [str(each) for each in await differences(link, want) if each.field in ("", *LIMITS)]
    except TransportUnavailable as error:
        return Finding(what="queue", level="note", found="it does not answer", advice=str(error))
    finally:
        await link.close()
    if not found:
        return Finding(what="queue", level="ok", found="every stream, bucket and consumer is there")
    return Finding(what="queue", level="note", found="; ".join(found), advice="run `warmlane provision`")
