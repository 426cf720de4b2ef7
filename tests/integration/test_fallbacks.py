"""Fallback episodes of two gateways on a real server: causes, ends, sums, and how evicted lanes learn of demand."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from contracts.lanes import FallbackEpisode, LaneState
from contracts.settings import load_settings
from contracts.topology import CONTROL, DEGRADED, FALLBACKS, bucket_stream, bucket_subject, control_key, demand_subject
from gateway.boards.lane_board import LaneBoard
from gateway.placing.fallbacks import Fallbacks
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.kit.behind import client_of, js_of
from tests.kit.gateway import GatewayProcess, System
from tests.kit.patient import connected
from tests.kit.support import KEEP_S, eventually


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    """A fresh gateway on a fresh server."""
    gateway = GatewayProcess(tmp_path)
    gateway.nats.start()
    link = await connected(gateway.nats.url)
    await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
    await asyncio.to_thread(gateway.start, "--keep", f"{KEEP_S:g}s")
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
        yield System(gateway, link, http)
    await link.close()
    gateway.stop()
    gateway.nats.stop()


@pytest.fixture
async def second(system: System, tmp_path: Path) -> AsyncIterator[System]:
    """The same system through another gateway."""
    folder = tmp_path / "second"
    folder.mkdir()
    gateway = GatewayProcess(folder, beside=system.gateway)
    await asyncio.to_thread(gateway.start, "--keep", f"{KEEP_S:g}s")
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
        yield System(gateway, system.link, http)
    gateway.stop()


async def episodes(system: System, model: str = "anisora") -> list[FallbackEpisode]:
    """The episodes of *model*, the oldest first, as the gateway reports them."""
    answer = (await system.http.get("/admin/fallbacks")).json()
    found = msgspec.convert([*answer["past"][::-1], *answer["current"]], type=list[FallbackEpisode])
    return [episode for episode in found if episode.model == model]


async def become(system: System, expected: list[tuple[str, bool, int]]) -> list[FallbackEpisode]:
    """The episodes, once each has the expected cause, end and number of served requests."""

    async def look() -> list[FallbackEpisode] | None:
        found = await episodes(system)
        shown = [(episode.cause, episode.until is not None, episode.served) for episode in found]
        return found if shown == expected else None

    try:
        found = await eventually(look)
    except AssertionError:
        raise AssertionError(f"{await episodes(system)} instead of {expected}") from None
    assert found is not None
    return found


async def submit(system: System, count: int, *, model: str = "anisora") -> None:
    """Submits *count* requests at once. It first empties the degraded queue, so that none is refused."""
    await js_of(system.link).purge_stream(DEGRADED)
    await asyncio.gather(*(system.submit(model) for _ in range(count)))


async def test_an_episode_begins_changes_its_cause_and_ends(system: System) -> None:
    await submit(system, 3)
    await become(system, [("capacity", False, 3)])
    await submit(system, 2)
    await become(system, [("capacity", False, 5)])
    assert (await system.http.put("/admin/lanes/anisora/mode", json={"mode": "degraded"})).status_code == 200
    await submit(system, 4)
    await become(system, [("capacity", True, 5), ("manual", False, 4)])
    await system.lane_is(LaneState.WARM)  # the operator's switch still keeps it out
    await submit(system, 1)
    await become(system, [("capacity", True, 5), ("manual", False, 5)])
    await system.http.put("/admin/lanes/anisora/mode", json={"mode": "auto"})
    # a client that looks at once already sees it ended, though a gateway records the end a second later
    assert (await system.http.get("/admin/fallbacks")).json()["current"] == []
    # it ends without a further request
    first, second = await become(system, [("capacity", True, 5), ("manual", True, 5)])
    assert first.until is not None
    assert second.until is not None
    assert first.since < first.until <= second.since < second.until
    assert await episodes(system, "phr00t") == []


async def show_alike(one: System, other: System) -> None:
    """Returns when both report the same. Until an episode's end is recorded, each gateway reports the time of the
    request as its end."""

    async def alike() -> bool:
        return await episodes(one) == await episodes(other)

    await eventually(alike)


async def test_the_sum_of_two_gateways_is_exact_and_the_past_holds_one_revision_for_each(
    system: System, second: System
) -> None:
    for _ in range(4):  # several rounds of both writers over one entry
        await asyncio.gather(submit(system, 6), submit(second, 6, model="phr00t"))
        await js_of(system.link).purge_stream(DEGRADED)
        await asyncio.gather(*(each.submit() for each in (system, second) for _ in range(5)))
    await become(system, [("capacity", False, 6 * 4 + 5 * 2 * 4)])
    await system.lane_is(LaneState.WARM)
    await become(second, [("capacity", True, 64)])
    await show_alike(system, second)

    async def others() -> bool:
        return [episode.served for episode in await episodes(second, "phr00t")] == [24]

    await eventually(others)

    # the next episode makes it a past one, however many revisions it had
    await system.lane_is(LaneState.QUOTA_DENIED)
    await asyncio.gather(submit(system, 3), submit(second, 3))
    await become(system, [("capacity", True, 64), ("quota", False, 6)])
    subject = bucket_subject(FALLBACKS, "anisora.past")
    info = await js_of(system.link).stream_info(bucket_stream(FALLBACKS), subjects_filter=subject)
    assert info.state.subjects == {subject: 1}


async def test_a_gateway_that_was_killed_leaves_an_episode_that_others_end(system: System, second: System) -> None:
    await submit(second, 2)
    await become(system, [("capacity", False, 2)])
    os.kill(second.gateway.pid, signal.SIGKILL)
    await submit(system, 1)
    await become(system, [("capacity", False, 3)])
    await system.lane_is(LaneState.WARM)
    await become(system, [("capacity", True, 3)])
    await asyncio.to_thread(second.gateway.start, "--keep", f"{KEEP_S:g}s")
    await show_alike(system, second)


async def test_a_gateway_that_leaves_adds_its_last_counts(system: System, second: System) -> None:
    await submit(second, 7)
    await asyncio.to_thread(second.gateway.stop)
    await become(system, [("capacity", False, 7)])
    await asyncio.to_thread(second.gateway.start, "--keep", f"{KEEP_S:g}s")


async def test_refused_requests_begin_an_episode_and_are_not_counted(system: System) -> None:
    await system.fill()
    refused = await system.post(prefer="respond-async")
    assert (refused.status_code, refused.json()["limit"]) == (503, "depth")
    await become(system, [("capacity", False, 0)])


async def test_the_same_request_again_is_counted_once(system: System) -> None:
    for key in ("one", "two", "three"):  # concurrently, so that several of them reach the queue
        await asyncio.gather(*(system.submit(**{"idempotency-key": key}) for _ in range(5)))
    await submit(system, 1)
    await become(system, [("capacity", False, 4)])


async def test_evicted_lanes_learn_that_they_are_wanted(system: System) -> None:
    published: list[str] = []

    async def hear(message: Any) -> None:
        published.append(message.subject)

    await client_of(system.link).subscribe("demand.*", cb=hear)
    await submit(system, 1)  # no lane is evicted: nothing is published
    await system.lane_is(LaneState.EVICTED)
    await system.link.entries.put(CONTROL, control_key("anisora"), b"degraded")

    async def manual() -> bool:
        model = (await system.http.get("/admin/lanes/anisora/mode")).json()
        return bool(model["mode"] == "degraded")

    await eventually(manual)
    await submit(system, 1)  # the operator keeps requests out: loading would be in vain
    await system.http.put("/admin/lanes/anisora/mode", json={"mode": "auto"})
    assert published == []
    await submit(system, 20)

    async def heard() -> bool:
        return bool(published)

    await eventually(heard)
    assert set(published) == {demand_subject("anisora")}
    assert len(published) < 5  # 20 requests in a moment: at most one in each second


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_write_without_an_answer_is_not_added_twice(
    link: NatsLink, monkeypatch: pytest.MonkeyPatch, is_stored: bool
) -> None:
    lanes = LaneBoard(health_timeout_s=60, grace_s=10)
    fallbacks = Fallbacks(lanes=lanes, models=["anisora"])
    await fallbacks.start(link)
    _, decision = lanes.route("anisora", datetime.now(UTC))
    await fallbacks.sent("anisora", decision, served=1)
    await fallbacks.write()
    await fallbacks.sent("anisora", decision, served=1)
    update = link.entries.update

    async def without_an_answer(*arguments: Any, **options: Any) -> int:
        if is_stored:
            await update(*arguments, **options)
        raise TransportUnavailable("no answer")

    monkeypatch.setattr(link.entries, "update", without_an_answer)
    with pytest.raises(TransportUnavailable):
        await fallbacks.write()
    monkeypatch.undo()
    await fallbacks.sent("anisora", decision, served=1)
    await fallbacks.write()
    assert [episode.served for episode in fallbacks.known.episodes("anisora")] == [3]
