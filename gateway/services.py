"""Everything that the gateway's handlers use, made once and started with the application."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from msgspec.structs import replace

from contracts.generation.body import beside_image_max_bytes
from contracts.generation.images import widest_limits
from contracts.settings import Catalog
from contracts.topology import deliveries_ttl_s
from contracts.uploads import is_upload
from gateway.boards.cold_starts import ColdStarts
from gateway.boards.kept_texts import KeptTexts
from gateway.boards.key_board import KeyBoard
from gateway.boards.lane_board import LaneBoard
from gateway.boards.leader_board import LeaderBoard
from gateway.boards.open_streams import WAITS_PER_CALLER_MAX, WAITS_PER_GATEWAY_MAX, Streams
from gateway.boards.slot_board import SlotBoard
from gateway.boards.storage import DEFAULT_LIMIT_BYTES, StorageWatch
from gateway.boards.task_board import TaskBoard
from gateway.boards.task_index import paths_of
from gateway.gauges import Known, begin, gauges
from gateway.images.fetching import ImageFetcher
from gateway.images.sources import ImageSources
from gateway.images.uploads import Uploads
from gateway.placing.admission import Admission
from gateway.placing.batches import Batches
from gateway.placing.estimate import Estimates
from gateway.placing.fallbacks import Fallbacks
from gateway.placing.forgetting import forget_due, remove_deliveries
from gateway.placing.hold import Holds
from gateway.placing.places import Places
from gateway.placing.slow_look import SlowLook
from gateway.placing.sweeper import Sweeper
from gateway.rules.image_hosts import ImageHosts
from gateway.webhooks.service import WebhookOptions, Webhooks
from ops.artifact_place import ArtifactPlace, FolderPlace, open_artifacts
from ops.artifacts import Artifacts, StorageFailed, StoredObject, orphans, task_id_of
from ops.background import Background
from ops.commands.images import ImageOptions
from ops.ending import end
from ops.nats.access import NatsAccess
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.link_health import reporting_on
from ops.nats.provisioning import require_provisioned, wanted
from ops.nats.refusals import learn_refusals
from ops.nats.write_health import Refusals
from ops.telemetry.instruments import observing

JANITOR_INTERVAL_S: Final = 60.0
JANITOR_BATCH: Final = 32
ORPHAN_GRACE_S: Final = 3_600.0
# How long a gateway that stops tries to add its last counts to the fallback episodes.
LAST_COUNTS_S: Final = 2.0
# How often event streams are sent the new places of their tasks, while tasks move up. For 500 streams that takes 50 ms
# in all.
MOVES_EVERY_S: Final = 1.0

log = structlog.get_logger("gateway")


class Services:
    """The parts of one gateway process. Use `running()` around the application's life."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        nats: NatsAccess | str,
        artifacts_dir: Path,
        keep_s: float,
        artifacts: ArtifactPlace | None = None,
        links_last_s: float | None = None,
        storage: StorageWatch | None = None,
        opens_without_keys: bool = True,
        jaeger_url: str | None = None,
        webhooks: WebhookOptions | None = None,
        images: ImageOptions | None = None,
    ) -> None:
        """The artifacts are in *artifacts_dir*, unless *artifacts* names another place. *links_last_s* is how long a
        link to a file of a bucket lasts; None where downloads pass through the gateway.

        *jaeger_url* is where people see traces; None if that is not known. Without *webhooks* receivers may only be on
        the public internet. Without *images* the gateway fetches none.
        """
        catalog = replace(catalog, keep_s=keep_s)
        self.catalog = catalog
        self.keep_s = keep_s
        self.jaeger_url = jaeger_url
        self.beside_image_max_bytes = beside_image_max_bytes(catalog)
        limits = widest_limits(catalog)
        self.image_max_bytes = 0 if limits is None else limits.max_bytes
        self._images = images or ImageOptions()
        self.stopping = asyncio.Event()
        self.background = Background()
        self.storage = storage or StorageWatch(limit_bytes=DEFAULT_LIMIT_BYTES, store=artifacts_dir.parent / "nats")
        self.refusals = Refusals()
        self.streams_wanted = wanted(catalog, keep_s=keep_s).names
        self._nats = nats
        self._fetcher = ImageFetcher(ImageHosts.of(self._images.hosts))
        self.links_last_s = links_last_s
        self._place = artifacts or FolderPlace(artifacts_dir)
        self.keys = KeyBoard(opens_without_keys=opens_without_keys)
        self.lanes = LaneBoard(
            health_timeout_s=catalog.windows.health_timeout_s, grace_s=catalog.windows.reconnect_grace_s
        )
        self.leader = LeaderBoard()
        self.slots = SlotBoard(judged_at=self.lanes.judged_at)
        self.fallbacks = Fallbacks(lanes=self.lanes, models=catalog.models)
        self.cold_starts = ColdStarts()
        self.tasks = TaskBoard(secrets.token_hex(8))
        self.streams = Streams()
        self.waits = Streams(
            what="requests wait for a task", per_caller_max=WAITS_PER_CALLER_MAX, per_gateway_max=WAITS_PER_GATEWAY_MAX
        )
        self.texts = KeptTexts()
        self.webhooks = Webhooks(
            webhooks or WebhookOptions(artifacts_dir.parent),
            tasks=self.tasks,
            background=self.background,
        )
        self.estimates = Estimates(
            queues=self.tasks.work_queues, lanes=self.lanes, catalog=catalog, leader=self.leader.leader
        )
        self.places = Places(self.tasks.work_queues, self.estimates, catalog.models)
        self.link: NatsLink
        self.artifacts: Artifacts
        self.uploads: Uploads
        self.admission: Admission
        self.batches: Batches
        self.sweeper: Sweeper

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connects, fills the boards, and sweeps until the block ends.

        Raises TransportUnavailable, UnusableServer, NotProvisioned, NoKeys, StorageFailed or BadSealingKey when it
        cannot start.
        """
        self.artifacts = await open_artifacts(self._place)
        self.link = await NatsLink.connect(self._nats, name="gateway")
        try:
            await require_provisioned(self.link, wanted(self.catalog, keep_s=self.keep_s))
            await self.link.clock.require()
            await self.keys.start(self.link)
            await self.tasks.start(self.link)
            await self.lanes.start(self.link)
            await self.leader.start(self.link)
            await self.slots.start(self.link)
            await self.fallbacks.start(self.link)
            await self.cold_starts.start(self.link)
            self.sweeper = Sweeper(
                link=self.link,
                artifacts=self.artifacts,
                tasks=self.tasks,
                lanes=self.lanes,
                fallbacks=self.fallbacks,
                catalog=self.catalog,
                background=self.background,
            )
            holds = Holds(
                link=self.link,
                artifacts=self.artifacts,
                tasks=self.tasks,
                sweeper=self.sweeper,
                stopping=self.stopping,
            )
            await holds.start()
            self.uploads = Uploads(self.artifacts, keep_s=self._images.keep_s)
            sources = ImageSources(uploads=self.uploads, fetcher=self._fetcher, catalog=self.catalog)
            self.admission = Admission(
                link=self.link,
                artifacts=self.artifacts,
                tasks=self.tasks,
                lanes=self.lanes,
                fallbacks=self.fallbacks,
                holds=holds,
                estimates=self.estimates,
                catalog=self.catalog,
                require_room=self.storage.require_room,
                complete=sources.complete,
            )
            self.batches = Batches(
                self.admission,
                link=self.link,
                artifacts=self.artifacts,
                tasks=self.tasks,
                lanes=self.lanes,
                overload=self.admission.overload,
            )
            await self.webhooks.start(self.link)
            await learn_refusals(self.link, self.refusals)
            measuring = asyncio.create_task(self.background.keep("storage", partial(self.storage.run, self.link)))
            sweeping = asyncio.create_task(self.sweeper.run(self.stopping))
            cleaning = asyncio.create_task(self.background.keep("janitor", self._janitor))
            slow_look = SlowLook(link=self.link, tasks=self.tasks)
            comparing = asyncio.create_task(self.background.keep("slow look", slow_look.run))
            all_counted = asyncio.Event()
            counting = asyncio.create_task(
                self.background.keep("fallback episodes", partial(self.fallbacks.run, all_counted))
            )
            announcing = asyncio.create_task(self.background.keep("moves", self._announce_moves))
            begin(self.catalog.models)
            try:
                async with reporting_on(self.link, "gateway", self.background):
                    with observing(gauges(self._known())):
                        yield
            finally:
                self.stop()
                await end(sweeping, cleaning, comparing, measuring, announcing)
                all_counted.set()
                await asyncio.wait({counting}, timeout=LAST_COUNTS_S)
                await end(counting)
        finally:
            await self.webhooks.close()
            await self._fetcher.close()
            await self.link.close()

    def _known(self) -> Known:
        return Known(
            catalog=self.catalog,
            lanes=self.lanes,
            leader=self.leader,
            slots=self.slots,
            fallbacks=self.fallbacks,
            cold_starts=self.cold_starts,
            work_queues=self.tasks.work_queues,
            refusals=self.refusals,
            streams_wanted=self.streams_wanted,
            storage=self.storage,
            deliveries=self.webhooks.deliveries,
        )

    def stop(self) -> None:
        """Wakes every request that waits, so that the server can leave at once."""
        self.stopping.set()
        self.tasks.readers.close()
        self.tasks.feeds.close()

    async def _announce_moves(self) -> None:
        while True:
            await asyncio.sleep(MOVES_EVERY_S)
            await self.tasks.readers.announce_moves()
            self.tasks.feeds.announce_moves(self.tasks.work_queues.moves)

    async def _janitor(self) -> None:
        # never longer than tasks are kept, or `--keep 40s` would keep them for a minute and a half
        interval_s = min(JANITOR_INTERVAL_S, max(1.0, self.keep_s / 4))
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.clean()
            except (TransportUnavailable, StorageFailed) as error:
                log.warning("janitor_delayed", error=str(error))
            except Exception:
                log.exception("janitor_failed")  # the next round may succeed

    async def clean(self) -> int:
        """Removes tasks whose own `keep_s` is over, objects that no record names, uploads that expired, and what
        forgotten tasks left; forgets tasks and lanes that expired. Returns how many objects without a record and
        expired uploads it removed.

        Raises TransportUnavailable, StorageFailed.
        """
        now = datetime.now(UTC)
        await self.tasks.drop_expired(keep_s=self.keep_s, now=now)
        self.lanes.drop_expired(now)
        self.webhooks.deliveries.drop_expired(ttl_s=deliveries_ttl_s(self.keep_s), now=now)
        deliveries = self.webhooks.deliveries
        await forget_due(now, link=self.link, tasks=self.tasks, artifacts=self.artifacts, deliveries=deliveries)
        forgotten = self.tasks.forgotten.ids()
        self.texts.forget(forgotten)
        if forgotten:
            await remove_deliveries(forgotten, link=self.link, deliveries=deliveries)
        stored = await self.artifacts.list()
        grace_s = min(ORPHAN_GRACE_S, self.keep_s)
        # in a thread: with 100,000 objects, requests would wait for 0.1 s and more
        of_tasks = [item for item in stored if not is_upload(item.path)]
        named = partial(paths_of, self.tasks.index)
        found = await asyncio.to_thread(orphans, of_tasks, named, now=now, grace_s=grace_s)
        found_paths = {item.path for item in found}
        left = [each for each in of_tasks if each.path not in found_paths and task_id_of(each.path) in forgotten]
        found += orphans(left, named, now=now, grace_s=0.0)
        removed = 0
        for first in range(0, len(found), JANITOR_BATCH):
            # not one at a time: a busy gateway would remove less than it accepts
            removed += sum(await asyncio.gather(*map(self._remove, found[first : first + JANITOR_BATCH])))
        if removed:
            log.info("orphans_removed", objects=removed)
        expired = self.uploads.expired(stored, now=now)
        for upload in expired:  # no gateway stores under these names any more
            await self.artifacts.delete(upload.path)
        if expired:
            log.info("uploads_removed", objects=len(expired))
        return removed + len(expired)

    async def _remove(self, orphan: StoredObject) -> bool:
        # the copy in memory may be behind: nats-server is asked before anything is deleted
        snapshot = await self.tasks.read(task_id_of(orphan.path))
        if snapshot is not None and orphan.path in paths_of(self.tasks.index, snapshot.task.id):
            return False
        await self.artifacts.delete(orphan.path)
        return True
