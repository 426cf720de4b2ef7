"""accept: `POST /generate`, from the request to the answer. The task is stored before the answer is sent."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Struct

from contracts.topology import TASKS, bucket_stream, bucket_subject, lane_stream, work_subject
from tests.bench.load import LoadFailed, connect
from tests.bench.names import BARE, WARMLANE
from tests.bench.procs import Cores
from tests.bench.results import Absent, Part
from tests.bench.rounds import Values, empty_folder, one_round, rotated
from tests.bench.stacks import MODEL, Contender, Given, Stack
from tests.kit.behind import js_of

TITLE: Final = "Accept"
ACCEPTED: Final = 202


class Sample(Struct, frozen=True, kw_only=True):
    """A task that was accepted: its id, and its *record* in the server."""

    id: str
    record: bytes


async def submitted(stack: Stack) -> Sample:
    """A task that *stack*, a gateway or the limit, has accepted. Raises LoadFailed."""
    line = await connect(stack.address)
    try:
        answer = await line.ask(stack.post())
        if answer.status != ACCEPTED:
            raise LoadFailed(f"a task is not accepted: status {answer.status}, {answer.body.decode(errors='replace')}")
        task_id: str = msgspec.json.decode(answer.body)["id"]
    finally:
        line.close()
    entry = None if stack.link is None else await stack.link.entries.get(TASKS, task_id)
    if entry is None or entry.value is None:
        raise LoadFailed(f"the task {task_id} was accepted, and has no record")
    return Sample(id=task_id, record=entry.value)


async def stored(stack: Stack, sample: Sample) -> tuple[tuple[str, int], ...]:
    """What the server keeps of a task: the stream and size of each message, in the order of storing."""
    link = stack.link
    assert link is not None
    where = (
        (lane_stream(MODEL), work_subject("lane", MODEL, sample.id)),
        (bucket_stream(TASKS), bucket_subject(TASKS, sample.id)),
    )
    found = [(stream, await js_of(link).get_last_msg(stream, subject)) for stream, subject in where]
    found.sort(key=lambda each: each[1].time or datetime.min.replace(tzinfo=UTC))
    return tuple((stream, len(message.data or b"")) for stream, message in found)


async def measure(
    every: Sequence[Contender], cores: Cores, *, rounds: int, seconds: float, say: Callable[[str], None]
) -> Part:
    """Measures each of *every*, Warmlane and the limit among them, in every round, each time on an empty store.

    Raises LoadFailed, NotStarted; LoadFailed also when the limit does not store what Warmlane stores.
    """
    present = [each for each in every if each.absent is None]
    values = Values()
    record = b""
    writes: dict[str, tuple[tuple[str, int], ...]] = {}
    for number in range(rounds):
        for contender in rotated(present, number):  # in the first round, Warmlane comes first
            say(f"accept, round {number + 1} of {rounds}: {contender.name}")
            with empty_folder() as folder:
                async with contender.start(Given(folder=folder, cores=cores, record=record)) as stack:
                    figures = await one_round(
                        stack, stack.post(), what=contender.name, expected=ACCEPTED, seconds=seconds
                    )
                    values.add(contender.name, figures)
                    if contender.name in (WARMLANE, BARE):
                        sample = await submitted(stack)
                        record = record or sample.record
                        writes[contender.name] = await stored(stack, sample)
    if writes[WARMLANE] != writes[BARE]:
        raise LoadFailed(f"the limit does not store what Warmlane stores: {writes}")
    shown = ", ".join(f"{size:,} bytes in `{stream}`" for stream, size in writes[BARE])
    return Part(
        name="accept",
        title=TITLE,
        series=values.series(),
        absent=tuple(Absent(each.name, each.absent) for each in every if each.absent is not None),
        notes=(
            "`POST /generate` with the same body. No worker runs. Stored when the answer is sent:",
            *(f"{each.name}: {each.durability}." for each in present),
            f"Looked up in both servers, Warmlane and the limit store the same, in this order: {shown}.",
        ),
    )
