"""The operator's switch of each model's lanes, held in memory by watching KV `control`."""

from collections.abc import Callable, Container
from contextlib import suppress
from datetime import datetime
from typing import Final

import structlog
from msgspec import Struct

from contracts.api.admin import IgnoredControl
from contracts.lanes import LaneMode, LaneSwitch
from contracts.topology import control_key
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import SWITCHES
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink

SHOWN_CHARS: Final = 64

log = structlog.get_logger("switches")


class Mode(Struct, frozen=True):
    """The operator's switch of a model, and when it was set; None if it never was."""

    mode: LaneMode = "auto"
    since: datetime | None = None


class Switches:
    """The switches of all models. `start` it before use."""

    def __init__(self) -> None:
        self._modes: dict[str, Mode] = {}
        self._revisions: dict[str, int] = {}
        self._ignored: dict[str, IgnoredControl] = {}
        self._bucket: Bucket[LaneSwitch]

    async def start(self, link: NatsLink) -> None:
        """Watches the bucket; returns once what is there now has been seen. Raises TransportUnavailable."""
        self._bucket = Bucket(link, SWITCHES)
        # with the history: where the newest value is ignored, the last usable one before it stands
        await (await self._bucket.watch(self.on_entry, history=True, on_again=self._revisions.clear)).wait()

    def on_entry(self, entry: Versioned[LaneSwitch]) -> None:
        """The switch `lanes.<model>` changed. Anything but `auto` and `degraded` is ignored, logged and shown."""
        known = self._revisions.get(entry.key)
        if known is not None and entry.revision <= known:
            return  # `set` has read it back from the server, before the watch brought it
        self._revisions[entry.key] = entry.revision
        prefix, _, model = entry.key.partition(".")
        switch = LaneSwitch("auto") if entry.value is None else entry.value
        if prefix == "lanes" and switch.mode is not None:
            self._modes[model] = Mode(switch.mode, entry.time)
            self._ignored.pop(entry.key, None)
            log.info("lane_mode", model=model, mode=switch.mode)
        elif entry.is_deleted:
            self._ignored.pop(entry.key, None)
        else:
            self._ignored[entry.key] = IgnoredControl(entry.key, switch.text[:SHOWN_CHARS], entry.time)
            log.warning("control_ignored", key=entry.key, expected="lanes.<model> = auto or degraded")

    def mode(self, model: str) -> Mode:
        """The operator's switch of *model*."""
        return self._modes.get(model, Mode())

    def revision(self, model: str) -> int:
        """The revision of the switch of *model*, also where its value is ignored; 0 where it was never set."""
        return self._revisions.get(control_key(model), 0)

    def ignored(self, models: Container[str]) -> list[IgnoredControl]:
        """The ignored entries of KV `control`, by key, including a switch whose model is none of *models*."""
        nobodys = [
            IgnoredControl(control_key(model), mode.mode, mode.since)
            for model, mode in self._modes.items()
            if mode.mode != "auto" and mode.since is not None and model not in models
        ]
        return sorted([*self._ignored.values(), *nobodys], key=lambda ignored: ignored.key)

    async def set(self, model: str, mode: LaneMode, *, require: Callable[[int], None] | None = None) -> None:
        """Sets the switch of *model*. This gateway obeys it at once, with the server's time.

        *require* is called with each revision that would be replaced, and raises where it must not be replaced. Without
        *require*, any value is replaced. Raises TransportUnavailable: then the switch may or may not be set.
        """
        key, switch = control_key(model), LaneSwitch(mode)
        if require is None:
            await self._bucket.put(key, switch)
        else:
            await self._replace(key, switch, require)
        stored = await self._bucket.get(key)
        if stored is not None:
            self.on_entry(stored)

    async def _replace(self, key: str, switch: LaneSwitch, require: Callable[[int], None]) -> None:
        while True:
            stored = await self._bucket.get(key)
            revision = 0 if stored is None else stored.revision
            require(revision)
            with suppress(WrongRevision):  # another writer was faster: look again
                await self._bucket.update(key, switch, revision=revision)
                return
