"""A lane whose card does not report its memory: what the lane reports meanwhile, and that no operator has to lift
anything."""

from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from contracts.lanes import LaneState, SlotState
from contracts.settings import Catalog
from ops.machine.nvml import NvmlProbe
from ops.nats.link import NatsLink
from tests.kit.degraded import shown
from tests.kit.fake_nvml import UUID, FakeNvml, fake_nvml
from tests.kit.lanes import Lane

TEXT = "updated under the loaded kernel module: restart the machine"


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    with fake_nvml(tmp_path, monkeypatch) as card:
        monkeypatch.setattr("lane_worker.runtime.assembly.probe_for", lambda *_: NvmlProbe(UUID))
        yield card


@pytest.mark.usefixtures("forks")
async def test_a_lane_repeats_the_drivers_message_and_goes_on_asking(
    link: NatsLink, catalog: Catalog, card: FakeNvml, tmp_path: Path
) -> None:
    card.set(init_error=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    lane = Lane(link, catalog, tmp_path)
    lane.start()
    try:
        await lane.becomes(LaneState.STARTING, when=lambda heartbeat: TEXT in heartbeat.detail)
        residence = lane._worker._residence
        residence.memory._first_answer_s = 0.0
        await lane.becomes(LaneState.UNHEALTHY, when=lambda heartbeat: TEXT in heartbeat.detail)
        await lane.becomes(LaneState.CRASH_LOOPING, when=lambda heartbeat: TEXT in heartbeat.detail)
        slot = await shown(link, lane.slot)
        assert slot is None or slot.state is not SlotState.QUARANTINED
        assert residence.host.pid is None
    finally:
        await lane.leave()
