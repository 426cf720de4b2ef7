"""Files in the artifact store that no record needs."""

import structlog

from ops.artifacts import Artifacts, StorageFailed

log = structlog.get_logger("loop")


async def delete_or_leave(artifacts: Artifacts, path: str) -> None:
    """Deletes the file at *path*. Where that fails, the gateway's janitor finds it later."""
    try:
        await artifacts.delete(path)
    except StorageFailed as error:
        log.warning("orphan_left", path=path, error=str(error))
