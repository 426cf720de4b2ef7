"""Videos, their thumbnails and input images, in an object store. A folder today; obstore makes an S3 bucket a matter of
its URL.

Writes are atomic: a reader sees the whole object or none. `orphans` is the janitor's decision, pure.
"""

import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import obstore
from msgspec import Struct
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore

CHUNK_BYTES: Final = 1 << 20
_PATH: Final = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)?[A-Za-z0-9_-][A-Za-z0-9_.-]*", re.ASCII)


class StorageFailed(Exception):
    """The store could not write or read: no space, no permission, or it is away."""


class StoredObject(Struct, frozen=True):
    """An object of the store, as a listing shows it."""

    path: str
    bytes: int
    modified_at: datetime


class Artifacts:
    """The artifact store of one deployment."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def in_folder(cls, folder: Path) -> "Artifacts":
        """A store in *folder*, which is made. Raises StorageFailed."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return cls(LocalStore(folder))
        except (OSError, BaseError) as error:
            raise StorageFailed(f"cannot use {folder}: {error}") from error

    async def put(self, path: str, content: bytes | Path) -> None:
        """Stores *content*, replacing what was there. Raises StorageFailed."""
        _require_path(path)
        try:
            await obstore.put_async(self._store, path, content)
        except (OSError, BaseError) as error:
            raise StorageFailed(str(error)) from error

    async def size(self, path: str) -> int | None:
        """The size of the object in bytes, or None when there is none. Raises StorageFailed."""
        _require_path(path)
        try:
            return (await obstore.head_async(self._store, path))["size"]
        except FileNotFoundError:
            return None
        except (OSError, BaseError) as error:
            raise StorageFailed(str(error)) from error

    async def get(self, path: str) -> bytes | None:
        """The whole object, or None when there is none. Raises StorageFailed."""
        _require_path(path)
        try:
            return bytes(await (await obstore.get_async(self._store, path)).bytes_async())
        except FileNotFoundError:
            return None
        except (OSError, BaseError) as error:
            raise StorageFailed(str(error)) from error

    async def read(self, path: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from *start* up to, not including, *end*, in chunks. Raises StorageFailed for a path that is not
        ours."""
        _require_path(path)
        while start < end:
            upto = min(start + CHUNK_BYTES, end)
            yield bytes(await obstore.get_range_async(self._store, path, start=start, end=upto))
            start = upto

    async def delete(self, path: str) -> None:
        """Removes the object; one that is gone already is no error. Raises StorageFailed."""
        _require_path(path)
        try:
            await obstore.delete_async(self._store, path)
        except FileNotFoundError:
            return
        except (OSError, BaseError) as error:
            raise StorageFailed(str(error)) from error

    async def list(self) -> list[StoredObject]:
        """All objects. Raises StorageFailed."""
        try:
            found: list[StoredObject] = []
            async for page in obstore.list(self._store):
                found.extend(StoredObject(item["path"], item["size"], item["last_modified"]) for item in page)
            return found
        except (OSError, BaseError) as error:
            raise StorageFailed(str(error)) from error


def _require_path(path: str) -> None:
    # no path of ours begins with a dot or a slash, or has more than one folder: whatever a record names stays in the
    # store
    if not _PATH.fullmatch(path):
        raise StorageFailed("not a path of the artifact store")


def task_id_of(path: str) -> str:
    """The id of the task that an object belongs to: its file name up to the first dot."""
    return path.rsplit("/", 1)[-1].split(".", 1)[0]


def orphans(
    objects: Iterable[StoredObject], named: Callable[[str], Collection[str]], *, now: datetime, grace_s: float
) -> list[StoredObject]:
    """The objects that no record names. *named* gives the paths that the record of a task names; none where there is no
    record.

    An object younger than *grace_s* may belong to a task that is about to be recorded: it stays. So does one whose name
    is not ours.
    """
    oldest = now - timedelta(seconds=grace_s)
    return [
        item
        for item in objects
        if item.modified_at < oldest and item.path not in named(task_id_of(item.path)) and _PATH.fullmatch(item.path)
    ]
