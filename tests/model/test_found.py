"""What the model found in the product, as stories that are as short as possible: each breaks an invariant with the old
code, and none with the code as it is."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import pytest

from contracts.tasks import TaskStatus
from tests.model.invariants import Violation
from tests.model.network import Operation
from tests.model.patches import simulated_product
from tests.model.planted import (
    age_not_checked_again,
    another_model,
    doubts_forgotten,
    forgotten_by_the_server,
    given_back_and_taken_again,
    no_slow_look,
    not_asked_again,
    proof_of_a_later_time,
)
from tests.model.setting import GATEWAYS, MODELS, WORKERS
from tests.model.world import World


def settle(world: World, *, but: str = "nothing") -> Operation | None:
    """All that is under way happens, in order, but for the operations that begin with *but*. Returns the first of
    these."""
    while True:
        held = None
        for operation in world.network.possible():
            if not operation.what.startswith(but):
                world.network.happen(operation)
                world.check()
                break
            held = held or operation
        else:
            return held


def no_lanes(world: World) -> None:
    for model in MODELS:
        world.lane_says(model, 0, None)
    settle(world)


def stop_sweepers(world: World) -> None:
    for gateway in GATEWAYS:
        world.mishaps.stop(gateway)


def claimed_without_ack(world: World, *, run_s: float) -> None:
    """A lane has claimed a task that it will give up; its ack is lost, and no sweeper lives."""
    world.mishaps.stop("anisora-1")  # so that the message is redelivered to the same worker
    world.runs.append(("gave up", run_s))
    world.clients.post("gateway-0", "anisora", is_async=True)
    ack = settle(world, but="ack lane.")
    assert ack is not None
    world.network.lose(ack)
    settle(world)
    stop_sweepers(world)


def a_task_that_was_given_up_comes_again(world: World) -> None:
    """The message is redelivered before a sweeper has looked at the lease that was given back."""
    claimed_without_ack(world, run_s=1.0)
    world.time.live(8.0)


def two_bodies_with_one_key(world: World) -> None:
    """Both requests are queued, each for its model, before either is recorded. The recorded one is not claimed at
    once."""
    for worker in ("anisora-0", "anisora-1", "phr00t-0"):
        world.mishaps.stop(worker)
    world.clients.post("gateway-0", "anisora", is_async=True, key="k")
    world.clients.post("gateway-0", "phr00t", is_async=True, key="k")
    settle(world)
    world.mishaps.go_on("phr00t-0")
    settle(world)


def a_gateway_stops_for_longer_than_the_server_remembers(world: World) -> None:
    """The gateway's publish is stored and unanswered, and the task runs. When the gateway tries again, the queue is
    full."""
    no_lanes(world)
    world.clients.post("gateway-0", "anisora", is_async=True)
    publish = next(operation for operation in world.network.possible() if operation.what.startswith("publish degraded"))
    world.network.happen(publish, answered=False)
    world.mishaps.stop("gateway-0")
    world.time.live(40.0)
    world.mishaps.stop("degraded-0")
    for _ in range(3):
        world.clients.post("gateway-1", "anisora", is_async=True)
    settle(world)
    world.mishaps.go_on("gateway-0")
    settle(world)
    assert world.clients.calls[0].outcome == "503 unknown"


def a_claim_is_stored_too_late(world: World) -> None:
    """The claim is sent in time and stored after the limit, and its answer is lost: the worker finds its own claim."""
    no_lanes(world)
    world.mishaps.stop("degraded-0")
    world.clients.post("gateway-0", "anisora", is_async=True)
    settle(world)
    stop_sweepers(world)
    world.time.pass_time(29.3)
    world.mishaps.go_on("degraded-0")
    claim = settle(world, but="publish $KV.tasks")
    assert claim is not None
    world.time.pass_time(1.0)
    world.network.happen(claim, answered=False)
    world.time.live(1.0)
    [task] = world.ledger.records.values()
    assert (task.status, dict(world.ledger.runs)) == (TaskStatus.FAILED, {})


def a_claim_that_no_watch_brings(world: World) -> None:
    """The gateway queues a task, and the write of its record is lost. The worker that takes the task makes the record,
    of which neither gateway hears, and dies."""
    world.runs.append(("done", 45.0))
    world.mishaps.stop("anisora-1")
    world.clients.post("gateway-0", "anisora", is_async=True)
    for second in range(8):
        while possible := world.network.possible():
            operation = possible[0]
            host = operation.host.name if operation.host is not None else ""
            if operation.what.startswith("watch KV_tasks"):
                world.mishaps.miss(host)
            elif host in GATEWAYS and operation.what.startswith("publish $KV.tasks"):
                world.network.lose(operation)
            else:
                world.network.happen(operation)
            world.check()
        if second == 3:
            world.mishaps.crash("anisora-0")
        world.time.pass_time(1.0)
    assert world.clients.calls[0].outcome == "503 unknown"


def a_write_of_after_the_loss_is_acked_before_the_watch_looks(world: World) -> None:
    """The stream holds the newest acked write, but not an older one that was reported."""
    world.mishaps.copy_store()
    world.clients.post("gateway-0", "anisora", is_async=True)
    world.time.live(5.0)
    for worker in WORKERS:
        world.mishaps.cut(worker)
    world.mishaps.lose_tail()
    for _ in range(6):
        world.clients.post("gateway-0", "anisora", is_async=True)
    settle(world, but="info KV_tasks")


def what_was_written_before_the_watch_looked_is_lost(world: World) -> None:
    """The connection breaks, a task is made and cancelled, and the connection breaks again before the watch is back."""
    world.clients.post("gateway-0", "anisora", is_async=True)
    world.time.live(5.0)
    world.mishaps.copy_store()
    for name in (*WORKERS, "gateway-0"):
        world.mishaps.cut(name)
    world.mishaps.mend("gateway-0")
    world.clients.post("gateway-0", "anisora", is_async=True)
    settle(world, but="info KV_tasks")
    world.clients.cancel("gateway-0", 1)
    settle(world, but="info KV_tasks")
    world.mishaps.lose_tail()


def a_bucket_is_made_anew_before_the_watch_follows_it(world: World) -> None:
    """The watch has proven that the bucket is the one that it followed before, and has no consumer yet."""
    world.clients.post("gateway-0", "anisora", is_async=True)
    world.time.live(5.0)
    world.mishaps.cut("gateway-1")
    world.mishaps.mend("gateway-1")
    settle(world, but="follow KV_tasks")
    world.mishaps.make_anew()
    world.time.live(5.0)


Story = Callable[[World], None]
FOUND: Final[tuple[tuple[Story, Callable[[], AbstractContextManager[Any]], str], ...]] = (
    (a_task_that_was_given_up_comes_again, given_back_and_taken_again, "3"),
    (two_bodies_with_one_key, another_model, "3"),
    (a_gateway_stops_for_longer_than_the_server_remembers, forgotten_by_the_server, "6"),
    (a_claim_is_stored_too_late, age_not_checked_again, "4"),
    (a_claim_that_no_watch_brings, no_slow_look, "1"),
    (a_bucket_is_made_anew_before_the_watch_follows_it, not_asked_again, "8"),
    (what_was_written_before_the_watch_looked_is_lost, doubts_forgotten, "8"),
    (a_write_of_after_the_loss_is_acked_before_the_watch_looks, proof_of_a_later_time, "8"),
)


def play(story: Story) -> None:
    world = World()
    try:
        story(world)
        world.finish()
    finally:
        world.close()


@pytest.mark.parametrize("story", [story for story, _, _ in FOUND], ids=lambda story: story.__name__)
def test_no_invariant_is_broken(story: Story) -> None:
    with simulated_product():
        play(story)


@pytest.mark.parametrize(("story", "before", "invariant"), FOUND, ids=[story.__name__ for story, _, _ in FOUND])
def test_the_code_before_broke_one(story: Story, before: Callable[[], Any], invariant: str) -> None:
    with simulated_product(), before(), pytest.raises(Violation, match=f"^{invariant}:"):
        play(story)
