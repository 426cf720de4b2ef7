"""`warmlane capacity`: the table, the verdict and the plot, for given or assumed numbers."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from contracts.settings import InferenceSettings, SettingsError, load_settings
from contracts.topology import DEGRADED_MAX_MSGS
from ops.commands.capacity.model import (
    Demand,
    Deployment,
    Flow,
    Terms,
    break_even_per_h,
    deployment,
    scaled,
    without_lanes,
)
from ops.commands.capacity.plots import plot_into
from ops.commands.durations import Duration
from ops.commands.options import lanes_option, settings_option

# Examples to begin with. None of them was measured: the real models were never run here.
ASSUMED_ARRIVALS_PER_H: Final = {"anisora": 6.0, "phr00t": 12.0}
ASSUMED_SERVICE_S: Final = {"anisora": 240.0, "phr00t": 60.0}
ASSUMED_LOAD_S: Final = {"anisora": 180.0, "phr00t": 120.0}
ASSUMED_RELEASE_S: Final = "15s"
ASSUMED_PRICE: Final = 2.5
ARRIVALS_MAX_PER_H: Final = 1_000.0
WIDTH: Final = 100
# Of the plot: from this part of the arrivals to so many times as many.
PLOTTED: Final = tuple(10 ** (power / 20) for power in range(-20, 31))
PLOT_FORMATS: Final = (".png", ".svg")
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")


class PerModel(click.ParamType[dict[str, float]]):
    """A number for each model, such as `anisora=6,phr00t=12`, as a dict."""

    name = "per_model"

    def __init__(self, example: str, convert: Callable[[str], float | None]) -> None:
        self._example = example
        self._convert = convert

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, float]:
        if isinstance(value, dict):
            return value
        found: dict[str, float] = {}
        for part in str(value).split(","):
            model, equals, text = part.strip().partition("=")
            number = self._convert(text)
            if not equals or number is None or model in found:
                self.fail(f"{part!r} is not as in {self._example}, with every model once", param, ctx)
            found[model] = number
        return found


def _rate(text: str) -> float | None:
    number = float(text) if _NUMBER.fullmatch(text) and len(text) < 12 else None
    return number if number is not None and number <= ARRIVALS_MAX_PER_H else None


def _seconds(text: str) -> float | None:
    try:
        return Duration().convert(text, None, None)
    except click.BadParameter:
        return None


class Case(Struct, frozen=True, kw_only=True):
    """What was asked, and which of its numbers (`MODEL.what`) are assumptions of ours."""

    demands: tuple[Demand, ...]
    terms: Terms
    assumed: frozenset[str]


def case_of(
    settings: InferenceSettings,
    *,
    arrivals: Mapping[str, float],
    service: Mapping[str, float],
    load: Mapping[str, float],
    lanes: Mapping[str, int] | None,
    release_s: float,
    gpu_price_per_h: float,
) -> Case:
    """The demand on the models of *settings*, with assumed numbers where none are given.

    Raises click.BadParameter for a model that the settings do not have, for one that nothing is assumed of, and when
    nothing arrives at all.
    """
    for option, given in (("--arrivals", arrivals), ("--service", service), ("--load", load), ("--lanes", lanes or {})):
        unknown = set(given) - set(settings.models)
        if unknown:
            known = ", ".join(sorted(settings.models))
            raise click.BadParameter(f"no model {min(unknown)!r}; there are {known}", param_hint=option)
    assumed = set()

    def number(what: str, model: str, given: Mapping[str, float], ours: Mapping[str, float]) -> float:
        if model in given:
            return given[model]
        if model not in ours:
            raise click.BadParameter(f"nothing is known of {model}; give {model}=…", param_hint=f"--{what}")
        assumed.add(f"{model}.{what}")
        return ours[model]

    demands = tuple(
        Demand(
            model=model,
            arrivals_per_h=number("arrivals", model, arrivals, ASSUMED_ARRIVALS_PER_H),
            service_s=number("service", model, service, ASSUMED_SERVICE_S),
            load_s=number("load", model, load, ASSUMED_LOAD_S),
            lanes=entry.lanes if lanes is None else lanes.get(model, 0),
        )
        for model, entry in sorted(settings.models.items())
    )
    if not any(demand.arrivals_per_h for demand in demands):
        raise click.BadParameter("nothing arrives; give one model more than 0 an hour", param_hint="--arrivals")
    terms = Terms(
        lane_wait_s=settings.windows.wait_s("lane"),
        degraded_wait_s=settings.windows.wait_s("degraded"),
        degraded_depth=DEGRADED_MAX_MSGS,
        release_s=release_s,
        gpu_price_per_h=gpu_price_per_h,
    )
    return Case(demands=demands, terms=terms, assumed=frozenset(assumed))


class Comparison(Struct, frozen=True, kw_only=True):
    """Both deployments of a case, and from which arrivals on a video costs less with lanes; None for never."""

    case: Case
    lanes: Deployment
    alone: Deployment
    break_even_per_h: float | None


def compare(case: Case) -> Comparison:
    """The case as it is asked for, with its lanes and without."""
    alone = without_lanes(case.demands)
    has_lanes = any(demand.lanes for demand in case.demands)
    return Comparison(
        case=case,
        lanes=deployment(case.demands, case.terms),
        alone=deployment(alone, case.terms),
        break_even_per_h=break_even_per_h(case.demands, case.terms) if has_lanes else None,
    )


def inputs_table(case: Case) -> Table:
    """What the rest follows from; a star marks an assumption."""
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
    """What the numbers say of dedicated lanes."""
    lanes, alone = comparison.lanes, comparison.alone
    arrivals_per_h = lanes.total.arrivals_per_h
    if lanes.gpus == 1:
        return "No lanes are asked for: both columns are the degraded worker alone."
    told = (
        f"At {arrivals_per_h:g} requests an hour, dedicated lanes cost {_cost(lanes.cost_per_video)} per video and "
        f"overload {_percent(lanes.total.overloaded)}; one degraded worker costs {_cost(alone.cost_per_video)} and "
        f"overloads {_percent(alone.total.overloaded)}."
    )
    turn = comparison.break_even_per_h
    if turn is None:
        return f"{told} In this mix, lanes never cost less per video."
    there = scaled(comparison.case.demands, turn / arrivals_per_h)
    left, left_alone = (
        _percent(deployment(demands, comparison.case.terms).total.overloaded)
        for demands in (there, without_lanes(there))
    )
    return (
        f"{told} In this mix, lanes cost less per video from {turn:.3g} requests an hour on, where they overload "
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


@click.command(
    epilog="Examples:\n\n  warmlane capacity\n\n"
    "  warmlane capacity --arrivals anisora=6,phr00t=30 --service anisora=4m,phr00t=45s --gpu-price 1.80\n\n"
    "  warmlane capacity --lanes anisora=1,phr00t=2 --plot capacity.svg\n\n"
    "  warmlane capacity --json | jq .lanes.cost_per_video"
)
@click.option(
    "--arrivals",
    type=PerModel("anisora=6,phr00t=12 (requests an hour, at most 1000)", _rate),
    metavar="MODEL=N,...",
    default={},
    help="Requests an hour, as in anisora=6,phr00t=12. [default: an assumption]",
)
@click.option(
    "--service",
    type=PerModel("anisora=240s,phr00t=1m", _seconds),
    metavar="MODEL=TIME,...",
    default={},
    help="A worker's time for one task: inference, encoding and cleanup, as in anisora=240s,phr00t=1m. "
    "[default: an assumption]",
)
@click.option(
    "--load",
    type=PerModel("anisora=180s,phr00t=2m", _seconds),
    metavar="MODEL=TIME,...",
    default={},
    help="Time to load a model after another, as in anisora=180s,phr00t=2m. [default: an assumption]",
)
@click.option(
    "--release",
    "release_s",
    type=Duration(),
    default=ASSUMED_RELEASE_S,
    show_default=True,
    help="Time to give a pipeline back and to prove it, before the next one is loaded.",
)
@click.option(
    "--gpu-price",
    type=click.FloatRange(0, min_open=True),
    default=ASSUMED_PRICE,
    show_default=True,
    help="Of one card for an hour, in any currency.",
)
@lanes_option
@settings_option
@click.option("--json", "as_json_", is_flag=True, help="Print everything as JSON, for programs.")
@click.option(
    "--plot",
    "plot_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw cost and refusals against the arrivals into FILE (.png or .svg). Needs matplotlib.",
)
def command(
    arrivals: dict[str, float],
    service: dict[str, float],
    load: dict[str, float],
    release_s: float,
    gpu_price: float,
    lanes: dict[str, int] | None,
    settings: Path | None,
    as_json_: bool,
    plot_path: Path | None,
) -> None:
    """Tell what dedicated warm lanes carry and cost, beside one degraded worker for all models.

    Arrivals and times are yours to give: what is not given is an assumption, marked with a star, and not a
    measurement. Limits and the number of lanes come from the settings. ops/capacity.md has the formulas.
    """
    if plot_path is not None and plot_path.suffix not in PLOT_FORMATS:
        raise click.BadParameter(f"{plot_path} ends neither in .png nor in .svg", param_hint="--plot")
    try:
        loaded = load_settings(settings)
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    case = case_of(
        loaded,
        arrivals=arrivals,
        service=service,
        load=load,
        lanes=lanes,
        release_s=release_s,
        gpu_price_per_h=gpu_price,
    )
    comparison = compare(case)
    if plot_path is not None:
        try:
            plot(case, plot_path)
        except OSError as error:
            raise click.ClickException(f"the plot cannot be written: {error}") from error
    if as_json_:
        click.echo(as_json(comparison))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)  # a file or a pipe has no width of its own
    console.print(inputs_table(case))
    terms = case.terms
    click.echo(
        f"a swap gives the last model back in {terms.release_s:g} s; a card costs {terms.gpu_price_per_h:g} an hour; "
        f"a lane's\nqueue is left after {terms.lane_wait_s:g} s, the degraded one after {terms.degraded_wait_s:g} s, "
        f"and holds {terms.degraded_depth}"
    )
    if case.assumed:
        click.echo("* assumed, not measured: give your own with --arrivals, --service and --load")
    console.print(outcome_table(comparison))
    console.print(verdict(comparison), highlight=False)
