"""What `warmlane up` says of its start: numbered as in `ops.commands.up.start.how_started`."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from contracts.lanes import LaneState
from ops.commands.up import start
from ops.commands.up.start import StartStage, answers, how_started
from ops.machine.processes import Process
from tests.kit.support import BOUND_S

WARM, LOADING, LOOPING, DENIED = LaneState.WARM, LaneState.LOADING, LaneState.CRASH_LOOPING, LaneState.QUOTA_DENIED


@pytest.mark.parametrize(
    ("lanes", "leads", "answering", "failing", "expected"),
    [
        pytest.param([WARM, WARM], True, False, [], StartStage.NOT_YET, id="1-no-gateway"),
        pytest.param([WARM, WARM], True, False, ["gateway"], StartStage.NOT_YET, id="1-gateway-crash-loops"),
        pytest.param([WARM], True, True, [], StartStage.NOT_YET, id="1-a-lane-is-missing"),
        pytest.param([WARM, LOADING], True, True, [], StartStage.NOT_YET, id="1-a-lane-loads"),
        pytest.param([WARM, DENIED], False, True, [], StartStage.NOT_YET, id="2"),
        pytest.param([WARM, LOOPING], False, True, ["degraded-0"], StartStage.NOT_YET, id="2-nobody-serves"),
        pytest.param([WARM, LOOPING], True, True, [], StartStage.PARTLY, id="3-a-lane"),
        pytest.param([WARM, WARM], False, True, ["degraded-0"], StartStage.PARTLY, id="3-the-degraded-worker"),
        pytest.param([WARM, WARM], True, True, ["gateway"], StartStage.PARTLY, id="3-the-gateway"),
        pytest.param([WARM, WARM], False, True, [], StartStage.NOT_YET, id="4"),
        pytest.param([WARM, WARM], True, True, [], StartStage.READY, id="5"),
        pytest.param([WARM, DENIED], True, True, [], StartStage.READY, id="5-denied"),
    ],
)
def test_how_started(
    lanes: list[LaneState], leads: bool, answering: bool, failing: list[str], expected: StartStage
) -> None:
    assert how_started(lanes, wanted=2, leads=leads, answers=answering, failing=failing) is expected


def test_a_system_without_lanes_is_ready_with_its_degraded_worker() -> None:
    assert how_started([], wanted=0, leads=False, answers=True, failing=[]) is StartStage.NOT_YET
    assert how_started([], wanted=0, leads=True, answers=True, failing=[]) is StartStage.READY


async def test_another_program_at_the_port_is_no_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nats-server sends the first message, and another web server has no such page."""
    monkeypatch.setattr(start, "PROBE_S", BOUND_S)

    async def at(line: bytes) -> bool:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(line)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            return await answers("127.0.0.1", server.sockets[0].getsockname()[1], None)

    assert not await at(b'INFO {"server_id":"X","port":8000}\r\n')
    assert not await at(b"HTTP/1.1 404 Not Found\r\n\r\n")
    assert not await at(b"")
    assert await at(b"HTTP/1.1 200 OK\r\n\r\n")


async def test_a_process_that_ends_again_and_again_is_failing(tmp_path: Path) -> None:
    deaths = asyncio.Queue[bool]()
    process = Process(
        "loop", ["false"], log_file=tmp_path / "log", on_death=lambda it, *_: deaths.put_nowait(it.is_failing)
    )
    assert not process.is_failing
    running = asyncio.create_task(process.run())
    assert await deaths.get()
    assert process.is_failing
    assert await deaths.get()
    await process.stop(within_s=5)
    await running
    assert not process.is_failing  # it was asked to end
