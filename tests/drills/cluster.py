"""`make cluster`: three nats-servers that keep everything three times, and are killed one after the other under load.
Two gateways and two workers share an S3 bucket. Each has a folder of its own, as on a machine of its own.

Every figure comes from outside: answers from a client, and the records that the servers hold at the end.
"""

import asyncio
import contextlib
import hashlib
import itertools
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click
import httpx
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from contracts.lanes import LaneState
from contracts.tasks import GenerationTask, TaskStatus, VideoFile, decode_task
from contracts.topology import DEGRADED, TASKS
from ops.ending import end
from ops.nats.entry import Entry
from ops.nats.link import NatsLink
from tests.drills.cluster_system import Cluster, _started, artifacts_of, provision_three, stream_leader
from tests.kit.degraded import leads
from tests.kit.lanes import heartbeat_of
from tests.kit.support import eventually

CLIENTS: Final = 8
# The servers elect a new leader in the place of a dead one, which takes nats-server 4 to 9 s.
STALL_S: Final = 15.0
DOWN_S: Final = 2.0
CALM_S: Final = 2.0
# A client retries a request for this long, with one Idempotency-Key, before it gives it up.
PATIENCE_S: Final = 60.0
CLIENT_TIMEOUT_S: Final = 60.0
AGAIN_S: Final = 0.2
TASK_WAIT_S: Final = 5.0
SMALL: Final = {"num_frames": 9, "width": 32, "height": 32}


# ── load ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Load:
    """Clients that each request one video after the other, and retry with the same key when they are refused. They are
    spread over the gateways.

    A client sends its next request when its last task has ended, or after 5 s. So a slow machine is not overloaded, and
    some client always sends while the cluster elects a leader.
    """

    def __init__(self, https: Sequence[httpx.AsyncClient], models: Sequence[str], *, clients: int = CLIENTS) -> None:
        self._https, self._models, self._clients = https, models, clients
        self.begun_s = self.ended_s = 0.0
        self.accepted: dict[str, float] = {}
        self.refusals: Counter[str] = Counter()
        self.given_up = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Sends until *stop*; returns when every client has had its last answer."""
        self.begun_s = time.monotonic()
        async with asyncio.TaskGroup() as clients:
            for number in range(self._clients):
                clients.create_task(self._client(number, stop))
        self.ended_s = time.monotonic()

    async def _client(self, number: int, stop: asyncio.Event) -> None:
        http = self._https[number % len(self._https)]
        for turn, model in enumerate(itertools.cycle(self._models)):
            task_id = await self._submit(http, model, f"client-{number}-turn-{turn}")
            if task_id is not None:
                await http.get(f"/tasks/{task_id}?wait={TASK_WAIT_S:g}")
            if stop.is_set():
                return

    async def _submit(self, http: httpx.AsyncClient, model: str, key: str) -> str | None:
        begun_s = time.monotonic()
        while time.monotonic() < begun_s + PATIENCE_S:
            response = await http.post(
                "/generate", json={"model": model, "prompt": key} | SMALL, headers={"idempotency-key": key}
            )
            body = response.json()
            if response.status_code == 202:
                self.accepted[body["id"]] = time.monotonic()
                return str(body["id"])
            assert response.status_code == 503, body
            self.refusals[f"{response.status_code} {body['code']}"] += 1
            await asyncio.sleep(AGAIN_S)
        self.given_up += 1
        return None

    def longest_stall_s(self, since_s: float | None = None, until_s: float | None = None) -> float:
        """The longest time without an accepted request."""
        since_s, until_s = since_s or self.begun_s, until_s or self.ended_s
        moments = [since_s, *sorted(at_s for at_s in self.accepted.values() if since_s < at_s < until_s), until_s]
        return max(later - sooner for sooner, later in itertools.pairwise(moments))


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of the accepted requests. *doubled*: ended more than once, or moved after its end. *videos*: the
    published video of each task."""

    accepted: int
    done: int
    failed: Counter[str]
    lost: int
    doubled: int
    videos: dict[str, VideoFile]


async def outcome(link: NatsLink, accepted: Sequence[str], *, within_s: float = 90) -> Outcome:
    """Waits until every accepted task has ended, and reads the history of its record."""
    seen: dict[str, list[GenerationTask]] = defaultdict(list)

    def note(entry: Entry) -> None:
        if entry.value is not None:
            seen[entry.key].append(decode_task(entry.value))

    await (await link.watches.start(TASKS, note, history=True)).wait()

    async def all_ended() -> bool:
        return all(seen[task_id] and seen[task_id][-1].status.is_terminal for task_id in accepted)

    with contextlib.suppress(AssertionError):  # what has not ended by then is lost
        await eventually(all_ended, within_s=within_s)
    ends = {task_id: [task for task in seen[task_id] if task.status.is_terminal] for task_id in accepted}
    return Outcome(
        accepted=len(accepted),
        done=sum(bool(tasks) and tasks[-1].status is TaskStatus.DONE for tasks in ends.values()),
        failed=Counter(tasks[-1].error.code.value for tasks in ends.values() if tasks and tasks[-1].error is not None),
        lost=sum(not tasks for tasks in ends.values()),
        doubled=sum(
            len(tasks) > 1 or bool(tasks and seen[task_id][-1] is not tasks[0]) for task_id, tasks in ends.items()
        ),
        videos={task_id: tasks[-1].video for task_id, tasks in ends.items() if tasks and tasks[-1].video is not None},
    )


async def not_served(https: Sequence[httpx.AsyncClient], videos: Mapping[str, VideoFile]) -> int:
    """How many times a gateway does not send a video of *videos* whole. Each gateway is asked for each video."""
    missing = 0
    for http in https:
        for task_id, video in videos.items():
            answer = await http.get(f"/tasks/{task_id}/video")
            missing += answer.status_code != 200 or hashlib.sha256(answer.content).hexdigest() != video.sha256
    return missing


class Kill(Struct, frozen=True):
    """One kill: the node's role and name, when it was killed (monotonic), and when the cluster was whole again."""

    what: str
    node: str
    at_s: float
    whole_s: float


async def kill_in_turn(cluster: Cluster, link: NatsLink, *, seconds: float, console: Console) -> list[Kill]:
    """Kills one node after the other, chosen by its role at the moment, each as soon as the last one is back."""
    kills: list[Kill] = []
    begun_s = time.monotonic()
    for what in itertools.cycle((f"leader of {DEGRADED}", "meta leader", "the gateway's server", f"leader of {TASKS}")):
        await asyncio.sleep(CALM_S)  # between two kills, load runs on a whole cluster
        if time.monotonic() > begun_s + seconds:
            return kills
        match what:
            case "meta leader":
                name = await asyncio.to_thread(cluster.meta_leader)
            case "the gateway's server":
                name = await asyncio.to_thread(cluster.server_of, "gateway")
            case _:
                name = await stream_leader(link, DEGRADED if DEGRADED in what else "KV_tasks")
        at_s = time.monotonic()
        cluster.nodes[name].kill()
        console.print(f"{at_s - begun_s:5.1f} s  kill -9 of {name}, {what}", highlight=False)
        await asyncio.sleep(DOWN_S)
        cluster.nodes[name].start()
        await asyncio.to_thread(cluster.wait_until_whole)
        kills.append(Kill(what, name, at_s, time.monotonic()))
    return kills


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Seen(Struct, frozen=True, kw_only=True):
    """All that was observed in one run."""

    load: Load
    kills: list[Kill]
    outcome: Outcome
    not_served: int


async def measure(
    cluster: Cluster, folder: Path, environment: Mapping[str, str], *, seconds: float, console: Console
) -> Seen:
    link = await NatsLink.connect(cluster.url, name="observer")
    try:
        await provision_three(link)
        async with _started(cluster, folder, environment) as gateways, contextlib.AsyncExitStack() as leave:

            async def warm() -> bool:
                lane = await heartbeat_of(link, "anisora-0")
                return lane is not None and lane.state is LaneState.WARM

            await eventually(warm, within_s=90)
            await leads(link, "degraded-0")
            https = [
                await leave.enter_async_context(httpx.AsyncClient(base_url=each.url, timeout=CLIENT_TIMEOUT_S))
                for each in gateways
            ]
            load = Load(https, ("anisora", "phr00t"))
            stop = asyncio.Event()
            sending = asyncio.create_task(load.run(stop))
            try:
                kills = await kill_in_turn(cluster, link, seconds=seconds, console=console)
                stop.set()
                await sending
            finally:
                await end(sending)
            ends = await outcome(link, list(load.accepted))
            return Seen(load=load, kills=kills, outcome=ends, not_served=await not_served(https, ends.videos))
    finally:
        await link.close()


class Verdict(Struct, frozen=True):
    """One line of the table; *missed_by* is empty when the aim was met."""

    what: str
    measured: str
    asked: str
    missed_by: str


def judge(seen: Seen) -> list[Verdict]:
    """The verdicts on a run."""
    load, ends = seen.load, seen.outcome
    stall_s = load.longest_stall_s()

    def zero(what: str, count: int) -> Verdict:
        return Verdict(what, str(count), "0", str(count) if count else "")

    return [
        zero(f"lost, of {ends.accepted} accepted", ends.lost),
        zero("ended twice, or moved after their end", ends.doubled),
        zero("ended without a video", sum(ends.failed.values())),
        zero(f"not served whole, of {len(ends.videos)} videos at two gateways", seen.not_served),
        zero(f"requests that were not accepted within {PATIENCE_S:g} s", load.given_up),
        Verdict(
            "longest time without an accepted request",
            f"{stall_s:.1f} s",
            f"≤ {STALL_S:g} s",
            f"{stall_s - STALL_S:.1f} s" if stall_s > STALL_S else "",
        ),
        Verdict(
            "servers killed",
            str(len(seen.kills)),
            "≥ 3",
            str(3 - len(seen.kills)) if len(seen.kills) < 3 else "",
        ),
    ]


def report(console: Console, seen: Seen, verdicts: Sequence[Verdict]) -> None:
    """Prints each kill, the refusals, and the verdicts."""
    table = Table("killed", "it was", "no request accepted for", "whole again after", title="Kills")
    for kill, following in itertools.zip_longest(seen.kills, seen.kills[1:]):
        until_s = following.at_s if following is not None else seen.load.ended_s
        stall_s = seen.load.longest_stall_s(kill.at_s, until_s)
        table.add_row(kill.node, kill.what, f"{stall_s:.1f} s", f"{kill.whole_s - kill.at_s:.1f} s")
    console.print(table)
    refusals = ", ".join(f"{count} x {code}" for code, count in sorted(seen.load.refusals.items())) or "none"
    console.print(f"refused, and asked again: {refusals}", highlight=False)
    table = Table("what", "measured", "asked", "", title="Cluster")
    for verdict in verdicts:
        mark = f"[red]missed by {verdict.missed_by}[/]" if verdict.missed_by else "[green]met[/]"
        table.add_row(verdict.what, verdict.measured, verdict.asked, mark)
    console.print(table)


@click.command(epilog="Example:\n\n  python -m tests.drills.cluster --seconds 30")
@click.option("--seconds", type=click.FloatRange(1), default=90, show_default=True, help="How long to kill servers.")
@click.option(
    "--artifacts",
    type=click.Choice(["seaweedfs", "folder"]),
    default="seaweedfs",
    show_default=True,
    help="Where videos are: in a bucket of a SeaweedFS that is started for it, or in a folder that all share.",
)
def command(seconds: float, artifacts: str) -> None:
    """Run three nats-servers and a system on them, kill one after the other, and judge what became of the requests.

    Exit status 1 on a miss.
    """
    console = Console()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        cluster = Cluster(folder)
        try:
            cluster.start()
            with artifacts_of(artifacts, folder) as environment:
                seen = asyncio.run(measure(cluster, folder, environment, seconds=seconds, console=console))
        finally:
            cluster.stop()
    verdicts = judge(seen)
    report(console, seen, verdicts)
    raise SystemExit(1 if any(verdict.missed_by for verdict in verdicts) else 0)


if __name__ == "__main__":
    command()
