"""The capacity formulas, compared with closed forms and a simulation, and checked for properties that must always
hold."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts.order import Policy
from contracts.settings import load_settings
from contracts.topology import DEGRADED_MAX_MSGS
from ops.commands.capacity.degraded import simulated
from ops.commands.capacity.model import break_even_per_h, deployment, scaled, without_lanes
from ops.commands.capacity.stations import HOUR_S, Demand, Station, Terms, station
from tests.kit.queues import Simulation, degraded_station

WINDOWS = load_settings().windows
TERMS = Terms(
    lane_wait_s=WINDOWS.wait_s("lane"),
    degraded_wait_s=WINDOWS.wait_s("degraded"),
    degraded_depth=DEGRADED_MAX_MSGS,
    release_s=15,
    gpu_price_per_h=2.5,
    policy=Policy(order="fifo"),
)
AWARE = replace(TERMS, policy=Policy())
LIMIT_S = TERMS.lane_wait_s


def demand(model: str = "anisora", arrivals_per_h: float = 6, service_s: float = 240, **changes: float) -> Demand:
    lanes = int(changes.pop("lanes", 1))
    load_s = changes.pop("load_s", 180)
    return Demand(model=model, arrivals_per_h=arrivals_per_h, service_s=service_s, load_s=load_s, lanes=lanes)


def lane(arrivals_per_h: float, service_s: float, lanes: int = 1, *, patience_s: float = LIMIT_S) -> Station:
    return station(
        rate_per_s=arrivals_per_h / HOUR_S, servers=lanes, services=[(1.0, service_s)], patience_s=patience_s
    )


# Closed forms


@pytest.mark.parametrize("arrivals_per_h", [0.1, 6, 30, 200])
@pytest.mark.parametrize("service_s", [30.0, 60.0, 240.0])
def test_one_lane_whose_tasks_are_longer_than_the_wait_limit(arrivals_per_h: float, service_s: float) -> None:
    """ops/capacity.md: e^(λτ) / (1 + λ s e^(λτ)), exact whatever the spread of the service times."""
    rate = arrivals_per_h / HOUR_S
    grown = math.exp(rate * LIMIT_S)
    exact = grown / (1 + rate * service_s * grown)
    assert lane(arrivals_per_h, service_s).taken == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize("lanes", [1, 2, 5])
@pytest.mark.parametrize("load", [0.3, 1.0, 4.0])
def test_nobody_waits_without_patience(lanes: int, load: float) -> None:
    """Erlang's loss formula, exact whatever the spread of the service times."""
    terms = [load**n / math.factorial(n) for n in range(lanes + 1)]
    found = lane(load * HOUR_S / 240, 240, lanes, patience_s=1e-3)
    assert found.taken == pytest.approx(1 - terms[-1] / sum(terms), abs=1e-4)


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_short_tasks_hardly_meet_the_limit(load: float) -> None:
    """Pollaczek and Khinchine: the mean wait is load · s / 2 (1 - load)."""
    found = lane(load * HOUR_S, 1.0)
    assert found.taken == pytest.approx(1, abs=1e-3)
    assert found.waited_s == pytest.approx(load / (2 * (1 - load)), rel=0.02)
    assert found.taken_within(0) == pytest.approx(1 - load, abs=2e-3)


def test_nothing_arrives_and_nobody_serves() -> None:
    assert (lane(0, 240).taken, lane(0, 240).utilisation) == (1.0, 0.0)
    assert (lane(6, 240, 0).taken, lane(6, 240, 0).utilisation) == (0.0, 0.0)


@pytest.mark.parametrize("arrivals_per_h", [1e4, 1e5])
def test_far_beyond_any_capacity_the_lanes_are_busy_and_no_number_overflows(arrivals_per_h: float) -> None:
    found = lane(arrivals_per_h, 120, 3)
    assert found.utilisation == pytest.approx(1, abs=1e-3)
    assert found.taken == pytest.approx(3 * 30 / arrivals_per_h, rel=1e-2)


# The simulation

REQUESTS = 10_000


@pytest.mark.parametrize(
    ("arrivals_per_h", "service_s", "lanes", "off"),
    [
        pytest.param(6, 240, 1, 0.01, id="light"),
        pytest.param(30, 240, 1, 0.01, id="twice-what-it-can"),
        pytest.param(30, 60, 1, 0.01, id="half"),
        pytest.param(200, 20, 1, 0.01, id="short-tasks-too-many"),
        pytest.param(30, 240, 2, 0.01, id="two-lanes"),
        pytest.param(100, 240, 4, 0.01, id="four-lanes-too-many"),
        pytest.param(120, 60, 2, 0.02, id="two-lanes-of-a-minute"),
        pytest.param(400, 35, 4, 0.04, id="four-lanes-as-short-as-the-limit"),  # where it is off most
    ],
)
def test_the_lanes_of_a_model(arrivals_per_h: float, service_s: float, lanes: int, off: float) -> None:
    asked = demand(arrivals_per_h=arrivals_per_h, service_s=service_s, lanes=lanes)
    seen = Simulation([asked], TERMS, seed=7, requests=REQUESTS)
    found = lane(arrivals_per_h, service_s, lanes)
    assert found.taken == pytest.approx(seen.share("by_lane"), abs=off)
    assert found.taken <= seen.share("by_lane") + 0.01  # it never promises more than there is
    assert found.utilisation <= 1
    if lanes == 1:
        waits_s = seen.waits_s()
        taken_at_once = sum(wait_s == 0 for wait_s in waits_s if wait_s <= LIMIT_S) / seen.tallies["anisora"].arrived
        assert found.taken_within(0) == pytest.approx(taken_at_once, abs=0.015)


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_the_spread_of_long_tasks_hardly_matters(spread: float) -> None:
    seen = Simulation([demand(arrivals_per_h=15)], TERMS, seed=7, requests=REQUESTS, spread=spread)
    assert lane(15, 240).taken == pytest.approx(seen.share("by_lane"), abs=0.02)


TWO = {
    "few": (2, 8, 240, 90),
    "some": (6, 30, 240, 90),
    "many": (12, 60, 240, 90),
    "far-too-many": (30, 100, 240, 90),
    "short": (200, 200, 8, 5),
    "tiny-beyond-its-depth": (3_000, 3_000, 0.5, 0.35),
}


def two(name: str, lanes: tuple[int, int] = (1, 1)) -> tuple[Demand, ...]:
    first, second, first_s, second_s = TWO[name]
    load_s = (180.0, 120.0) if first_s > 100 else (first_s, second_s)
    return (
        demand("anisora", first, first_s, load_s=load_s[0], lanes=lanes[0]),
        demand("phr00t", second, second_s, load_s=load_s[1], lanes=lanes[1]),
    )


def terms_of(name: str) -> Terms:
    return TERMS if TWO[name][2] > 100 else replace(TERMS, release_s=0.1)


@pytest.mark.parametrize("name", TWO)
def test_the_degraded_worker_alone(name: str) -> None:
    asked = without_lanes(two(name))
    seen = Simulation(asked, terms_of(name), seed=7, requests=2 * REQUESTS)
    found = deployment(asked, terms_of(name))
    for share in ("warm", "loaded", "overloaded"):
        assert getattr(found.total, share) == pytest.approx(seen.share(share), abs=0.02), share
    assert found.degraded_utilisation == pytest.approx(seen.degraded_busy, abs=0.015)
    waits_s = seen.waits_s()
    assert found.total.wait_s == pytest.approx(sum(waits_s) / len(waits_s), abs=0.5)
    assert found.total.wait_p95_s == pytest.approx(waits_s[len(waits_s) * 95 // 100], abs=1.5)


@pytest.mark.parametrize("name", TWO)
def test_in_order_of_arrival_the_degraded_worker_is_that_of_the_formula(name: str) -> None:
    asked = without_lanes(two(name))
    found, exact = deployment(asked, terms_of(name)), degraded_station(asked, terms_of(name))
    assert 1 - found.total.overloaded == pytest.approx(exact.taken, abs=0.02)
    assert found.degraded_utilisation == pytest.approx(exact.utilisation, abs=0.02)


def test_an_order_that_knows_swaps_takes_more_where_tasks_are_short() -> None:
    """Of those that wait longer than they run."""
    asked, terms = without_lanes(two("short")), terms_of("short")
    fifo, aware = deployment(asked, terms), deployment(asked, replace(terms, policy=Policy()))
    assert aware.total.overloaded < fifo.total.overloaded - 0.05
    assert aware.total.loaded < fifo.total.loaded
    assert aware.cost_per_video is not None
    assert fifo.cost_per_video is not None
    assert aware.cost_per_video < fifo.cost_per_video


def test_the_same_question_gives_the_same_answer() -> None:
    asked = without_lanes(two("some"))
    per_h = {demand.model: demand.arrivals_per_h for demand in asked}
    assert simulated(asked, per_h, AWARE) == simulated(list(asked), dict(per_h), AWARE)
    nobody = simulated(asked, dict.fromkeys(per_h, 0.0), AWARE)
    assert (nobody.utilisation, nobody.stations["anisora"].taken) == (0, 1)


@pytest.mark.parametrize(
    ("name", "lanes"),
    [(name, (1, 1)) for name in TWO] + [("many", (2, 2)), ("some", (1, 0)), ("some", (0, 2))],
)
def test_lanes_beside_a_degraded_worker(name: str, lanes: tuple[int, int]) -> None:
    asked = two(name, lanes)
    seen = Simulation(asked, terms_of(name), seed=7, requests=REQUESTS)
    found = deployment(asked, terms_of(name))
    for flow in found.flows:
        if flow.lanes:
            assert flow.rerouted == pytest.approx(seen.share("rerouted", flow.model), abs=0.015)
    # the overflow of lanes comes in bunches, and counts as random: too few overloads, by 3 in 100 requests at most
    assert -0.03 < found.total.overloaded - seen.share("overloaded") < 0.01
    assert found.total.warm == pytest.approx(seen.share("warm"), abs=0.025)
    assert found.total.videos_per_h == pytest.approx(
        found.total.arrivals_per_h * (seen.share("warm") + seen.share("loaded")), rel=0.06
    )


# What has to hold

RATES = st.floats(0.05, 500)
SERVICES_S = st.floats(5, 900)
LANES = st.integers(1, 6)
few = settings(max_examples=40, deadline=None)
fewer = settings(max_examples=12, deadline=None)  # of what is simulated


@few
@given(RATES, st.floats(1, 5), SERVICES_S, LANES)
def test_more_arrivals_never_make_a_share_better(rate: float, factor: float, service_s: float, lanes: int) -> None:
    less, more = lane(rate, service_s, lanes), lane(rate * factor, service_s, lanes)
    assert more.taken <= less.taken + 1e-6
    assert more.taken_within(0) <= less.taken_within(0) + 1e-6
    assert more.utilisation >= less.utilisation - 1e-6


@few
@given(RATES, SERVICES_S, LANES)
def test_more_lanes_never_make_a_wait_longer(rate: float, service_s: float, lanes: int) -> None:
    less, more = lane(rate, service_s, lanes), lane(rate, service_s, lanes + 1)
    for wait_s in (0.0, 1.0, 10.0, 29.0, LIMIT_S):
        assert more.taken_within(wait_s) >= less.taken_within(wait_s) - 1e-6


@st.composite
def demands(draw: st.DrawFn, lanes: st.SearchStrategy[int] = st.integers(0, 3)) -> tuple[Demand, ...]:  # noqa: B008
    return tuple(
        demand(model, draw(st.floats(0.05, 100)), draw(SERVICES_S), load_s=draw(st.floats(1, 600)), lanes=draw(lanes))
        for model in ("anisora", "phr00t")
    )


@fewer
@given(demands())
def test_every_request_is_taken_or_overloaded(asked: tuple[Demand, ...]) -> None:
    found = deployment(asked, AWARE)
    for flow in (found.total, *found.flows):
        assert flow.warm + flow.loaded + flow.overloaded == pytest.approx(1)
        assert min(flow.warm, flow.loaded, flow.overloaded, flow.rerouted) >= -1e-9
        assert 0 <= flow.utilisation <= 1 + 1e-9
        longest_s = TERMS.lane_wait_s + TERMS.degraded_wait_s
        assert 0 <= flow.wait_s <= longest_s
        assert 0 <= flow.wait_p95_s <= longest_s + 1e-6
    assert 0 <= found.degraded_utilisation <= 1 + 1e-9
    assert found.gpus == 1 + sum(each.lanes for each in asked)


@fewer
@given(demands(lanes=st.just(0)))
def test_more_of_the_same_mix_never_overloads_the_degraded_worker_less(asked: tuple[Demand, ...]) -> None:
    shares = [degraded_station(scaled(asked, factor), TERMS).taken for factor in (0.5, 1, 2, 8)]
    assert all(less <= more + 1e-6 for more, less in pairwise(shares))
    overloaded = [deployment(scaled(asked, factor), AWARE).total.overloaded for factor in (0.5, 2, 8)]
    assert all(less <= more + 0.01 for less, more in pairwise(overloaded))


@fewer
@given(demands(), st.integers(0, 1))
def test_one_more_lane_never_overloads_its_model_more(asked: tuple[Demand, ...], which: int) -> None:
    more = tuple(
        replace(each, lanes=each.lanes + 1) if number == which and each.lanes else each
        for number, each in enumerate(asked)
    )
    less_there, more_there = (deployment(each, TERMS).flows[which].rerouted for each in (asked, more))
    assert more_there <= less_there + 1e-6


def test_the_cost_of_a_video_is_that_of_the_cards_over_the_videos() -> None:
    found = deployment(two("some"), TERMS)
    assert (found.gpus, found.cost_per_h) == (3, 7.5)
    assert found.cost_per_video == pytest.approx(7.5 / found.total.videos_per_h)
    dearer = deployment(two("some"), replace(TERMS, gpu_price_per_h=5))
    assert dearer.cost_per_video == pytest.approx(2 * 7.5 / found.total.videos_per_h)


def test_where_both_cost_the_same() -> None:
    asked = two("few")
    turn = break_even_per_h(asked, TERMS)
    assert turn is not None

    def costs(per_h: float) -> tuple[float, float]:
        at = scaled(asked, per_h / 10)
        lanes, alone = (deployment(each, TERMS).cost_per_video for each in (at, without_lanes(at)))
        assert lanes is not None
        assert alone is not None
        return lanes, alone

    lanes, alone = costs(turn)
    assert lanes == pytest.approx(alone, rel=5e-3)  # one request of those simulated more, or less
    for factor, is_cheaper in ((0.5, False), (0.9, False), (1.1, True), (3, True)):
        lanes, alone = costs(turn * factor)
        assert (lanes < alone) is is_cheaper


def test_lanes_for_one_model_that_never_swaps_never_cost_less() -> None:
    """With enough work, one card for one model is always busy; a second card cannot be cheaper."""
    assert break_even_per_h([demand(arrivals_per_h=6)], TERMS) is None
