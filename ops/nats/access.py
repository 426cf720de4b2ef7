"""The user as which a process connects to nats-server: one for each role. `nats.conf` sets its rights (design §10.8).

The password comes from the address, from the environment, or from the folder in which `warmlane up` keeps the passwords
that it made. Warmlane never writes a password on a command line, in a log or in an error.
"""

import os
import secrets
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Self, get_args
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec
from msgspec import Struct

from contracts.nesting import decode_json
from ops.machine.secret_variables import file_variable, secret_in

Role = Literal["gateway", "lane", "degraded", "supervisor", "operator", "system", "admin"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
DEFAULT_DATA_DIR: Final = Path(".warmlane")
# A folder below the data folder. `nats --context FILE` takes its files.
AUTH_FOLDER: Final = "nats-auth"
DESCRIPTIONS: Final[Mapping[Role, str]] = {
    "operator": "Warmlane, read only: streams and buckets",
    "system": "the nats-server of Warmlane, read only: connections, denials, how full it is",
    "admin": "Warmlane, all rights: provision, keys, switches, backup",
}


class NatsAccess(Struct, frozen=True, kw_only=True):
    """Where nats-server is, and the user to connect as. *urls* are separated by commas and hold no password.

    *ca* is a file of certificates: the client checks the server's certificate against these, not the system's.
    *said_by* says who named the *urls*, for errors.
    """

    urls: str
    user: str | None = None
    password: str | None = None
    ca: Path | None = None
    said_by: str = ""

    @classmethod
    def at(cls, urls: str, *, ca: Path | None = None) -> Self:
        """The access that *urls* alone give: `nats://USER:PASSWORD@HOST:PORT`, or without a user."""
        parts = [urlsplit(url if "://" in url else f"nats://{url}") for url in urls.split(",")]
        named = next((part for part in parts if part.username), None)
        plain = ",".join(urlunsplit(part._replace(netloc=part.netloc.rpartition("@")[2])) for part in parts)
        if named is None:
            return cls(urls=plain, ca=ca)
        return cls(urls=plain, user=unquote(named.username or ""), password=unquote(named.password or ""), ca=ca)

    @property
    def shown(self) -> str:
        """The addresses and who named them, for an error."""
        return f"{self.urls} ({self.said_by})" if self.said_by else self.urls

    def __repr__(self) -> str:
        return f"NatsAccess({self.urls!r}, user={self.user!r})"

    def tls(self) -> ssl.SSLContext | None:
        """How the client checks the server's certificate; None without *ca* where none of the *urls* asks for TLS.
        Raises OSError for a bad *ca*."""
        if self.ca is None and not any(url.startswith(("tls://", "wss://")) for url in self.urls.split(",")):
            return None
        context = ssl.create_default_context(cafile=self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def arguments(self) -> list[str]:
        """The addresses and *ca*, for the command line of another process, which finds its own user and password."""
        arguments = ["--nats-url", self.urls]
        return arguments if self.ca is None else [*arguments, "--nats-ca", str(self.ca)]


class _Context(Struct, kw_only=True):
    """A context of the NATS CLI: the fields that we set."""

    description: str = ""
    url: str = ""
    user: str = ""
    password: str = ""
    inbox_prefix: str = ""


def password_variable(role: Role) -> str:
    """The variable of the environment from which *role*, and `nats.conf`, take its password."""
    return f"WARMLANE_NATS_{role.upper()}_PASSWORD"


def access(role: Role, urls: str, *, data_dir: Path, ca: Path | None = None) -> NatsAccess:
    """How a process of *role* connects to the server at *urls*. The first of these counts:

    1. A user in *urls*.
    2. `WARMLANE_NATS_<ROLE>_PASSWORD`, or the file that `WARMLANE_NATS_<ROLE>_PASSWORD_FILE` names.
    3. The file that `warmlane up` keeps in *data_dir* for the server that it runs. Where this process may not read that
       folder, systemd passes it the file (`LoadCredential=`).
    4. No user: a server that has users refuses the connection, and says so.

    Raises click.ClickException for a file that cannot be used.
    """
    given = NatsAccess.at(urls, ca=ca)
    if given.user is not None:  # 1
        return given
    password = secret_in(os.environ, password_variable(role))
    if password:  # 2
        return NatsAccess(urls=given.urls, user=role, password=password, ca=ca)
    kept = _read(data_dir / AUTH_FOLDER / f"{role}.json") or _read(_handed_over() / f"{role}.json")
    if kept is not None and kept.url == given.urls:  # 3
        return NatsAccess(urls=given.urls, user=kept.user, password=kept.password, ca=ca)
    return given  # 4


def make_users(data_dir: Path, url: str) -> dict[str, str]:
    """Makes the users of an embedded server at *url*, and returns the environment from which `nats.conf` takes their
    passwords. Each user has a file in *data_dir*, readable by its owner only. Later starts use the same files. Raises
    OSError.
    """
    folder = data_dir / AUTH_FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    environment = {}
    for role in ROLES:
        path = folder / f"{role}.json"
        kept = _read(path)
        # a letter first: nats-server would read 1e5 as a number
        password = kept.password if kept is not None and kept.password else f"w{secrets.token_hex(24)}"
        context = _Context(
            description=DESCRIPTIONS.get(role, f"Warmlane, as {role}"),
            url=url,
            user=role,
            password=password,
            inbox_prefix=inbox_prefix(role),
        )
        _write(path, msgspec.json.format(msgspec.json.encode(context), indent=2) + b"\n")
        environment[password_variable(role)] = password
    return environment


def inbox_prefix(user: str) -> str:
    """The prefix of the subjects on which *user* gets its replies. No other role may subscribe there, except admin."""
    return f"_INBOX_{user}".replace(".", "_")


def environment_for(role: Role | None, base: Mapping[str, str]) -> dict[str, str]:
    """*base* for a process of *role*: without the passwords of other roles. Where *role* is None, it holds no
    password."""
    variables = [password_variable(other) for other in ROLES if other != role]
    others = {*variables, *map(file_variable, variables)}
    return {name: value for name, value in base.items() if name not in others}


def _handed_over() -> Path:
    return Path(os.environ.get("CREDENTIALS_DIRECTORY") or os.devnull)


def _read(path: Path) -> _Context | None:
    try:
        return decode_json(path.read_bytes(), _Context)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _write(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    part.replace(path)
