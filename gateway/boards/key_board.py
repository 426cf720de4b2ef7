"""Which API keys are in force, held in memory by watching KV `keys`.

Every gateway accepts a new key, and refuses a revoked one, within a second. While the server is away, the keys that
were known last stay in force.
"""

from collections.abc import Sequence
from typing import Final

import structlog
from msgspec import Struct

from contracts.keys import (
    ANONYMOUS,
    SCOPES,
    ApiKey,
    Presented,
    Scope,
    has_scope,
    is_valid,
    parse_presented,
)
from contracts.tasks import GenerationTask
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import API_KEYS
from ops.nats.link import NatsLink
from ops.nats.provisioning import NoKeys

log = structlog.get_logger("keys")


class Caller(Struct, frozen=True):
    """Who calls, with which scopes; *key* is None where the gateway is open and requires none."""

    name: str
    scopes: tuple[Scope, ...]
    key: ApiKey | None = None

    def may(self, scope: Scope) -> bool:
        """Whether the caller may do what needs *scope*."""
        return has_scope(self.scopes, scope)

    @property
    def sees_only(self) -> str | None:
        """Whose tasks the caller sees; None is everybody's."""
        return None if self.may("admin") else self.name

    def sees(self, task: GenerationTask) -> bool:
        """Whether the caller may know of *task*."""
        return self.sees_only in (None, task.caller)


ANYBODY: Final = Caller(ANONYMOUS, SCOPES)


class KeyBoard:
    """The API keys as this gateway knows them. `start` it before use.

    With *opens_without_keys* everybody may do everything until the first key is made. From then on the gateway stays
    closed, even when every key is revoked.
    """

    def __init__(self, *, opens_without_keys: bool) -> None:
        self._opens_without_keys = opens_without_keys
        self._keys: dict[str, ApiKey] = {}
        self._unreadable: set[str] = set()
        self._was_one_made = False
        self._is_started = False

    async def start(self, link: NatsLink) -> None:
        """Watches the bucket; returns once what is there now has been seen.

        Raises NoKeys where no key is in force and the gateway may not be open; TransportUnavailable.
        """
        await (await Bucket(link, API_KEYS).watch(self.on_key)).wait()
        self._is_started = True
        in_force = sum(key.revoked_at is None for key in self._keys.values())
        if not in_force and not self._opens_without_keys:
            raise NoKeys
        if self.is_open:
            log.info("open", to="everybody on this machine", until="warmlane keys add CALLER")
        else:
            log.info("closed", keys=in_force)

    @property
    def is_open(self) -> bool:
        """Whether everybody who reaches this gateway may do everything."""
        return self._opens_without_keys and not self._was_one_made

    def on_key(self, entry: Versioned[ApiKey]) -> None:
        """A key was made, revoked or removed. One that cannot be read lets nobody in."""
        if self.is_open and self._is_started:
            log.info("closed", reason="a key was made")
        self._was_one_made = True
        self._keys.pop(entry.key, None)
        self._unreadable.discard(entry.key)
        key = entry.value
        if key is None:
            if not entry.is_deleted:
                self._unreadable.add(entry.key)
            return
        self._keys[entry.key] = key
        if self._is_started:
            log.info("key", id=key.id, caller=key.caller, scopes=key.scopes, in_force=key.revoked_at is None)

    def known(self) -> list[ApiKey]:
        """Every key on record, revoked ones too, the oldest first."""
        return sorted(self._keys.values(), key=lambda key: (key.created_at, key.id))

    def unreadable(self) -> list[str]:
        """The names of entries that cannot be read and let nobody in."""
        return sorted(self._unreadable)

    def caller(self, authorization: Sequence[str]) -> Caller | None:
        """The caller that presents these `Authorization` headers; None where they present no key in force.

        Only a single header, of the form `Bearer KEY`, names a caller.
        """
        if self.is_open:
            return ANYBODY
        presented = _presented(authorization)
        key = None if presented is None else self._keys.get(presented.id)
        if presented is None or not is_valid(presented, key) or key is None:
            return None
        return Caller(key.caller, key.scopes, key)

    def claimed(self, authorization: Sequence[str]) -> ApiKey | None:
        """The key that these headers name, whatever their secret, in force or not. It grants no access."""
        presented = _presented(authorization)
        return None if presented is None else self._keys.get(presented.id)

    def still_counts(self, caller: Caller) -> bool:
        """Whether *caller*, who was let in before, would be let in now: for answers that take long."""
        if caller.key is None:
            return self.is_open
        known = self._keys.get(caller.key.id)
        return known is not None and known.revoked_at is None


def _presented(authorization: Sequence[str]) -> Presented | None:
    if len(authorization) != 1:
        return None
    scheme, _, text = authorization[0].strip().partition(" ")
    return parse_presented(text.strip()) if scheme.lower() == "bearer" else None
