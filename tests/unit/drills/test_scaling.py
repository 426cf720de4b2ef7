"""The simulation of `make scaling`: the autoscaler's rules, and the day beside the product's own simulation."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from ops.simulation import Arrival, SimulatedLanes, first_in_first_out
from ops.simulation import simulate as simulate_fixed
from tests.drills.order import with_part
from tests.drills.scaling import HEADINGS, KINDS, PAGE, PLOT, Row, added, cells, plot, ways
from tests.drills.scaling_day import DAY_S, HOUR_S, MODEL, Counted, Lanes, Times, costs_of, simulate
from tests.drills.scaling_rules import Autoscaler, Pick, ScaledObject, picked

RULES = ScaledObject(least=1, most=20, tasks_per_lane=1, cool_down_s=600)


@pytest.mark.parametrize(
    ("rules", "demands", "expected"),
    [
        pytest.param(RULES, [3], [3], id="1-as-many-as-tasks"),
        pytest.param(replace(RULES, tasks_per_lane=2), [5], [3], id="1-rounded-up"),
        pytest.param(replace(RULES, least=10), [11], [10], id="1-within-the-tolerance"),
        pytest.param(replace(RULES, least=10), [12], [12], id="1-beyond-the-tolerance"),
        pytest.param(RULES, [3, *[1] * 39, 1, 1], [3] * 40 + [2] * 2, id="2-fewer-after-the-cool-down"),
        pytest.param(RULES, [3, *[1] * 20, 3, *[1] * 39, 1], [3] * 61 + [2], id="2-wanted-again-meanwhile"),
        pytest.param(RULES, [3, *[0] * 80], [3] * 40 + [2] * 40 + [1], id="3-one-in-a-cool-down"),
        pytest.param(RULES, [20, 20, 20, 20], [5, 10, 20, 20], id="3-four-more-or-twice-as-many"),
        pytest.param(replace(RULES, most=4), [20], [4], id="4-the-most"),
        pytest.param(RULES, [0] * 100, [1] * 100, id="4-never-none"),
    ],
)
def test_what_the_autoscaler_makes_of_a_demand(rules: ScaledObject, demands: list[int], expected: list[int]) -> None:
    scaler, lanes, found = Autoscaler(rules=rules), rules.least, []
    for number, demand in enumerate(demands):
        scaler, lanes = scaler.asked(demand, lanes=lanes, now_s=15.0 * number)
        found.append(lanes)
    assert found == expected


def test_which_lane_goes() -> None:
    starts = Pick(name=1, is_ready=False, cost=0, ready_at_s=0)
    idle = Pick(name=2, is_ready=True, cost=100, ready_at_s=10)
    idle_later = replace(idle, name=3, ready_at_s=20)
    busy = Pick(name=4, is_ready=True, cost=200, ready_at_s=30)
    assert picked([busy, idle, starts]) == 1
    assert picked([busy, idle, idle_later]) == 3
    assert picked([busy, idle]) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_lanes_that_are_always_there_fare_as_in_the_products_own_simulation(count: int) -> None:
    times = Times()
    came = [at_s for at_s in KINDS["bursty"](1) if at_s < DAY_S - HOUR_S]
    lanes = SimulatedLanes(count={MODEL: count}, run_s={MODEL: times.run_s})
    arrived = [Arrival(at_s=at_s, model=MODEL, to_lane=True) for at_s in came]
    other = simulate_fixed(arrived, order=first_in_first_out, costs=costs_of(times), lanes=lanes)
    counted = simulate(came, Lanes(first=count), times)
    by_lane = sum(start.on_lane for start in other.starts)
    assert (counted.by_lane, counted.by_degraded) == (by_lane, other.served - by_lane)
    assert counted.turned_away == len(other.refused) + len(other.expired)
    assert counted.lane_hours == pytest.approx(24 * count)


def of_a_day(day: str, name: str) -> Counted:
    (way,) = [way for way in ways() if way.name == name]
    return simulate(KINDS[day](1), way.lanes, way.times)


def test_what_a_smooth_and_a_bursty_day_say() -> None:
    """What docs/kubernetes.md concludes from them; that a seed gives the same day again."""
    scaled = of_a_day("smooth", "1 to 6, by demand")
    assert scaled == of_a_day("smooth", "1 to 6, by demand")
    fixed = of_a_day("smooth", "3, always")
    assert scaled.by_lane > fixed.by_lane
    assert scaled.lane_hours < fixed.lane_hours
    unsaid = of_a_day("smooth", "1 to 6, by demand, idle lanes not marked")
    assert scaled.busy_told_to_go < unsaid.busy_told_to_go
    two, slow = of_a_day("bursty", "2, always"), of_a_day("bursty", "1 to 6, by demand, cold start 600 s")
    assert slow.by_lane <= two.by_lane
    assert slow.lane_hours > two.lane_hours


def test_the_page_and_the_plot_are_of_these_rows() -> None:
    page = PAGE.read_text()
    headings = "| " + " | ".join(HEADINGS) + " |"
    assert with_part(page, "scaling", HEADINGS, [], by="make scaling").count(headings) == page.count(headings) == 1
    for day in KINDS:
        for way in ways():
            assert f"\n| {day} | {way.name} | " in page
    assert PLOT.stat().st_size < 300_000


def test_the_plot_shows_both_kinds_of_days(tmp_path: Path) -> None:
    counted = of_a_day("smooth", "1 to 6, by demand")
    rows = [Row(day=day, way="1 to 6, by demand", days=1, counted=added([counted])) for day in KINDS]
    assert cells(rows[0])[6] == f"{counted.lane_hours:.0f}"
    plot(rows, tmp_path / "scaling.svg")
    drawn = (tmp_path / "scaling.svg").read_text()
    assert all(f"a {day} day, lanes 1 to 6, by demand" in drawn for day in KINDS)
