"""`warmlane demo --fallback`: kills a lane, and reports live how its requests degrade and come back to it."""

import contextlib
import signal
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
import psutil
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console

from contracts.api.admin import LanesView, LaneView
from contracts.api.tasks import TaskView
from ops.commands.api.client import CommandClient
from ops.commands.api.problems import Refused

BEFORE: Final = 3
AFTER: Final = 5
RECOVER_WITHIN_S: Final = 120.0
PAUSE_S: Final = 0.2
LOOK_S: Final = 0.02
SERVING: Final = frozenset({"warm", "busy"})


class Scene(Struct, frozen=True, kw_only=True):
    """One request: when it was sent, in seconds since the lane was killed (negative before that), and what became of
    it.

    *route* is None for one that was refused.
    """

    sent_s: float
    took_s: float
    route: str | None
    worker: str
    attempt: int
    outcome: str


def verdicts(scenes: Sequence[Scene]) -> list[tuple[str, bool]]:
    """The lines that sum up the story, each with whether it is good. Pure."""
    failed = sum(scene.outcome != "done" for scene in scenes)
    degraded = [scene for scene in scenes if scene.route == "degraded"]
    # the request in hand is reported last, and was sent before the kill
    gone_s = max((scene.sent_s for scene in degraded if scene.sent_s > 0), default=0.0)
    back = [scene for scene in scenes if scene.sent_s > gone_s and scene.route == "lane"]
    lines = [(f"{failed} of {len(scenes)} requests failed", not failed)]
    if not degraded:
        lines.append(("no request had to go to the degraded worker: the lane was back too soon", False))
        return lines
    lines.append((f"{len(degraded)} of them were served by the degraded worker", True))
    if len(back) < AFTER:
        lines.append((f"the lane did not serve again within {RECOVER_WITHIN_S:g} s", False))
    else:
        lines.append((f"the lane served again {back[0].sent_s:.1f} s after it was killed, and every one since", True))
    return lines


def is_complete(since_kill: Sequence[Scene]) -> bool:
    """Whether the lane serves again, and has served the last AFTER requests. Pure."""
    return len(since_kill) > AFTER and all(scene.route == "lane" for scene in since_kill[-AFTER:])


def print_story(console: Console, client: CommandClient, body: Mapping[str, Any]) -> bool:
    """Plays and prints the story for the model of *body*, and sends *body* repeatedly. Returns whether it ended well.

    Raises click.ClickException unless the model has exactly one lane, which is warm and a process of this machine.
    """
    model = str(body["model"])
    lane = _warm_lane(client, model)
    victim = _process_of(lane)
    console.print(f"{lane.worker} is warm and serves {model}", highlight=False)
    killed_s = 0.0
    scenes: list[Scene] = []

    def show(scene: Scene) -> None:
        scenes.append(scene)
        route = f"{scene.worker} ({scene.route}), attempt {scene.attempt}" if scene.route else "nobody"
        console.print(f"{len(scenes):3}  {route}: {scene.outcome} in {scene.took_s:.2f} s", highlight=False)

    for _ in range(BEFORE):
        show(_end(client, _begin(client, body), time.monotonic()))
    in_hand, in_hand_s = _begin(client, body), time.monotonic()
    _await_claim(client, in_hand)
    victim.send_signal(signal.SIGKILL)
    killed_s = time.monotonic()
    console.print(f"[red]kill -9[/] of {lane.worker}, with a request in hand", highlight=False)
    _await_move(client, model, lane)
    console.print(f"routing moved {time.monotonic() - killed_s:.2f} s later", highlight=False)
    while not is_complete(scenes[BEFORE:]) and time.monotonic() - killed_s < RECOVER_WITHIN_S:
        sent_s = time.monotonic()
        show(_end(client, _begin(client, body), sent_s))
        time.sleep(PAUSE_S)
    console.print("and the request that it had in hand:", highlight=False)
    show(_end(client, in_hand, in_hand_s))
    results = verdicts([replace(scene, sent_s=scene.sent_s - killed_s) for scene in scenes])
    for text, is_good in results:
        console.print(f"[{'green' if is_good else 'red'}]{text}[/]", highlight=False)
    return all(is_good for _, is_good in results)


class _Claimed(Exception):
    pass


def _await_claim(client: CommandClient, begun: tuple[TaskView, str] | Refused) -> None:
    def look(task: TaskView) -> None:
        if task.status == "processing":
            raise _Claimed

    if not isinstance(begun, Refused):
        with contextlib.suppress(_Claimed):
            client.follow(*begun, look)


def _await_move(client: CommandClient, model: str, lane: LaneView) -> None:
    """Returns once the gateway would send no request to the dead process, or after RECOVER_WITHIN_S."""

    def serves() -> bool:
        return any(one.pid == lane.pid and one.state in SERVING for one in _lanes_of(client, model))

    deadline_s = time.monotonic() + RECOVER_WITHIN_S
    while serves() and time.monotonic() < deadline_s:
        time.sleep(LOOK_S)


def _begin(client: CommandClient, body: Mapping[str, Any]) -> tuple[TaskView, str] | Refused:
    try:
        return client.submit(body, idempotency_key=str(uuid.uuid4()))
    except Refused as error:
        return error


def _end(client: CommandClient, begun: tuple[TaskView, str] | Refused, sent_s: float) -> Scene:
    if isinstance(begun, Refused):
        outcome = f"refused: {begun.problem.code}"
        return Scene(sent_s=sent_s, took_s=time.monotonic() - sent_s, route=None, worker="", attempt=0, outcome=outcome)
    task = client.follow(*begun, lambda _: None)
    return Scene(
        sent_s=sent_s,
        took_s=time.monotonic() - sent_s,
        route=task.route,
        worker=task.worker or "",
        attempt=task.attempt,
        outcome=f"failed: {task.error.code}" if task.error else task.status,
    )


def _lanes_of(client: CommandClient, model: str) -> list[LaneView]:
    return [lane for each in client.get("/admin/lanes", LanesView).models if each.model == model for lane in each.lanes]


def _warm_lane(client: CommandClient, model: str) -> LaneView:
    lanes = _lanes_of(client, model)
    if len(lanes) != 1 or lanes[0].state not in SERVING:
        states = ", ".join(f"{lane.worker} is {lane.state}" for lane in lanes) or "it has none"
        raise click.ClickException(
            f"the story needs one warm lane of {model}: {states}. Start `warmlane up`, and wait until it says ready"
        )
    return lanes[0]


def _process_of(lane: LaneView) -> psutil.Process:
    try:
        process = psutil.Process(lane.pid)
        if lane.worker in process.cmdline():
            return process
    except psutil.Error:
        pass
    raise click.ClickException(
        f"{lane.worker} is no process of this machine that may be killed: run this beside `warmlane up`, as its user"
    )
