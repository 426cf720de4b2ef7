"""A candidate for the leadership, in a process: `python -m tests.integration.candidate URL NAME TTL_S REFRESH_S`.

It reports its state on standard output: `leads TERM`, `lost`. Nothing else runs in it.
"""

import asyncio
import sys
from unittest.mock import patch

from ops.nats import leader as leader_module
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
    url, name, ttl_s, refresh_s = sys.argv[1:]
    with patch.multiple(leader_module, LEADER_TTL_S=float(ttl_s), LEADER_REFRESH_S=float(refresh_s)):
        asyncio.run(main(url, name))
