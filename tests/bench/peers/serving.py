"""How each peer is served: by uvicorn as the gateway sets it up, without the gateway's own limits on connections."""

import os
from typing import Any, Final

import uvicorn
import uvloop

HOST: Final = "127.0.0.1"
# The same path for every peer.
PATH: Final = "/generate"


def config_of(app: Any, port: int, *, lifespan: bool = True) -> uvicorn.Config:
    """`gateway.server.connections.http_config`, with uvicorn's own HTTP/1.1 protocol; the tests compare them."""
    return uvicorn.Config(
        app,
        host=HOST,
        port=port,
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on" if lifespan else "off",
        loop="none",
        timeout_keep_alive=20,
        timeout_graceful_shutdown=5,
    )


def serve(app: Any) -> None:
    """Serves *app* on the port in `BENCH_PORT` until SIGTERM, on the gateway's event loop."""
    if os.environ.get("BENCH_SERVER") == "granian":
        from granian.constants import HTTPModes, Interfaces, Loops
        from granian.server import Server

        # one worker, a process of its own, which loads the application as this process does
        Server(
            "tests.bench.peers.bare",
            address=HOST,
            port=int(os.environ["BENCH_PORT"]),
            interface=Interfaces.ASGI,
            workers=1,
            loop=Loops.uvloop,
            http=HTTPModes.http1,
            websockets=False,
            log_enabled=False,
        ).serve(target_loader=lambda *_: app)
        return
    uvloop.run(uvicorn.Server(config_of(app, int(os.environ["BENCH_PORT"]))).serve())
