"""The watcher of `make chaos`, on a real server."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from contracts.tasks import GenerationTask, encode_task
from contracts.topology import TASKS
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.faults.history import Watcher
from tests.kit.behind import js_of
from tests.kit.records import pending_task
from tests.kit.samples import catalog
from tests.kit.support import KEEP_S, NatsServer

KEPT, LOST = (pending_task(f"01890a5d-ac96-774b-bcce-b302099a805{n}") for n in "12")
OWNED: Final = replace(KEPT, epoch=1)


async def test_what_a_server_lost_is_known_though_it_had_not_been_read(tmp_path: Path) -> None:
    """A busy machine stores faster than the watcher reads. The server loses one task with its first revision, and a
    later revision of another."""
    nats = NatsServer(tmp_path)
    nats.start()
    link = await NatsLink.connect(nats.url, name="test")
    await provision(link, wanted(catalog(), keep_s=KEEP_S))

    async def store(*tasks: GenerationTask) -> None:
        for task in tasks:
            await js_of(link).publish(f"$KV.{TASKS}.{task.id}", encode_task(task))

    await store(KEPT)
    watcher = Watcher(link, ())
    await watcher.catch_up()
    since, copy, had = datetime.now(UTC), tmp_path / "copy", tmp_path / "had"
    nats.copy_store(copy)
    await store(OWNED, LOST)
    nats.kill()
    await link.close()
    had.mkdir()
    shutil.move(tmp_path / "jetstream", had)
    shutil.move(copy, tmp_path / "jetstream")
    await watcher.went_back(since, had)

    assert [revision.task for revision in watcher.lost] == [OWNED, LOST]
    assert watcher.latest == {KEPT.id: KEPT}
    nats.start()
    nats.stop()
