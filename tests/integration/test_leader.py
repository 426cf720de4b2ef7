"""Leadership by a key that expires, on a real server: taken once, handed over, never stolen back (design §10.9)."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from contracts.lanes import Leadership
from contracts.topology import LEADER, LEADER_KEY, LEADER_REFRESH_S, LEADER_TTL_S
from ops.ending import end
from ops.nats import leader as leader_module
from ops.nats.bucket import Versioned
from ops.nats.buckets import LEADERSHIPS
from ops.nats.entry import Entry
from ops.nats.leader import Leader, Standing, leads, vacancy
from ops.nats.link import NatsLink
from tests.kit.support import NatsServer, clean_environment, eventually

ROOT = Path(__file__).parents[2]
STANDING = Standing(term=7, revision=9, sent_s=100.0)
# A leader that stands still for some seconds, on a busy machine, is not to lose its key in a test of something else.
LONG_TTL_S = 5
OFTEN_S = 0.5


def entry(owner: str | None, revision: int = 5) -> Entry:
    value = Leadership(worker="w", owner=owner or "", slot="cpu-0", pid=1, since=datetime.now(UTC))
    return Entry(LEADER_KEY, msgspec.json.encode(value) if owner else None, revision, datetime.now(UTC))


@pytest.mark.parametrize(
    ("standing", "now_s", "expected"),
    [
        pytest.param(None, 100.0, False, id="never-took-it"),
        pytest.param(STANDING, 100.0, True, id="just-stored"),
        pytest.param(STANDING, 100.0 + LEADER_TTL_S - 0.01, True, id="within-its-time"),
        pytest.param(STANDING, 100.0 + LEADER_TTL_S, False, id="it-may-have-expired"),
    ],
)
def test_leads(standing: Standing | None, now_s: float, expected: bool) -> None:
    assert leads(standing, now_s=now_s) is expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(None, 0, id="1-nothing-there"),
        pytest.param(entry(None), 5, id="2-a-marker"),
        pytest.param(entry("me"), 5, id="3-mine-from-a-lost-answer"),
        pytest.param(entry("other"), None, id="somebody-else"),
        pytest.param(Entry(LEADER_KEY, b"\xff", 5, datetime.now(UTC)), 5, id="4-unreadable"),
    ],
)
def test_vacancy(found: Entry | None, expected: int | None) -> None:
    assert vacancy(None if found is None else Versioned(LEADERSHIPS, found), owner="me") == expected


@pytest.fixture
async def candidates(link: NatsLink, nats_server: NatsServer) -> AsyncIterator[list[Leader]]:
    """Three candidates, each with a connection of its own."""
    links = [await NatsLink.connect(nats_server.url, name=f"c{number}") for number in range(3)]
    leaders = [
        Leader(own, worker=f"w{number}", owner=f"nonce-{number}", slot="cpu-0") for number, own in enumerate(links)
    ]
    for leader in leaders:
        await leader.start()
    yield leaders
    for own in links:
        await own.close()


Times = Callable[[float, float], None]


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    """Sets how long the key lives, in whole seconds, and how often a leader of this process refreshes it.

    Who does not get a core for that long loses the key, as the product promises. So the key lives long in a test that
    does not wait for its end, and only as long as it must in one that does.
    """

    def are(ttl_s: float, refresh_s: float) -> None:
        monkeypatch.setattr(leader_module, "LEADER_TTL_S", ttl_s)
        monkeypatch.setattr(leader_module, "LEADER_REFRESH_S", refresh_s)

    return are


async def leadership(link: NatsLink) -> Leadership | None:
    found = await link.entries.get(LEADER, LEADER_KEY)
    return None if found is None or found.value is None else msgspec.json.decode(found.value, type=Leadership)


async def test_one_of_many_leads_and_a_resignation_hands_over_at_once(
    link: NatsLink, candidates: list[Leader], times: Times
) -> None:
    times(60, LEADER_REFRESH_S)
    campaigns = {asyncio.create_task(leader.campaign()): leader for leader in candidates}
    terms = []
    while campaigns:
        done, _ = await asyncio.wait(campaigns, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1, "one takes it, and no second"
        elected = done.pop()
        leader = campaigns.pop(elected)
        assert [it.is_leader(time.monotonic()) for it in candidates].count(True) == 1
        shown = await leadership(link)
        assert shown is not None
        assert candidates[int(shown.worker[1:])] is leader
        terms.append(elected.result())
        await leader.resign()
        assert not leader.is_leader(time.monotonic())
        shown = await leadership(link)
        assert shown is None or candidates[int(shown.worker[1:])] is not leader, "given back, not left to expire"
    assert terms == sorted(set(terms)), "terms grow: the lock of the slot relies on it"


async def test_a_leader_says_at_once_when_it_serves(link: NatsLink, times: Times) -> None:
    times(60, 30)
    leader = Leader(link, worker="w", owner="o", slot="cpu-0", serves_at_once=False)
    await leader.start()
    await leader.campaign()
    shown = await leadership(link)
    assert shown is not None
    assert not shown.serves
    holding = asyncio.create_task(leader.hold())
    leader.serve()

    async def serves() -> bool:
        shown = await leadership(link)
        return shown is not None and shown.serves

    await eventually(serves)
    holding.cancel()
    await leader.resign()


async def test_a_leader_that_refreshes_keeps_the_key_beyond_its_time(
    link: NatsLink, candidates: list[Leader], times: Times
) -> None:
    times(LONG_TTL_S, OFTEN_S)
    leader, standby, _ = candidates
    await leader.campaign()
    holding = asyncio.create_task(leader.hold())
    waiting = asyncio.create_task(standby.campaign())
    taken = await link.entries.get(LEADER, LEADER_KEY)
    assert taken is not None
    revisions = LONG_TTL_S / OFTEN_S + 1

    async def refreshed() -> bool:
        now = await link.entries.get(LEADER, LEADER_KEY)
        assert now is not None
        assert now.value is not None
        return now.revision >= taken.revision + revisions

    await eventually(refreshed)
    assert not holding.done()
    assert not waiting.done()
    # an operator may end the leadership with any write
    await link.entries.put(LEADER, LEADER_KEY, b"nobody")
    await asyncio.wait_for(holding, 60)
    assert not leader.is_leader(time.monotonic())
    await end(waiting)


async def test_a_refresh_whose_answer_was_lost_is_no_loss(
    link: NatsLink, candidates: list[Leader], times: Times
) -> None:
    times(60, OFTEN_S)
    leader = candidates[0]
    term = await leader.campaign()
    stored = await link.entries.get(LEADER, LEADER_KEY)
    assert stored is not None
    assert stored.value is not None
    # the same write once more, as when only the answer was lost
    lost = await link.entries.update(LEADER, LEADER_KEY, stored.value, revision=stored.revision, ttl_s=60)
    holding = asyncio.create_task(leader.hold())

    async def refreshed() -> bool:
        now = await link.entries.get(LEADER, LEADER_KEY)
        return now is not None and now.revision > lost

    await eventually(refreshed)
    assert not holding.done()
    assert leader.is_leader(time.monotonic())
    assert leader.term == term
    await end(holding)


async def test_a_leader_that_is_cut_off_stops_leading_by_its_own_clock(
    nats_server: NatsServer, candidates: list[Leader], times: Times
) -> None:
    """When the server comes back, some candidate leads again: a restart loses no standby."""
    times(1, OFTEN_S)
    leader = candidates[0]
    term = await leader.campaign()
    holding = asyncio.create_task(leader.hold())
    waiting = asyncio.create_task(candidates[1].campaign())
    nats_server.kill()
    await asyncio.wait_for(holding, 60)
    assert not leader.is_leader(time.monotonic())
    assert not waiting.done()
    nats_server.start()
    assert await asyncio.wait_for(waiting, 60) > term


class Candidate:
    """A candidate process, and what it has reported."""

    def __init__(self, url: str, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.candidate", url, name, f"{LONG_TTL_S}", f"{OFTEN_S}"],
            cwd=ROOT,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._lines = self._process.stdout

    def __enter__(self) -> "Candidate":
        assert self._lines.readline() == "stands by\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._lines.close()

    async def says(self) -> str:
        return (await asyncio.wait_for(asyncio.to_thread(self._lines.readline), 60)).strip()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)


@pytest.fixture
def candidate(nats_server: NatsServer) -> Iterator[Callable[[str], Candidate]]:
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(Candidate(nats_server.url, name))


async def test_kill_9_and_a_resumed_leader_steals_nothing(
    link: NatsLink, candidate: Callable[[str], Candidate]
) -> None:
    """SIGSTOP, takeover, SIGCONT: a blind refresh would take the key back; this leader notices and stands by."""
    leader = candidate("first")
    term = int((await leader.says()).removeprefix("leads "))
    standby = candidate("second")
    leader.signal(signal.SIGSTOP)
    next_term = int((await standby.says()).removeprefix("leads "))
    assert next_term > term
    leader.signal(signal.SIGCONT)
    assert await leader.says() == "lost"
    before = await link.entries.get(LEADER, LEADER_KEY)
    assert before is not None

    async def refreshed_twice() -> bool:
        now = await link.entries.get(LEADER, LEADER_KEY)
        return now is not None and now.revision >= before.revision + 2

    await eventually(refreshed_twice)
    shown = await leadership(link)
    assert shown is not None
    assert shown.worker == "second"
    # it is a real standby: it leads again when its successor is killed
    standby.signal(signal.SIGKILL)
    assert int((await leader.says()).removeprefix("leads ")) > next_term
