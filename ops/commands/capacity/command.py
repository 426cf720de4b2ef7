"""`warmlane capacity`: what dedicated lanes carry and cost, beside one degraded worker."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from contracts.order import OrderName
from contracts.settings import SettingsError, load_settings
from ops.commands.capacity.case import case_of, compare
from ops.commands.capacity.report import as_json, inputs_table, outcome_table, plot, verdict
from ops.commands.durations import Duration
from ops.commands.options import degraded_order_option, lanes_option, settings_option

ASSUMED_RELEASE_S: Final = "15s"
ASSUMED_PRICE: Final = 2.5
ARRIVALS_MAX_PER_H: Final = 1_000.0
WIDTH: Final = 100
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
@degraded_order_option
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
    degraded_order: OrderName | None,
    settings: Path | None,
    as_json_: bool,
    plot_path: Path | None,
) -> None:
    """Estimate what dedicated warm lanes carry and cost, beside one degraded worker for all models.

    Give your own arrivals and times. A value that you do not give is an assumption, not a measurement, and is marked
    with a star. Limits, the order of the degraded queue and the number of lanes come from the settings.
    ops/capacity.md says what is computed and what is simulated.
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
        order=degraded_order,
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
        f"and holds {terms.degraded_depth}; its order is {terms.policy.order}"
    )
    if case.assumed:
        click.echo("* assumed, not measured: give your own with --arrivals, --service and --load")
    console.print(outcome_table(comparison))
    console.print(verdict(comparison), highlight=False)
