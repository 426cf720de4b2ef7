"""The fallback episodes of all gateways, held in memory by watching KV `fallbacks`.

The key MODEL holds the newest episode. Before the next episode takes its place, it is written to MODEL.past, whose
history holds 64 episodes, one revision each.
"""

from datetime import UTC, datetime

from msgspec import Struct

from contracts.lanes import FallbackEpisode
from gateway.rules.episodes import is_same, with_newer
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import EPISODES
from ops.nats.link import NatsLink


class KnownEpisode(Struct, frozen=True):
    """The newest entry of a key. *episode* is None where it was deleted or cannot be read."""

    episode: FallbackEpisode | None
    revision: int
    at: datetime | None = None


class EpisodeBoard:
    """The episodes of every model. `start` it before use."""

    def __init__(self) -> None:
        self._past: dict[str, list[FallbackEpisode]] = {}
        self._known: dict[str, KnownEpisode] = {}
        self._bucket: Bucket[FallbackEpisode]

    async def start(self, link: NatsLink) -> None:
        """Watches the bucket; returns once what is there now has been seen. Raises TransportUnavailable."""
        self._bucket = Bucket(link, EPISODES)
        await (await self._bucket.watch(self.on_entry, history=True, on_again=self._again)).wait()

    def _again(self) -> None:
        self._known.clear()
        self._past.clear()

    def on_entry(self, entry: Versioned[FallbackEpisode]) -> None:
        """An episode began, went on or ended, or was put among the past ones; or an operator deleted it."""
        if self._is_news(entry.key, entry.revision):
            self._take_in(entry.key, KnownEpisode(entry.value, entry.revision, entry.time))

    def _is_news(self, key: str, revision: int) -> bool:
        return revision > self.newest(key).revision

    def _take_in(self, key: str, known: KnownEpisode) -> None:
        self._known[key] = known
        model, _, past = key.partition(".")
        if past and known.episode is not None:
            self._past[model] = with_newer(self._past.get(model, []), known.episode)

    def newest(self, key: str) -> KnownEpisode:
        """The newest entry of *key*; at revision 0 where there is none."""
        return self._known.get(key, KnownEpisode(None, 0))

    def episodes(self, model: str) -> list[FallbackEpisode]:
        """The episodes of *model*, the oldest first. Only the last one can still be going on."""
        past, newest = self._past.get(model, []), self.newest(model).episode
        return past if newest is None else with_newer(past, newest)

    async def write(self, model: str, episode: FallbackEpisode) -> None:
        """Writes *episode* over the newest one of *model*. If that is a different episode, it is first kept among the
        past ones.

        Raises WrongRevision where another gateway was faster, TransportUnavailable.
        """
        known = self.newest(model)
        if known.episode is not None and not is_same(known.episode, episode):
            await self._keep(f"{model}.past", known.episode)
        await self._update(model, episode, known.revision)

    async def _keep(self, key: str, ended: FallbackEpisode) -> None:
        last = self.newest(key)
        if last.episode is None or not is_same(last.episode, ended):
            await self._update(key, ended, last.revision)

    async def _update(self, key: str, episode: FallbackEpisode, revision: int) -> None:
        new_revision = await self._bucket.update(key, episode, revision=revision)
        if self._is_news(key, new_revision):  # or the watch was faster
            self._take_in(key, KnownEpisode(episode, new_revision, datetime.now(UTC)))

    async def read(self, model: str) -> None:
        """Takes in what the server has of *model*. Raises TransportUnavailable."""
        for key in (model, f"{model}.past"):
            await self._read(key)

    async def _read(self, key: str) -> None:
        """What the server has counts, even where a higher revision is known: the server may have lost it (ADR 0030)."""
        entry = await self._bucket.get(key)
        known = self._known.get(key)
        if entry is None or (known is not None and entry.revision < known.revision):
            self._known.pop(key, None)
        if entry is not None:
            self.on_entry(entry)
