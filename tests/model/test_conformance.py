"""The simulated server and the real one do the same: every scenario runs on both, through the product's `NatsLink`.

The scenarios of one server run side by side, each on streams and keys of its own, so that they wait together. They hold
when the test or the server gets no core for three seconds.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from msgspec.structs import replace
from nats.js.errors import APIError

from contracts.topology import (
    DEGRADED,
    TASKS,
    WORK_CONSUMER,
    StreamSpec,
    Topology,
    bucket_stream,
    lane_stream,
    topology,
    work_subject,
)
from ops.nats import entries, link, messages, pull, streams, watches
from ops.nats.errors import StreamFull, WrongRevision
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision
from ops.nats.pull import ack_sync
from ops.nats.watches import WatchedServer
from tests.kit.behind import client_of, js_of
from tests.kit.support import BOUND_S, NatsServer
from tests.model.network import Network, use
from tests.model.patches import simulated_product

MAX_MSGS: Final = 3
# The modules that ask the server, and wait for its answers.
ASKING: Final = (entries, link, messages, pull, streams, watches)
KEPT: Final = 16  # no bucket keeps more revisions of a task
MAX_AGE_S: Final = 1.0
ACK_WAIT_S: Final = 1.0
# Of what has to be reported in time.
KEEPING_WAIT_S: Final = 4.0
WINDOW_S: Final = 1.5
# How late the real server may expire or redeliver a message when this machine is busy.
LATE_S: Final = 1.5


class Broker:
    """A server behind a link, and its clock."""

    def __init__(self, link: NatsLink, network: Network | None) -> None:
        self.link = link
        self._network = network

    def now(self) -> datetime:
        return datetime.now(UTC) if self._network is None else self._network.now()

    async def advance(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def until(self, look: Callable[[], Awaitable[Any]]) -> Any:
        """The first true value of *look*."""
        for _ in range(2_000):
            value = await look()
            if value:
                return value
            await asyncio.sleep(0.02)
        raise AssertionError(f"never: {look}")

    async def publish(self, name: str, task_id: str, *, message_id: str | None = None) -> Any:
        subject = work_subject("lane", name, task_id)
        return await self.link.messages.publish(subject, task_id.encode(), message_id=message_id)

    async def messages(self, stream: str) -> int:
        return (await self.link.streams.depth(stream)).messages

    async def refusal(self, call: Awaitable[object]) -> int | None:
        """The server's own code for refusing *call*."""
        with pytest.raises((StreamFull, WrongRevision)) as caught:
            await call
        cause = caught.value.__cause__
        assert isinstance(cause, APIError)
        return cause.err_code


async def limits(broker: Broker) -> None:
    """A full stream refuses with 10077, exactly, and a place is free at once when a message goes."""
    acks = [await broker.publish("limits", f"t{n}", message_id=f"t{n}.0") for n in range(MAX_MSGS)]
    assert await broker.refusal(broker.publish("limits", "t9", message_id="t9.0")) == 10077
    assert (await broker.publish("limits", "t0", message_id="t0.0")).duplicate, "known ids come before the limit"
    await broker.link.messages.remove(lane_stream("limits"), acks[1].seq)
    await broker.link.messages.remove(lane_stream("limits"), acks[1].seq)
    assert await broker.link.messages.get(lane_stream("limits"), acks[1].seq) is None
    # what was refused is not remembered
    assert not (await broker.publish("limits", "t9", message_id="t9.0")).duplicate
    assert await broker.messages(lane_stream("limits")) == MAX_MSGS


async def duplicates(broker: Broker) -> None:
    """The server knows an id for the duplicate window, whatever became of its message."""
    link, stream = broker.link, lane_stream("duplicates")
    first = await broker.publish("duplicates", "gone", message_id="gone.0")
    assert not first.duplicate
    again = await broker.publish("duplicates", "gone", message_id="gone.0")
    assert (again.duplicate, again.seq) == (True, first.seq)
    await link.messages.purge(stream, work_subject("lane", "duplicates", "gone"))
    deleted = await broker.publish("duplicates", "deleted", message_id="deleted.0")
    await link.messages.remove(stream, deleted.seq)
    await broker.publish("duplicates", "acked", message_id="acked.0")
    pull = await link.messages.pull(stream, WORK_CONSUMER)
    [message] = await broker.until(pull.fetch)
    await ack_sync(message)
    for known in ("gone", "deleted", "acked"):
        assert (await broker.publish("duplicates", known, message_id=f"{known}.0")).duplicate, known
    assert await broker.messages(stream) == 0
    assert not (await broker.publish("duplicates", "gone", message_id="gone.1")).duplicate


async def forgetting(broker: Broker) -> None:
    """The server forgets an id after the duplicate window."""
    first = await broker.publish("forgetting", "t", message_id="t.0")

    async def anew() -> Any:
        ack = await broker.publish("forgetting", "t", message_id="t.0")
        return None if ack.duplicate else ack

    assert (await broker.until(anew)).seq > first.seq


async def expiry(broker: Broker) -> None:
    """A message expires at its age even while a worker holds it, and its ack succeeds all the same (design §10.2)."""
    link = broker.link
    pull = await link.messages.pull(DEGRADED, WORK_CONSUMER)
    taking = asyncio.create_task(pull.fetch(timeout_s=BOUND_S))  # before the message is there, which does not stay
    await asyncio.sleep(0)
    ack = await link.messages.publish(work_subject("degraded", "any", "t"), b"t", message_id="t.0")
    await link.messages.publish(work_subject("degraded", "any", "u"), b"u", message_id="u.0")
    [held] = await taking
    assert held.data == b"t"
    await broker.until(lambda: _is(broker.messages(DEGRADED), 0))
    assert await link.messages.get(DEGRADED, ack.seq) is None
    await ack_sync(held)
    taking = asyncio.create_task(pull.fetch(timeout_s=BOUND_S))
    await asyncio.sleep(0)
    await link.messages.publish(work_subject("degraded", "any", "v"), b"v")
    [later] = await taking
    assert later.data == b"v", "neither comes again"
    await ack_sync(later)


async def compare_and_set(broker: Broker) -> None:
    """A key changes only by its current revision; a deletion marker is a revision too."""
    link = broker.link
    first = await link.entries.create(TASKS, "cas", b"1")
    assert await broker.refusal(link.entries.create(TASKS, "cas", b"x")) == 10071
    second = await link.entries.update(TASKS, "cas", b"2", revision=first)
    assert second > first
    assert await broker.refusal(link.entries.update(TASKS, "cas", b"x", revision=first)) == 10071
    assert await broker.refusal(link.entries.update(TASKS, "cas", b"x", revision=second + 1_000)) == 10071
    entry = await link.entries.get(TASKS, "cas")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"2", second)
    await link.entries.delete(TASKS, "cas", revision=second)
    marker = await link.entries.get(TASKS, "cas")
    assert marker is not None
    assert marker.value is None
    assert await broker.refusal(link.entries.create(TASKS, "cas", b"x")) == 10071
    assert await link.entries.update(TASKS, "cas", b"3", revision=marker.revision) > marker.revision
    assert await link.entries.get(TASKS, "never") is None


async def compare_and_set_again(broker: Broker) -> None:
    """A repeated compare-and-set is refused, even with its Nats-Msg-Id: the server checks the revision first."""
    headers = {"Nats-Expected-Last-Subject-Sequence": "0"}
    call = ("$KV.tasks.twice", b"1")
    await broker.link.messages.publish(*call, message_id="twice", headers=headers)
    assert await broker.refusal(broker.link.messages.publish(*call, message_id="twice", headers=headers)) == 10071


async def history(broker: Broker) -> None:
    """A bucket keeps the newest revisions of a key, and a watch begins with the last of each key."""
    revision = 0
    for number in range(20):
        revision = await broker.link.entries.update(TASKS, "history", str(number).encode(), revision=revision)
    seen: dict[str, bytes | None] = {}
    synced = await broker.link.watches.start(TASKS, lambda entry: seen.__setitem__(entry.key, entry.value))
    await synced.wait()
    assert seen["history"] == b"19"
    await broker.link.entries.update(TASKS, "history", b"20", revision=revision)
    await broker.until(lambda: _is(_now(seen["history"]), b"20"))
    state = await js_of(broker.link).stream_info("KV_tasks")
    assert state.config.max_msgs_per_subject == 4


async def proofs(broker: Broker) -> None:
    """How a watch finds out whether its stream went back: its creation time, its last sequence, and the message at a
    sequence."""
    link, stream = broker.link, bucket_stream(TASKS)
    first = await link.entries.put(TASKS, "proofs", b"0")
    begun = await link.streams.state(stream)
    server = WatchedServer(client_of(link), link.connection, link.streams)
    there, entry = await server.message_at(stream, first), await link.entries.get(TASKS, "proofs")
    assert there is not None
    assert entry is not None
    assert (there.content, there.time) == (b"0", entry.time)
    last = first
    for number in range(KEPT):
        last = await link.entries.put(TASKS, "proofs", str(number).encode())
    assert await server.message_at(stream, first) is None, "newer revisions of its key have taken its place"
    ended = await link.streams.state(stream)
    assert ended.created == begun.created
    assert first <= begun.last_seq <= last <= ended.last_seq


async def written(broker: Broker) -> None:
    """The keys whose last write is between two sequences, with its sequence. A key written later is left out."""
    link = broker.link
    before = (await link.streams.state(bucket_stream(TASKS))).last_seq
    revisions = {key: [await link.entries.put(TASKS, f"written-{key}", b"x") for _ in range(2)] for key in "ab"}
    upto = max(max(each) for each in revisions.values())
    await link.entries.put(TASKS, "written-later", b"x")
    found = await link.watches.written(TASKS, after=before, upto=upto)
    ours = {key: revision for key, revision in found.items() if key.startswith("written-")}
    assert ours == {f"written-{key}": each[-1] for key, each in revisions.items()}
    newest = (await link.streams.state(bucket_stream(TASKS))).last_seq
    assert await link.watches.written(TASKS, after=newest + 1_000, upto=newest + 2_000) == {}


async def sharing(broker: Broker) -> None:
    """One worker at a time has a message, and what it gives back comes again."""
    link, stream = broker.link, lane_stream("sharing")
    for name in ("one", "two", "three"):
        await broker.publish("sharing", name)
    pull, other = await link.messages.pull(stream, WORK_CONSUMER), await link.messages.pull(stream, WORK_CONSUMER)
    [one] = await broker.until(pull.fetch)
    [two] = await broker.until(other.fetch)
    [three] = await broker.until(pull.fetch)
    assert [one.data, two.data, three.data] == [b"one", b"two", b"three"]
    await two.nak()
    [again] = await broker.until(pull.fetch)
    assert again.data == b"two"
    for each in (one, again, three):
        await ack_sync(each)
    assert await broker.messages(stream) == 0


async def redelivery(broker: Broker) -> None:
    """The server redelivers a message after ack_wait until it is acked."""
    link, stream = broker.link, lane_stream("redelivery")
    pull, other = await link.messages.pull(stream, WORK_CONSUMER), await link.messages.pull(stream, WORK_CONSUMER)
    for name in ("acked", "bad"):
        await broker.publish("redelivery", name)
    [acked] = await broker.until(pull.fetch)
    await ack_sync(acked)
    [bad] = await broker.until(pull.fetch)
    await bad.term()
    before = broker.now()
    await broker.publish("redelivery", "silent")
    [silent] = await broker.until(pull.fetch)
    assert [acked.data, bad.data, silent.data] == [b"acked", b"bad", b"silent"]
    [again] = await broker.until(other.fetch)
    assert again.data == b"silent"
    # not at once, and not at some later time: the upper bound is wide for a busy machine
    assert timedelta(seconds=ACK_WAIT_S / 2) < broker.now() - before < timedelta(seconds=20 * ACK_WAIT_S)
    await ack_sync(silent)  # of the first delivery: it counts
    await broker.advance(ACK_WAIT_S + LATE_S)
    await broker.publish("redelivery", "next")
    [following] = await broker.until(pull.fetch)
    assert following.data == b"next"
    await ack_sync(following)
    assert await broker.messages(stream) == 0


async def keeping(broker: Broker) -> None:
    """The server does not redeliver a message while its worker reports it in progress; afterwards it does."""
    link, stream = broker.link, lane_stream("keeping")
    await broker.publish("keeping", "kept")
    pull, other = await link.messages.pull(stream, WORK_CONSUMER), await link.messages.pull(stream, WORK_CONSUMER)
    [kept] = await broker.until(pull.fetch)
    reported = broker.now()
    for _ in range(2):
        await broker.advance(0.4)
        reported = broker.now()
        await kept.in_progress()
    [at_last] = await broker.until(other.fetch)
    assert at_last.data == b"kept"
    # it counts from the last report: without the reports it would come 0.8 s sooner, and without the second 0.4 s
    assert broker.now() - reported > timedelta(seconds=KEEPING_WAIT_S - 0.2)
    await ack_sync(at_last)
    assert await broker.messages(stream) == 0


async def removal(broker: Broker) -> None:
    """Purging a subject removes a message that was not delivered yet, and one that was."""
    link, stream = broker.link, lane_stream("removal")
    for name in ("one", "two", "three"):
        await broker.publish("removal", name)
    pull = await link.messages.pull(stream, WORK_CONSUMER)
    [one] = await broker.until(pull.fetch)
    await link.messages.purge(stream, work_subject("lane", "removal", "one"))
    await link.messages.purge(stream, work_subject("lane", "removal", "two"))
    [three] = await broker.until(pull.fetch)
    assert (one.data, three.data) == (b"one", b"three")
    await ack_sync(one)
    await broker.advance(ACK_WAIT_S / 2)
    await ack_sync(three)
    assert await broker.messages(stream) == 0


Scenario = Callable[[Broker], Awaitable[None]]
SCENARIOS: Final[tuple[Scenario, ...]] = (
    limits,
    duplicates,
    forgetting,
    expiry,
    compare_and_set,
    compare_and_set_again,
    history,
    proofs,
    written,
    sharing,
    redelivery,
    keeping,
    removal,
)


async def _is(value: Awaitable[Any], expected: Any) -> bool:
    return bool(await value == expected)


async def _now(value: Any) -> Any:
    return value


# The times that a scenario waits for; the others must not run out.
ACK_WAITS_S: Final = {lane_stream("redelivery"): ACK_WAIT_S, lane_stream("keeping"): KEEPING_WAIT_S}


def short(spec: StreamSpec) -> StreamSpec:
    """*spec* with windows short enough for a test."""
    ack_wait_s = ACK_WAITS_S.get(spec.name, BOUND_S)
    spec = replace(spec, consumers=tuple(replace(consumer, ack_wait_s=ack_wait_s) for consumer in spec.consumers))
    if spec.name == DEGRADED:
        return replace(spec, max_age_s=MAX_AGE_S, duplicate_window_s=MAX_AGE_S)
    if spec.name == lane_stream("limits"):
        return replace(spec, max_msgs=MAX_MSGS)
    if spec.name == lane_stream("forgetting"):
        return replace(spec, duplicate_window_s=WINDOW_S)
    return spec


def wanted() -> Topology:
    names = tuple(scenario.__name__ for scenario in SCENARIOS)
    full = topology(names, lane_queue_max_msgs=1_000, keep_s=3_600.0)
    return replace(full, streams=tuple(short(spec) for spec in full.streams))


async def run_all(url: str, network: Network | None) -> dict[str, BaseException | None]:
    """The outcome of each scenario."""
    link = await NatsLink.connect(url, name="conformance")
    await provision(link, wanted())
    assert await provision(link, wanted()) == []
    broker = Broker(link, network)
    results = await asyncio.gather(*(scenario(broker) for scenario in SCENARIOS), return_exceptions=True)
    await link.close()
    return {scenario.__name__: result for scenario, result in zip(SCENARIOS, results, strict=True)}


@pytest.fixture(scope="module", params=["simulated", "real"])
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcomes of the scenarios on one of the servers."""
    if request.param == "simulated":
        network = Network()
        use(network)
        with simulated_product():
            return network.run_until_complete(run_all("nats://simulated", network))
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for module in ASKING:
                patch.setattr(module, "REPLY_TIMEOUT_S", BOUND_S)
            return asyncio.run(run_all(server.url, None))
    finally:
        server.stop()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_server_does(outcomes: dict[str, BaseException | None], scenario: Scenario) -> None:
    error = outcomes[scenario.__name__]
    if error is not None:
        raise error
