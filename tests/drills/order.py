"""`make order`: what an order of the degraded queue is worth, at half to ten times the capacity of first in, first out.

Other projects' orders run in the same simulation as the product's own: same places, same wait, same arrivals.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import click
from msgspec import Struct
from rich.console import Console
from rich.progress import track
from rich.table import Table

from contracts.order import Policy
from contracts.topology import DEGRADED_MAX_MSGS
from ops.simulation import WAIT_S, Arrival, ChooseNext, Outcome, by_policy, costs_alike, simulate
from tests.drills.order_real import REAL_HEADINGS, compare_real, judge_real, real_cells
from tests.kit.orders import named

PAGE: Final = Path(__file__).parents[2] / "docs" / "benchmarks" / "order.md"
MODELS: Final = ("anisora", "phr00t")
TIMES: Final = (0.5, 1.0, 3.0, 10.0)
# How many tasks first in, first out would serve without a pause.
TASKS: Final = 1_500
SEED: Final = 7
FIFO: Final = "fifo"
SWAP_AWARE: Final = "swap-aware"
# How many of ten requests each caller sends.
CALLERS: Final[Mapping[str, int]] = {"many": 9, "few": 1}
# An order may lose no more than this share against first in, first out, at any load.
MAY_LOSE: Final = 0.03
# What the product's order has to serve against first in, first out where a swap costs at least twice a run, at three
# times the capacity.
GAINS: Final = 1.7


class Case(Struct, frozen=True):
    """What a run and a swap take, in seconds."""

    run_s: float
    swap_s: float

    @property
    def fifo_s(self) -> float:
        """What first in, first out needs for a task, if two models come at random in equal parts."""
        return self.run_s + self.swap_s / 2

    def __str__(self) -> str:
        return f"{self.run_s:g} s, {self.swap_s:g} s"


CASES: Final = (Case(2, 4), Case(2, 10), Case(8, 15), Case(26, 20))


class Row(Struct, frozen=True, kw_only=True):
    """How one order served one load."""

    case: Case
    times: float
    order: str
    served: int
    of: int
    against_fifo: float
    swaps_per_task: float
    longest_wait_s: float
    least_model: float
    few_served: float


def orders() -> dict[str, ChooseNext]:
    """The orders to compare, each with a memory of its own."""
    others = named(30)
    return {
        FIFO: others["fifo"],
        "slice of 30 s": others["slice"],
        SWAP_AWARE: by_policy(Policy()),
        "llama-swap": others["llama-swap"],
        "SwarmUI": others["SwarmUI"],
    }


def arrivals(rate_per_s: float, until_s: float, *, seed: int = SEED) -> list[Arrival]:
    """Two models in equal parts, at random moments. One of two callers sends nine times as many as the other."""
    chance, at_s, found = random.Random(seed), 0.0, []
    while (at_s := at_s + chance.expovariate(rate_per_s)) < until_s:
        caller = chance.choices(list(CALLERS), list(CALLERS.values()))[0]
        found.append(Arrival(at_s=at_s, model=chance.choice(MODELS), caller=caller))
    return found


def compare(case: Case, times: float, *, tasks: int = TASKS, wait_s: float = WAIT_S) -> list[Row]:
    """Every order on the same arrivals, *times* what first in, first out can serve."""
    until_s = tasks * case.fifo_s
    came = arrivals(times / case.fifo_s, until_s)
    costs = costs_alike(MODELS, run_s=case.run_s, swap_s=case.swap_s)
    outcomes = {
        name: simulate(came, order=order, costs=costs, until_s=until_s, wait_s=wait_s)
        for name, order in orders().items()
    }
    return [row(case, times, name, outcome, came, outcomes[FIFO]) for name, outcome in outcomes.items()]


def row(case: Case, times: float, name: str, outcome: Outcome, came: Sequence[Arrival], fifo: Outcome) -> Row:
    """*outcome* beside that of first in, first out."""
    of_few = sum(arrival.caller == "few" for arrival in came)
    return Row(
        case=case,
        times=times,
        order=name,
        served=outcome.served,
        of=len(came),
        against_fifo=outcome.served / fifo.served,
        swaps_per_task=outcome.swaps_per_task,
        longest_wait_s=outcome.longest_wait_s,
        least_model=min(outcome.shares("model").get(model, 0.0) for model in MODELS),
        few_served=outcome.shares("caller").get("few", 0.0) * outcome.served / of_few,
    )


def judge(rows: Sequence[Row], *, wait_s: float = WAIT_S) -> list[str]:
    """The aims that the product's order misses; empty when there are none."""
    ours = [row for row in rows if row.order == SWAP_AWARE]
    missed = []
    for row in ours:
        where = f"{row.case}, {row.times:g} times"
        if row.against_fifo < 1 - MAY_LOSE:
            missed.append(f"{where}: {row.against_fifo:.2f} of first in, first out")
        if row.times == 3 and row.case.swap_s >= 2 * row.case.run_s and row.against_fifo < GAINS:
            missed.append(f"{where}: {row.against_fifo:.2f} instead of {GAINS:g}")
        if row.longest_wait_s > wait_s:
            missed.append(f"{where}: somebody waited {row.longest_wait_s:.1f} s")
    return missed


HEADINGS: Final = (
    "a run, a swap",
    "times the capacity",
    "order",
    "served",
    "against FIFO",
    "swaps per task",
    "longest wait, s",
    "the lesser model's share",
    "served of the lesser caller's",
)


def cells(row: Row) -> tuple[str, ...]:
    """The printed cells of *row*."""
    return (
        str(row.case),
        f"{row.times:g}",
        row.order,
        f"{row.served:,} of {row.of:,}",
        f"{row.against_fifo:.2f}",
        f"{row.swaps_per_task:.2f}",
        f"{row.longest_wait_s:.1f}",
        f"{row.least_model:.0%}",
        f"{row.few_served:.0%}",
    )


def page(rows: Sequence[Row], text: str, *, name: str) -> str:
    """*text* with the table of *rows* in its part *name*."""
    return with_part(text, name, HEADINGS, map(cells, rows))


def with_part(
    text: str, name: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, by: str = "make order"
) -> str:
    """*text* with a table of *rows* in its part *name*, whose markers name the command *by*."""
    begin, end = f"<!-- {name}: {by} -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if not rest or not after:
        raise click.ClickException(f"the page has no part {begin} ... {end}; put these two lines back")
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(each) + " |" for each in rows]
    return f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{end}{after}"


def on_the_real_worker(console: Console, *, write: bool) -> int:
    """Prints how each order did on the real worker, beside its simulation; returns the exit status."""
    table = Table(*REAL_HEADINGS, title="The real worker, with pipelines that sleep")
    pairs = []
    for pair in compare_real(say=console.print):
        console.print(*real_cells(pair), sep="  ")
        pairs.append(pair)
        table.add_row(*real_cells(pair))
        if write:
            PAGE.write_text(with_part(PAGE.read_text(), "real", REAL_HEADINGS, map(real_cells, pairs)))
    console.print(table)
    missed = judge_real(pairs)
    for line in missed:
        console.print(f"[red]missed[/]: {line}", highlight=False)
    return 1 if missed else 0


@click.command(epilog="Examples:\n\n  python -m tests.drills.order\n\n  python -m tests.drills.order --write")
@click.option("--tasks", type=click.IntRange(50), default=TASKS, show_default=True, help="As many would FIFO serve.")
@click.option("--write", is_flag=True, help="Write the table into docs/benchmarks/order.md.")
@click.option("--real", is_flag=True, help="On the real worker instead (half an hour).")
def command(tasks: int, write: bool, real: bool) -> None:
    """Compare orders of the degraded queue in a simulation. Exit status 1 where the product's own misses its aim, or
    the real worker differs from the simulation."""
    console = Console(width=max(140, Console().width))
    if real:
        raise SystemExit(on_the_real_worker(console, write=write))
    loads = [(case, times) for case in CASES for times in TIMES]
    rows = [each for case, times in track(loads, "simulating") for each in compare(case, times, tasks=tasks)]
    table = Table(*HEADINGS, title=f"{DEGRADED_MAX_MSGS} places, {WAIT_S:g} s, one card")
    for each in rows:
        table.add_row(*cells(each))
    console.print(table)
    if write:
        PAGE.write_text(page(rows, PAGE.read_text(), name="simulated"))
    missed = judge(rows)
    for line in missed:
        console.print(f"[red]missed[/]: {line}", highlight=False)
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    command()
