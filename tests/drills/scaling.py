"""`make scaling`: what lanes that follow the demand are worth on a day of traffic, beside a fixed number of lanes.

Every figure is from the simulation in `scaling_day.py`, and the sum over several days of the same kind.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import click
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ops.commands.capacity.plots import plot_into
from tests.drills.order import with_part
from tests.drills.scaling_day import DAY_S, HOUR_S, Counted, Lanes, Times, arrivals, simulate
from tests.drills.scaling_rules import ScaledObject

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGE: Final = DOCS / "kubernetes.md"
PLOT: Final = DOCS / "images" / "scaling.svg"
NIGHT_PER_H, NOON_PER_H = 8.0, 120.0
BURSTS, BURST_S, BURST_PER_H = 10, 300.0, 240.0
DAYS: Final = 5
MOST_FIXED: Final = 6
TIMES: Final = Times()
SLOW: Final = Times(cold_start_s=600.0)


def smooth(seed: int) -> list[float]:
    """Arrivals of a day whose rate rises from night to noon and falls again over hours."""
    return arrivals(_per_s, most_per_s=NOON_PER_H / HOUR_S, seed=seed)


def bursty(seed: int) -> list[float]:
    """Half of `smooth`, and ten times a day, at random moments, a burst of five minutes with as much as four lanes can
    serve."""
    chance = random.Random(seed)
    begins_s = [chance.random() * (DAY_S - BURST_S) for _ in range(BURSTS)]

    def per_s(at_s: float) -> float:
        is_burst = any(begin_s <= at_s < begin_s + BURST_S for begin_s in begins_s)
        return _per_s(at_s) / 2 + is_burst * BURST_PER_H / HOUR_S

    return arrivals(per_s, most_per_s=(NOON_PER_H / 2 + BURST_PER_H) / HOUR_S, seed=seed)


def _per_s(at_s: float) -> float:
    height = (0.5 - 0.5 * math.cos(2 * math.pi * (at_s / DAY_S - 1 / 6))) ** 2
    return (NIGHT_PER_H + (NOON_PER_H - NIGHT_PER_H) * height) / HOUR_S


KINDS: Final[Mapping[str, Callable[[int], list[float]]]] = {"smooth": smooth, "bursty": bursty}


class Way(Struct, frozen=True):
    """One way to run lanes, and its name."""

    name: str
    lanes: Lanes
    times: Times = TIMES


def ways() -> list[Way]:
    """The ways to compare: fixed numbers of lanes, and the chart's ScaledObject, unchanged and changed."""
    chart = replace(ScaledObject.of_chart(), most=MOST_FIXED)
    scaled = f"{chart.least} to {chart.most}, by demand"
    return [
        *(Way(f"{count}, always", Lanes(first=count)) for count in range(1, MOST_FIXED + 1)),
        Way(scaled, Lanes(rules=chart)),
        Way(f"{scaled}, idle lanes not marked", Lanes(rules=chart, keeps_costs=False)),
        Way(f"{scaled}, cool-down 120 s", Lanes(rules=replace(chart, cool_down_s=120.0))),
        Way(f"{scaled}, tasksPerLane 0.5", Lanes(rules=replace(chart, tasks_per_lane=0.5))),
        Way(f"2 to {chart.most}, by demand", Lanes(first=2, rules=replace(chart, least=2))),
        Way(f"{scaled}, cold start 600 s", Lanes(rules=chart), SLOW),
    ]


class Row(Struct, frozen=True, kw_only=True):
    """How one way did on all days of a kind."""

    day: str
    way: str
    days: int
    counted: Counted

    @property
    def warm(self) -> float:
        """The share of the requests that met a warm lane."""
        return self.counted.by_lane / self.counted.came

    @property
    def hours(self) -> float:
        """Lane-hours of a day."""
        return self.counted.lane_hours / self.days


def compare(day: str, way: Way, *, days: int = DAYS) -> Row:
    """Simulates *days* of the kind *day*, one after the other, each with arrivals of its own."""
    return Row(
        day=day,
        way=way.name,
        days=days,
        counted=added([simulate(KINDS[day](seed), way.lanes, way.times) for seed in range(1, days + 1)]),
    )


def added(days: Sequence[Counted]) -> Counted:
    """The sum of *days*; lanes and demand are those of the first."""
    return replace(
        days[0],
        came=sum(day.came for day in days),
        by_lane=sum(day.by_lane for day in days),
        by_degraded=sum(day.by_degraded for day in days),
        turned_away=sum(day.turned_away for day in days),
        waits_s=sorted(wait_s for day in days for wait_s in day.waits_s),
        lane_hours=sum(day.lane_hours for day in days),
        more=sum(day.more for day in days),
        fewer=sum(day.fewer for day in days),
        busy_told_to_go=sum(day.busy_told_to_go for day in days),
    )


HEADINGS: Final = (
    "day",
    "lanes",
    "met a warm lane",
    "degraded",
    "turned away",
    "waited, p95",
    "lane-hours a day",
    "lanes begun, given back a day",
    "busy when asked to leave",
)


def cells(row: Row) -> tuple[str, ...]:
    """The printed cells of *row*."""
    counted = row.counted
    return (
        row.day,
        row.way,
        f"{row.warm:.1%}",
        f"{counted.by_degraded / counted.came:.1%}",
        f"{counted.turned_away / counted.came:.1%}",
        f"{counted.waits_s[int(0.95 * len(counted.waits_s))]:.0f} s",
        f"{row.hours:.0f}",
        f"{counted.more / row.days:.0f}, {counted.fewer / row.days:.0f}",
        f"{counted.busy_told_to_go / row.days:.1f}",
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws demand and lanes on the first day of each kind by the chart's rules, and what each way costs and gets."""
    with plot_into(path, extra="bench", size_in=(9.0, 5.2), font_size=8) as figure:
        for place, day in enumerate(KINDS):
            of_day = [row for row in rows if row.day == day]
            scaled = next(row for row in of_day if row.counted.more)
            axes = figure.add_subplot(2, 2, place + 1)
            quarters = _most_in_each_quarter(scaled.counted.demand)
            hours = [quarter / 4 for quarter in range(len(quarters))]
            axes.bar(hours, quarters, width=0.25, align="edge", color="tab:blue", alpha=0.35, label="most demand")
            moments = [*(at_s / HOUR_S for at_s, _ in scaled.counted.lanes), 24.0]
            counts = [count for _, count in scaled.counted.lanes]
            axes.step(moments, [*counts, counts[-1]], where="post", color="tab:orange", linewidth=0.9, label="lanes")
            axes.set(title=f"a {day} day, lanes {scaled.way}", xlabel="hour", xlim=(0, 24), ylim=(0, None))
            axes.legend(loc="upper left")
            axes = figure.add_subplot(2, 2, place + 3)
            for row in of_day:
                colour = "tab:orange" if row.counted.more else "tab:blue"
                axes.plot(row.hours, 100 * row.warm, "o", color=colour, markersize=4)
            fixed = [row for row in of_day if not row.counted.more]
            axes.plot([row.hours for row in fixed], [100 * row.warm for row in fixed], color="tab:blue", linewidth=0.6)
            axes.set(xlabel="lane-hours a day", ylabel="met a warm lane, %", ylim=(None, 101))
            axes.set_title("blue: always as many, 1 to 6; orange: by demand")
            axes.grid(visible=True, linewidth=0.3)


def _most_in_each_quarter(demand: Sequence[tuple[float, int]]) -> list[int]:
    most = [0] * 96
    for at_s, count in demand:
        quarter = min(95, int(at_s // 900))
        most[quarter] = max(most[quarter], count)
    return most


@click.command(epilog="Examples:\n\n  python -m tests.drills.scaling\n\n  python -m tests.drills.scaling --days 1")
@click.option("--days", type=click.IntRange(1), default=DAYS, show_default=True, help="Of each kind.")
@click.option("--write", is_flag=True, help="Write the table into docs/kubernetes.md, and the plot beside it.")
def command(days: int, write: bool) -> None:
    """Compare lanes that follow the demand with a fixed number of lanes, in a simulation."""
    pairs = [(day, way) for day in KINDS for way in ways()]
    rows = [compare(day, way, days=days) for day, way in track(pairs, "simulating")]
    console = Console(width=max(150, Console().width))
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    if write:
        PAGE.write_text(with_part(PAGE.read_text(), "scaling", HEADINGS, map(cells, rows), by="make scaling"))
        plot(rows, PLOT)


if __name__ == "__main__":
    command()
