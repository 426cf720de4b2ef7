"""The whole system on a simulated network: gateways, lanes, a degraded worker and clients, each a process that can be
killed, stopped or cut off between any two effects.

What they do is the product's own code: `Admission`, `Holds`, `Sweeper`, `WorkLoop` and what they use, on `NatsLink`.
Played are the clients, the pipelines (`Runner`) and the artifact store.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec
from msgspec.structs import replace

from contracts.generation.request import AcceptedRequest
from contracts.lanes import LaneHeartbeat, LaneState
from contracts.memory import MemoryReading
from contracts.settings import Catalog, OverloadPolicy, load_settings
from contracts.tasks import FailureCode, GenerationTask, ImageReference, Priority, Progress
from contracts.topology import DEGRADED, LANES, TASKS, Topology, bucket_stream, bucket_subject, lane_stream
from degraded_worker.hand import Hand
from gateway.boards.key_board import ANYBODY
from gateway.boards.lane_board import LaneBoard
from gateway.boards.task_board import TaskBoard
from gateway.http.lookup import find
from gateway.http.problems import ProblemError
from gateway.placing import slow_look
from gateway.placing.admission import Admission, KeyReused
from gateway.placing.cancelling import cancel
from gateway.placing.estimate import Estimates
from gateway.placing.fallbacks import Fallbacks
from gateway.placing.hold import CallerGone, Holds
from gateway.placing.overload import Overloaded
from gateway.placing.sweeper import Sweeper
from gateway.services import Services
from lane_worker.forking.host_messages import WrittenVideo
from lane_worker.runtime.lane_hand import LaneHand
from lane_worker.runtime.loop import WorkLoop
from lane_worker.runtime.order import Order, OrderedRunner
from lane_worker.runtime.outcome import GaveUp, Result, Stopped, Succeeded, Unsuccessful
from lane_worker.runtime.scratch import Scratch
from lane_worker.runtime.source import NextMessage, Source
from ops.artifacts import Artifacts, StorageFailed
from ops.background import Background
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.provisioning import _stream_config, wanted
from ops.nats.pull import consumer_config
from tests.kit.behind import client_of
from tests.model.invariants import Ledger, Violation
from tests.model.jetstream import Stored, StreamCopy, moment
from tests.model.model_loop import Host
from tests.model.network import Network, Operation, StoreAway, use
from tests.model.patches import ERRORS

MODELS: Final = ("anisora", "phr00t")
DEGRADED_MAX: Final = 3
LANE_MAX: Final = 3
GATEWAYS: Final = ("gateway-0", "gateway-1")
WORKERS: Final = ("anisora-0", "anisora-1", "phr00t-0", "degraded-0")
MEMORY: Final = MemoryReading(rss_bytes=1)
# A supervisor starts again what ended, this much later.
RESTART_S: Final = 1.0
# How long after everything was mended the bounds hold again: watches have caught up, and what failed is tried again.
MENDED_S: Final = 3.0
END_S: Final = 600.0
IDLE_MAX_S: Final = 60.0
# By then a slow look has found what a watch has missed.
FOUND_S: Final = slow_look.EVERY_S + slow_look.ARRIVED_S + 1.0
SLOW_S: Final = 35.0

CALLER: ContextVar["Call | None"] = ContextVar("caller", default=None)


class Call:
    """A client's `POST /generate`."""

    def __init__(
        self, number: int, gateway: "GatewayHost", *, is_async: bool, key: str | None, priority: Priority
    ) -> None:
        self.number, self.gateway, self.is_async, self.key = number, gateway, is_async, key
        self.priority = priority
        self.gone = gateway.world.loop.create_future()
        self.outcome: str | None = None

    async def until_gone(self) -> None:
        await asyncio.shield(self.gone)


class ModelArtifacts:
    """The artifact store, each call an effect that can fail, or fail after it took place."""

    def __init__(self, network: Network, files: dict[str, bytes]) -> None:
        self._network, self._files = network, files

    async def _call(self, what: str, path: str, effect: Callable[[], Any]) -> Any:
        try:
            return await self._network.call(f"{what} {path}", effect, lane=f"store {path}")
        except StoreAway as error:
            raise StorageFailed(str(error)) from error

    async def put(self, path: str, content: Any) -> None:
        data = content if isinstance(content, bytes) else content.content
        await self._call("put", path, lambda: self._files.__setitem__(path, data))

    async def get(self, path: str) -> bytes | None:
        content: bytes | None = await self._call("get", path, lambda: self._files.get(path))
        return content

    async def size(self, path: str) -> int | None:
        size: int | None = await self._call(
            "size", path, lambda: len(self._files[path]) if path in self._files else None
        )
        return size

    async def delete(self, path: str) -> None:
        await self._call("delete", path, lambda: self._files.pop(path, None))


class _Scratch:
    """A file of a worker, and a folder of them."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content

    @property
    def folder(self) -> "_Scratch":
        return self

    def ensure(self) -> None:
        pass

    def exists(self) -> bool:
        return True

    def __truediv__(self, _: str) -> "_Scratch":
        return _Scratch()

    def write_bytes(self, content: bytes) -> None:
        self.content = content

    def unlink(self, missing_ok: bool = False) -> None:
        pass


class ModelHost(Host):
    """A process with a connection."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(name)
        self.world = world
        self.link: NatsLink | None = None
        self.is_cut = False
        self.connected_s = 0.0

    def start(self) -> None:
        with self.world.loop.running():
            self.world.loop.create_task(self._main(), context=self.context.copy())
            self.world.loop.run_ready()

    async def _main(self) -> None:
        try:
            await self.main()
        except TransportUnavailable:
            self.world.ended(self)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.world.unexpected(self, error)

    async def main(self) -> None:
        raise NotImplementedError

    async def connect(self) -> NatsLink:
        self.link = await NatsLink.connect("nats://simulated", name=self.name)
        self.connected_s = self.world.now_s
        if self.is_cut:
            self.client.cut()
        return self.link

    @property
    def client(self) -> Any:
        assert self.link is not None
        return client_of(self.link)


class GatewayHost(ModelHost):
    """A gateway: the parts of `Services`, without HTTP."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.is_ready = False
        self.services: Services

    async def main(self) -> None:
        world, catalog = self.world, self.world.catalog
        link = await self.connect()
        stopping = asyncio.Event()
        artifacts = cast(Artifacts, world.artifacts)
        tasks = TaskBoard(self.name)
        lanes = LaneBoard(health_timeout_s=catalog.windows.health_timeout_s, grace_s=catalog.windows.reconnect_grace_s)
        fallbacks = Fallbacks(lanes=lanes, models=catalog.models)
        second_look = slow_look.SlowLook(link=link, tasks=tasks)
        await second_look.begin()
        await tasks.start(link)
        await lanes.start(link)
        await fallbacks.start(link)
        sweeper = Sweeper(
            link=link,
            artifacts=artifacts,
            tasks=tasks,
            lanes=lanes,
            fallbacks=fallbacks,
            catalog=catalog,
            background=Background(),
        )
        holds = Holds(link=link, artifacts=artifacts, tasks=tasks, sweeper=sweeper, stopping=stopping)
        await holds.start()
        estimates = Estimates(queues=tasks.work_queues, lanes=lanes, catalog=catalog)
        admission = Admission(
            link=link,
            artifacts=artifacts,
            tasks=tasks,
            lanes=lanes,
            fallbacks=fallbacks,
            holds=holds,
            estimates=estimates,
            catalog=catalog,
        )
        parts = SimpleNamespace(
            link=link,
            artifacts=artifacts,
            tasks=tasks,
            lanes=lanes,
            sweeper=sweeper,
            estimates=estimates,
            admission=admission,
            catalog=catalog,
        )
        self.services = cast(Services, parts)
        self.is_ready = True
        comparing = asyncio.create_task(second_look.run())
        comparing.add_done_callback(lambda _: stopping.set())
        await sweeper.run(stopping)

    def spawn(self, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs *start* in this process."""
        with self.world.loop.running():
            self.world.loop.create_task(self._guard(start), context=self.context.copy())
            self.world.loop.run_ready()

    async def _guard(self, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await start()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.world.unexpected(self, error)

    async def accept(self, call: Call, request: AcceptedRequest) -> None:
        ledger = self.world.ledger
        CALLER.set(call)
        caller, shared = "c", call.key is not None
        try:
            snapshot = await self.services.admission.accept(
                request,
                caller=caller,
                key=call.key,
                priority=call.priority,
                traceparent=None,
                until_gone=None if call.is_async else call.until_gone,
            )
        except Overloaded as refused:
            call.outcome = f"503 {refused.limit}"
            for task_id in [refused.task_id] if refused.task_id is not None else self.world.ids_of(call):
                ledger.on_refused(task_id, refused.limit, is_shared=shared)
        except CallerGone:
            call.outcome = "gone"
        except TransportUnavailable:
            call.outcome = "503 unknown"
        except StorageFailed:
            call.outcome = "503 storage"
            for task_id in self.world.ids_of(call):
                ledger.on_refused(task_id, "storage", is_shared=shared)
        except KeyReused:
            call.outcome = "422"
        else:
            call.outcome = "202"
            if call.gone.done() and not call.is_async:
                return  # nobody read it
            ledger.on_answered(snapshot.task, "202")
            if call.key is not None:
                ledger.keyed[call.key].add(snapshot.task.id)

    async def cancel(self, task_id: str) -> None:
        try:
            await find(self.services, ANYBODY, task_id)
            services = self.services
            cancelled = await cancel(
                task_id,
                link=services.link,
                tasks=services.tasks,
                artifacts=services.artifacts,
                require=lambda revision: None,
            )
        except TransportUnavailable:
            return
        except ProblemError as problem:
            if problem.problem.code != "transport_unavailable" and task_id in self.world.ledger.answered:
                raise Violation(f"1: {task_id} was given to a client: {problem}") from problem
            return
        if cancelled is None and task_id in self.world.ledger.answered:
            raise Violation(f"1: {task_id} was given to a client, and has no record")

    async def read(self, task_id: str) -> None:
        try:
            snapshot = await find(self.services, ANYBODY, task_id)
        except ProblemError as problem:
            if problem.problem.code != "transport_unavailable" and task_id in self.world.ledger.answered:
                raise Violation(f"1: {task_id} was given to a client: {problem}") from problem
        else:
            known = self.world.ledger.answered.get(task_id, "")
            if known.startswith("ended") and not snapshot.task.status.is_terminal:
                raise Violation(f"1: {task_id} was shown as ended, and now as {snapshot.task.status}")


class WatchedHand(Hand):
    """A hand that knows whether its worker waits for a message: it fetches also while the worker runs a task."""

    waits = False

    async def next(self) -> NextMessage | None:
        self.waits = True
        try:
            return await super().next()
        finally:
            self.waits = False


class WorkerHost(ModelHost):
    """A worker with a `WorkLoop`; its runner is played."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.owner = f"{name}#{world.number()}"
        model = name.partition("-")[0]
        self.stream = DEGRADED if model == "degraded" else lane_stream(model)
        self._stopped = asyncio.Event()
        self._resident: str | None = None
        self._hand: WatchedHand | None = None

    async def main(self) -> None:
        link = await self.connect()
        order = Order(self.world.catalog.degraded, resident=lambda: self._resident)
        source: Source = LaneHand(link, self.stream, order=order)
        if self.stream == DEGRADED:
            source = self._hand = WatchedHand(link, order=order, owner=self.owner, leads=lambda: True)
        loop = WorkLoop(
            link=link,
            artifacts=cast(Artifacts, self.world.artifacts),
            stream=self.stream,
            owner=self.owner,
            worker=self.name,
            windows=self.world.catalog.windows,
            runner=OrderedRunner(self, order),
            scratch=cast(Scratch, _Scratch()),
            on_busy=lambda _: None,
            source=source,
        )
        never = asyncio.Event()
        while True:
            await loop.serve_one(never)

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a message."""
        waits = self._hand is None or self._hand.waits
        return self.alive and waits and self.world.network.waits_for_messages(self)

    # it is the runner of its own loop

    def stop(self, task_id: str) -> None:
        self._stopped.set()

    async def run(self, task: GenerationTask, image: Path | None, on_progress: Callable[[Progress], None]) -> Result:
        world, owner = self.world, self.owner
        world.ledger.on_run(task, owner)
        self._resident = task.model
        self._stopped.clear()
        outcome, run_s = world.next_run(task)
        on_progress(Progress(step=1, steps=task.parameters.steps))
        try:
            async with asyncio.timeout(run_s):
                await self._stopped.wait()
            return Stopped()
        except TimeoutError:
            pass
        if outcome == "gave up":
            return GaveUp("asked to stop", on_purpose=True) if task.epoch % 2 else GaveUp("the host is gone")
        if outcome == "failed":
            return Unsuccessful(FailureCode.INFERENCE_FAILED, "no", MEMORY)
        content = f"{task.id} {task.epoch} {owner}"
        video = WrittenVideo(bytes=len(content), sha256=content, width=96, height=64, frames=17, fps=16)
        return Succeeded(
            path=cast(Path, _Scratch(content.encode())),
            video=video,
            memory=MEMORY,
            started_at=world.network.now(),
            inference_s=run_s,
            encode_s=0.1,
        )


class World:
    """The system, its clients, and what may go wrong."""

    def __init__(self, *, skews_s: tuple[float, ...] = (), is_tracing: bool = False, displaces: bool = False) -> None:
        """*displaces*: a full degraded queue makes room for a higher class (ADR 0039)."""
        self.network = Network()
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
        host.spawn(partial(self._posted, host, call, request_of(model, image=image)))
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


# ── what never changes ───────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=1)
def configured() -> tuple[Catalog, Topology]:
    """The packaged settings and topology, with queues so short that they are full now and then."""
    catalog = replace(load_settings().catalog("tiny"), lane_queue_max_msgs=LANE_MAX)
    full = wanted(catalog, keep_s=86_400.0)
    streams = tuple(replace(spec, max_msgs=DEGRADED_MAX) if spec.name == DEGRADED else spec for spec in full.streams)
    return catalog, replace(full, streams=streams)


@lru_cache(maxsize=1)
def _configs(topology: Topology) -> list[tuple[Any, list[Any]]]:
    found: list[tuple[Any, list[Any]]] = []
    for spec in topology.streams:
        found.append((_stream_config(spec), [consumer_config(consumer) for consumer in spec.consumers]))
    found.extend((_stream_config(bucket), []) for bucket in topology.buckets)
    return found


def streams_of(topology: Topology) -> list[tuple[Any, list[Any]]]:
    """The configurations that provisioning would send."""
    return _configs(topology)


@lru_cache
def request_of(model: str, *, image: bool) -> AcceptedRequest:
    """A request that passed every check."""
    picture = ImageReference(sha256="ab" * 32, media_type="image/png", bytes=1, width=1, height=1)
    return AcceptedRequest(
        model=model,
        prompt="x",
        negative_prompt="",
        image=picture if image else None,
        image_content=b"image" if image else None,
        width=96,
        height=64,
        num_frames=17,
        fps=16,
        seed=1,
        steps=4,
        cfg=1.0,
        fingerprint=f"{model} {image}",
    )


@lru_cache
def heartbeat_of(model: str, number: int, state: LaneState) -> bytes:
    """A heartbeat that stays fresh: when a lane falls silent is the business of another test."""
    return msgspec.json.encode(
        LaneHeartbeat(
            model=model,
            worker=f"{model}-{number}",
            state=state,
            health_age_s=-1e6,
            slot="cpu-0",
            pid=1,
            started_at=moment(0.0),
        )
    )
