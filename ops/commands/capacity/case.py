"""The question to `warmlane capacity`, and the two deployments that are compared."""

from collections.abc import Mapping
from typing import Final

import click
from msgspec import Struct
from msgspec.structs import replace

from contracts.order import OrderName
from contracts.settings import InferenceSettings
from contracts.topology import DEGRADED_MAX_MSGS
from ops.commands.capacity.model import Deployment, break_even_per_h, deployment, without_lanes
from ops.commands.capacity.stations import Demand, Terms

# Examples to begin with. None of them was measured: the real models were never run here.
ASSUMED_ARRIVALS_PER_H: Final = {"anisora": 6.0, "phr00t": 12.0}
ASSUMED_SERVICE_S: Final = {"anisora": 240.0, "phr00t": 60.0}
ASSUMED_LOAD_S: Final = {"anisora": 180.0, "phr00t": 120.0}


class Case(Struct, frozen=True, kw_only=True):
    """The question, and which of its numbers (`MODEL.what`) are assumptions of ours."""

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
    order: OrderName | None = None,
) -> Case:
    """The demand on the models of *settings*, with assumed numbers where none are given. *order* replaces that of the
    settings.

    Raises click.BadParameter for a model that the settings do not have, for a number that is neither given nor assumed,
    and when nothing arrives at all.
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
        policy=settings.degraded if order is None else replace(settings.degraded, order=order),
    )
    return Case(demands=demands, terms=terms, assumed=frozenset(assumed))


class Comparison(Struct, frozen=True, kw_only=True):
    """Both deployments of a case, and the arrivals above which a video costs less with lanes (None: never)."""

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
