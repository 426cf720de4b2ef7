"""A candidate for the leadership in a process of its own: `python -m tests.integration.candidate URL NAME`.

It reports its state on standard output: `leads TERM`, `lost`. Nothing else runs in it.
"""

import asyncio
import sys

from ops.nats.leader import Leader
from ops.nats.link import NatsLink
from ops.telemetry.logs import configure_logging


async def main(url: str, name: str) -> None:
    configure_logging("candidate")  # to standard error
    link = await NatsLink.connect(url, name=name)
    leader = Leader(link, worker=name, owner=f"nonce-{name}", slot="cpu-0")
    await leader.start()
    print("stands by", flush=True)
    while True:
        print(f"leads {await leader.campaign()}", flush=True)
        await leader.hold()
        print("lost", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
