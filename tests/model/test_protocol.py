"""A search of the protocol of design §4: the product's own code on a simulated server. Around every effect, another
process may come between, a process may die, or an answer may be lost. `make model` searches for longer."""

from typing import Final

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from contracts.tasks import TaskStatus
from tests.model.drive import drive
from tests.model.jetstream import Stored
from tests.model.machine import Protocol
from tests.model.mishaps import ids_that_differ
from tests.model.network import Operation
from tests.model.patches import simulated_product
from tests.model.setting import MODELS
from tests.model.test_found import settle
from tests.model.world import World

# The same examples and seeds each time: together about 8 s of CPU time.
EXAMPLES: Final = 40
SEEDS: Final = 80
WEBHOOK_SEEDS: Final = 20


def test_hypothesis_breaks_no_invariant() -> None:
    profile = settings(
        deadline=None,  # on a busy machine a step may take any time
        max_examples=EXAMPLES,
        stateful_step_count=40,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    with simulated_product():
        run_state_machine_as_test(Protocol, settings=profile)


def test_random_runs_break_no_invariant() -> None:
    with simulated_product():
        for seed in range(SEEDS):
            drive(seed)


def test_receivers_of_webhooks_are_told_what_became_of_their_tasks() -> None:
    with simulated_product():
        worlds = [drive(seed, with_webhooks=True) for seed in range(WEBHOOK_SEEDS)]
    assert sum(len(events) for world in worlds for events in world.ledger.delivered.values()) > WEBHOOK_SEEDS


def test_a_bucket_made_anew_has_other_messages_under_the_same_numbers() -> None:
    """A power cut loses them, whatever the copy of the store has there. Found by `make model`, in story 1290."""
    first, second = (Stored(3, f"$KV.tasks.{task}", b"", {}, 0.0) for task in ("first", "second"))
    assert ids_that_differ({3: second}, {3: first}) == {"first", "second"}
    assert ids_that_differ({3: first}, {3: first}) == set()


def test_an_idle_worker_owes_nothing_to_a_task_past_its_deadline() -> None:
    """The worker leaves it to the sweeper that ends it (rule 1 of the order). Found by `make model`, in story 1450."""
    with simulated_product():
        world = World()
        try:
            for model in MODELS:
                world.lane_says(model, 0, None)
            world.time.settle()
            world.runs.append(("done", 30.0))  # until the moment of the deadline of the second task
            world.clients.post("gateway-0", "anisora", is_async=True)
            world.time.live(0.5)
            world.clients.post("gateway-0", "anisora", is_async=True)
            world.finish()
        finally:
            world.close()
    first, second = sorted(world.ledger.records.values(), key=lambda task: task.queued_at)
    assert (first.status, second.status) == (TaskStatus.DONE, TaskStatus.FAILED)


def test_a_worker_that_looks_at_what_waits_is_not_idle() -> None:
    """Two lanes end their tasks at one moment and share what waits: one of them has a task in its hand, and waits 0.1 s
    for more. Found by `make model`, in story 1855."""
    with simulated_product():
        world = World()
        try:
            world.default_run = ("done", 20.0)
            for _ in range(2):
                for _ in range(2):
                    world.clients.post("gateway-0", "anisora", is_async=True)
                world.time.settle()
            world.finish()
        finally:
            world.close()
    assert {task.status for task in world.ledger.records.values()} == {TaskStatus.DONE}


def test_a_write_that_was_under_way_when_the_connection_broke_was_decided_before() -> None:
    """The server may store it when the connection is back: the owner had had its time to renew. Found by `make model`,
    in story 1382."""
    with simulated_product():
        world = World()
        try:
            for model in MODELS:
                world.lane_says(model, 0, None)
            world.runs.append(("done", 60.0))
            world.clients.post("gateway-0", "anisora", is_async=True)
            world.time.settle()
            for name in ("degraded-0", "gateway-1"):
                world.mishaps.stop(name)
            while not (taking := written_by(world, "gateway-0")):
                world.time.pass_time(0.5)
                settle(world, but="publish $KV.tasks")
            world.mishaps.cut("gateway-0")
            world.mishaps.mend("gateway-0")
            world.network.happen(taking[0])
            world.check()
            assert [task.epoch for task in world.ledger.records.values()] == [1]
        finally:
            world.close()


def written_by(world: World, name: str) -> list[Operation]:
    """Writes of records that are under way from the process *name*."""
    return [
        each
        for each in world.network.under_way
        if each.what.startswith("publish $KV.tasks") and each.host is world.hosts[name]
    ]
