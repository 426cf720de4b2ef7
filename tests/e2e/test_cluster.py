"""Three nats-servers as `ops/deploy/cluster/` configures them. `make cluster` kills them for longer."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from contracts.lanes import LaneState
from contracts.settings import load_settings
from contracts.topology import DEGRADED, DEGRADED_MAX_MSGS, LEADER, LEADER_KEY, TASKS, WORK_CONSUMER
from ops.commands.backup.restoring import restore
from ops.commands.backup.saving import backup
from ops.commands.provision import command
from ops.nats.entry import Entry
from ops.nats.errors import StreamFull, TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.nats.provisioning import ProvisioningRefused, differences, provision, wanted
from ops.nats.pull import Pull
from tests.drills.cluster import Load, outcome
from tests.drills.cluster_system import Cluster, Gateway, provision_three, stream_leader
from tests.kit.behind import js_of
from tests.kit.lanes import Lane, SharedForkServer
from tests.kit.support import KEEP_S, NatsServer, eventually, free_port

pytestmark = pytest.mark.usefixtures("rogue_forks")

WANT = wanted(load_settings().catalog("tiny"), keep_s=KEEP_S)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
async def cluster_link(cluster: Cluster) -> AsyncIterator[NatsLink]:
    """A connection to a provisioned cluster. The first server of its list is a dead one."""
    link = await NatsLink.connect(f"nats://127.0.0.1:{free_port()},{cluster.url}", name="test")
    await provision_three(link)
    yield link
    await link.close()


@pytest.mark.parametrize(
    "wrong", ["", "nats://", "http://127.0.0.1:4222", "nats://127.0.0.1:x", "127.0.0.1,,127.0.0.2"]
)
def test_an_address_that_cannot_be_one_is_a_usage_error(wrong: str) -> None:
    result = CliRunner().invoke(command, ["--nats-url", wrong])
    assert (result.exit_code, "is not the address of a server" in result.output) == (2, True), result.output


async def test_replicas_are_three_where_the_setting_says_so(cluster: Cluster, cluster_link: NatsLink) -> None:
    for name in WANT.names:
        info = await js_of(cluster_link).stream_info(name)
        assert info.config.num_replicas == 3
    assert await differences(cluster_link, WANT) == []  # the operator decides: by itself nothing is replicated
    check = ["--nats-url", cluster.url, "--keep", f"{KEEP_S:g}s", "--check", "--replicas"]
    same = await asyncio.to_thread(CliRunner().invoke, command, [*check, "3"])
    assert (same.exit_code, same.output) == (0, "nothing to do: the server matches\n")
    differs = await asyncio.to_thread(CliRunner().invoke, command, [*check, "1"])
    assert differs.exit_code == 1
    assert differs.output.splitlines() == [f"differs  {name}: num_replicas is 3, should be 1" for name in WANT.names]


async def test_a_single_server_refuses_three_replicas(nats_server: NatsServer) -> None:
    link = await NatsLink.connect(nats_server.url, name="test")
    with pytest.raises(ProvisioningRefused, match="replicas > 1 not supported"):
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S, replicas=3))
    await link.close()


async def test_limits_and_races_are_decided_as_on_one_server(cluster: Cluster, cluster_link: NatsLink) -> None:
    links = [await NatsLink.connect(node.url, name="racer") for node in cluster.nodes.values()]
    try:
        publishing = (
            links[n % 3].messages.publish(f"degraded.anisora.t{n}", b"x", message_id=f"t{n}.0") for n in range(100)
        )
        results = await asyncio.gather(*publishing, return_exceptions=True)
        kinds = Counter(type(result).__name__ for result in results)
        assert kinds == {"Ack": DEGRADED_MAX_MSGS, StreamFull.__name__: 100 - DEGRADED_MAX_MSGS}
        assert (await js_of(cluster_link).stream_info(DEGRADED)).state.messages == DEGRADED_MAX_MSGS
        await js_of(cluster_link).purge_stream(DEGRADED)

        revision = await cluster_link.entries.create(TASKS, "race", b"0")
        moving = (links[n % 3].entries.update(TASKS, "race", b"%d" % n, revision=revision) for n in range(60))
        moved = await asyncio.gather(*moving, return_exceptions=True)
        # the cluster had not decided the first one when the others came: it answers them with another code
        assert Counter(type(result).__name__ for result in moved) == {"int": 1, WrongRevision.__name__: 59}
        await js_of(cluster_link).purge_stream("KV_tasks")
    finally:
        for link in links:
            await link.close()


async def test_a_cluster_expires_keys(cluster_link: NatsLink) -> None:
    await cluster_link.entries.update(LEADER, LEADER_KEY, b"x", revision=0, ttl_s=1)

    async def expired() -> bool:
        entry = await cluster_link.entries.get(LEADER, LEADER_KEY)
        return entry is not None and entry.value is None

    await eventually(expired)


@pytest.fixture
async def fork_server() -> AsyncIterator[SharedForkServer]:
    server = SharedForkServer()
    yield server
    await server.close_at_last()


async def test_a_killed_leader_under_load_loses_no_accepted_task(
    cluster: Cluster, cluster_link: NatsLink, fork_server: SharedForkServer, tmp_path: Path, nats_server: NatsServer
) -> None:
    """No accepted task is lost or done twice, and watches go on. A single server restores the cluster's backup."""
    gateway = Gateway(cluster.address, tmp_path)
    link = await NatsLink.connect(cluster.url, name="lane")
    lane = Lane(link, load_settings().catalog("tiny"), tmp_path, fork_server=fork_server)
    seen: dict[str, int] = {}

    def note(entry: Entry) -> None:
        seen[entry.key] = entry.revision

    await (await cluster_link.watches.start(TASKS, note)).wait()
    try:
        lane.start()
        await lane.becomes(LaneState.WARM)
        await asyncio.to_thread(gateway.wait_until_answering)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
            load, stop = Load([http], ("phr00t",), clients=2), asyncio.Event()
            sending = asyncio.create_task(load.run(stop))

            async def accepts(count: int) -> None:
                async def look() -> bool:
                    if sending.done():
                        await sending  # raises the reason
                    return len(load.accepted) >= count

                await eventually(look, within_s=60)

            await accepts(3)
            victim = await stream_leader(cluster_link, "KV_tasks")
            cluster.nodes[victim].kill()
            await accepts(len(load.accepted) + 6)
            cluster.nodes[victim].start()
            stop.set()
            await sending
        ends = await outcome(cluster_link, list(load.accepted))
        assert (ends.done, ends.lost, ends.doubled, load.given_up) == (ends.accepted, 0, 0, 0)
        assert set(load.refusals) <= {"503 transport_unavailable"}
    finally:
        await lane.leave()
        await asyncio.to_thread(gateway.stop)
        await link.close()
    await asyncio.to_thread(cluster.wait_until_whole)
    last = {task_id: await cluster_link.entries.get(TASKS, task_id) for task_id in load.accepted}

    async def all_seen() -> bool:
        return seen == {task_id: entry.revision for task_id, entry in last.items() if entry is not None}

    await eventually(all_seen)

    await backup(cluster_link, WANT, tmp_path / "backup", lambda *_: None)
    single = await NatsLink.connect(nats_server.url, name="single")
    await restore(single, tmp_path / "backup", lambda *_: None, replicas=1)
    assert {task_id: await single.entries.get(TASKS, task_id) for task_id in last} == last
    await single.close()


async def test_a_cluster_without_a_majority_answers_nobody(
    cluster: Cluster, cluster_link: NatsLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is the last test, because it leaves one server of three."""
    pull = await cluster_link.messages.pull(DEGRADED, WORK_CONSUMER)
    for name in ("n1", "n2"):
        cluster.nodes[name].kill()
    link = await NatsLink.connect(cluster.url, name="test")
    with pytest.raises(TransportUnavailable):
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S, replicas=3))
    with pytest.raises(TransportUnavailable):
        await link.entries.put(TASKS, "lost", b"x")

    await fetch_without_leader(pull, monkeypatch)
    await link.close()


async def fetch_without_leader(pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log does not call a consumer without a leader missing, and a lane stays well while an election may go on."""
    with capture_logs() as lines:
        while not any(line["event"] == "fetch_failed" for line in lines):
            assert await pull.fetch() == []
    for _ in range(2):
        assert await pull.fetch() == []
        assert pull.trouble is None
    monkeypatch.setattr("ops.nats.pull.LEADERLESS_S", 1.0)
    await pull.fetch()
    assert pull.trouble == "nats-server has had no leader for DEGRADED/worker for 1 s; see its log"
