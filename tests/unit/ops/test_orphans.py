"""Which objects the janitor may remove."""

from ops.artifacts import StoredObject, orphans, task_id_of
from tests.kit.records import NOW, TASK_ID, after

VIDEO, LOSER, IMAGE = f"videos/{TASK_ID}.1.mp4", f"videos/{TASK_ID}.0.mp4", f"images/{TASK_ID}.abcd"


def stored(path: str, *, age_s: float = 100) -> StoredObject:
    return StoredObject(path, 10, after(-age_s))


def test_only_what_no_record_names_and_is_old_enough() -> None:
    everything = [
        stored(VIDEO),
        stored(LOSER),
        stored(IMAGE),
        stored("videos/gone.0.mp4"),
        stored("videos/new.0.mp4", age_s=9),
    ]
    named = {TASK_ID: {VIDEO, IMAGE}}
    found = orphans(everything, lambda task_id: named.get(task_id, set()), now=NOW, grace_s=10)
    assert [item.path for item in found] == [LOSER, "videos/gone.0.mp4"]


def test_task_of_an_object() -> None:
    assert {task_id_of(path) for path in (VIDEO, LOSER, IMAGE)} == {TASK_ID}
