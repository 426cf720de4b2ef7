"""A run of the model that a seed determines, for long searches and for planted bugs. It is like test_protocol.py, but
without hypothesis, which costs more than the model itself."""

import random
from collections.abc import Callable
from typing import Final

from contracts.lanes import LaneState
from contracts.tasks import Priority
from contracts.topology import LANES, TASKS, bucket_stream
from tests.model.setting import GATEWAYS, MODELS, WORKERS
from tests.model.world import World

LANE_STATES: Final = (LaneState.WARM, LaneState.WARM, LaneState.DRAINING, LaneState.QUOTA_DENIED, None)
RUNS: Final = (("done", 0.5), ("done", 7.0), ("done", 45.0), ("failed", 0.2), ("gave up", 1.0))
SKEWS_S: Final = (0.0, 0.2, -0.2)
PROCESSES: Final = (*GATEWAYS, *WORKERS)
SECONDS: Final = (0.2, 1.1, 6.0, 12.0, 29.6, 31.0)
# The share of runs in which classes are mixed and the degraded queue makes room for the higher ones.
DISPLACING: Final = 0.3
KEYS: Final = (None, None, "k", "l")


def drive(
    seed: int,
    *,
    actions: int = 40,
    is_tracing: bool = False,
    with_webhooks: bool = False,
    on_world: Callable[[World], None] | None = None,
) -> World:
    """Runs the model as *seed* determines, and returns its world. Raises Violation.

    *with_webhooks*: requests name webhooks. *on_world* is called with the world before anything happens in it.
    """
    # a generator of its own, so that the classes change nothing else that a seed determines
    classes = random.Random(f"classes {seed}")
    displaces = classes.random() < DISPLACING
    world = World(
        skews_s=SKEWS_S if seed % 2 else (), is_tracing=is_tracing, displaces=displaces, with_webhooks=with_webhooks
    )
    if on_world is not None:
        on_world(world)
    try:
        _drive(world, random.Random(seed), actions, classes if displaces else None)
    finally:
        world.close()
    return world


def _drive(world: World, draw: random.Random, actions: int, classes: random.Random | None) -> None:
    random.seed(0)  # the jitter of retries
    # loud: any choice; else no effect is lost, and only the order is drawn
    loud, crowded, has_lanes = draw.random() < 0.6, draw.random() < 0.6, draw.random() < 0.5
    loses, misses = draw.random() < 0.4, draw.random() < 0.2
    models = MODELS[:1] if crowded else MODELS
    world.default_run = draw.choice(RUNS[:3] if crowded else RUNS[:1])
    if not has_lanes:
        for model in MODELS:
            world.lane_says(model, 0, None)

    def choices() -> bytes:
        count = draw.randrange(24)
        return bytes(draw.randrange(256) if loud else draw.randrange(180) for _ in range(count))

    def post() -> None:
        for _ in range(draw.randrange(1, 4) if crowded else 1):
            world.clients.post(
                draw.choice(GATEWAYS),
                draw.choice(models),
                is_async=draw.random() < 0.3,
                key=draw.choice(KEYS),
                image=draw.random() < 0.05,
                priority=Priority.STANDARD if classes is None else classes.choice(tuple(Priority)),
            )

    menu: list[tuple[int, Callable[[], object]]] = [
        (12, post),
        (24, lambda: world.time.steps(choices())),
        (3, lambda: world.clients.hang_up(draw.randrange(8))),
        (2, lambda: world.clients.cancel(draw.choice(GATEWAYS), draw.randrange(8))),
        (2, lambda: world.clients.read(draw.choice(GATEWAYS), draw.randrange(8))),
        (4, lambda: world.time.pass_time(draw.choice(SECONDS))),
        (5, lambda: world.time.live(draw.choice(SECONDS))),
        (2, lambda: world.lane_says(draw.choice(MODELS), draw.randrange(2), draw.choice(LANE_STATES))),
        (3, lambda: world.runs.append(draw.choice(RUNS))),
        (3, lambda: world.mishaps.crash(draw.choice(PROCESSES))),
        (2, lambda: world.mishaps.stop(draw.choice(PROCESSES))),
        (1, lambda: world.mishaps.replace(draw.choice(PROCESSES))),
        (2, lambda: world.mishaps.go_on(draw.choice(list(world.hosts)))),
        (2, lambda: world.mishaps.cut(draw.choice(PROCESSES))),
        (2, lambda: world.mishaps.mend(draw.choice(list(world.hosts)))),
        (1, lambda: world.mishaps.delete_consumers(bucket_stream(draw.choice((TASKS, LANES))))),
        *((2, what) for what in (world.mishaps.copy_store, world.mishaps.lose_tail) if loses),
        *((1, what) for what in (world.mishaps.make_anew,) if loses),
        *((3, what) for what in (lambda: world.mishaps.miss(draw.choice(GATEWAYS)),) if misses),
    ]
    weights = [weight for weight, _ in menu]
    for _ in range(actions):
        draw.choices(menu, weights)[0][1]()
    world.finish()
