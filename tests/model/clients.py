"""The clients of the simulated system: they submit, hang up, cancel and look."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from contracts.generation.request import AcceptedRequest
from contracts.tasks import Priority
from tests.model.hosts import Call, GatewayHost
from tests.model.setting import (
    request_of,
)
from tests.model.webhooks import WEBHOOK

if TYPE_CHECKING:
    from tests.model.world import World


class Clients:
    """What clients do; each call goes on until it is answered."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.calls: list[Call] = []

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
        host = self._world.hosts.get(gateway)
        if not isinstance(host, GatewayHost) or not host.is_ready or not host.alive:
            return
        call = Call(self._world.number(), host, is_async=is_async, key=key, priority=priority)
        self.calls.append(call)
        how = "async" if is_async else "sync"
        self._world.tale.note(f"{gateway}: POST {model} {how} key={key} image={image} {priority}")
        request = request_of(model, image=image)
        host.spawn(
            partial(
                self._posted, host, call, replace(request, webhook=WEBHOOK) if self._world.with_webhooks else request
            )
        )
        self._world.check()

    async def _posted(self, host: GatewayHost, call: Call, request: AcceptedRequest) -> None:
        await host.accept(call, request)
        self._world.tale.note(f"{host.name}: call {call.number} answered {call.outcome}")

    def hang_up(self, index: int) -> None:
        """A caller goes away before it was answered."""
        open_calls = [call for call in self.calls if call.outcome is None and not call.gone.done()]
        if open_calls:
            call = open_calls[index % len(open_calls)]
            self._world.tale.note(f"call {call.number} hangs up")
            with self._world.loop.running():
                call.gone.set_result(None)
                self._world.loop.run_ready()
            self._world.check()

    def cancel(self, gateway: str, index: int) -> None:
        """A client cancels a task."""
        self._ask(gateway, index, "DELETE", lambda host, task_id: host.cancel(task_id))

    def read(self, gateway: str, index: int) -> None:
        """A client looks at a task."""
        self._ask(gateway, index, "GET", lambda host, task_id: host.read(task_id))

    def _ask(self, gateway: str, index: int, what: str, ask: Callable[[GatewayHost, str], Any]) -> None:
        host = self._world.hosts.get(gateway)
        if not self._world.ids or not isinstance(host, GatewayHost) or not host.is_ready or not host.alive:
            return
        task_id = self._world.ids[index % len(self._world.ids)]
        self._world.tale.note(f"{gateway}: {what} {task_id}")
        host.spawn(partial(ask, host, task_id))
        self._world.check()
