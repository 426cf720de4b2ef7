"""A worker without torch whose pipeline hosts reach the memory limit of their cgroup (`… CGROUP FOLDER`): one while the
worker waits for its answer, another while the worker waits for nothing. It prints what the worker reports of each.

This is a process of its own, because worker and hosts are all in the cgroup.
"""

import asyncio
import sys
from pathlib import Path

from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.outcome import HostLost
from tests.e2e.test_how_hosts_die import LIGHT, MODEL, died, host_on


async def main(folder: Path) -> None:
    server = ForkServer(LIGHT)
    host = host_on("cpu-hungry", server, folder)
    await host.start()
    try:
        await host.load(MODEL)
    except HostLost as error:
        print(error)
    host = host_on("cpu-hungry-later", server, folder)
    await host.start()
    print(await died(host, host.load(MODEL)))
    await server.close()


if __name__ == "__main__":
    Path(sys.argv[1], "cgroup.procs").write_text("0")
    asyncio.run(main(Path(sys.argv[2])))
