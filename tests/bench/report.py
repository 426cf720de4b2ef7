"""The report: medians, ranges, ratios, verdicts, Markdown and plots, from what was measured. Pure, but for `plot`."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from ops.commands.capacity.plots import plot_into
from tests.bench.aims import AIMS, REASONS, UNKNOWN, Aim, over_best_peer, ratio
from tests.bench.names import (
    BARE,
    BARE_JSON,
    FRESH,
    GROWING,
    LIVE,
    MANY,
    NO_OP,
    PEERS,
    REFUSAL,
    WARMLANE,
    finished,
)
from tests.bench.results import FIGURES, OTHERS, QUIET_PERCENT, Part, Results


class Verdict(Struct, frozen=True, kw_only=True):
    """How an aim fared. *outcome* is `met`, `missed by …`, or `not judged: …`; *reason* explains a missed one."""

    aim: Aim
    measured: float | None
    outcome: str
    reason: str = ""

    @property
    def is_met(self) -> bool:
        return self.outcome == "met"


def judge(aim: Aim, part: Part | None) -> Verdict:
    """The verdict on *aim*. An aim without a value is never met."""
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
    """Figures that are no aims, but help to read the verdicts: what, how much, and what it means."""
    accept = results.part("accept")
    for who, shown, why in (
        (WARMLANE, "throughput", "such a peer makes one write for each task, and cannot be asked what became of it"),
        (BARE, "throughput of the bare limit", "two acked writes for each task cannot do more, whoever makes them"),
    ):
        most = None if accept is None else over_best_peer(accept, who)
        if most is not None:
            yield f"accept: {shown} for that of the best peer that stores the message alone", most, why
    for name, ours, limit in (("accept", WARMLANE, BARE), ("poll", LIVE, BARE_JSON)):
        part = results.part(name)
        value = None if part is None else ratio(part, "cpu_s", limit, ours)
        if value is not None:
            why = "what the throughputs would be if each service had a core for itself and no broker made it wait"
            yield f"{name}: CPU time of {limit} for that of {ours}", value, why
    swap = results.part("swap")
    slower = None if swap is None else ratio(swap, "p50_ms", FRESH, WARMLANE)
    if slower is not None:
        yield "swap: a new process for each task for degraded alternation", slower, "what always starting anew costs"
    refused, grown = results.part("refusals"), results.part("tasks")
    value = None if refused is None else ratio(refused, "cpu_s", NO_OP, REFUSAL)
    if value is not None:
        yield "overload: CPU time of a no-op handler for that of a refusal", value, "as above"
    for what, few in GROWING:
        value = None if grown is None else ratio(grown, "cpu_s", finished(what, few), finished(what, MANY))
        if value is not None:
            shown = f"growth: CPU time of {what} with {few:,} finished tasks for that with {MANY:,}"
            yield shown, value, "which other work on the machine disturbs less than it does a throughput"


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
    """A sentence on what else ran on the machine meanwhile, and what that means; empty when it was not measured."""
    values = [value for part in results.parts for each in part.series if each.figure == OTHERS for value in each.values]
    if not values:
        return ""
    described = (
        f"Everything else on this machine took {statistics.median(values):.0f} % of it "
        f"({min(values):.0f} to {max(values):.0f} %) while throughputs were measured."
    )
    if max(values) < QUIET_PERCENT:
        return described
    return f"{described} It is shared: compare ratios and CPU seconds, and no timing with one of another run."


def markdown(results: Results) -> str:
    """The whole report."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (accept, poll, dispatch) and `make bench-all` (the rest too), which measure all this "
        "again on your machine; do not edit. The values of every round are in `docs/benchmarks/results.json`.",
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
        lines += [f"- Measured {part.when}."] if part.when else []
        lines += [f"- Here {name} was another than under How: {fact}." for name, fact in part.elsewhere.items()]
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


PLOTTED: Final = ("goodput", "refused_p99_ms", "per_s", "p50_ms", "p99_ms", "all_p99_ms", "cpu_ms", "cpu_s")


def plot(part: Part, path: Path) -> None:
    """Draws the medians and ranges of *part* into *path* (.svg or .png); the same part gives the same bytes.

    Raises click.ClickException where matplotlib is not installed, OSError where the file cannot be written.
    """
    shown = [name for name in PLOTTED if any(series.figure == name for series in part.series)]
    names: Sequence[str] = sorted(part.contenders, key=_place)[::-1]
    size_in = (2.6 * len(shown) + 1.4, 0.42 * len(names) + 1.0)
    with plot_into(path, extra="bench", size_in=size_in, font_size=8) as canvas:
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
