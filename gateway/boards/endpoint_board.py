"""The endpoints of webhooks, held in memory: by watching KV `webhooks`, and by what this gateway wrote itself."""

from collections.abc import Callable
from typing import Final

from contracts.webhooks import WebhookEndpoint, requests_id
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import ENDPOINTS
from ops.nats.link import NatsLink


class EndpointBoard:
    """Every endpoint, and the secrets for the addresses of requests. `start` it before use."""

    def __init__(self) -> None:
        self._known: dict[str, WebhookEndpoint] = {}
        self._revisions: dict[str, int] = {}
        self._of: dict[str, dict[str, WebhookEndpoint]] = {}
        self.on_change: Callable[[str], None] = lambda _: None
        """Called with the caller whose endpoints have changed."""

    async def start(self, link: NatsLink) -> None:
        """Watches the bucket; returns once what is there now has been seen. Raises TransportUnavailable."""
        await (await Bucket(link, ENDPOINTS).watch(self.on_entry, on_again=self.on_again)).wait()

    def on_again(self) -> None:
        """The bucket went back: the entries that come now count, whatever their revisions."""
        self._revisions.clear()

    def on_entry(self, entry: Versioned[WebhookEndpoint]) -> None:
        """The watch says that an endpoint was made, changed or removed."""
        self.take_in(entry.key, entry.value, entry.revision)
        if entry.is_deleted and self._revisions.get(entry.key) == entry.revision:
            del self._revisions[entry.key]  # nothing older comes any more

    def take_in(self, endpoint: str, after: WebhookEndpoint | None, revision: int) -> None:
        """*endpoint* was read or written, and is *after* now, None if it was removed. A revision that is not newer than
        the known one changes nothing."""
        if self._revisions.get(endpoint, 0) >= revision:
            return
        self._revisions[endpoint] = revision
        before = self._known.pop(endpoint, None)
        callers = {each.caller for each in (before, after) if each is not None}
        if before is not None:
            of_caller = self._of[before.caller]
            of_caller.pop(endpoint, None)
            if not of_caller:
                del self._of[before.caller]
        if after is not None:
            self._known[endpoint] = after
            self._of.setdefault(after.caller, {})[endpoint] = after
        for caller in callers:
            self.on_change(caller)

    def get(self, endpoint: str) -> WebhookEndpoint | None:
        """The endpoint of that id, if there is one."""
        return self._known.get(endpoint)

    def of(self, caller: str) -> tuple[WebhookEndpoint, ...]:
        """The registered endpoints of *caller*, oldest first."""
        return _sorted(self._of.get(caller, {}))

    def every(self) -> tuple[WebhookEndpoint, ...]:
        """The registered endpoints of all callers, oldest first."""
        return _sorted(self._known)

    def has_any(self) -> bool:
        """Whether there is any endpoint, or a secret for the addresses of requests."""
        return bool(self._known)

    def for_requests(self, caller: str) -> WebhookEndpoint | None:
        """The secrets for the addresses that *caller*'s requests name, once they are made."""
        return self._known.get(requests_id(caller))


_NOBODY: Final[tuple[WebhookEndpoint, ...]] = ()


def _sorted(endpoints: dict[str, WebhookEndpoint]) -> tuple[WebhookEndpoint, ...]:
    if not endpoints:
        return _NOBODY
    registered = [each for each in endpoints.values() if each.url is not None]
    return tuple(sorted(registered, key=lambda each: (each.made_at, each.id)))
