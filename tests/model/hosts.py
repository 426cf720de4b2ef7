"""The processes of the simulated system: gateways and workers, which run the product's own code."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

from contracts.generation.request import AcceptedRequest
from contracts.memory import MemoryReading
from contracts.progress import StepsDone
from contracts.tasks import FailureCode, GenerationTask, Priority
from contracts.topology import DEGRADED, lane_stream
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
from gateway.webhooks.service import WebhookOptions, Webhooks
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
from tests.kit.behind import client_of
from tests.model.artifact_store import _Scratch
from tests.model.invariants import Violation
from tests.model.model_loop import Host
from tests.model.network import in_turn
from tests.model.webhooks import SEALING_KEY

if TYPE_CHECKING:
    from tests.model.world import World

MEMORY: Final = MemoryReading(rss_bytes=1)
# Longer than a hand waits for more messages once it has one: LOOK_S, GATHER_S.
LOOKS_S: Final = 0.2

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


class ModelHost(Host):
    """A process with a connection."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(name)
        self.world = world
        self.link: NatsLink | None = None
        self.is_cut = False
        self.connected_s, self.connected = 0.0, 0

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
        self.connected_s, self.connected = self.world.now_s, in_turn()
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
        if world.with_webhooks:
            await Webhooks(WebhookOptions(Path(), keys=SEALING_KEY), tasks=tasks, background=Background()).start(link)
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
        if call.key is not None:
            ledger.classes[call.key].add(call.priority)
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


class Watched:
    """A source that knows since when its worker waits for a message. A fetch alone does not show that: a hand also
    fetches while the worker runs a task, and while it holds one message and looks for others."""

    def __init__(self, source: Source, now_s: Callable[[], float]) -> None:
        self._source = source
        self._now_s = now_s
        self._waits_since_s: float | None = None

    @property
    def trouble(self) -> str | None:
        return self._source.trouble

    @property
    def waits(self) -> bool:
        """Whether its worker has waited for longer than any look takes."""
        return self._waits_since_s is not None and self._now_s() - self._waits_since_s > LOOKS_S

    async def next(self) -> NextMessage | None:
        if self._waits_since_s is None:
            self._waits_since_s = self._now_s()
        found = await self._source.next()
        if found is not None:
            self._waits_since_s = None
        return found

    async def close(self) -> None:
        self._waits_since_s = None
        await self._source.close()


class WorkerHost(ModelHost):
    """A worker with a `WorkLoop`; its runner is played."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.owner = f"{name}#{world.number()}"
        model = name.partition("-")[0]
        self.stream = DEGRADED if model == "degraded" else lane_stream(model)
        self._stopped = asyncio.Event()
        self._resident: str | None = None
        self._source: Watched | None = None

    async def main(self) -> None:
        link = await self.connect()
        order = Order(self.world.catalog.degraded, resident=lambda: self._resident)
        hand: Source = LaneHand(link, self.stream, order=order)
        if self.stream == DEGRADED:
            hand = Hand(link, order=order, owner=self.owner, leads=self._leads)
        self._source = Watched(hand, lambda: self.world.now_s)
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
            source=self._source,
        )
        never = asyncio.Event()
        while True:
            await loop.serve_one(never)

    def _leads(self) -> bool:
        """Whether no other process took its place. A leader that was stopped for so long notices that by its own clock,
        before it hands anything out (`ops/nats/leader.py`)."""
        return self.world.hosts.get(self.name) is self

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a message."""
        waits = self._source is not None and self._source.waits
        return self.alive and waits and self.world.network.waits_for_messages(self)

    # it is the runner of its own loop

    def stop(self, task_id: str) -> None:
        self._stopped.set()

    async def run(self, task: GenerationTask, image: Path | None, on_progress: Callable[[StepsDone], None]) -> Result:
        world, owner = self.world, self.owner
        world.ledger.on_run(task, owner)
        self._resident = task.model
        self._stopped.clear()
        outcome, run_s = world.next_run(task)
        on_progress(StepsDone(step=1, steps=task.parameters.steps))
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
