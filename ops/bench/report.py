"""The report: medians, ranges, ratios, verdicts, Markdown and plots, from what was measured. Pure, but for `plot`."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import click
from msgspec import Struct

from ops.bench.names import BARE, BARE_JSON, LIVE, PEERS, WARMLANE


class Figure(Struct, frozen=True, kw_only=True):
    """How a figure is shown. *better* is the direction in which it wins; None for what only describes."""

    title: str
    digits: int
    better: Callable[[float, float], bool] | None = None


def _more(ours: float, theirs: float) -> bool:
    return ours > theirs


def _less(ours: float, theirs: float) -> bool:
    return ours < theirs


FIGURES: Final[Mapping[str, Figure]] = {
    "open": Figure(title="open at once", digits=0),
    "per_s": Figure(title="requests/s", digits=0, better=_more),
    "p50_ms": Figure(title="p50, ms", digits=2, better=_less),
    "p99_ms": Figure(title="p99, ms", digits=2, better=_less),
    "all_p99_ms": Figure(title="p99 of all rounds, ms", digits=2, better=_less),
    "cpu_s": Figure(title="CPU s per 1,000, service", digits=2, better=_less),
    "broker_cpu_s": Figure(title="CPU s per 1,000, broker", digits=2, better=_less),
    "busy_percent": Figure(title="service's core busy, %", digits=0),
    "peak_mb": Figure(title="peak RSS, MB", digits=0, better=_less),
    "others_percent": Figure(title="all else on the machine, %", digits=0),
}


OTHERS: Final = "others_percent"
# What the kernel does for the load alone can take so much.
QUIET_PERCENT: Final = 25.0


class Series(Struct, frozen=True, kw_only=True):
    """The values of one figure of one contender, one for each round in their order."""

    contender: str
    figure: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def text(self) -> str:
        """The median, and the range where there is one."""
        digits = FIGURES[self.figure].digits
        shown = f"{self.median:,.{digits}f}"
        if len(self.values) == 1:
            return shown
        return f"{shown} ({min(self.values):,.{digits}f} to {max(self.values):,.{digits}f})"


class Absent(Struct, frozen=True):
    """A contender that was not run, and why."""

    contender: str
    reason: str


class Part(Struct, frozen=True, kw_only=True):
    """What was measured in one part: accept, poll, waiters or dispatch."""

    name: str
    title: str
    series: tuple[Series, ...]
    absent: tuple[Absent, ...] = ()
    notes: tuple[str, ...] = ()

    def find(self, contender: str, figure: str) -> Series | None:
        """That figure of that contender; None where it was not measured."""
        return next((each for each in self.series if (each.contender, each.figure) == (contender, figure)), None)

    @property
    def contenders(self) -> tuple[str, ...]:
        """Who was measured, as in the order of the first round."""
        return tuple(dict.fromkeys(each.contender for each in self.series))


class Results(Struct, frozen=True, kw_only=True):
    """One run. *facts* says on what machine, with which versions and how it was made, by a name each."""

    facts: dict[str, str]
    parts: tuple[Part, ...]

    def part(self, name: str) -> Part | None:
        return next((each for each in self.parts if each.name == name), None)


class Aim(Struct, frozen=True, kw_only=True):
    """A number that is asked for. *measure* gives what was measured of it; None when that cannot be told."""

    name: str
    what: str
    part: str
    measure: Callable[[Part], float | None]
    bound: float
    at_least: bool
    unit: str = ""


class Verdict(Struct, frozen=True, kw_only=True):
    """How an aim fared. *outcome* is `met`, `missed by …`, or `not judged: …`; *reason* stands beside a missed one."""

    aim: Aim
    measured: float | None
    outcome: str
    reason: str = ""

    @property
    def is_met(self) -> bool:
        return self.outcome == "met"


def ratio(part: Part, figure: str, over: str, under: str) -> float | None:
    """The median of what *over* measured for each that *under* measured in the same round; None if one is missing."""
    upper, lower = part.find(over, figure), part.find(under, figure)
    if upper is None or lower is None:
        return None
    return statistics.median(a / b for a, b in zip(upper.values, lower.values, strict=True))


def over_best_peer(part: Part, who: str = WARMLANE) -> float | None:
    """The throughput of *who* for that of the peer that has most of it; None when no peer was run."""
    found = [series for peer in PEERS if (series := part.find(peer, "per_s")) is not None]
    if not found:
        return None
    return ratio(part, "per_s", who, max(found, key=lambda series: series.median).contender)


def median_of(contender: str, figure: str) -> Callable[[Part], float | None]:
    """The median of that figure."""

    def measure(part: Part) -> float | None:
        series = part.find(contender, figure)
        return None if series is None else series.median

    return measure


AIMS: Final[tuple[Aim, ...]] = (
    Aim(
        name="accept_limit",
        what="accept: throughput for that of the bare limit",
        part="accept",
        measure=lambda part: ratio(part, "per_s", WARMLANE, BARE),
        bound=0.80,
        at_least=True,
    ),
    Aim(
        name="accept_peer",
        what="accept: throughput for that of the best durable peer",
        part="accept",
        measure=over_best_peer,
        bound=2.0,
        at_least=True,
    ),
    Aim(
        name="accept_p99",
        what="accept: p99 at half load for that of the bare limit",
        part="accept",
        measure=lambda part: ratio(part, "p99_ms", WARMLANE, BARE),
        bound=2.0,
        at_least=False,
    ),
    Aim(
        name="poll_live",
        what="poll of a live task: throughput for that of a bare JSON handler",
        part="poll",
        measure=lambda part: ratio(part, "per_s", LIVE, BARE_JSON),
        bound=0.70,
        at_least=True,
    ),
    Aim(
        name="dispatch_p50",
        what="dispatch: p50",
        part="dispatch",
        measure=median_of(WARMLANE, "p50_ms"),
        bound=3.0,
        at_least=False,
        unit=" ms",
    ),
    Aim(
        name="dispatch_p99",
        what="dispatch: p99",
        part="dispatch",
        measure=median_of(WARMLANE, "all_p99_ms"),
        bound=15.0,
        at_least=False,
        unit=" ms",
    ),
)
# What is known of why an aim is missed, from profiles (py-spy) on 2 cores. Shown only beside one that is.
REASONS: Final[Mapping[str, str]] = {
    "accept_limit": "of the gateway's CPU time, a fifth goes into the retries around its three writes though none is "
    "retried, a twelfth into spans though nobody exports them, a seventh into the collection of cycles, which walks "
    "every task in memory",
    "accept_peer": "a peer's answer follows one write; Warmlane's follows three, each acked before the next: record "
    "and timer are what lets a task end exactly once, and what a peer leaves out",
    "accept_p99": "Python's collection of cycles walks every task in memory, and holds up everything for 50 to 70 ms "
    "when there are some thousands; with it switched off, p99 was 2.7 ms",
    "poll_live": "290 µs of CPU time a request against 133: the guard takes 62 (Litestar runs it in another thread, as "
    "it is no coroutine), the answer's headers and JSON 30 more, dependencies and the view as much, bounded "
    "connections most of the rest",
    "dispatch_p50": "two thirds of it pass from the publish to the moment of the claim, the rest with the write of the "
    "claim and the hop to the pipeline's process: round trips that follow each other (ADR 0006)",
    "dispatch_p99": "the same round trips, each of which may have to wait for a core that is taken",
}
UNKNOWN: Final = "not looked into yet"


def judge(aim: Aim, part: Part | None) -> Verdict:
    """The verdict on *aim*. One that has no value is never met."""
    if part is None:
        return Verdict(aim=aim, measured=None, outcome=f"not judged: {aim.part} was not measured")
    measured = aim.measure(part)
    if measured is None or measured != measured:
        return Verdict(aim=aim, measured=None, outcome="not judged: what it is compared with was not measured")
    if measured >= aim.bound if aim.at_least else measured <= aim.bound:
        return Verdict(aim=aim, measured=measured, outcome="met")
    percent = 100 * abs(measured - aim.bound) / aim.bound
    reason = REASONS.get(aim.name, UNKNOWN)
    return Verdict(aim=aim, measured=measured, outcome=f"missed by {percent:.3g} %", reason=reason)


def judge_all(results: Results) -> tuple[Verdict, ...]:
    """The verdict on every aim."""
    return tuple(judge(aim, results.part(aim.part)) for aim in AIMS)


def beside(results: Results) -> Iterator[tuple[str, float, str]]:
    """What the verdicts are to be read with, though nobody asked for it: what, how much, and what it means."""
    accept = results.part("accept")
    most = None if accept is None else over_best_peer(accept, BARE)
    if most is not None:
        why = "three acked writes for each task cannot do more than the limit, whoever makes them"
        yield "accept: throughput of the bare limit for that of the best durable peer", most, why
    for name, ours, limit in (("accept", WARMLANE, BARE), ("poll", LIVE, BARE_JSON)):
        part = results.part(name)
        value = None if part is None else ratio(part, "cpu_s", limit, ours)
        if value is not None:
            why = "what the throughputs would be if each service had a core for itself and no broker made it wait"
            yield f"{name}: CPU time of {limit} for that of {ours}", value, why


def wins(part: Part) -> Iterator[str]:
    """Each figure in which a peer is better than Warmlane, as a sentence."""
    for peer in PEERS:
        for name, figure in FIGURES.items():
            ours, theirs = part.find(WARMLANE, name), part.find(peer, name)
            if figure.better is None or ours is None or theirs is None:
                continue
            if figure.better(theirs.median, ours.median):
                shown = f"{theirs.median:,.{figure.digits}f}", f"{ours.median:,.{figure.digits}f}"
                yield f"{part.name}, {figure.title}: {peer} wins, {shown[0]} against {shown[1]}."


def noise(results: Results) -> str:
    """What else ran on the machine meanwhile, as a sentence with what that means; empty when it was not measured."""
    values = [value for part in results.parts for each in part.series if each.figure == OTHERS for value in each.values]
    if not values:
        return ""
    told = (
        f"Everything else on this machine took {statistics.median(values):.0f} % of it "
        f"({min(values):.0f} to {max(values):.0f} %) while throughputs were measured."
    )
    if max(values) < QUIET_PERCENT:
        return told
    return f"{told} It is shared: compare ratios and CPU seconds, and no timing with one of another run."


def markdown(results: Results) -> str:
    """The whole report."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`, which measures everything again on your machine; do not edit. The values of every "
        "round are in `docs/benchmarks/results.json`.",
        "",
        "## What was asked for",
        "",
        "A ratio is the median of the rounds' ratios: what is compared ran in turns, minutes apart at most. "
        f"{noise(results)}".rstrip(),
        "",
        "| | measured | asked for | | why |",
        "|---|---|---|---|---|",
    ]
    for verdict in judge_all(results):
        aim = verdict.aim
        measured = "-" if verdict.measured is None else f"{verdict.measured:.2f}{aim.unit}"
        sign = "≥" if aim.at_least else "≤"
        lines.append(
            f"| {aim.what} | {measured} | {sign} {aim.bound:g}{aim.unit} | {verdict.outcome} | {verdict.reason} |"
        )
    lines += [f"| {what} | {value:.2f} | | for comparison | {why} |" for what, value, why in beside(results)]
    found = [sentence for part in results.parts for sentence in wins(part)]
    lines += ["", "## Where a peer wins", "", *([f"- {each}" for each in found] or ["Nowhere in this run."])]
    for part in results.parts:
        lines += ["", f"## {part.title}", "", *table(part), ""]
        lines += [f"![{part.title}]({part.name}.svg)", ""] if is_plotted(part) else []
        lines += [f"- {each.contender} was not run: {each.reason}" for each in part.absent]
        lines += [f"- {note}" for note in part.notes]
    lines += ["", "## How", "", "| | |", "|---|---|", *(f"| {name} | {fact} |" for name, fact in results.facts.items())]
    return "\n".join([*lines, ""])


def table(part: Part) -> Iterator[str]:
    """A row for each contender: medians, with the range of the rounds."""
    shown = [name for name in FIGURES if any(series.figure == name for series in part.series)]
    yield "| | " + " | ".join(FIGURES[name].title for name in shown) + " |"
    yield "|---|" + "---|" * len(shown)
    for contender in sorted(part.contenders, key=_place):
        cells = [part.find(contender, name) for name in shown]
        yield f"| {contender} | " + " | ".join("-" if cell is None else cell.text for cell in cells) + " |"


def _place(contender: str) -> int:
    order = (WARMLANE, LIVE)
    return order.index(contender) if contender in order else len(order)


def is_plotted(part: Part) -> bool:
    """Whether there is something to compare in a plot."""
    return len(part.contenders) > 1 and any(series.figure in PLOTTED for series in part.series)


PLOTTED: Final = ("per_s", "p50_ms", "p99_ms", "all_p99_ms", "cpu_s")


def plot(part: Part, path: Path) -> None:
    """Draws the medians and ranges of *part* into *path* (.svg); the same part gives the same bytes.

    Raises click.ClickException where matplotlib is not installed, OSError where the file cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as error:
        raise click.ClickException(
            "the plots need the package matplotlib; pip install -c constraints.txt -e '.[bench]' brings it"
        ) from error
    shown = [name for name in PLOTTED if any(series.figure == name for series in part.series)]
    names: Sequence[str] = sorted(part.contenders, key=_place)[::-1]
    with matplotlib.rc_context({"svg.hashsalt": "warmlane", "svg.fonttype": "none", "font.size": 8}):
        canvas = Canvas(figsize=(2.6 * len(shown) + 1.4, 0.42 * len(names) + 1.0), layout="constrained")
        every = canvas.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, figure in zip(every, shown, strict=True):
            for place, name in enumerate(names):
                series = part.find(name, figure)
                if series is not None:
                    spread = [[series.median - min(series.values)], [max(series.values) - series.median]]
                    colour = "tab:orange" if name.startswith(WARMLANE) else "tab:blue"
                    axes.barh(place, series.median, xerr=spread, color=colour, error_kw={"linewidth": 0.8})
            axes.set_title(FIGURES[figure].title)
            axes.set_yticks(range(len(names)), names)
            axes.grid(visible=True, axis="x", linewidth=0.3)
        canvas.savefig(path, metadata={"Date": None})
