"""The operator's quota file, which stands in for a provider's quota: `{"max_lanes": {"anisora": 1}}`."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta, Struct

from contracts.nesting import decode_json

# How often the supervisor looks at the file, which may change at any time.
POLL_S: Final = 0.5

log = structlog.get_logger("supervisor")


class QuotaError(Exception):
    """The quota file cannot be used. The text names it and the mistake."""


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    max_lanes: dict[str, Annotated[int, Meta(ge=0)]]


class Quota:
    """The most lanes that each model may have; a model that the file does not name has no limit.

    Without a file there are no limits. Reads the file, and raises QuotaError when it cannot be used.
    """

    def __init__(self, path: Path | None, models: Collection[str]) -> None:
        self._path = path
        self._models = models
        self._seen = self._signature()
        self.max_lanes: Mapping[str, int] = {} if path is None else self._read(path)

    def poll(self) -> bool:
        """Reads the file again if it changed, and returns whether the limits changed.

        Raises QuotaError, once for each bad edit; the last good limits stay.
        """
        signature = self._signature()
        if self._path is None or signature == self._seen:
            return False
        self._seen = signature
        before, self.max_lanes = self.max_lanes, self._read(self._path)
        return before != self.max_lanes

    async def follow(self, on_change: Callable[[], None]) -> None:
        """Polls the file until cancelled, logs what came of it, and calls *on_change* whenever the limits changed."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                changed = self.poll()
            except QuotaError as error:
                log.error("quota_ignored", error=str(error), max_lanes=dict(self.max_lanes))
                continue
            if changed:
                log.info("quota_changed", max_lanes=dict(self.max_lanes))
                on_change()

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return None if status is None else (status.st_ino, status.st_size, status.st_mtime_ns)

    def _read(self, path: Path) -> Mapping[str, int]:
        try:
            max_lanes = decode_json(path.read_bytes(), _File).max_lanes
        except OSError as error:
            raise QuotaError(f"cannot read the quota file {path}: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise QuotaError(
                f'the quota file {path} has a mistake: {error}; it should read like {{"max_lanes": {{"anisora": 1}}}}'
            ) from error
        unknown = sorted(set(max_lanes) - set(self._models))
        if unknown:
            raise QuotaError(
                f"the quota file {path} names {', '.join(unknown)}; there are {', '.join(sorted(self._models))}"
            )
        return max_lanes
