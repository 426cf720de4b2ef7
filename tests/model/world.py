"""The whole system on a simulated network: gateways, lanes, a degraded worker and clients, each a process that can be
killed, stopped or cut off between any two effects.

What they do is the product's own code: `Admission`, `Holds`, `Sweeper`, `WorkLoop` and what they use, on `NatsLink`.
The clients, the pipelines (`Runner`) and the artifact store are played.
"""

from typing import Final

from msgspec.structs import replace

from contracts.lanes import LaneState
from contracts.settings import OverloadPolicy
from contracts.tasks import GenerationTask
from contracts.topology import DEGRADED, LANES, TASKS, bucket_stream, bucket_subject
from tests.model.artifact_store import ModelArtifacts
from tests.model.clients import Clients
from tests.model.hosts import CALLER, Call, GatewayHost, ModelHost, WorkerHost
from tests.model.invariants import Ledger, Violation
from tests.model.jetstream import Stored
from tests.model.mishaps import FOUND_S, Mishaps
from tests.model.model_loop import Host
from tests.model.network import Network, use
from tests.model.passing import Passing
from tests.model.patches import ERRORS
from tests.model.setting import (
    DEGRADED_MAX,
    GATEWAYS,
    MODELS,
    WORKERS,
    configured,
    heartbeat_of,
    streams_of,
)
from tests.model.tale import Tale
from tests.model.webhooks import DELIVERED_S, Lead

# How long after everything was mended the bounds hold again: watches have caught up, and what failed is tried again.
MENDED_S: Final = 3.0
END_S: Final = 600.0
SLOW_S: Final = 35.0


class World:
    """The system, its `clients`, its `mishaps`, and how its `time` passes; the `tale` says what happened."""

    def __init__(
        self,
        *,
        skews_s: tuple[float, ...] = (),
        is_tracing: bool = False,
        displaces: bool = False,
        with_webhooks: bool = False,
    ) -> None:
        """*displaces*: a full degraded queue makes room for a higher class (ADR 0039). *with_webhooks*: each request
        names one (ADR 0044)."""
        self.network = Network()
        self.with_webhooks, self.lead = with_webhooks, Lead()
        use(self.network)
        self.network.on_new_id = self._on_new_id
        self.loop = self.network.loop
        self.tale = Tale(self, is_tracing=is_tracing)
        self.clients, self.mishaps, self.time = Clients(self), Mishaps(self), Passing(self)
        self.catalog, self.topology = configured()
        self.catalog = replace(self.catalog, overload=OverloadPolicy(displace=displaces))
        self.files: dict[str, bytes] = {}
        self.artifacts = ModelArtifacts(self.network, self.files)
        self.hosts: dict[str, ModelHost] = {}
        self.ids: list[str] = []
        self.runs: list[tuple[str, float]] = []
        self.default_run = ("done", 0.5)
        self._ids_of: dict[int, list[str]] = {}
        self._numbers = 0
        self._surprise: Violation | None = None
        self.skews_s = skews_s
        for stream, consumers in streams_of(self.topology):
            self.network.server.add_stream(stream)
            for consumer in consumers:
                self.network.server.add_consumer(str(stream.name), consumer)
        self.ledger = Ledger(
            self.network.server,
            degraded_max=DEGRADED_MAX,
            attempts=self.catalog.attempts,
            wait_limit_s=self.catalog.windows.wait_limit_s,
            grace_s=self.catalog.windows.reconnect_grace_s,
        )
        self.network.server.stream(bucket_stream(TASKS)).on_stored.append(self._on_record)
        self.network.server.stream(DEGRADED).on_stored.append(self.ledger.on_queued)
        for model in MODELS:
            self.lane_says(model, 0, LaneState.WARM)
        for name in (*GATEWAYS, *WORKERS):
            self.mishaps.start(name)
        self.network.settle()

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    @property
    def now_s(self) -> float:
        return self.network.now_s

    def _on_record(self, stored: Stored) -> None:
        host = self.network.acting
        worker = host if isinstance(host, WorkerHost) else None
        owner, stream = (worker.owner, worker.stream) if worker is not None else (None, None)
        # a write that was asked for before the connection broke may still be under way when the connection is back
        if isinstance(host, GatewayHost) and self.network.asked > host.connected:
            self.ledger.check_lease(stored, host, self.network.asked_s - host.connected_s)
        self.ledger.on_record(stored, host, owner, stream)
        task_id = stored.subject.rsplit(".", 1)[-1]
        if task_id not in self.ids:
            self.ids.append(task_id)

    def _on_new_id(self, new_id: str) -> None:
        call = CALLER.get()
        if call is not None:
            self._ids_of.setdefault(call.number, []).append(new_id)

    def ids_of(self, call: Call) -> list[str]:
        """The ids that were made for *call*; none where it has a key."""
        return self._ids_of.get(call.number, [])

    def unexpected(self, host: Host, error: BaseException) -> None:
        """*host* raised an error that it should not."""
        violation = error if isinstance(error, Violation) else Violation(f"{host.name} raised {error!r}")
        violation.__cause__ = None if violation is error else error
        self._surprise = self._surprise or violation

    def ended(self, host: ModelHost) -> None:
        """*host* ended by itself; the supervisor restarts it."""
        self.mishaps.crash(host.name, by_itself=True)

    def next_run(self, task: GenerationTask) -> tuple[str, float]:
        """How the run of *task* ends, and after how long."""
        return self.runs.pop(0) if self.runs else self.default_run

    def check(self) -> None:
        """Raises the violation that was found, if there is one."""
        if self._surprise is not None:
            raise self._surprise
        if self.loop.unexpected:
            raise Violation(f"unexpected: {self.loop.unexpected}")
        if ERRORS:
            raise Violation(f"unexpected: {ERRORS.pop()}")

    def lane_says(self, model: str, number: int, state: LaneState | None) -> None:
        """What gateways hear of a lane, whether it is true or not; None: the lane left."""
        self.tale.note(f"lane {model}-{number} says {state}")
        subject = bucket_subject(LANES, f"{model}.{model}-{number}")
        headers = {"KV-Operation": "DEL"} if state is None else {}
        value = b"" if state is None else heartbeat_of(model, number, state)
        self.network.server.publish(subject, value, headers, self.now_s)

    def idle_streams(self) -> set[str]:
        """The work streams from which a worker waits for a message."""
        return {host.stream for host in self.hosts.values() if isinstance(host, WorkerHost) and host.is_idle}

    def finish(self) -> None:
        """Everything is mended, time goes on until all is done, and the invariants of the end are checked."""
        self.tale.note("all is mended")
        for name in list(self.hosts):
            self.mishaps.go_on(name)
            self.mishaps.mend(name)
        mended_s = self.now_s + MENDED_S
        until_s = self.now_s + END_S
        # for a while the pipelines stay slow, so that some tasks wait in vain on a healthy system
        slow_until_s = self.now_s + SLOW_S
        while self.now_s < until_s:
            if self.now_s >= slow_until_s:
                self.runs.clear()
                self.default_run = ("done", 0.5)
            self.time.live(5.0, sound_from_s=mended_s)
            if self.ledger.is_over() and all(call.outcome is not None for call in self.clients.calls):
                break
        for call in self.clients.calls:
            if call.outcome is None:
                raise Violation(f"1: call {call.number} is never answered")
        self.ledger.at_end(self.files)
        if self.ledger.slack_s:
            self.time.live(FOUND_S)
        if self.with_webhooks:
            self.time.live(DELIVERED_S)
            self.ledger.check_delivered()
        for host in self.hosts.values():
            if isinstance(host, GatewayHost) and host.alive and host.is_ready:
                self.ledger.check_memory(host.name, host.services.tasks)

    def close(self) -> None:
        """Ends every coroutine."""
        ERRORS.clear()
        self.loop.tear_down()
        ERRORS.clear()
