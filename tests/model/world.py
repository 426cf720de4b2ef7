"""The whole system on a simulated network: gateways, lanes, a degraded worker and clients, each a process that can be
killed, stopped or cut off between any two effects.

What they do is the product's own code: `Admission`, `Holds`, `Sweeper`, `WorkLoop` and what they use, on `NatsLink`.
Played are the clients, the pipelines (`Runner`) and the artifact store.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from msgspec.structs import replace

from contracts.generation.request import AcceptedRequest
from contracts.lanes import LaneState
from contracts.settings import OverloadPolicy
from contracts.tasks import GenerationTask, Priority
from contracts.topology import DEGRADED, LANES, TASKS, bucket_stream, bucket_subject
from gateway.placing import slow_look
from tests.model.artifact_store import ModelArtifacts
from tests.model.hosts import CALLER, Call, GatewayHost, ModelHost, WorkerHost
from tests.model.invariants import Ledger, Violation
from tests.model.jetstream import Stored, StreamCopy
from tests.model.model_loop import Host
from tests.model.network import Network, Operation, use
from tests.model.patches import ERRORS
from tests.model.setting import (
    DEGRADED_MAX,
    GATEWAYS,
    MODELS,
    WORKERS,
    configured,
    heartbeat_of,
    request_of,
    streams_of,
)
from tests.model.telling import TOLD_S, WEBHOOK, Lead

# A supervisor starts again what ended, this much later.
RESTART_S: Final = 1.0
# How long after everything was mended the bounds hold again: watches have caught up, and what failed is tried again.
MENDED_S: Final = 3.0
END_S: Final = 600.0
IDLE_MAX_S: Final = 60.0
# By then a slow look has found what a watch has missed.
FOUND_S: Final = slow_look.EVERY_S + slow_look.ARRIVED_S + 1.0
SLOW_S: Final = 35.0


class World:
    """The system, its clients, and what may go wrong."""

    def __init__(
        self,
        *,
        skews_s: tuple[float, ...] = (),
        is_tracing: bool = False,
        displaces: bool = False,
        tells: bool = False,
    ) -> None:
        """*displaces*: a full degraded queue makes room for a higher class (ADR 0039). *tells*: each request names a
        webhook (ADR 0044)."""
        self.network = Network()
        self.tells, self.lead = tells, Lead()
        use(self.network)
        self.network.on_new_id = self._on_new_id
        self.loop = self.network.loop
        self.catalog, self.topology = configured()
        self.catalog = replace(self.catalog, overload=OverloadPolicy(displace=displaces))
        self.files: dict[str, bytes] = {}
        self.artifacts = ModelArtifacts(self.network, self.files)
        self.hosts: dict[str, ModelHost] = {}
        self.calls: list[Call] = []
        self.ids: list[str] = []
        self.runs: list[tuple[str, float]] = []
        self.default_run = ("done", 0.5)
        self.trace: list[str] = []
        self.is_tracing = is_tracing
        self._ids_of: dict[int, list[str]] = {}
        self._numbers = 0
        self._ended: dict[str, float] = {}
        self._surprise: Violation | None = None
        self._copy: dict[str, StreamCopy] | None = None
        self._skews_s = skews_s
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
            self._start(name)
        self.network.settle()

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    # ── what the parts report ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def now_s(self) -> float:
        return self.network.now_s

    def _on_record(self, stored: Stored) -> None:
        host = self.network.acting
        worker = host if isinstance(host, WorkerHost) else None
        owner, stream = (worker.owner, worker.stream) if worker is not None else (None, None)
        if isinstance(host, GatewayHost):
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
        """*host* raised what it should not."""
        violation = error if isinstance(error, Violation) else Violation(f"{host.name} raised {error!r}")
        violation.__cause__ = None if violation is error else error
        self._surprise = self._surprise or violation

    def ended(self, host: ModelHost) -> None:
        """*host* came to its end by itself; it is started again."""
        self.crash(host.name, by_itself=True)

    def next_run(self, task: GenerationTask) -> tuple[str, float]:
        """How the run of *task* ends, and after how long."""
        return self.runs.pop(0) if self.runs else self.default_run

    def check(self) -> None:
        """Raises what was found."""
        if self._surprise is not None:
            raise self._surprise
        if self.loop.unexpected:
            raise Violation(f"unexpected: {self.loop.unexpected}")
        if ERRORS:
            raise Violation(f"unexpected: {ERRORS.pop()}")

    # ── what clients and operators do ────────────────────────────────────────────────────────────────────────────

    def post(
        self,
        gateway: str,
        model: str,
        *,
        is_async: bool,
        key: str | None = None,
        image: bool = False,
        priority: Priority = Priority.STANDARD,
    ) -> None:
        """A client asks *gateway* for a video; the call goes on until it is answered."""
        host = self.hosts.get(gateway)
        if not isinstance(host, GatewayHost) or not host.is_ready or not host.alive:
            return
        call = Call(self.number(), host, is_async=is_async, key=key, priority=priority)
        self.calls.append(call)
        how = "async" if is_async else "sync"
        self._note(f"{gateway}: POST {model} {how} key={key} image={image} {priority}")
        request = request_of(model, image=image)
        host.spawn(partial(self._posted, host, call, replace(request, webhook=WEBHOOK) if self.tells else request))
        self.check()

    async def _posted(self, host: GatewayHost, call: Call, request: AcceptedRequest) -> None:
        await host.accept(call, request)
        self._note(f"{host.name}: call {call.number} answered {call.outcome}")

    def hang_up(self, index: int) -> None:
        """A caller goes away before it was answered."""
        open_calls = [call for call in self.calls if call.outcome is None and not call.gone.done()]
        if open_calls:
            call = open_calls[index % len(open_calls)]
            self._note(f"call {call.number} hangs up")
            with self.loop.running():
                call.gone.set_result(None)
                self.loop.run_ready()
            self.check()

    def cancel(self, gateway: str, index: int) -> None:
        """A client cancels a task."""
        self._ask(gateway, index, "DELETE", lambda host, task_id: host.cancel(task_id))

    def read(self, gateway: str, index: int) -> None:
        """A client looks at a task."""
        self._ask(gateway, index, "GET", lambda host, task_id: host.read(task_id))

    def _ask(self, gateway: str, index: int, what: str, ask: Callable[[GatewayHost, str], Any]) -> None:
        host = self.hosts.get(gateway)
        if not self.ids or not isinstance(host, GatewayHost) or not host.is_ready or not host.alive:
            return
        task_id = self.ids[index % len(self.ids)]
        self._note(f"{gateway}: {what} {task_id}")
        host.spawn(partial(ask, host, task_id))
        self.check()

    def lane_says(self, model: str, number: int, state: LaneState | None) -> None:
        """What gateways hear of a lane, whatever is true of it; None: that it left."""
        self._note(f"lane {model}-{number} says {state}")
        subject = bucket_subject(LANES, f"{model}.{model}-{number}")
        headers = {"KV-Operation": "DEL"} if state is None else {}
        value = b"" if state is None else heartbeat_of(model, number, state)
        self.network.server.publish(subject, value, headers, self.now_s)

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, name: str) -> None:
        host: ModelHost = GatewayHost(self, name) if name in GATEWAYS else WorkerHost(self, name)
        if self._skews_s:
            host.skew_s = self._skews_s[self.number() % len(self._skews_s)]
        self._ended.pop(name, None)
        self.hosts[name] = host
        host.start()

    def crash(self, name: str, *, by_itself: bool = False) -> None:
        """kill -9. What it had sent may still arrive; a supervisor starts it again."""
        host = self.hosts[name]
        if not host.alive:
            return
        self._note(f"{name} {'ends' if by_itself else 'is killed'}")
        host.alive = False
        if host.link is not None:
            host.client.leave()
        for operation in list(self.network.under_way):
            if operation.host is host:
                if operation.is_push or operation.can_happen is not None or operation.lane.startswith("store "):
                    self.network.under_way.remove(operation)
                else:
                    self.network.give_up(operation)
        for call in self.calls:
            if call.gateway is host and call.outcome is None:
                call.outcome = "cut off"
        self._ended[name] = self.now_s + RESTART_S

    def replace(self, name: str) -> None:
        """Another process takes the place of one that is only stopped, which goes on later."""
        host = self.hosts[name]
        if host.stopped and host.alive:
            self.hosts[f"{name} before {self.number()}"] = host
            self._note(f"{name} is replaced")
            self._start(name)

    def stop(self, name: str) -> None:
        """SIGSTOP."""
        host = self.hosts[name]
        if not host.stopped:
            self._note(f"{name} stops")
            host.stopped, host.stopped_s = True, self.now_s

    def go_on(self, name: str) -> None:
        """SIGCONT."""
        host = self.hosts[name]
        if host.stopped:
            self._note(f"{name} goes on")
            with self.loop.running():
                self.loop.go_on(host)
                self.loop.run_ready()
            self.check()

    def cut(self, name: str) -> None:
        """Its connection breaks."""
        host = self.hosts[name]
        self._note(f"{name} is cut off")
        host.is_cut = True
        if host.link is not None and host.alive:
            host.client.cut()
        self.check()

    def mend(self, name: str) -> None:
        """Its connection stands again."""
        host = self.hosts[name]
        if host.is_cut:
            self._note(f"{name} is connected again")
            host.is_cut, host.connected_s = False, self.now_s
            if host.link is not None and host.alive:
                host.client.mend()
            self.check()

    def miss(self, name: str) -> None:
        """What the watch of the records brings next to *name* does not arrive, and the watch does not notice."""
        host, lane = self.hosts[name], f"watch {bucket_stream(TASKS)}"
        for operation in self.network.under_way:
            if operation.host is host and operation.lane == lane:
                self._note_operation(operation, "is missed")
                self.network.miss(operation)
                self.ledger.slack_s = FOUND_S
                return

    def copy_store(self) -> None:
        """What the server has stored now is what a power cut will leave of it."""
        self._note("the store is copied")
        self._copy = {name: stream.state() for name, stream in self.network.server.streams.items()}

    def lose_tail(self) -> None:
        """The server is killed, and starts with what it had when its store was copied."""
        if self._copy is None:
            return
        self._note("the server is killed, and loses what came since the copy")
        streams = self.network.server.streams
        torn = set()
        for name, stream in streams.items():
            torn |= ids_that_differ(stream.messages, self._copy[name].messages)
        connected = [name for name, host in self.hosts.items() if not host.is_cut and host.alive]
        for name in connected:
            self.cut(name)
        for operation in list(self.network.under_way):
            if not operation.is_push and operation.can_happen is None and not operation.lane.startswith("store "):
                self.network.lose(operation)
        for name, stream in streams.items():
            stream.go_back(self._copy[name])
        self.ledger.on_went_back(torn)
        for name in connected:
            self.mend(name)

    def make_anew(self) -> None:
        """The bucket of the records is removed, and provisioned anew."""
        for operation in [each for each in self.network.under_way if each.lane.startswith("answer ")]:
            self.network.happen(operation)  # no answer of before comes on the same connection after one of afterwards
        self._note("the bucket of the records is made anew")
        stream = self.network.server.stream(bucket_stream(TASKS))
        torn = ids_that_differ(stream.messages, {})
        stream.make_anew(self.now_s)
        self.ledger.on_went_back(torn)
        self.delete_consumers(bucket_stream(TASKS))

    def delete_consumers(self, stream: str) -> None:
        """Whoever follows *stream* hears nothing of it any more."""
        self._note(f"the consumers of {stream} are deleted")
        for client in list(self.network.clients):
            for following in [each for each in client.followings if each.follows(stream)]:
                following.is_deleted()
        with self.loop.running():
            self.loop.run_ready()
        self.check()

    # ── what happens next ────────────────────────────────────────────────────────────────────────────────────────

    def step(self, choice: int) -> None:
        """One thing happens; *choice* (0 to 255) says which. 0 is: the oldest, and it is answered."""
        network = self.network
        possible = network.possible()
        if not possible or 176 <= choice < 208:
            self._next_moment((0.0, 0.02, 0.3, 2.0)[choice % 4] if possible else 0.0)
        else:
            operation = possible[choice % len(possible)]
            if choice < 144:
                self._note_operation(operation, "happens")
                network.happen(operation)
            elif choice < 176:
                self._note_operation(operation, "happens, its answer is on its way")
                network.happen_unheard(operation)
            elif choice < 224:
                self._note_operation(operation, "happens, its answer is lost")
                network.happen(operation, answered=False)
            elif choice < 240:
                self._note_operation(operation, "is lost")
                network.lose(operation)
            else:
                self._note_operation(operation, "is given up, and may happen later")
                network.give_up(operation)
        self.check()

    def steps(self, choices: bytes) -> None:
        for choice in choices:
            self.step(choice)

    def _next_event_s(self) -> float | None:
        moments = [self.network.next_event_s(), *self._ended.values()]
        return min((at_s for at_s in moments if at_s is not None), default=None)

    def _next_moment(self, late_s: float) -> None:
        at_s = self._next_event_s()
        if at_s is not None:
            # never so far that records expire: keeping them is a day's matter at least
            self.pass_time(min(IDLE_MAX_S, max(0.0, at_s - self.now_s)) + late_s)

    def pass_time(self, seconds: float) -> None:
        """The clock goes on by *seconds*; what is under way stays so, or times out."""
        to_s = self.now_s + seconds
        while (at_s := self._next_event_s()) is not None and at_s <= to_s:
            self._arrive(at_s)
        self._arrive(to_s)

    def _arrive(self, at_s: float) -> None:
        self.network.pass_time(at_s)
        for name in [name for name, restart_s in self._ended.items() if restart_s <= self.now_s]:
            self._note(f"{name} starts again")
            self._start(name)
        self.check()

    def live(self, seconds: float, *, sound_from_s: float | None = None) -> None:
        """*seconds* in which nothing goes wrong. From *sound_from_s* on, the bounds of a sound system hold."""
        to_s = self.now_s + seconds
        while True:
            self.settle()
            if sound_from_s is not None and self.now_s >= sound_from_s:
                self.ledger.check_sound(self.now_s, sound_from_s, self._idle_streams())
            at_s = self._next_event_s()
            if at_s is None or at_s > to_s:
                break
            self._arrive(at_s)
        self._arrive(to_s)
        self.settle()

    def _idle_streams(self) -> set[str]:
        """The work streams from which a worker waits for a message."""
        return {host.stream for host in self.hosts.values() if isinstance(host, WorkerHost) and host.is_idle}

    def settle(self) -> None:
        """All that is under way happens, in order, and is answered."""
        for _ in range(10_000):
            possible = self.network.possible()
            if not possible:
                self.check()
                return
            self._note_operation(possible[0], "happens")
            self.network.happen(possible[0])
            self.check()
        raise Violation("1: there is no end to what happens at one moment")

    def finish(self) -> None:
        """Everything is mended, time goes on until all is done, and the invariants of the end are checked."""
        self._note("all is mended")
        for name in list(self.hosts):
            self.go_on(name)
            self.mend(name)
        mended_s = self.now_s + MENDED_S
        until_s = self.now_s + END_S
        # for a while the pipelines stay slow, so that some tasks wait in vain on a healthy system
        slow_until_s = self.now_s + SLOW_S
        while self.now_s < until_s:
            if self.now_s >= slow_until_s:
                self.runs.clear()
                self.default_run = ("done", 0.5)
            self.live(5.0, sound_from_s=mended_s)
            if self.ledger.is_over() and all(call.outcome is not None for call in self.calls):
                break
        for call in self.calls:
            if call.outcome is None:
                raise Violation(f"1: call {call.number} is never answered")
        self.ledger.at_end(self.files)
        if self.ledger.slack_s:
            self.live(FOUND_S)
        if self.tells:
            self.live(TOLD_S)
            self.ledger.check_told()
        for host in self.hosts.values():
            if isinstance(host, GatewayHost) and host.alive and host.is_ready:
                self.ledger.check_memory(host.name, host.services.tasks)

    def close(self) -> None:
        """Ends every coroutine."""
        ERRORS.clear()
        self.loop.tear_down()
        ERRORS.clear()

    # ── the story ────────────────────────────────────────────────────────────────────────────────────────────────

    def _note(self, text: str) -> None:
        if self.is_tracing:
            self.trace.append(f"{self.now_s - 1_000:9.3f}  {text}")

    def _note_operation(self, operation: Operation, what: str) -> None:
        if self.is_tracing:
            who = operation.host.name if operation.host is not None else "server"
            self._note(f"{who}: {operation.what} {what}")


def ids_that_differ(now: dict[int, Stored], then: dict[int, Stored]) -> set[str]:
    """The tasks of the messages that are in one of them and not in the other."""
    return {(now.get(seq) or then[seq]).subject.rsplit(".", 1)[-1] for seq in now.keys() ^ then.keys()}
