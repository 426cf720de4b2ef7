"""How many lanes KEDA and the autoscaler of Kubernetes want at a demand, by the chart's values. Pure: the time is an
argument.

It is the arithmetic of `pkg/controller/podautoscaler` of Kubernetes 1.36 for one external metric with an AverageValue
and a `behavior`, as the chart's ScaledObject has them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from msgspec import Struct
from msgspec.structs import replace

from gateway.rules.demand import wanted_lanes

VALUES: Final = Path(__file__).parents[2] / "ops" / "kubernetes" / "warmlane" / "values.yaml"
# The autoscaler's interval (--horizontal-pod-autoscaler-sync-period). KEDA's pollingInterval only matters from 0 to 1.
SYNC_S: Final = 15.0
# The autoscaler changes nothing while the demand for each lane is this close to the target
# (--horizontal-pod-autoscaler-tolerance).
TOLERANCE: Final = 0.1
# The default of `scaleUp`: this many more lanes, or this many times as many, in this time; the larger of the two.
UP_LANES, UP_TIMES, UP_PERIOD_S = 4, 2.0, 15.0
NO_BOUND: Final = 10**6


class ScaledObject(Struct, frozen=True, kw_only=True):
    """The figures of the chart's ScaledObject."""

    least: int
    most: int
    tasks_per_lane: float
    cool_down_s: float

    @classmethod
    def of_chart(cls) -> "ScaledObject":
        """With the chart's default values."""
        given: dict[str, Any] = yaml.safe_load(VALUES.read_text())["autoscaling"]
        return cls(
            least=given["minLanes"],
            most=given["maxLanes"],
            tasks_per_lane=given["tasksPerLane"],
            cool_down_s=given["coolDownSeconds"],
        )


class Change(Struct, frozen=True):
    """At *at_s* the number of replicas changed *by* this many."""

    at_s: float
    by: int


class Autoscaler(Struct, frozen=True, kw_only=True):
    """What the autoscaler remembers: how many lanes it wanted at which times, and what it changed."""

    rules: ScaledObject
    wanted: tuple[tuple[float, int], ...] = ()
    changes: tuple[Change, ...] = ()

    def asked(self, demand: int, *, lanes: int, now_s: float) -> tuple["Autoscaler", int]:
        """The autoscaler after it read *demand* while there are *lanes*, and how many lanes it then asks for.

        1. Within the tolerance of the target for each lane: as many as there are. Otherwise the demand by the target.
        2. More lanes come at once. Fewer: no fewer than were wanted at any time within the cool-down.
        3. In 15 s at most four more, or twice as many; in a cool-down at most one less.
        4. Between the least and the most.
        """
        rules = self.rules
        wanted = wanted_lanes(demand, tasks_per_lane=rules.tasks_per_lane, least=0, most=NO_BOUND)
        if 1 - TOLERANCE <= demand / (rules.tasks_per_lane * lanes) <= 1 + TOLERANCE:  # 1
            wanted = lanes
        recent = tuple(each for each in self.wanted if each[0] > now_s - rules.cool_down_s)
        lately_most = max((count for _, count in recent), default=wanted)
        count = min(max(lanes, wanted), max(lately_most, wanted))  # 2
        if count > lanes:  # 3, 4
            start = lanes - self._changed_within(UP_PERIOD_S, now_s)
            count = min(count, max(lanes, start + UP_LANES, math.ceil(start * UP_TIMES)), max(lanes, rules.most))
        elif count < lanes:
            start = lanes - self._changed_within(rules.cool_down_s, now_s)
            count = max(count, min(lanes, start - 1), rules.least)
        changes = (*self.changes, Change(now_s, count - lanes)) if count != lanes else self.changes
        return replace(self, wanted=(*recent, (now_s, wanted)), changes=changes), count

    def _changed_within(self, period_s: float, now_s: float) -> int:
        return sum(change.by for change in self.changes if change.at_s > now_s - period_s)


class Pick(Struct, frozen=True, kw_only=True):
    """A lane as the ReplicaSet controller sees it when there is one too many."""

    name: int
    is_ready: bool
    cost: int
    ready_at_s: float


def picked(lanes: Sequence[Pick]) -> int:
    """The *name* of the lane to delete: one that is not ready, else the cheapest, else the one that was ready last."""
    return min(lanes, key=lambda lane: (lane.is_ready, lane.cost, -lane.ready_at_s)).name
