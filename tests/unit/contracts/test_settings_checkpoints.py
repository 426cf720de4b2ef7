"""Settings of checkpoints: which options go together, and with which pipeline."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from contracts.checkpoints import GroupOffload
from contracts.generation.request import validate
from contracts.settings import parse_settings
from tests.kit.samples import data_uri, picture
from tests.kit.settings_files import CHECKPOINT, PACKAGED, refusal


@pytest.mark.parametrize("other", [{"offload": "model"}, {"layerwise_casting": "float8_e4m3fn"}])
def test_a_device_map_is_for_weights_that_stay_on_the_card_as_they_are(other: dict[str, Any]) -> None:
    document = json.loads(PACKAGED)
    document["models"]["phr00t"]["profiles"]["tiny"]["checkpoint"] |= {"device_map": True} | other
    assert refusal(json.dumps(document).encode()).startswith(f"{CHECKPOINT}.device_map: only with")


def test_blocks_at_a_time_are_for_group_offloading_without_a_stream() -> None:
    document = json.loads(PACKAGED)
    wanted = {"level": "block", "blocks": 4, "stream": False}
    document["models"]["phr00t"]["profiles"]["tiny"]["checkpoint"] |= {"offload": "group", "group_offload": wanted}
    found = parse_settings(json.dumps(document).encode()).catalog("tiny").models["phr00t"].checkpoint
    assert found.group_offload == GroupOffload(level="block", blocks=4, stream=False)


def with_pipeline(profile: str, pipeline: str, presence: str, *, random_weights: bool) -> bytes:
    """The packaged settings with phr00t as another build, in one of its profiles."""
    document = json.loads(PACKAGED)
    entry = document["models"]["phr00t"]["profiles"][profile]
    entry["image"] = {"presence": presence, "max_bytes": 1_000, "max_pixels": 1_000}
    entry["checkpoint"]["pipeline"] = pipeline
    entry["checkpoint"].pop("random_weights", None)
    if random_weights:
        entry["checkpoint"]["random_weights"] = {"seed": 1}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("pipeline", "presence", "random_weights", "expected"),
    [
        ("WanPipeline", "unsupported", False, None),
        ("WanPipeline", "optional", False, "unsupported"),
        ("WanPipeline", "required", True, "unsupported"),
        ("WanImageToVideoPipeline", "required", False, None),
        ("WanImageToVideoPipeline", "optional", False, "required"),
        ("WanImageToVideoPipeline", "unsupported", False, "required"),
        # a lane makes an image where the weights are no model's
        ("WanImageToVideoPipeline", "optional", True, None),
        ("WanImageToVideoPipeline", "unsupported", True, None),
        ("WanVACEPipeline", "unsupported", False, None),
        ("WanVACEPipeline", "optional", False, None),
        ("WanVACEPipeline", "required", False, None),
        ("LTXPipeline", "optional", False, None),
    ],
)
def test_an_image_is_asked_for_as_the_pipeline_takes_it(
    pipeline: str, presence: str, random_weights: bool, expected: str | None
) -> None:
    text = with_pipeline("production", pipeline, presence, random_weights=random_weights)
    if expected is None:
        assert parse_settings(text).catalog("production").models["phr00t"].constraints.image.presence == presence
    else:
        place = "$.models.phr00t.profiles.production.image.presence"
        assert refusal(text) == f"{place}: {expected} with checkpoint.pipeline {pipeline}, got {presence}"


def test_the_documented_mega_build_is_a_settings_file() -> None:
    """docs/models/models.md says which parts of the file an operator changes."""
    text = (Path(__file__).parents[3] / "docs" / "models" / "models.md").read_text()
    (changes,) = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    document = json.loads(PACKAGED)
    document["models"]["phr00t"]["profiles"]["production"] |= json.loads(changes)
    running = parse_settings(json.dumps(document).encode()).catalog("production")
    assert running.models["phr00t"].checkpoint.pipeline == "WanVACEPipeline"
    image = data_uri(picture("PNG"))
    for body in ({"prompt": "x"}, {"prompt": "x", "image": image}):
        assert (validate({"model": "phr00t"} | body, running).image is None) == ("image" not in body)
