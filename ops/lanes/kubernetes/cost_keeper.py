"""Keeps `controller.kubernetes.io/pod-deletion-cost` of the lanes' pods, so that a scale-in takes an idle lane."""

import asyncio
import time
from typing import Final, NoReturn

from contracts.lanes import LaneState
from ops.lanes.kubernetes.cluster import Cluster
from ops.lanes.kubernetes.deletion_cost import ANNOTATION, Occupation, new_costs
from ops.waiting import set_within

# How often the keeper looks for new pods, and for lanes that were idle for long enough.
LOOK_S: Final = 1.0
# Ten writes in a second at most, for all lanes together.
BETWEEN_S: Final = 0.1


class CostKeeper:
    """Writes a pod's annotation only when it changes: at once for a lane that becomes busy, after SETTLED_S for a lane
    that becomes idle. It writes nothing while the cluster cannot be seen, and waits when the API server refuses."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lanes: dict[str, Occupation] = {}
        self._news = asyncio.Event()

    def hear(self, lane: str, state: LaneState | None) -> None:
        """The lane in the pod *lane* is in *state*; None: its heartbeat is gone."""
        if state is None:
            self._lanes.pop(lane, None)
            return
        before = self._lanes.get(lane, Occupation(LaneState.STARTING))
        self._lanes[lane] = before.then(state, now_s=time.monotonic())
        if state is LaneState.BUSY is not before.state:
            self._news.set()

    async def follow(self) -> NoReturn:
        """Never returns."""
        while True:
            await set_within(LOOK_S, self._news)
            self._news.clear()
            pods = self._cluster.pods
            if pods.blind:
                continue
            for name, cost in new_costs(pods.objects.values(), self._lanes, now_s=time.monotonic()).items():
                refused_s = await self._cluster.annotate(name, ANNOTATION, str(cost))
                await asyncio.sleep(refused_s or BETWEEN_S)
                if refused_s:
                    break
