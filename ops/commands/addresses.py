"""The addresses of a data folder's system: `warmlane up` writes them there, and every client command finds them there.

The process that writes the file keeps it locked. The kernel drops the lock when the process ends, so that a command
never takes the file of a killed `warmlane up` for that of a running system.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import click
import msgspec
from click.core import ParameterSource
from msgspec import Struct

from contracts.nesting import decode_json
from ops.commands.config_file import CONFIG_VARIABLE

FILE: Final = "up.json"
DEFAULT_URL: Final = "http://127.0.0.1:8000"
DEFAULT_NATS_URL: Final = "nats://127.0.0.1:4222"

Kind = Literal["url", "nats_url"]
_DEFAULTS: Final[dict[Kind, str]] = {"url": DEFAULT_URL, "nats_url": DEFAULT_NATS_URL}


class Addresses(Struct, frozen=True, kw_only=True):
    """Where `warmlane` *command*, the process *pid*, answers on this machine; without a gateway, *url* is None.

    It holds no secret, so that the other users of the machine may read it.
    """

    pid: int
    command: str
    nats_url: str
    url: str | None = None


class Found(Struct, frozen=True):
    """What is found in a data folder: the *addresses* of a system that runs, or *why* there are none."""

    addresses: Addresses | None = None
    why: str = ""


class Address(Struct, frozen=True):
    """An address, and where it comes from (*said_by*), for errors."""

    url: str
    said_by: str


@contextlib.contextmanager
def published(data_dir: Path, addresses: Addresses, *, outlives: bool = False) -> Iterator[None]:
    """Keeps *addresses* in *data_dir* while the block runs, written whole or not at all.

    With *outlives*, they stay when this process replaces itself by exec, for as long as the new program runs. For that,
    the new program inherits the file's descriptor with its lock; `filelock` does not expose its own. Raises OSError.
    """
    path = data_dir / FILE
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.set_inheritable(file.fileno(), outlives)
        file.write(msgspec.json.encode(addresses) + b"\n")
        file.flush()
        part.replace(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def find(data_dir: Path, *, is_named: bool) -> Found:
    """What is found in *data_dir*. Changes nothing, raises nothing.

    *is_named* says whether the user named the folder. If not, it is whatever folder of that name the current one holds.
    Then the file must belong to the user or to root, or anybody could have the user's prompts and keys sent elsewhere.
    """
    path = data_dir / FILE
    try:
        with path.open("rb") as file:
            owner = os.fstat(file.fileno()).st_uid
            if not is_named and owner not in {os.geteuid(), 0}:
                return Found(why=f"{path} is another user's: name the folder with --data-dir to believe it")
            addresses = decode_json(file.read(), Addresses)
            if _is_locked(file.fileno()):
                return Found(addresses)
    except FileNotFoundError:
        return Found(why=f"there is no {path} of a `warmlane up`")
    except OSError as error:
        return Found(why=f"{path} cannot be read: {error.strerror}")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Found(why=f"{path} is not what `warmlane up` writes")
    return Found(why=f"{path} is of a `warmlane {addresses.command}` (process {addresses.pid}) that has ended")


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def chosen(kind: Kind, given: str | None, given_by: str, found: Found, folder: Path) -> Address:
    """Which address counts. Pure.

    1. *given*, by the option or the variable *given_by*.
    2. The address in the data *folder* of a system that runs.
    3. The default.
    """
    if given is not None:  # 1
        return Address(given, given_by)
    if found.addresses is not None:
        written: str | None = getattr(found.addresses, kind)
        if written is not None:  # 2
            of = f"`warmlane {found.addresses.command}`, process {found.addresses.pid}"
            return Address(written, f"{folder / FILE} of {of}")
        why = f"`warmlane {found.addresses.command}` of {folder / FILE} has no gateway"
        return Address(_DEFAULTS[kind], f"the default, since {why}")
    return Address(_DEFAULTS[kind], f"the default, since {found.why}")  # 3


def address_of(kind: Kind, parameter: str, given: str | None, folder: Path, folder_parameter: str) -> Address:
    """`chosen` for the current command, whose parameters are called *parameter* and *folder_parameter*."""
    ctx = click.get_current_context()
    is_named = ctx.get_parameter_source(folder_parameter) not in {None, ParameterSource.DEFAULT}
    option = "--" + parameter.replace("_", "-")
    by = option
    if ctx.get_parameter_source(parameter) is ParameterSource.ENVIRONMENT:
        by = f"WARMLANE_{parameter.upper()}"
    elif ctx.get_parameter_source(parameter) is ParameterSource.DEFAULT_MAP:
        by = ctx.meta.get(CONFIG_VARIABLE, {}).get(parameter, option)
    return chosen(kind, given, by, Found() if given is not None else find(folder, is_named=is_named), folder)
