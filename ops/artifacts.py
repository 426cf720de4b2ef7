"""Videos, their thumbnails and input images, in an object store: a folder, or a bucket of S3 (`ops/artifact_place.py`).

Both behave alike: writes are atomic, so that a reader sees the whole object or none. `orphans` is the janitor's
decision, pure.
"""

import asyncio
import contextlib
import re
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import obstore
from msgspec import Struct
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

CHUNK_BYTES: Final = 1 << 20
# A larger object goes to a bucket in parts of this size, a few at once: each part has the time-out of a request.
PART_BYTES: Final = 8 << 20
PARTS_AT_ONCE: Final = 4
_PATH: Final = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)?[A-Za-z0-9_-][A-Za-z0-9_.-]*", re.ASCII)
_CODE: Final = re.compile(r"<Code>(\w+)</Code>", re.ASCII)
# The content types that a bucket gives to a client that downloads an object by a link.
_TYPES: Final = {"mp4": "video/mp4", "webp": "image/webp"}


class StorageFailed(Exception):
    """The store could not write or read: no space, no permission, or it is away."""


class ConditionsIgnored(StorageFailed):
    """The store overwrites an object where it should only create one."""


class StoredObject(Struct, frozen=True):
    """An object of the store, as a listing shows it."""

    path: str
    bytes: int
    modified_at: datetime


class Artifacts:
    """The artifact store of one deployment."""

    def __init__(
        self, store: ObjectStore, name: str, *, folder: Path | None = None, answers_within_s: float | None = None
    ) -> None:
        """*name* is what errors call it; *folder* is where *store* keeps its files, if it does. A read, a deletion or a
        page of a listing fails after *answers_within_s* seconds, where that is given; *store* itself limits a write."""
        self._store = store
        self.name = name
        self._folder = folder
        self._answers_within_s = answers_within_s

    @classmethod
    def in_folder(cls, folder: Path) -> "Artifacts":
        """A store in *folder*, which is made. Raises StorageFailed."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _require_files(folder)
            return cls(LocalStore(folder), str(folder), folder=folder)
        except (OSError, BaseError) as error:
            raise StorageFailed(f"cannot use {folder}: {error}") from error

    async def put(self, path: str, content: bytes | Path) -> None:
        """Stores *content*, replacing what was there. Raises StorageFailed."""
        _require_path(path)
        try:
            await self._make_folder_of(path)
            await obstore.put_async(
                self._store,
                path,
                content,
                attributes=self._attributes(path),
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )
        except (OSError, BaseError) as error:
            raise StorageFailed(_words_of(error)) from error

    async def put_new(self, path: str, content: bytes) -> bool:
        """Stores *content* where there is nothing yet. Of several writers one gets True, and its content is stored.

        A writer whose answer was lost may get False although the stored content is its own. Raises StorageFailed.
        """
        _require_path(path)
        try:
            await self._make_folder_of(path)
            await obstore.put_async(self._store, path, content, attributes=self._attributes(path), mode="create")
        except AlreadyExistsError:
            return False
        except (OSError, BaseError) as error:
            raise StorageFailed(_words_of(error)) from error
        return True

    async def size(self, path: str) -> int | None:
        """The size of the object in bytes, or None when there is none. Raises StorageFailed."""
        _require_path(path)
        try:
            async with self._answering():
                return (await obstore.head_async(self._store, path))["size"]
        except FileNotFoundError:
            return None

    async def get(self, path: str) -> bytes | None:
        """The whole object, or None when there is none. Raises StorageFailed."""
        _require_path(path)
        try:
            async with self._answering():
                return bytes(await (await obstore.get_async(self._store, path)).bytes_async())
        except FileNotFoundError:
            return None

    async def read(self, path: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from *start* up to, not including, *end*, in chunks. Raises StorageFailed, even where the object is
        gone."""
        _require_path(path)
        while start < end:
            upto = min(start + CHUNK_BYTES, end)
            try:
                async with self._answering():
                    chunk = bytes(await obstore.get_range_async(self._store, path, start=start, end=upto))
            except FileNotFoundError as error:
                raise StorageFailed(f"{path} is gone from {self.name}") from error
            if len(chunk) != upto - start:
                raise StorageFailed(f"{path} is shorter in {self.name} than its record says")
            yield chunk
            start = upto

    async def delete(self, path: str) -> None:
        """Removes the object; one that is gone already is no error. Raises StorageFailed."""
        _require_path(path)
        with contextlib.suppress(FileNotFoundError):
            async with self._answering():
                await obstore.delete_async(self._store, path)

    async def list(self) -> list[StoredObject]:
        """All objects. Raises StorageFailed."""
        found: list[StoredObject] = []
        pages = aiter(obstore.list(self._store))
        while True:
            try:
                async with self._answering():
                    page = await anext(pages, None)
            except FileNotFoundError as error:
                raise StorageFailed(_words_of(error)) from error
            if page is None:
                return found
            found.extend(StoredObject(item["path"], item["size"], item["last_modified"]) for item in page)

    async def link(self, path: str, *, lasts_s: float) -> str | None:
        """A URL from which anyone who has it can download the object for *lasts_s* seconds. None where the store has no
        such links, as in a folder. It does not check whether the object is there. Raises StorageFailed.
        """
        _require_path(path)
        if not isinstance(self._store, S3Store):
            return None
        async with self._answering():
            return await obstore.sign_async(self._store, "GET", path, timedelta(seconds=lasts_s))

    async def prove(self) -> None:
        """Proves that this process can write, read and delete, and that the store keeps the condition of `put_new`. It
        writes a small object for that, and removes it.

        Raises ConditionsIgnored for a store that overwrites, StorageFailed otherwise; either says what to do.
        """
        # if the object stays, a janitor finds it
        path, ours, others = f"probe-{uuid.uuid4().hex}", uuid.uuid4().hex.encode(), b"another's"
        await self.put_new(path, ours)
        overwritten = await self.put_new(path, others)
        found = await self.get(path)
        await self.delete(path)
        if overwritten or found == others:
            raise ConditionsIgnored(
                "it ignores conditional writes (If-None-Match: *), so that two processes could overwrite each other "
                "unnoticed; use a store that honours them"
            )
        if found != ours:
            raise StorageFailed("it does not return what was just written")

    async def _make_folder_of(self, path: str) -> None:
        """Makes the folder of *path*. Raises OSError where there can be none: obstore would retry that for ever."""
        if self._folder is not None:
            await asyncio.to_thread((self._folder / path).parent.mkdir, parents=True, exist_ok=True)

    def _attributes(self, path: str) -> dict[str, str] | None:
        if not isinstance(self._store, S3Store):  # a folder keeps no attributes, and refuses them
            return None
        suffix = path.rsplit(".", 1)[-1]
        if suffix not in _TYPES:
            return {"Content-Type": "application/octet-stream"}
        name = f"{task_id_of(path)}.{suffix}"
        return {"Content-Type": _TYPES[suffix], "Content-Disposition": f'inline; filename="{name}"'}

    @contextlib.asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """Raises StorageFailed where the store refuses or does not answer within its time, and FileNotFoundError where
        it has no such object."""
        try:
            async with asyncio.timeout(self._answers_within_s):
                yield
        except FileNotFoundError:
            raise
        except TimeoutError as error:
            raise StorageFailed(f"{self.name} did not answer within {self._answers_within_s or 0:g} s") from error
        except (OSError, BaseError) as error:
            raise StorageFailed(_words_of(error)) from error


def _require_files(folder: Path) -> None:
    """Raises StorageFailed where making a file in *folder* fails with "not found", as in /proc: obstore would retry
    that for ever. A folder that is full or read-only passes."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileNotFoundError as error:
        raise StorageFailed(f"cannot use {folder}: no file can be made in it; name another folder") from error
    except OSError:
        pass


def _words_of(error: Exception) -> str:
    # The first line says what happened. Below it are the rest of an S3 server's answer, of which only the code is worth
    # keeping, and a dump of the library's own structs.
    text = str(error).strip()
    first = (text.splitlines() or [type(error).__name__])[0]
    code = _CODE.search(text)
    return first if code is None or code[1] in first else f"{first} ({code[1]})"


def _require_path(path: str) -> None:
    # no path of ours begins with a dot or a slash, or has more than one folder, so what a record names stays inside the
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

    An object younger than *grace_s* may belong to a task that is about to be recorded: it stays. So does an object
    whose name is not one of ours.
    """
    oldest = now - timedelta(seconds=grace_s)
    return [
        item
        for item in objects
        if item.modified_at < oldest and item.path not in named(task_id_of(item.path)) and _PATH.fullmatch(item.path)
    ]
