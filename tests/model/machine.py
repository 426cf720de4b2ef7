"""The model as a state machine of hypothesis: it chooses what clients do, what goes wrong and what happens next, and
makes a failure small."""

import random
import sys

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from contracts.lanes import LaneState
from contracts.tasks import Priority
from contracts.topology import LANES, TASKS, bucket_stream
from tests.model.drive import LANE_STATES, PROCESSES, RUNS, SECONDS, SKEWS_S
from tests.model.setting import GATEWAYS, MODELS
from tests.model.world import World

_gateways = st.sampled_from(GATEWAYS)
_models = st.sampled_from(MODELS)
_processes = st.sampled_from(PROCESSES)
_indexes = st.integers(0, 7)
_seconds = st.sampled_from(SECONDS)
_runs = st.sampled_from(RUNS)
_priorities = st.sampled_from((Priority.STANDARD, *Priority))


class Protocol(RuleBasedStateMachine):
    """Checks every invariant at every step, and those of the end once everything is mended."""

    total_steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    @property
    def it(self) -> World:
        assert self.world is not None
        return self.world

    @initialize(lanes=st.booleans(), skewed=st.booleans(), displaces=st.booleans(), run=_runs)
    def start(self, lanes: bool, skewed: bool, displaces: bool, run: tuple[str, float]) -> None:
        random.seed(0)  # the jitter of retries
        self.world = World(skews_s=SKEWS_S if skewed else (), displaces=displaces)
        self.world.default_run = run
        if not lanes:
            for model in MODELS:
                self.world.lane_says(model, 0, None)

    # some rules are there several times, as a weight: most of what happens are requests, and steps between them

    @rule(gateway=_gateways, model=_models, is_async=st.booleans(), count=st.integers(1, 3), priority=_priorities)
    def post(self, gateway: str, model: str, is_async: bool, count: int, priority: Priority) -> None:
        for _ in range(count):
            self.it.clients.post(gateway, model, is_async=is_async, priority=priority)

    @rule(gateway=_gateways, model=_models, key=st.sampled_from("kl"), image=st.booleans(), is_async=st.booleans())
    def post_with_a_key(self, gateway: str, model: str, key: str, image: bool, is_async: bool) -> None:
        self.it.clients.post(gateway, model, is_async=is_async, key=key, image=image)

    @rule(choices=st.binary(max_size=24))
    def steps(self, choices: bytes) -> None:
        self.it.time.steps(choices)

    @rule(choices=st.binary(min_size=8, max_size=40))
    def more_steps(self, choices: bytes) -> None:
        self.it.time.steps(choices)

    @rule(index=_indexes)
    def hang_up(self, index: int) -> None:
        self.it.clients.hang_up(index)

    @rule(gateway=_gateways, index=_indexes)
    def cancel(self, gateway: str, index: int) -> None:
        self.it.clients.cancel(gateway, index)

    @rule(gateway=_gateways, index=_indexes)
    def read(self, gateway: str, index: int) -> None:
        self.it.clients.read(gateway, index)

    @rule(seconds=_seconds)
    def pass_time(self, seconds: float) -> None:
        self.it.time.pass_time(seconds)

    @rule(seconds=_seconds)
    def live(self, seconds: float) -> None:
        self.it.time.live(seconds)

    @rule(model=_models, number=st.integers(0, 1), state=st.sampled_from(LANE_STATES))
    def lane_says(self, model: str, number: int, state: LaneState | None) -> None:
        self.it.lane_says(model, number, state)

    @rule(run=_runs)
    def run_ends(self, run: tuple[str, float]) -> None:
        self.it.runs.append(run)

    @rule(name=_processes)
    def crash(self, name: str) -> None:
        self.it.mishaps.crash(name)

    @rule(name=_processes, is_replaced=st.booleans())
    def stop(self, name: str, is_replaced: bool) -> None:
        self.it.mishaps.stop(name)
        if is_replaced:
            self.it.mishaps.replace(name)

    @rule(index=_indexes)
    def go_on(self, index: int) -> None:
        names = list(self.it.hosts)
        self.it.mishaps.go_on(names[index % len(names)])

    @rule(name=_processes)
    def cut(self, name: str) -> None:
        self.it.mishaps.cut(name)

    @rule(name=_gateways)
    def miss(self, name: str) -> None:
        self.it.mishaps.miss(name)

    @rule()
    def copy_store(self) -> None:
        self.it.mishaps.copy_store()

    @rule()
    def lose_tail(self) -> None:
        self.it.mishaps.lose_tail()

    @rule()
    def make_anew(self) -> None:
        self.it.mishaps.make_anew()

    @rule(bucket=st.sampled_from((TASKS, LANES)))
    def delete_consumers(self, bucket: str) -> None:
        self.it.mishaps.delete_consumers(bucket_stream(bucket))

    @rule(index=_indexes)
    def mend(self, index: int) -> None:
        names = list(self.it.hosts)
        self.it.mishaps.mend(names[index % len(names)])

    def teardown(self) -> None:
        if self.world is None:
            return
        try:
            if sys.exc_info()[0] is None:  # else an invariant is broken already
                self.world.finish()
        finally:
            Protocol.total_steps += self.world.network.steps
            self.world.close()
