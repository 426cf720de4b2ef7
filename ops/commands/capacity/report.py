"""A comparison as tables, as a verdict, as JSON and as a plot."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.table import Table

from ops.commands.capacity.case import Case, Comparison
from ops.commands.capacity.model import Deployment, Flow, deployment, scaled, without_lanes
from ops.commands.capacity.plots import plot_into
from ops.commands.capacity.stations import Demand

# The plot goes from a tenth of the given arrivals to about 30 times the given arrivals.
PLOTTED: Final = tuple(10 ** (power / 10) for power in range(-10, 16))


def inputs_table(case: Case) -> Table:
    """The inputs, from which the rest follows; a star marks an assumption."""
    table = Table(title="in")
    for heading in ("model", "arrivals/h", "service", "load", "lanes"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for demand in case.demands:

        def shown(what: str, text: str, model: str = demand.model) -> str:
            return f"{text}*" if f"{model}.{what}" in case.assumed else text

        table.add_row(
            demand.model,
            shown("arrivals", f"{demand.arrivals_per_h:g}"),
            shown("service", f"{demand.service_s:g} s"),
            shown("load", f"{demand.load_s:g} s"),
            str(demand.lanes),
        )
    return table


def _percent(share: float) -> str:
    return f"{share:.1%}"


ROWS: Final[Mapping[str, Callable[[Flow], str]]] = {
    "arrivals/h": lambda flow: f"{flow.arrivals_per_h:g}",
    "lanes busy": lambda flow: _percent(flow.utilisation) if flow.lanes else "-",
    "taken, warm": lambda flow: _percent(flow.warm),
    "taken after a load": lambda flow: _percent(flow.loaded),
    "overloaded": lambda flow: _percent(flow.overloaded),
    "rerouted by a lane": lambda flow: _percent(flow.rerouted) if flow.lanes else "-",
    "wait, mean": lambda flow: f"{flow.wait_s:.1f} s",
    "wait, p95": lambda flow: f"{flow.wait_p95_s:.1f} s",
    "to the video, mean": lambda flow: f"{flow.video_s:.0f} s",
    "videos/h": lambda flow: f"{flow.videos_per_h:.1f}",
}


def outcome_table(comparison: Comparison) -> Table:
    """Both deployments side by side: all requests, then those of each model."""
    table = Table(title="out")
    table.add_column("")
    ways = (("lanes", comparison.lanes), ("alone", comparison.alone))
    for way, found in ways:
        for flow in (found.total, *found.flows):
            table.add_column(f"{way}\n{flow.model}", justify="right")
    for name, text in ROWS.items():
        table.add_row(name, *(text(flow) for _, found in ways for flow in (found.total, *found.flows)))
    table.add_section()
    of_all: dict[str, Callable[[Deployment], str]] = {
        "cards": lambda found: str(found.gpus),
        "degraded worker busy": lambda found: _percent(found.degraded_utilisation),
        "cost/h": lambda found: f"{found.cost_per_h:.2f}",
        "cost/video": lambda found: _cost(found.cost_per_video),
    }
    for name, text_of in of_all.items():
        cells = [[text_of(found), *([""] * len(found.flows))] for _, found in ways]
        table.add_row(name, *cells[0], *cells[1])
    return table


def _cost(cost: float | None) -> str:
    return "-" if cost is None else f"{cost:.3f}"


def verdict(comparison: Comparison) -> str:
    """What the numbers say about dedicated lanes."""
    lanes, alone = comparison.lanes, comparison.alone
    arrivals_per_h = lanes.total.arrivals_per_h
    if lanes.gpus == 1:
        return "No lanes are asked for: both columns are the degraded worker alone."
    costs = (
        f"At {arrivals_per_h:g} requests an hour, dedicated lanes cost {_cost(lanes.cost_per_video)} per video and "
        f"overload {_percent(lanes.total.overloaded)}; one degraded worker costs {_cost(alone.cost_per_video)} and "
        f"overloads {_percent(alone.total.overloaded)}."
    )
    turn = comparison.break_even_per_h
    if turn is None:
        return f"{costs} In this mix, lanes never cost less per video."
    there = scaled(comparison.case.demands, turn / arrivals_per_h)
    left, left_alone = (
        _percent(deployment(demands, comparison.case.terms).total.overloaded)
        for demands in (there, without_lanes(there))
    )
    return (
        f"{costs} In this mix, lanes cost less per video from {turn:.3g} requests an hour on, where they overload "
        f"{left} and the degraded worker alone {left_alone}."
    )


def as_json(comparison: Comparison) -> str:
    """Everything that the tables show, and the inputs, for programs."""

    def of(found: Deployment) -> dict[str, Any]:
        flows = [(flow, msgspec.to_builtins(flow) | {"videos_per_h": flow.videos_per_h}) for flow in found.flows]
        total = msgspec.to_builtins(found.total) | {"videos_per_h": found.total.videos_per_h}
        return {
            "gpus": found.gpus,
            "degraded_utilisation": found.degraded_utilisation,
            "cost_per_h": found.cost_per_h,
            "cost_per_video": found.cost_per_video,
            "total": total,
            "models": {flow.model: fields for flow, fields in flows},
        }

    return json.dumps(
        {
            "demands": msgspec.to_builtins(comparison.case.demands),
            "terms": msgspec.to_builtins(comparison.case.terms),
            "assumed": sorted(comparison.case.assumed),
            "lanes": of(comparison.lanes),
            "alone": of(comparison.alone),
            "break_even_per_h": comparison.break_even_per_h,
            "verdict": verdict(comparison),
        },
        indent=2,
    )


def plot(case: Case, path: Path) -> None:
    """Draws cost per video and overloaded share against the arrivals, in their mix, into *path* (.png or .svg).

    The same case gives the same bytes of SVG. Raises click.ClickException where matplotlib is not installed, OSError
    where the file cannot be written.
    """
    arrivals_per_h = sum(demand.arrivals_per_h for demand in case.demands)
    rates = [arrivals_per_h * factor for factor in PLOTTED]
    cases: Sequence[tuple[str, tuple[Demand, ...]]] = (
        ("dedicated lanes", case.demands),
        ("degraded worker alone", without_lanes(case.demands)),
    )
    with plot_into(path, extra="plot", size_in=(7.2, 3.2), font_size=9) as figure:
        cost_axes, refused_axes = figure.subplots(1, 2)
        for name, demands in cases:
            found = [deployment(scaled(demands, factor), case.terms) for factor in PLOTTED]
            cost_axes.plot(rates, [each.cost_per_video or float("nan") for each in found], label=name)
            refused_axes.plot(rates, [100 * each.total.overloaded for each in found], label=name)
        for axes, what in ((cost_axes, "cost per video"), (refused_axes, "overloaded, % of requests")):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel("requests per hour, in this mix")
            axes.set_title(what)
            axes.axvline(arrivals_per_h, color="grey", linewidth=0.8, linestyle=":")
            axes.grid(visible=True, linewidth=0.3)
        cost_axes.set_yscale("log")
        cost_axes.yaxis.set_major_formatter("{x:g}")
        refused_axes.set_ylim(0, 100)
        refused_axes.legend(frameon=False)
