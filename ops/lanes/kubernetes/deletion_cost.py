"""What each lane's pod costs to delete. Pure: no clock, no I/O, no logging.

The ReplicaSet controller asks for that when lanes become fewer: of pods that are ready it deletes the cheapest first
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
# A lane that takes one task after the other is not written down between two of them, which lie 0.7 s apart at most.
SETTLED_S: Final = 3.0


class Occupation(Struct, frozen=True):
    """The last word of a lane, and when it was last known to be busy, by a clock in seconds; None: never."""

    state: LaneState
    busy_at_s: float | None = None

    def then(self, state: LaneState, *, now_s: float) -> "Occupation":
        """What follows when the lane says that it is in *state*."""
        was_busy = LaneState.BUSY in {self.state, state}
        return Occupation(state, now_s if was_busy else self.busy_at_s)


def cost_of(lane: Occupation | None, *, now_s: float) -> int:
    """What it costs to delete a pod; *lane* is None where it has never spoken.

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
    """The pods, by name, whose annotation has to be another one, dearest first. *lanes* by the names of their pods.

    1. A pod that leaves, or is the only one of its Deployment: none. There is nothing to choose.
    2. One whose annotation says what it costs, or that has none and costs NOTHING: none.
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
