"""What `make observe` causes, step by step. Each is named in docs/operate/observability.md."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from contracts.topology import DEGRADED_MAX_MSGS, work_subject
from ops.nats.link import NatsLink
from tests.drills.observe_stage import NO_QUOTA, Stage


async def start(stage: Stage) -> None:
    async with stage.step("start"):
        await asyncio.to_thread(stage.up.start)


async def lane_task(stage: Stage) -> None:
    async with stage.step("lane task") as step:
        step.tasks["lane"] = await stage.caller.done("anisora")


async def degraded_task(stage: Stage) -> None:
    async with stage.step("degraded task") as step:
        step.tasks["degraded"] = await stage.caller.done("phr00t")


async def manual_fallback(stage: Stage) -> None:
    async with stage.step("manual fallback") as step:
        await stage.caller.mode("anisora", "degraded")
        step.tasks["swapped"] = await stage.caller.done("anisora")
        await stage.fallback_is_shown("anisora", "manual")
        await stage.caller.mode("anisora", "auto")
        # the fallback is over as soon as the switch is back; a gateway records and logs that within a second
        await stage.until(lambda: not stage.running_fallbacks("anisora"))
        await stage.until(
            lambda: any(
                line["event"] == "fallback_ended" and datetime.fromisoformat(line["timestamp"]) >= step.begun_at
                for line in stage.lines()
            )
        )


async def quota_fallback(stage: Stage) -> None:
    async with stage.step("quota fallback") as step:
        stage.quota.write_text('{"max_lanes": {"phr00t": 0}}')
        await stage.caller.lanes_say("phr00t", "quota_denied")
        step.tasks["quota"] = await stage.caller.done("phr00t")
        await stage.fallback_is_shown("phr00t", "quota")
        stage.quota.write_text(NO_QUOTA)
        await stage.caller.lanes_say("phr00t", "capacity_denied")


async def rerouted_task(stage: Stage) -> None:
    """The gateway trusts a stopped lane for a while, but does not leave the task with it."""
    async with stage.step("rerouted task") as step:
        lane = stage.up.find("--name anisora-0")
        os.kill(lane, signal.SIGSTOP)
        try:
            step.tasks["rerouted"] = await stage.caller.submit("anisora")
            await stage.caller.ends(step.tasks["rerouted"], "done")
        finally:
            os.kill(lane, signal.SIGCONT)
        await stage.caller.warm("anisora")


async def failed_task(stage: Stage) -> None:
    """The task's pipeline host dies in both attempts."""
    async with stage.step("failed task") as step:
        step.tasks["failed"] = task_id = await stage.caller.submit("phr00t", prompt=stage.gate().prompt)
        for attempt in (1, 2):
            os.kill(await stage.caller.runs(task_id, attempt), signal.SIGKILL)
        await stage.caller.ends(task_id, "failed")


async def cancelled_task(stage: Stage) -> None:
    async with stage.step("cancelled task") as step:
        step.tasks["cancelled"] = task_id = await stage.caller.submit("anisora", prompt=stage.gate().prompt)
        await stage.caller.runs(task_id, 1)
        await stage.caller.cancel(task_id)
        await stage.caller.ends(task_id, "failed")


async def lost_lane(stage: Stage) -> None:
    async with stage.step("lost lane") as step:
        lane, gate = stage.up.find("--name anisora-0"), stage.gate()
        step.tasks["requeued"] = task_id = await stage.caller.submit("anisora", prompt=gate.prompt)
        await stage.caller.runs(task_id, 1)
        os.kill(lane, signal.SIGKILL)
        gate.open()
        await stage.caller.ends(task_id, "done")
        await stage.caller.warm("anisora")


async def overload(stage: Stage) -> None:
    """More requests than fit, and more than can be served in time: the gateway refuses some at once, and some later,
    and drops some."""
    async with stage.step("overload") as step:
        await stage.caller.mode("anisora", "degraded")
        later = [stage.caller.post("anisora", prefer="respond-async") for _ in range(DEGRADED_MAX_MSGS - 4)]
        held = [stage.caller.post("anisora") for _ in range(8)]
        answers = [answer.json() for answer in await asyncio.gather(*later, *held)]
        for limit in ("depth", "wait"):
            refused = [answer for answer in answers if answer.get("limit") == limit]
            assert refused, [answer.get("code", answer.get("status")) for answer in answers]
        waited = next(answer for answer in answers if answer.get("limit") == "wait")
        step.tasks["overloaded"] = waited["instance"].rsplit("/", 1)[-1]
        ids = [answer["id"] for answer in answers if "id" in answer]
        for task_id in ids:
            await stage.caller.ends(task_id, "done", "failed")
        await stage.caller.mode("anisora", "auto")


async def refused_request(stage: Stage) -> None:
    async with stage.step("refused request"):
        answer = await stage.caller.post("anisora", steps=99)
        assert answer.status_code == 422, answer.text


async def replaced_value(stage: Stage) -> None:
    """docs/operate/rollback.md: the gateway replaces a wrong fixed value, and reports that."""
    async with stage.step("replaced value") as step:
        answer = await stage.caller.post("phr00t", steps=99)
        assert answer.status_code == 202, answer.text
        step.tasks["replaced"] = str(answer.json()["id"])
        await stage.caller.ends(step.tasks["replaced"], "done")


async def unreadable_message(stage: Stage) -> None:
    async with stage.step("unreadable message"):
        link = await NatsLink.connect(stage.up.nats_url, name="observe")
        await link.messages.publish(work_subject("lane", "anisora", "nobody"), b"no task")
        await link.close()
        await stage.until(lambda: stage.collector.value("warmlane.unreadable", kind="task") > 0)


STEPS: Final[tuple[Callable[[Stage], Awaitable[None]], ...]] = (
    start,
    lane_task,
    degraded_task,
    manual_fallback,
    quota_fallback,
    cancelled_task,
    failed_task,
    refused_request,
    replaced_value,
    unreadable_message,
    overload,
    rerouted_task,
    lost_lane,
)


def name_of(act: Callable[[Stage], Awaitable[None]]) -> str:
    """The name of a step in the table."""
    return str(act.__name__).replace("_", " ")


async def play(stage: Stage, on_step: Callable[[str], None]) -> None:
    """Plays all steps, and passes the name of each to *on_step* before it begins. Returns when all their effects have
    arrived."""
    async with stage.entered():
        for act in STEPS:
            on_step(name_of(act))
            await act(stage)
