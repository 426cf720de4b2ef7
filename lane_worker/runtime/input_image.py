"""The input image of the task in hand, from the artifact store into a file of this worker."""

import asyncio
import time
from pathlib import Path
from typing import Final

import structlog

from lane_worker.runtime.held import HeldTask
from lane_worker.runtime.scratch import Scratch, make_room
from ops.artifacts import Artifacts, StorageFailed

# The pause between two looks for an image that has not come yet doubles from the first value to the last.
LOOK_FIRST_S: Final = 0.05
LOOK_LAST_S: Final = 0.5

log = structlog.get_logger("loop")


async def input_image(held: HeldTask, artifacts: Artifacts, scratch: Scratch, *, wait_limit_s: float) -> Path | None:
    """The input image of *held* in a file in *scratch*. None where it has none, where the image does not come within
    *wait_limit_s*, and where there is no room for it.

    The gateway stores the image after it has published the task, and its store may take long: the worker waits for the
    image under the lease. Raises OwnershipLost when the task ends meanwhile: it was cancelled, or the image was not
    stored.
    """
    stored = held.task.image_path
    if stored is None:
        return None
    content = await _awaited(stored, held, artifacts, until_s=time.monotonic() + wait_limit_s)
    if content is None:
        return None
    make_room(scratch, held.task.id)  # the image may have been awaited for long
    path = scratch.folder / f"{held.task.id}.{held.task.epoch}.image"
    try:
        await asyncio.to_thread(path.write_bytes, content)
    except OSError as error:
        log.error("image_not_kept", task_id=held.task.id, error=str(error))
        return None
    return path


async def _awaited(stored: str, held: HeldTask, artifacts: Artifacts, *, until_s: float) -> bytes | None:
    look_s, is_logged = LOOK_FIRST_S, False
    while True:
        content = None
        try:
            content = await artifacts.get(stored)
        except StorageFailed as error:
            if not is_logged:  # once for an outage
                log.warning("image_unreadable", task_id=held.task.id, error=str(error))
            is_logged = True
        await held.check()  # it may have been cancelled meanwhile
        if content is not None or time.monotonic() >= until_s:
            return content
        await asyncio.sleep(look_s)
        look_s = min(2 * look_s, LOOK_LAST_S)
