"""What each lane's pod costs to delete. Pure: no clock, no I/O, no logging.

The ReplicaSet controller reads that cost when it scales in: of the ready pods it deletes the cheapest first
(`controller.kubernetes.io/pod-deletion-cost`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from contracts.lanes import LaneState
from ops.lanes.kubernetes.objects import Pod

ANNOTATION: Final = "controller.kubernetes.io/pod-deletion-cost"
BUSY: Final = 200
WARM: Final = 100
# As Kubernetes counts a pod without the annotation.
NOTHING: Final = 0
# A lane that takes one task after the other keeps its cost between two tasks, which are 0.7 s apart at most.
SETTLED_S: Final = 3.0


class Occupation(Struct, frozen=True):
    """The last *state* that a lane reported, and when it was last known to be busy, by a clock in seconds; None:
    never."""

    state: LaneState
    busy_at_s: float | None = None

    def then(self, state: LaneState, *, now_s: float) -> "Occupation":
        """The occupation after the lane has reported *state*."""
        was_busy = LaneState.BUSY in {self.state, state}
        return Occupation(state, now_s if was_busy else self.busy_at_s)


def cost_of(lane: Occupation | None, *, now_s: float) -> int:
    """What it costs to delete a pod; *lane* is None where the lane has never reported.

    1. It runs a task, or ran one within the last SETTLED_S: BUSY.
    2. It is warm: WARM.
    3. Otherwise, as while it starts, or has unloaded its model: NOTHING.
    """
    if lane is None:
        return NOTHING
    settled = lane.busy_at_s is None or now_s - lane.busy_at_s >= SETTLED_S
    if lane.state is LaneState.BUSY or (lane.state is LaneState.WARM and not settled):  # 1
        return BUSY
    return WARM if lane.state is LaneState.WARM else NOTHING  # 2, 3


def new_costs(pods: Iterable[Pod], lanes: Mapping[str, Occupation], *, now_s: float) -> dict[str, int]:
    """The new costs, by name, of the pods whose annotation has to change, dearest first. *lanes* are by pod name.

    1. It leaves out a pod that is leaving, or is the only one of its Deployment: there is nothing to choose.
    2. It leaves out a pod whose annotation shows its cost, or that has no annotation and costs NOTHING.
    """
    staying = [pod for pod in pods if not pod.is_leaving]
    beside = Counter(pod.entry for pod in staying)
    changed = {}
    for pod in staying:
        name = pod.metadata.name
        cost = cost_of(lanes.get(name), now_s=now_s)
        if beside[pod.entry] > 1 and pod.metadata.annotations.get(ANNOTATION, str(NOTHING)) != str(cost):  # 1, 2
            changed[name] = cost
    return dict(sorted(changed.items(), key=lambda each: (-each[1], each[0])))
