"""API keys: what is stored of one, what a caller presents, and how the two are compared.

A secret has 256 bits of randomness, so that one SHA-256 of it is enough: a slow hash protects what people can guess,
and nobody guesses these (ADR 0015). The secret itself is stored nowhere.
"""

import hashlib
import hmac
import re
from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from contracts.nesting import decode_json
from contracts.tasks import Priority
from contracts.wire import Unreadable

Scope = Literal["submit", "read", "metrics", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("submit", "read", "metrics", "admin")
# The caller of every request while no key was ever made. No key may carry this name.
ANONYMOUS: Final = "anonymous"
DEFAULT_RATE_PER_S: Final = 50.0
DEFAULT_BURST_S: Final = 10
BURST_MAX_S: Final = 3_600
SECRET_BYTES: Final = 32

_ID: Final = r"^[0-9a-f]{12}\Z"
_CALLER: Final = rf"^(?!{ANONYMOUS}\Z)[A-Za-z0-9._@-]{{1,64}}\Z"
_PRESENTED: Final = re.compile(r"wl_([0-9a-f]{12})_([0-9a-f]{64})")
# A secret with an unknown id is compared with this, so that the answer takes as long as for an id that exists.
_NOBODYS_SHA256: Final = "0" * 64


class ApiKey(Struct, frozen=True, kw_only=True):
    """One API key as it is stored in KV `keys`, under its id.

    *caller* names its holder. Several keys may have one caller, so that a new key finds the tasks of the old one.
    *rate_per_s* is how many requests a second it may make, counted over any *burst_s* seconds; None is no limit.
    *highest_priority* is the highest class that its requests may name. While *max_waiting* tasks of its caller wait,
    or *max_running* of them run, the gateway accepts no further task; None is no bound.
    """

    id: Annotated[str, Meta(pattern=_ID)]
    caller: Annotated[str, Meta(pattern=_CALLER)]
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    secret_sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    created_at: datetime
    revoked_at: datetime | None = None
    rate_per_s: Annotated[float, Meta(gt=0)] | None = DEFAULT_RATE_PER_S
    burst_s: Annotated[int, Meta(ge=1, le=BURST_MAX_S)] = DEFAULT_BURST_S
    highest_priority: Priority = Priority.INTERACTIVE
    max_waiting: Annotated[int, Meta(ge=1)] | None = None
    max_running: Annotated[int, Meta(ge=1)] | None = None

    @property
    def burst(self) -> int | None:
        """How many requests any *burst_s* seconds may hold; None is no limit."""
        return None if self.rate_per_s is None else max(1, round(self.rate_per_s * self.burst_s))


class Presented(Struct, frozen=True):
    """A key as its holder sends it. Its repr leaves the secret out, because a repr may end up in a log or a
    traceback."""

    id: str
    secret: str

    def __repr__(self) -> str:
        return f"Presented(id={self.id!r})"

    __str__ = __repr__

    @property
    def text(self) -> str:
        """What goes into the header `Authorization: Bearer …`."""
        return f"wl_{self.id}_{self.secret}"


class UnreadableKey(Unreadable):
    """The bytes are not an ApiKey. The text repeats no value."""


def is_caller(name: str) -> bool:
    """Whether a key may be made for *name*."""
    return re.match(_CALLER, name) is not None


def parse_presented(text: str) -> Presented | None:
    """The key in *text*, None where it does not have the form of one."""
    match = _PRESENTED.fullmatch(text)
    return None if match is None else Presented(match[1], match[2])


def sha256_of(secret: str) -> str:
    """What is stored of *secret*."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_valid(presented: Presented, stored: ApiKey | None) -> bool:
    """Whether *presented* is the key that is *stored* under its id, and was not revoked.

    The time that this takes reveals neither how much of the secret is right nor whether the id exists.
    """
    expected = _NOBODYS_SHA256 if stored is None else stored.secret_sha256
    is_same = hmac.compare_digest(expected, sha256_of(presented.secret))
    return is_same and stored is not None and stored.revoked_at is None


def has_scope(scopes: tuple[Scope, ...], scope: Scope) -> bool:
    """Whether *scopes* allow what needs *scope*; `admin` allows everything."""
    return "admin" in scopes or scope in scopes


def encode_key(key: ApiKey) -> bytes:
    """*key* as JSON, the form in which it is stored."""
    return msgspec.json.encode(key)


def decode_key(name: str, data: bytes) -> ApiKey:
    """The key in *data*, which is stored under *name*. Unknown fields are ignored.

    Raises UnreadableKey for anything else, and for a key that carries another id than its name.
    """
    try:
        key = decode_json(data, ApiKey)
    except msgspec.DecodeError as error:
        raise UnreadableKey(f"not an API key ({type(error).__name__})") from error
    if key.id != name:
        raise UnreadableKey("it carries the id of another key")
    return key
