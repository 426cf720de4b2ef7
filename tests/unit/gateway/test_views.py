import json
from typing import Any

import msgspec
import pytest

from contracts import lifecycle
from contracts.api.settings import CallerView
from contracts.api.tasks import QueuePlace
from contracts.keys import ApiKey
from contracts.memory import MemoryReading, SwapReceipt
from contracts.tasks import (
    FailureCode,
    GenerationTask,
    OrderDecision,
    Priority,
    ReplacedParameter,
    TaskStatus,
    ThumbnailFile,
    VideoFile,
)
from gateway.boards.key_board import Caller
from gateway.http.admin_views import explain_view
from gateway.http.views import settings_view, view
from gateway.rules.routing import ToDegraded
from tests.kit.records import NOW, TASK_ID, pending_task, processing_task
from tests.kit.samples import catalog

VIDEO = VideoFile(path="videos/secret-place.mp4", bytes=9, sha256="cd" * 32, width=96, height=64, frames=17, fps=16)
DONE = lifecycle.finish(processing_task(), video=VIDEO, memory=MemoryReading(rss_bytes=7), now=NOW)
FAILED = lifecycle.fail(processing_task(), code=FailureCode.OUT_OF_MEMORY, message="no room", now=NOW)


def shown(task: GenerationTask, place: QueuePlace | None = None) -> dict[str, Any]:
    answer = json.loads(msgspec.json.encode(view(task, place, NOW)))
    assert isinstance(answer, dict)
    return answer


@pytest.mark.parametrize("task", [pending_task(), processing_task(), DONE, FAILED])
def test_every_key_is_always_there_and_none_of_the_protocol(task: GenerationTask) -> None:
    assert list(shown(task)) == [
        "id",
        "status",
        "model",
        "route",
        "priority",
        "worker",
        "attempt",
        "parameters",
        "warnings",
        "webhook",
        "labels",
        "keep_s",
        "created_at",
        "queued_at",
        "claimed_at",
        "finished_at",
        "queue",
        "progress",
        "error",
        "video",
        "swap",
        "memory",
        "timeline",
        "trace_id",
        "links",
    ]


def test_what_was_replaced_is_shown_as_warnings_like_the_errors_of_a_422() -> None:
    replaced = (
        ReplacedParameter(field="steps", used=8, got=20),
        ReplacedParameter(field="cfg", used=1.0, got="number too large"),
    )
    assert shown(msgspec.structs.replace(DONE, replaced=replaced))["warnings"] == [
        {
            "pointer": "/steps",
            "code": "fixed_value_replaced",
            "message": "steps: expected 8, got 20; 8 was used",
            "expected": 8,
            "got": 20,
        },
        {
            "pointer": "/cfg",
            "code": "fixed_value_replaced",
            "message": "cfg: expected 1.0, got number too large; 1.0 was used",
            "expected": 1.0,
            "got": "number too large",
        },
    ]


def test_nothing_internal_is_shown() -> None:
    task = msgspec.structs.replace(DONE, caller="someone", owner="nonce-1", request_sha256="fingerprint")
    text = json.dumps(shown(task))
    for secret in ("someone", "nonce-1", "fingerprint", "secret-place", "lease", "epoch"):
        assert secret not in text


def test_links_follow_the_status() -> None:
    url = f"/tasks/{TASK_ID}"
    waiting = {"self": url, "events": f"{url}/events", "video": None, "thumbnail": None, "cancel": url}
    assert shown(pending_task())["links"] == waiting
    assert shown(processing_task())["links"] == waiting
    assert shown(DONE)["links"] == {**waiting, "video": f"{url}/video", "cancel": None}
    assert shown(FAILED)["links"] == {**waiting, "cancel": None}
    assert DONE.video is not None
    thumbnail = ThumbnailFile(path=f"thumbnails/{TASK_ID}.0.webp", bytes=7, sha256="ef" * 32)
    with_one = msgspec.structs.replace(DONE, video=msgspec.structs.replace(DONE.video, thumbnail=thumbnail))
    assert shown(with_one)["links"]["thumbnail"] == f"{url}/thumbnail"
    assert "thumbnails/" not in json.dumps(shown(with_one))


def test_the_ends_of_a_task() -> None:
    assert shown(DONE)["video"] == {
        "bytes": 9,
        "sha256": "cd" * 32,
        "width": 96,
        "height": 64,
        "frames": 17,
        "fps": 16,
    }
    assert shown(DONE)["memory"]["rss_bytes"] == 7
    assert shown(FAILED)["error"] == {"code": "out_of_memory", "message": "no room"}
    assert shown(FAILED)["status"] == TaskStatus.FAILED


@pytest.mark.parametrize("wait_s", [4.2, None])
def test_a_queued_task_shows_its_place(wait_s: float | None) -> None:
    place = QueuePlace(position=3, expected_wait_s=wait_s)
    assert shown(pending_task(), place)["queue"] == {"position": 3, "expected_wait_s": wait_s}
    assert shown(processing_task())["queue"] is None


def test_the_swap_receipt_is_public_as_it_is() -> None:
    receipt = SwapReceipt(
        slot="cpu-2", released_model="phr00t", loaded_model="anisora", how="unloaded", probe="rss", samples=2
    )
    swapped = lifecycle.finish(processing_task(), video=VIDEO, memory=MemoryReading(rss_bytes=7), swap=receipt, now=NOW)
    assert shown(swapped)["swap"] == json.loads(msgspec.json.encode(receipt))
    assert shown(DONE)["swap"] is None
    assert explain_view(swapped, ToDegraded("capacity")).swap == receipt
    assert explain_view(DONE, ToDegraded("capacity")).swap is None


def test_why_a_task_was_started_when_it_was_is_explained() -> None:
    order = OrderDecision(at=NOW, order="swap-aware", rules=(4, 6), loaded="anisora", slice_left_s=3.0, waiting=())
    claimed = lifecycle.claim(pending_task(), owner="o", worker="degraded-0", lease_s=20, now=NOW, order=order)
    why = "no higher class waits; its model is loaded, and its slice lasts or no other model waits"
    explained = explain_view(claimed, ToDegraded("capacity"))
    assert (explained.order, explained.chosen) == (order, why)
    assert shown(claimed)["timeline"][-1]["detail"] == f"attempt 1 by degraded-0: {why}"
    assert explain_view(DONE, ToDegraded("capacity")).chosen is None


def test_settings_hold_what_a_form_needs() -> None:
    answer = json.loads(msgspec.json.encode(settings_view(catalog())))
    assert (answer["profile"], answer["wait_limit_s"]) == ("tiny", 30)
    anisora, phr00t = answer["models"]
    assert (anisora["name"], anisora["title"]) == ("anisora", "AniSora V3.2")
    assert anisora["constraints"]["steps"]["fixed"] == 8
    assert phr00t["aliases"] == ["phr00t-aio", "rapid-aio"]
    assert (phr00t["constraints"]["steps"]["fixed"], phr00t["constraints"]["cfg"]["fixed"]) == (4, 1.0)
    assert phr00t["constraints"]["image"]["presence"] == "unsupported"
    assert phr00t["constraints"]["max_volume"] == catalog().models["phr00t"].constraints.max_volume
    assert answer["body_max_bytes"] > anisora["constraints"]["image"]["max_bytes"] * 4 / 3
    for fixed in (anisora["constraints"]["steps"], phr00t["constraints"]["steps"], phr00t["constraints"]["cfg"]):
        assert "distilled" in fixed["reason"]
    assert anisora["constraints"]["cfg"]["reason"] == ""


def test_settings_say_what_the_key_of_the_caller_may_do() -> None:
    key = ApiKey(
        id="0" * 12,
        caller="nightly",
        scopes=("submit",),
        secret_sha256="0" * 64,
        created_at=NOW,
        highest_priority=Priority.BACKGROUND,
        max_waiting=3,
    )
    bound = settings_view(catalog(), Caller(key.caller, key.scopes, key), keep_s=60, jaeger_url="http://jaeger:16686/")
    assert [(each.name, each.allowed) for each in bound.priorities] == [
        ("interactive", False),
        ("standard", False),
        ("background", True),
    ]
    assert (bound.default_priority, bound.keep_s) == ("background", 60)
    assert bound.trace_url == "http://jaeger:16686/trace/{trace_id}"
    assert bound.caller == CallerView(
        name="nightly", scopes=("submit",), key_id=key.id, is_open=False, max_waiting=3, max_running=None
    )
    free = settings_view(catalog())
    assert all(each.allowed for each in free.priorities)
    assert (free.default_priority, free.trace_url) == ("standard", None)
    assert free.caller is not None
    assert (free.caller.is_open, free.caller.key_id) == (True, None)
    assert "admin" in free.caller.scopes


def test_settings_say_what_a_model_makes_a_video_from() -> None:
    answer = json.loads(msgspec.json.encode(settings_view(catalog("production"))))
    anisora, phr00t = answer["models"]
    assert anisora["constraints"]["image"] == {
        "presence": "required",
        "max_bytes": 8_388_608,
        "max_pixels": 33_554_432,
        "media_types": ["image/png", "image/jpeg", "image/webp"],
    }
    assert (anisora["modes"], phr00t["modes"]) == (["image-to-video"], ["text-to-video"])
    assert settings_view(catalog()).models[0].modes == ("text-to-video", "image-to-video")
