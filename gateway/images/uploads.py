"""Images that callers upload once and name in many requests, in the artifact store (ADR 0048).

A task has its own copy of its image, from its first moment to its end. So an upload may be removed when it expires, or
by its caller, whatever uses it.
"""

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from msgspec import Struct

from contracts.fields import ImageField
from contracts.generation.images import ImageFile, judged
from contracts.images import BadImage
from contracts.tasks import ImageReference
from contracts.uploads import expiries, is_over, is_ref, moment, owner_and_ref, owner_of, ref_of, upload_path
from ops.artifacts import Artifacts, StoredObject

# About 2 GB of images of 8 MiB. The count is that of the janitor's last look, and of what this gateway stored since.
IMAGES_PER_CALLER: Final = 200


class TooManyImages(Exception):
    """The caller has as many images as a caller may have."""


class Upload(Struct, frozen=True):
    """An image that a caller uploaded, under its reference."""

    ref: str
    image: ImageReference
    expires_at: datetime


class Uploads:
    """The uploads of every caller; no caller sees another's. All gateways of a system have to keep uploads equally
    long."""

    def __init__(self, artifacts: Artifacts, *, keep_s: float) -> None:
        """An upload stays for *keep_s* at least."""
        self._artifacts = artifacts
        self._keep_s = max(1, int(keep_s))
        self._refs: dict[str, set[str]] = {}

    async def add(self, caller: str, file: ImageFile, limits: ImageField, *, now: datetime) -> Upload:
        """Stores *file* for *caller*; the same bytes again have the same reference, and may stay longer from now on.

        Raises BadImage where it is not within *limits*, TooManyImages, StorageFailed.
        """
        image = await asyncio.to_thread(judged, file, limits)
        ref = ref_of(caller, image.sha256)
        of_caller = self._refs.setdefault(owner_of(caller), set())
        if ref not in of_caller and len(of_caller) >= IMAGES_PER_CALLER:
            raise TooManyImages
        until, _ = expiries(now, self._keep_s)
        path = upload_path(ref, caller, until)
        if await self._artifacts.size(path) != image.bytes:
            await self._artifacts.put(path, file.content)
        of_caller.add(ref)
        return Upload(ref, image, moment(until))

    async def find(self, caller: str, ref: str, limits: ImageField, *, now: datetime) -> Upload | None:
        """What is known of *caller*'s image *ref*; None where there is none. Raises StorageFailed."""
        found = await self._read(caller, ref, now)
        if found is None:
            return None
        content, until = found
        try:
            image = await asyncio.to_thread(judged, ImageFile(content), limits)
        except BadImage:  # the settings have changed since
            return None
        return Upload(ref, image, moment(until))

    async def content(self, caller: str, ref: str, *, now: datetime) -> bytes | None:
        """The bytes of *caller*'s image *ref*; None where there is none. Raises StorageFailed."""
        found = await self._read(caller, ref, now)
        return None if found is None else found[0]

    async def remove(self, caller: str, ref: str, *, now: datetime) -> bool:
        """Removes *caller*'s image *ref*. Returns whether there was one. Raises StorageFailed."""
        if not is_ref(ref):
            return False
        there = False
        for until in expiries(now, self._keep_s):
            path = upload_path(ref, caller, until)
            if await self._artifacts.size(path) is not None:
                await self._artifacts.delete(path)
                there = True
        self._refs.get(owner_of(caller), set()).discard(ref)
        return there

    def expired(self, stored: Iterable[StoredObject], *, now: datetime) -> list[StoredObject]:
        """Those of all *stored* objects that are uploads and have expired. The other uploads are counted anew."""
        refs: dict[str, set[str]] = {}
        over: list[StoredObject] = []
        for item in stored:
            if is_over(item.path, now):
                over.append(item)
            elif (named := owner_and_ref(item.path)) is not None:
                refs.setdefault(named[0], set()).add(named[1])
        self._refs = refs
        return over

    async def _read(self, caller: str, ref: str, now: datetime) -> tuple[bytes, int] | None:
        if not is_ref(ref):
            return None
        for until in expiries(now, self._keep_s):
            content = await self._artifacts.get(upload_path(ref, caller, until))
            if content is not None:
                return content, until
        return None
