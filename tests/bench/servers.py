"""servers: the same bare application behind uvicorn and behind granian. The gateway's server was chosen by this."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from tests.bench.accept import submitted
from tests.bench.load import LoadFailed, connect, request
from tests.bench.names import GRANIAN, UVICORN, WARMLANE
from tests.bench.procs import Cores
from tests.bench.results import Absent, Part
from tests.bench.rounds import Values, empty_folder, one_round, rotated
from tests.bench.stacks import Contender, Given, Stack, bare, lacks

# The answer to a poll: about as long as a task.
DOCUMENT: Final = msgspec.json.encode({"prompt": "a red fox in fresh snow", "timeline": ["x" * 80] * 10})


async def measure(
    every: Sequence[Contender], cores: Cores, *, rounds: int, seconds: float, say: Callable[[str], None]
) -> Part:
    """Measures accepting and polling on either server, with the record that Warmlane, one of *every*, stores.

    Raises LoadFailed, NotStarted.
    """
    record = await _record(next(each for each in every if each.name == WARMLANE), cores)
    missing = lacks("granian")
    names = [UVICORN] if missing else [UVICORN, GRANIAN]
    values = Values()
    async with contextlib.AsyncExitStack() as leave:
        stacks: dict[str, Stack] = {}
        for name in names:
            say(f"servers: starting {name}")
            folder = leave.enter_context(empty_folder())
            stacks[name] = await leave.enter_async_context(bare(folder, cores, record, behind=name))
        for stack in stacks.values():
            await _put(stack)
        for number in range(rounds):
            for name in rotated(names, number):
                stack = stacks[name]
                say(f"servers, round {number + 1} of {rounds}: {name}")
                get = request("GET", "/tasks/document", stack.address)
                polled = await one_round(stack, get, what=name, expected=200, seconds=seconds)
                accepted = await one_round(stack, stack.post(), what=name, expected=202, seconds=seconds)
                values.add(f"{name}, poll", {figure: polled[figure] for figure in SHOWN})
                values.add(f"{name}, accept", {figure: accepted[figure] for figure in SHOWN})
    return Part(
        name="servers",
        title="Servers",
        series=values.series(),
        absent=(Absent(GRANIAN, missing),) if missing else (),
        notes=(
            "The bare limit's own application, with uvloop and one worker on either server. See "
            "[ADR 0019](../adr/0019-uvicorn-and-not-granian.md).",
        ),
    )


SHOWN: Final = ("per_s", "p50_ms", "p99_ms", "cpu_s", "busy_percent", "peak_mb")


async def _record(warmlane: Contender, cores: Cores) -> bytes:
    with empty_folder() as folder:
        async with warmlane.start(Given(folder=folder, cores=cores)) as stack:
            return (await submitted(stack)).record


async def _put(stack: Stack) -> None:
    line = await connect(stack.address)
    put = request("PUT", "/tasks/document", stack.address, DOCUMENT, content_type="application/json")
    answer = await line.ask(put)
    line.close()
    if answer.status != 204:
        raise LoadFailed(f"a document could not be stored: status {answer.status}")
