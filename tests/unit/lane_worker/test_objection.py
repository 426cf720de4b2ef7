"""A worker runs only what the gateway would have accepted, because whoever can write to the queue can write any
number."""

from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from contracts.fields import SEED_SPAN
from contracts.generation.request import parameter_errors, validate
from contracts.tasks import FailureCode, GenerationTask, ImageReference
from lane_worker.forking.host import Host
from lane_worker.residence.residence import Residence
from lane_worker.runtime.host_runner import HostRunner
from lane_worker.runtime.outcome import Unsuccessful
from tests.kit.records import pending_task
from tests.kit.samples import catalog, data_uri, picture

IMAGE = ImageReference(sha256="ab" * 32, media_type="image/png", bytes=9, width=3, height=2)


def with_parameters(**changes: Any) -> GenerationTask:
    task = pending_task()
    return replace(task, parameters=replace(task.parameters, **changes))


@pytest.mark.parametrize("profile", ["tiny", "production"])
@pytest.mark.parametrize("seed", [0, 7, SEED_SPAN - 1])
def test_what_was_accepted_is_run(profile: str, seed: int) -> None:
    models = catalog(profile)
    for entry in models.models.values():
        body = {"model": entry.name, "prompt": "x"}
        if entry.constraints.image.presence != "unsupported":
            body["image"] = data_uri(picture("PNG"))
        assert parameter_errors(validate(body, models).parameters(seed), entry) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"num_frames": 1_000_000_001},
        {"num_frames": 16},
        {"width": 2**40},
        {"height": -64},
        {"height": 65},
        {"width": 256, "height": 256, "num_frames": 81},
        {"fps": 0},
        {"steps": 10_000},
        {"cfg": 1e300},
        {"seed": -1},
        {"seed": 2**70},
        {"prompt": "x" * 100_000},
        {"prompt": " "},
        {"negative_prompt": "x" * 100_000},
        {"image": replace(IMAGE, width=2**31, height=2**31)},
        {"image": replace(IMAGE, width=-5, height=-5)},
        {"image": replace(IMAGE, bytes=2**40)},
        {"image": replace(IMAGE, media_type="image/svg+xml")},
    ],
)
async def test_what_was_not_is_invalid_input(changes: dict[str, Any], tmp_path: Path) -> None:
    """The host is None, so any attempt to load or to run would fail."""
    residence = Residence(
        host=cast(Host, None), slot="cpu-0", models=catalog().models, probe=None, on_state=lambda *_: None
    )
    runner = HostRunner(residence=residence, models=catalog().models, slot="cpu-0", scratch=tmp_path)
    result = await runner.run(with_parameters(**changes), tmp_path / "image", lambda _: None)
    assert isinstance(result, Unsuccessful)
    assert result.code is FailureCode.INVALID_INPUT
    assert len(result.message) < 300
