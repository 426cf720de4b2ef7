"""accept: `POST /generate`, from the request to an answer behind which the task is stored."""

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

from contracts.topology import TASKS
from ops.bench.load import LoadFailed, connect, request
from ops.bench.procs import Cores
from ops.bench.report import Absent, Part
from ops.bench.rounds import Values, empty_folder, one_round, rotated
from ops.bench.stacks import Stack, contenders, warmlane

TITLE: Final = "Accept"
ACCEPTED: Final = 202


class Sample(Struct, frozen=True, kw_only=True):
    """A task as a gateway keeps it: its id, its *record* in the server, and the *view* that a client sees."""

    id: str
    record: bytes
    view: bytes


async def submitted(stack: Stack) -> Sample:
    """A task that *stack*, a gateway, has accepted. Raises LoadFailed."""
    line = await connect(stack.address)
    try:
        answer = await line.ask(stack.post())
        if answer.status != ACCEPTED:
            raise LoadFailed(f"a task is not accepted: status {answer.status}, {answer.body.decode(errors='replace')}")
        task_id: str = msgspec.json.decode(answer.body)["id"]
        view = await line.ask(request("GET", f"/tasks/{task_id}", stack.address))
    finally:
        line.close()
    entry = None if stack.link is None else await stack.link.get(TASKS, task_id)
    if entry is None or entry.value is None:
        raise LoadFailed(f"the task {task_id} was accepted, and has no record")
    return Sample(id=task_id, record=entry.value, view=view.body)


async def measure(cores: Cores, *, rounds: int, seconds: float, say: Callable[[str], None], peers: bool = True) -> Part:
    """Every contender in every round, each time on an empty store. Without *peers* only Warmlane and the limit.

    Raises LoadFailed, NotStarted.
    """
    with empty_folder() as folder:
        async with warmlane(folder, cores) as stack:
            sample = await submitted(stack)
    every = [each for each in contenders(sample.record) if peers or each.absent is None]
    every = every if peers else every[:2]
    present = [each for each in every if each.absent is None]
    values = Values()
    for number in range(rounds):
        for contender in rotated(present, number):
            say(f"accept, round {number + 1} of {rounds}: {contender.name}")
            with empty_folder() as folder:
                async with contender.start(folder, cores, False) as stack:
                    values.add(
                        contender.name,
                        await one_round(stack, stack.post(), what=contender.name, expected=ACCEPTED, seconds=seconds),
                    )
    return Part(
        name="accept",
        title=TITLE,
        series=values.series(),
        absent=tuple(Absent(each.name, each.absent) for each in every if each.absent is not None),
        notes=(
            "`POST /generate` with the same body. Stored when the answer is sent:",
            *(f"{each.name}: {each.durability}." for each in present),
        ),
    )
