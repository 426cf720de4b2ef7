"""What the panel needs of `/admin` over real HTTP: what waits, the last hour, swaps, quarantines, and keys; and the
resubmission of a task's request.

The last test makes a key: from then on the gateway is closed.
"""

import hashlib
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec

from contracts import lifecycle
from contracts.memory import SwapReceipt
from contracts.tasks import FailureCode, GenerationTask, Priority, ThumbnailFile, VideoFile, encode_task
from contracts.topology import SLOTS, TASKS
from tests.integration.test_task_feed import refused
from tests.kit.gateway import System
from tests.kit.records import pending_task, quarantined_slot
from tests.kit.samples import data_uri, picture
from tests.kit.support import eventually

SWAP = SwapReceipt(
    slot="cpu-2",
    released_model="phr00t",
    loaded_model="anisora",
    how="unloaded",
    probe="rss",
    release_s=0.1,
    load_s=0.4,
)


def waiting(**changes: Any) -> GenerationTask:
    now = datetime.now(UTC)
    times = {"created_at": now, "queued_at": now, "deadline_at": now + timedelta(hours=1)}
    return pending_task(str(uuid.uuid4()), **times | changes)


async def record(system: System, task: GenerationTask) -> GenerationTask:
    await system.link.entries.create(TASKS, task.id, encode_task(task))
    return task


async def seen(system: System, path: str, look: Callable[[Any], bool]) -> Any:
    """The first answer of `/admin/PATH` for which *look* is true."""

    async def found() -> Any:
        answer = await system.http.get(f"/admin/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json() if look(answer.json()) else None

    return await eventually(found)


async def test_what_waits_is_listed_with_its_age_and_class(bare_system: System) -> None:
    queued_at = datetime.now(UTC) - timedelta(seconds=10)
    first, second = [
        await record(
            bare_system,
            waiting(route="degraded", model="phr00t", priority=Priority.BACKGROUND, caller=caller, queued_at=queued_at),
        )
        for caller in ("alice", "bob")
    ]
    other = await record(bare_system, waiting())

    def lists_all(found: Any) -> bool:
        ids = [each["id"] for queue in found["queues"] for each in queue["waiting"]]
        return {first.id, second.id, other.id} <= set(ids)

    found = await seen(bare_system, "queue", lists_all)
    degraded = next(queue for queue in found["queues"] if queue["route"] == "degraded")
    mine = [each for each in degraded["waiting"] if each["id"] in (first.id, second.id)]
    assert [each["position"] for each in degraded["waiting"]] == sorted(
        each["position"] for each in degraded["waiting"]
    )
    assert {each["caller"] for each in mine} == {"alice", "bob"}
    for each in mine:
        assert (each["model"], each["priority"]) == ("phr00t", "background")
        assert each["age_s"] >= 10
        assert 0 < each["left_s"] <= 3_600
        assert each["expected_wait_s"] is None
    lane = next(queue for queue in found["queues"] if queue["stream"] == "LANE_ANISORA")
    assert other.id in [each["id"] for each in lane["waiting"]]


async def test_the_last_hour_and_the_swaps_of_it(bare_system: System) -> None:
    now = datetime.now(UTC)
    task = waiting(route="degraded", queued_at=now - timedelta(seconds=5))
    claimed = lifecycle.claim(task, owner="o", worker="degraded-0", lease_s=60, now=now)
    video = VideoFile(path=task.video_path, bytes=1, sha256="ab" * 32, width=96, height=64, frames=17, fps=16)
    await record(bare_system, lifecycle.finish(claimed, video=video, memory=None, swap=SWAP, now=now))
    overloaded = lifecycle.fail(waiting(model="phr00t"), code=FailureCode.QUEUE_OVERLOADED, message="x", now=now)
    await record(bare_system, overloaded)
    swaps = await seen(bare_system, "swaps", lambda found: any(each["task_id"] == task.id for each in found["swaps"]))
    swap = next(each for each in swaps["swaps"] if each["task_id"] == task.id)
    assert (swap["model"], swap["worker"], swap["swap"]["load_s"]) == ("anisora", "degraded-0", 0.4)

    def counts_both(found: Any) -> bool:
        return any(each["overloaded"] for each in found["buckets"])

    hour = await seen(bare_system, "history", counts_both)
    assert hour["bucket_s"] == 60
    assert hour["since"] <= hour["buckets"][0]["at"] <= hour["now"]
    served = [each for each in hour["buckets"] if (each["model"], each["route"]) == ("anisora", "degraded")]
    assert sum(each["done"] for each in served) == sum(each["started"] for each in served) == 1
    assert served[0]["wait_sum_s"] == served[0]["wait_max_s"] == 5


async def test_a_quarantine_is_lifted_once_and_the_log_says_by_whom(bare_system: System) -> None:
    path = "/admin/slots/cpu-2/quarantine"
    for name in ("cpu-2", "a.b", "*"):
        refused(await bare_system.http.delete(f"/admin/slots/{name}/quarantine"), 404, "slot_not_found")
    await bare_system.link.entries.put(SLOTS, "cpu-2", msgspec.json.encode(quarantined_slot("cpu-2")))
    answer = await bare_system.http.delete(path)
    assert (answer.status_code, answer.json()["detail"]) == (200, "12 MB too much")
    stored = await bare_system.link.entries.get(SLOTS, "cpu-2")
    assert stored is not None
    assert msgspec.json.decode(stored.value or b"")["state"] == "empty"
    found = refused(await bare_system.http.delete(path), 409, "not_quarantined")
    assert "cpu-2 is empty" in found["detail"]
    [line] = [line for line in bare_system.gateway.log().splitlines() if "quarantine_lifted" in line]
    logged = msgspec.json.decode(line)
    assert (logged["event"], logged["on"], logged["caller"], logged["key"]) == (
        "admin_changed",
        "cpu-2",
        "anonymous",
        None,
    )


async def test_a_thumbnail_is_sent_as_the_video_is(bare_system: System) -> None:
    http, now = bare_system.http, datetime.now(UTC)
    content = bytes(range(256)) * 4
    task = lifecycle.claim(waiting(), owner="o", worker="w", lease_s=600, now=now)
    thumbnail = ThumbnailFile(path=task.thumbnail_path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    video = VideoFile(
        path=task.video_path, bytes=1, sha256="ab" * 32, width=96, height=64, frames=17, fps=16, thumbnail=thumbnail
    )
    await record(bare_system, lifecycle.finish(task, video=video, memory=None, now=now))
    url = f"/tasks/{task.id}/thumbnail"

    async def is_known() -> bool:
        return (await http.get(f"/tasks/{task.id}")).status_code == 200

    await eventually(is_known)
    refused(await http.get(url), 410, "video_expired")
    path = bare_system.gateway.artifacts / task.thumbnail_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert (await http.get(f"/tasks/{task.id}")).json()["links"]["thumbnail"] == url
    whole = await http.get(url)
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, content, "image/webp")
    assert whole.headers["x-content-type-options"] == "nosniff"
    part = await http.get(url, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    known = await http.get(url, headers={"if-none-match": whole.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    head = await http.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(content)))

    refused(await http.get(f"/tasks/{(await record(bare_system, waiting())).id}/thumbnail"), 404, "video_not_ready")
    earlier = lifecycle.claim(waiting(), owner="o", worker="w", lease_s=600, now=now)
    plain = VideoFile(path=earlier.video_path, bytes=1, sha256="ab" * 32, width=96, height=64, frames=17, fps=16)
    await record(bare_system, lifecycle.finish(earlier, video=plain, memory=None, now=now))
    refused(await http.get(f"/tasks/{earlier.id}/thumbnail"), 404, "no_thumbnail")


async def again(system: System, task_id: str, body: Any = None, **headers: str) -> httpx.Response:
    return await system.http.post(f"/tasks/{task_id}/resubmit", json={} if body is None else body, headers=headers)


async def test_the_request_of_a_task_once_more(bare_system: System) -> None:
    original = await bare_system.submit(image=data_uri(picture("PNG", (32, 32))))
    refused(await again(bare_system, original["id"]), 409, "task_not_ended")
    await bare_system.http.delete(f"/tasks/{original['id']}")
    first, second = await again(bare_system, original["id"]), await again(bare_system, original["id"])
    assert (first.status_code, first.headers["location"]) == (202, f"/tasks/{first.json()['id']}")
    assert first.json()["id"] == second.json()["id"] != original["id"]
    assert first.json()["parameters"] == original["parameters"]
    other = (await again(bare_system, original["id"], {"seed": "new"})).json()
    assert other["parameters"]["seed"] != original["parameters"]["seed"]
    assert other["parameters"] | {"seed": 0} == original["parameters"] | {"seed": 0}
    named = (await again(bare_system, original["id"], {"seed": 7}, **{"idempotency-key": "seven"})).json()
    assert named["parameters"]["seed"] == 7
    stored, _ = await bare_system.record(named["id"])
    assert stored.image_path is not None
    assert (bare_system.gateway.artifacts / stored.image_path).read_bytes() == picture("PNG", (32, 32))

    for body, pointer in (({"seed": -1}, "/seed"), ({"seed": "old"}, "/seed"), ({"steps": 9}, "")):
        found = refused(await again(bare_system, original["id"], body), 422, "validation_failed")
        assert [error["pointer"] for error in found["errors"]] == [pointer]
    refused(await again(bare_system, str(uuid.uuid4())), 404, "task_not_found")
    gone, _ = await bare_system.record(original["id"])
    assert gone.image_path is not None
    (bare_system.gateway.artifacts / gone.image_path).unlink()
    refused(await again(bare_system, original["id"], {"seed": 8}), 410, "image_expired")


async def test_keys_are_made_shown_and_revoked(bare_system: System) -> None:
    http = bare_system.http
    assert (await http.get("/admin/keys")).json() == {"is_open": True, "keys": [], "unreadable": []}
    found = refused(await http.post("/admin/keys", json={"caller": "anonymous"}), 422, "validation_failed")
    assert [error["pointer"] for error in found["errors"]] == ["/caller", "/scopes"]
    made = await http.post("/admin/keys", json={"caller": "operator", "scopes": ["admin"], "rate_per_s": None})
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    secret, key = made.json()["secret"], made.json()["key"]
    operator = {"authorization": f"Bearer {secret}"}

    async def counts() -> bool:
        return (await http.get("/admin/keys")).status_code == 401

    await eventually(counts)
    http.headers.update(operator)  # the fixture needs it at the end
    listed = await http.get("/admin/keys", headers=operator)
    assert listed.json() == {"is_open": False, "keys": [key], "unreadable": []}
    assert secret.rpartition("_")[2] not in listed.text
    settings = (await http.get("/settings", headers=operator)).json()
    assert settings["caller"] == {
        "name": "operator",
        "scopes": ["admin"],
        "key_id": key["id"],
        "is_open": False,
        "max_waiting": None,
        "max_running": None,
    }

    reader = (
        await http.post("/admin/keys", json={"caller": "alice", "scopes": ["read", "submit"]}, headers=operator)
    ).json()
    reads = {"authorization": f"Bearer {reader['secret']}"}

    async def reader_counts() -> bool:
        return (await http.get("/tasks", headers=reads)).status_code == 200

    await eventually(reader_counts)
    for method, path in (
        ("GET", "/admin/keys"),
        ("POST", "/admin/keys"),
        ("DELETE", f"/admin/keys/{key['id']}"),
        ("DELETE", "/admin/slots/cpu-2/quarantine"),
        ("GET", "/admin/swaps"),
        ("GET", "/admin/history"),
    ):
        refused(await http.request(method, path, headers=reads), 403, "forbidden")

    revoked = await http.delete(f"/admin/keys/{reader['key']['id']}", headers=operator)
    assert (revoked.status_code, revoked.json()["caller"]) == (200, "alice")
    assert revoked.json()["revoked_at"] is not None

    async def reader_is_out() -> bool:
        return (await http.get("/tasks", headers=reads)).status_code == 401

    await eventually(reader_is_out)
    twice = await http.delete(f"/admin/keys/{reader['key']['id']}", headers=operator)
    assert twice.json() == revoked.json()
    for nobody in ("0" * 12, "a.b", "*"):
        refused(await http.delete(f"/admin/keys/{nobody}", headers=operator), 404, "key_not_found")
    log = bare_system.gateway.log()
    changes = [msgspec.json.decode(line) for line in log.splitlines() if '"admin_changed"' in line]
    assert [(each["change"], each["on"], each["key"]) for each in changes if each["change"].startswith("key_")] == [
        ("key_made", key["id"], None),
        ("key_made", reader["key"]["id"], key["id"]),
        ("key_revoked", reader["key"]["id"], key["id"]),
    ]
    assert secret.rpartition("_")[2] not in log
