"""What goes wrong in the simulated system. A supervisor restarts processes that ended."""

from typing import TYPE_CHECKING, Final

from contracts.topology import TASKS, bucket_stream
from gateway.placing import slow_look
from tests.model.hosts import GatewayHost, ModelHost, WorkerHost
from tests.model.jetstream import Stored, StreamCopy
from tests.model.network import in_turn
from tests.model.setting import (
    GATEWAYS,
)

if TYPE_CHECKING:
    from tests.model.world import World

# A supervisor restarts a process this long after its end.
RESTART_S: Final = 1.0
# By then a slow look has found what a watch has missed.
FOUND_S: Final = slow_look.EVERY_S + slow_look.ARRIVED_S + 1.0


class Mishaps:
    """What goes wrong with the processes, their connections and the server, and how it is mended."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._copy: dict[str, StreamCopy] | None = None
        self.ends_s: dict[str, float] = {}
        """When the supervisor restarts each process that ended, by name."""

    def start(self, name: str) -> None:
        host: ModelHost = GatewayHost(self._world, name) if name in GATEWAYS else WorkerHost(self._world, name)
        if self._world.skews_s:
            host.skew_s = self._world.skews_s[self._world.number() % len(self._world.skews_s)]
        self.ends_s.pop(name, None)
        self._world.hosts[name] = host
        host.start()

    def crash(self, name: str, *, by_itself: bool = False) -> None:
        """kill -9. What the process had sent may still arrive; a supervisor restarts it."""
        host = self._world.hosts[name]
        if not host.alive:
            return
        self._world.tale.note(f"{name} {'ends' if by_itself else 'is killed'}")
        host.alive = False
        if host.link is not None:
            host.client.leave()
        for operation in list(self._world.network.under_way):
            if operation.host is host:
                if operation.is_push or operation.can_happen is not None or operation.lane.startswith("store "):
                    self._world.network.under_way.remove(operation)
                else:
                    self._world.network.give_up(operation)
        for call in self._world.clients.calls:
            if call.gateway is host and call.outcome is None:
                call.outcome = "cut off"
        self.ends_s[name] = self._world.now_s + RESTART_S

    def replace(self, name: str) -> None:
        """Another process takes the place of a process that is only stopped, and that goes on later."""
        host = self._world.hosts[name]
        if host.stopped and host.alive:
            self._world.hosts[f"{name} before {self._world.number()}"] = host
            self._world.tale.note(f"{name} is replaced")
            self.start(name)

    def stop(self, name: str) -> None:
        """SIGSTOP."""
        host = self._world.hosts[name]
        if not host.stopped:
            self._world.tale.note(f"{name} stops")
            host.stopped, host.stopped_s = True, self._world.now_s

    def go_on(self, name: str) -> None:
        """SIGCONT."""
        host = self._world.hosts[name]
        if host.stopped:
            self._world.tale.note(f"{name} goes on")
            with self._world.loop.running():
                self._world.loop.go_on(host)
                self._world.loop.run_ready()
            self._world.check()

    def cut(self, name: str) -> None:
        """The connection of *name* breaks."""
        host = self._world.hosts[name]
        self._world.tale.note(f"{name} is cut off")
        host.is_cut = True
        if host.link is not None and host.alive:
            host.client.cut()
        self._world.check()

    def mend(self, name: str) -> None:
        """The connection of *name* is back."""
        host = self._world.hosts[name]
        if host.is_cut:
            self._world.tale.note(f"{name} is connected again")
            host.is_cut, host.connected_s, host.connected = False, self._world.now_s, in_turn()
            if host.link is not None and host.alive:
                host.client.mend()
            self._world.check()

    def miss(self, name: str) -> None:
        """The next record for *name*'s watch does not arrive, and the watch does not notice."""
        host, lane = self._world.hosts[name], f"watch {bucket_stream(TASKS)}"
        for operation in self._world.network.under_way:
            if operation.host is host and operation.lane == lane:
                self._world.tale.note_operation(operation, "is missed")
                self._world.network.miss(operation)
                self._world.ledger.slack_s = FOUND_S
                return

    def copy_store(self) -> None:
        """Copies the server's store. A later power cut (`lose_tail`) leaves no more than this copy."""
        self._world.tale.note("the store is copied")
        self._copy = {name: stream.state() for name, stream in self._world.network.server.streams.items()}

    def lose_tail(self) -> None:
        """The server is killed, and starts with what it had when its store was copied."""
        if self._copy is None:
            return
        self._world.tale.note("the server is killed, and loses what came since the copy")
        streams = self._world.network.server.streams
        torn = set()
        for name, stream in streams.items():
            torn |= ids_that_differ(stream.messages, self._copy[name].messages)
        connected = [name for name, host in self._world.hosts.items() if not host.is_cut and host.alive]
        for name in connected:
            self.cut(name)
        for operation in list(self._world.network.under_way):
            if not operation.is_push and operation.can_happen is None and not operation.lane.startswith("store "):
                self._world.network.lose(operation)
        for name, stream in streams.items():
            stream.go_back(self._copy[name])
        self._world.ledger.on_went_back(torn)
        for name in connected:
            self.mend(name)

    def make_anew(self) -> None:
        """The bucket of the records is removed, and provisioned anew."""
        for operation in [each for each in self._world.network.under_way if each.lane.startswith("answer ")]:
            self._world.network.happen(operation)  # a connection keeps its order: answers from before come first
        self._world.tale.note("the bucket of the records is made anew")
        stream = self._world.network.server.stream(bucket_stream(TASKS))
        torn = ids_that_differ(stream.messages, {})
        stream.make_anew(self._world.now_s)
        self._world.ledger.on_went_back(torn)
        self.delete_consumers(bucket_stream(TASKS))

    def delete_consumers(self, stream: str) -> None:
        """Deletes the consumers of all watches that follow *stream*: they hear nothing more of it."""
        self._world.tale.note(f"the consumers of {stream} are deleted")
        for client in list(self._world.network.clients):
            for following in [each for each in client.followings if each.follows(stream)]:
                following.is_deleted()
        with self._world.loop.running():
            self._world.loop.run_ready()
        self._world.check()


def ids_that_differ(now: dict[int, Stored], then: dict[int, Stored]) -> set[str]:
    """The tasks of the messages in which *now* and *then* differ. A number alone is not enough: a stream that was made
    anew has other messages under the same numbers."""
    differ = [seq for seq in now.keys() | then.keys() if now.get(seq) != then.get(seq)]
    found = [stored for seq in differ for stored in (now.get(seq), then.get(seq)) if stored is not None]
    return {stored.subject.rsplit(".", 1)[-1] for stored in found}
