"""The endpoints that callers register, and the secrets that sign what goes there."""

import contextlib
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from contracts.webhooks import (
    ENDPOINTS_PER_CALLER_MAX,
    OVERLAP_S,
    SealedSecret,
    WebhookDelivery,
    WebhookEndpoint,
    endpoint_id,
    requests_id,
)
from gateway.boards.endpoint_board import EndpointBoard
from gateway.webhooks.sealing import Sealer, new_secret
from ops.nats.bucket import Bucket
from ops.nats.buckets import ENDPOINTS
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink

_ID_BYTES: Final = 8
# After several rotations within one overlap only the newest secrets sign: a header with hundreds of signatures helps
# nobody.
SECRETS_MAX: Final = 4
_TOO_MANY: Final = f"{ENDPOINTS_PER_CALLER_MAX} endpoints are registered; remove one first"


class NoSuchEndpoint(Exception):
    """There is no endpoint of that id."""


class TooManyEndpoints(Exception):
    """The caller has as many endpoints as a caller may have."""


class Registry:
    """Changes KV `webhooks`, by compare-and-set, and the copy in memory with it. Every coroutine may raise
    TransportUnavailable."""

    def __init__(self, link: NatsLink, endpoints: EndpointBoard, sealer: Sealer) -> None:
        self._bucket = Bucket(link, ENDPOINTS)
        self._endpoints, self._sealer = endpoints, sealer

    async def add(
        self, caller: str, url: str, events: tuple[str, ...], *, now: datetime
    ) -> tuple[WebhookEndpoint, str]:
        """Registers *url* for *caller*. Returns the endpoint, and the only copy of its secret. Raises
        TooManyEndpoints."""
        # the copy in memory may not know yet that another gateway removed one
        if len(self._endpoints.of(caller)) >= ENDPOINTS_PER_CALLER_MAX <= len(await _registered(self._bucket, caller)):
            raise TooManyEndpoints(_TOO_MANY)
        while True:
            made, secret = self._made(endpoint_id(secrets.token_hex(_ID_BYTES)), caller, url, events, now)
            try:
                revision = await self._bucket.create(made.id, made)
            except WrongRevision:
                continue  # the id is taken
            self._endpoints.take_in(made.id, made, revision)
            await self._require_room(made, revision)
            return made, secret

    async def _require_room(self, made: WebhookEndpoint, revision: int) -> None:
        """Raises TooManyEndpoints, and removes *made* again, if its caller already had as many as a caller may have.

        It asks nats-server after the fact, since the copy in memory may be behind: if two gateways add endpoints at
        once, the later one sees the other's. An endpoint that was changed since counts as older by its *made_at*.
        """
        older = [
            known
            for known, written in await _registered(self._bucket, made.caller)
            if written < revision or known.made_at < made.made_at
        ]
        if len(older) >= ENDPOINTS_PER_CALLER_MAX:
            with contextlib.suppress(NoSuchEndpoint):
                await self.remove(made.id)
            raise TooManyEndpoints(_TOO_MANY)

    async def rotate(
        self, endpoint: str, *, now: datetime, overlap_s: float = OVERLAP_S
    ) -> tuple[WebhookEndpoint, str]:
        """A new secret for *endpoint*; earlier ones sign as well for *overlap_s* more. Raises NoSuchEndpoint."""
        secret = new_secret()

        def rotated(known: WebhookEndpoint) -> WebhookEndpoint:
            until = now + timedelta(seconds=overlap_s)
            before = [
                replace(each, until=until if each.until is None else min(each.until, until))
                for each in reversed(known.signing(now))
            ]
            made = SealedSecret(sealed=self._sealer.seal(known.id, secret), made_at=now)
            return replace(known, secrets=(*before, made)[-SECRETS_MAX:])

        return await self._change(endpoint, rotated), secret

    async def remove(self, endpoint: str) -> None:
        """Nothing goes to *endpoint* any more. Raises NoSuchEndpoint."""
        while True:
            entry = await self._bucket.get(endpoint)
            if entry is None or entry.is_deleted:
                raise NoSuchEndpoint(endpoint)
            try:
                revision = await self._bucket.delete(endpoint, revision=entry.revision)
            except WrongRevision:
                continue
            self._endpoints.take_in(endpoint, None, revision)
            return

    async def disable(self, endpoint: str, why: str, *, now: datetime) -> WebhookEndpoint:
        """Nothing goes to *endpoint* until `enable`; one that is disabled stays as it is. Raises NoSuchEndpoint."""
        return await self._change(
            endpoint,
            lambda known: known if known.disabled_at is not None else replace(known, disabled_at=now, disabled_why=why),
        )

    async def enable(self, endpoint: str, *, now: datetime) -> WebhookEndpoint:
        """Events from *now* on go to *endpoint* again. Raises NoSuchEndpoint."""
        return await self._change(
            endpoint,
            lambda known: (
                known if known.disabled_at is None else replace(known, disabled_at=None, disabled_why="", since=now)
            ),
        )

    async def get(self, endpoint: str) -> WebhookEndpoint | None:
        """The endpoint, from memory, or else from nats-server, since the copy in memory may be behind. None if there is
        none."""
        known = self._endpoints.get(endpoint)
        if known is not None:
            return known
        entry = await self._bucket.get(endpoint)
        return None if entry is None else entry.value

    async def for_requests(self, caller: str, *, now: datetime) -> WebhookEndpoint:
        """The entry whose secrets sign for the addresses of *caller*'s requests; it is made where it is missing."""
        name = requests_id(caller)
        while True:
            known = await self.get(name)
            if known is not None:
                return known
            made, _ = self._made(name, caller, None, (), now)
            entry = await self._bucket.get(name)
            try:
                revision = await self._bucket.update(name, made, revision=0 if entry is None else entry.revision)
            except WrongRevision:
                continue  # another gateway was faster
            self._endpoints.take_in(name, made, revision)
            return made

    async def receiver_of(self, delivery: WebhookDelivery, *, now: datetime) -> WebhookEndpoint | None:
        """The endpoint whose secrets sign *delivery*; None if it was removed."""
        if delivery.endpoint == requests_id(delivery.caller):
            return await self.for_requests(delivery.caller, now=now)
        return await self.get(delivery.endpoint)

    def knows_receiver_of(self, delivery: WebhookDelivery) -> bool:
        """Whether `receiver_of` finds an endpoint, by the copy in memory."""
        return delivery.endpoint == requests_id(delivery.caller) or self._endpoints.get(delivery.endpoint) is not None

    def secrets_of(self, endpoint: WebhookEndpoint, now: datetime) -> tuple[str, ...]:
        """The secrets that sign now, the newest first. Raises CannotUnseal."""
        return tuple(self._sealer.open(endpoint.id, each.sealed) for each in endpoint.signing(now))

    def _made(
        self, name: str, caller: str, url: str | None, events: tuple[str, ...], now: datetime
    ) -> tuple[WebhookEndpoint, str]:
        secret = new_secret()
        made = WebhookEndpoint(
            id=name,
            caller=caller,
            url=url,
            events=events,
            secrets=(SealedSecret(sealed=self._sealer.seal(name, secret), made_at=now),),
            made_at=now,
            since=now,
        )
        return made, secret

    async def _change(self, endpoint: str, change: Callable[[WebhookEndpoint], WebhookEndpoint]) -> WebhookEndpoint:
        while True:
            entry = await self._bucket.get(endpoint)
            if entry is None or entry.value is None:
                raise NoSuchEndpoint(endpoint)
            changed = change(entry.value)
            if changed is entry.value:
                return changed
            try:
                revision = await self._bucket.update(endpoint, changed, revision=entry.revision)
            except WrongRevision:
                continue
            self._endpoints.take_in(endpoint, changed, revision)
            return changed


async def _registered(bucket: Bucket[WebhookEndpoint], caller: str) -> list[tuple[WebhookEndpoint, int]]:
    """The endpoints of *caller* by nats-server, with their revisions."""
    return [
        (known, entry.revision)
        for entry in await bucket.entries()
        if (known := entry.value) is not None and known.caller == caller and known.url is not None
    ]
