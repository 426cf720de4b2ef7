"""No path that a record names leads out of the artifact store."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from ops.artifacts import Artifacts, StorageFailed, StoredObject, orphans
from tests.kit.records import TASK_ID

OUTSIDE = [
    "",
    "/",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "videos/../../x",
    "videos/.x",
    "a/b/c",
    "a\\b",
    "a b",
    "a\0b",
    "a%2fb",
]


@pytest.mark.parametrize("path", OUTSIDE)
async def test_no_path_leads_out(path: str, tmp_path: Path) -> None:
    store = Artifacts.in_folder(tmp_path / "store")
    for call in (store.put(path, b"x"), store.get(path), store.size(path), store.delete(path)):
        with pytest.raises(StorageFailed, match="not a path of the artifact store"):
            await call
    with pytest.raises(StorageFailed):
        _ = [part async for part in store.read(path, 0, 1)]
    assert [each.name for each in tmp_path.iterdir()] == ["store"]


async def test_ours_are_fine(tmp_path: Path) -> None:
    store = Artifacts.in_folder(tmp_path)
    for path in (f"videos/{TASK_ID}.0.mp4", f"images/{TASK_ID}.{'ab' * 8}"):
        await store.put(path, b"x")
        assert await store.get(path) == b"x"
        await store.delete(path)


def test_what_is_none_of_ours_is_left_alone() -> None:
    """Otherwise the janitor would try for ever to delete a file that it cannot delete."""
    old = datetime(2026, 1, 1, tzinfo=UTC)
    objects = [StoredObject(path, 1, old) for path in ("videos/x.0.mp4", "a note.txt", "a/b/c")]
    found = orphans(objects, lambda _: set(), now=datetime.now(UTC), grace_s=1)
    assert [each.path for each in found] == ["videos/x.0.mp4"]
