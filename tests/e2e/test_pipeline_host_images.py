"""The image that a request gives to a pipeline host: its effect, and which images the host refuses (design §7)."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Failed
from tests.kit.workshop import CATALOG, Workshop, encoded, finished, ignore, image_file, parameters, request

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_an_image_of_any_shape_decides_the_video(hosts: dict[str, Host], kind: str, tmp_path: Path) -> None:
    shas = set()
    for colour in ("teal", "white"):
        given = image_file(tmp_path, colour, encoded(tmp_path, kind, (70, 31), colour), size=(70, 31), kind=kind)
        wanted = parameters("anisora", image=given.pop("image"))
        shas.add((await finished(hosts["anisora"], request(tmp_path, wanted, **given))).video.sha256)
    assert len(shas) == 2


async def test_a_missing_image_is_made_up_for_random_weights_only(workshop: Workshop, tmp_path: Path) -> None:
    """A task without the image that its model needs fails, and the host stays as it was."""
    host = workshop.host(slot="cpu-7")
    await host.start()
    entry = CATALOG.models["anisora"]
    await host.load(entry)
    await finished(host, request(tmp_path, parameters("anisora")))
    await host.unload()
    # the same folder, as if it held a converted checkpoint
    await host.load(
        msgspec.structs.replace(entry, checkpoint=msgspec.structs.replace(entry.checkpoint, random_weights=None))
    )
    outcome = await host.generate(request(tmp_path, parameters("anisora"), task_id="without"), ignore)
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.fatal) == ("invalid_input", False)
    assert "with an image" in outcome.message
    assert not (tmp_path / "without.mp4").exists()
    given = image_file(tmp_path, "i", encoded(tmp_path, "png", (64, 64)), size=(64, 64))
    wanted = parameters("anisora", image=given.pop("image"))
    await finished(host, request(tmp_path, wanted, task_id="with", **given))


async def test_a_mega_build_makes_the_same_frames_in_every_process(workshop: Workshop, tmp_path: Path) -> None:
    """`WanVACEPipeline` with and without an image, in two children; another image or seed makes another video."""
    tiny = CATALOG.models["phr00t"]
    mega = msgspec.structs.replace(tiny.checkpoint, pipeline="WanVACEPipeline", folder="tiny-mega")
    made = []
    for number in range(2):
        host = workshop.host(slot=f"cpu-{number + 5}")
        await host.start()
        await host.load(msgspec.structs.replace(tiny, checkpoint=mega))
        videos = []
        for seed, image in ((7, None), (7, 1), (7, 2), (8, 1)):
            given: dict[str, Any] = {"image": None}
            if image is not None:
                noise = np.random.default_rng(image).integers(0, 256, (32, 48, 3), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / "noise.png")
                given = image_file(tmp_path, "i", (tmp_path / "noise.png").read_bytes(), size=(48, 32))
            wanted = parameters("phr00t", image=given.pop("image"), seed=seed)
            videos.append((await finished(host, request(tmp_path, wanted, **given))).video.sha256)
        made.append(videos)
    assert made[0] == made[1]
    assert len(set(made[0])) == 4


@pytest.mark.parametrize("fault", ["cut short", "other size", "other type", "other content", "too large"])
async def test_a_bad_image_ends_the_task_and_nothing_else(hosts: dict[str, Host], fault: str, tmp_path: Path) -> None:
    content = encoded(tmp_path, "png", (64, 64))
    match fault:
        case "cut short":
            noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "noise.png")
            given = image_file(tmp_path, "i", (tmp_path / "noise.png").read_bytes()[:-4000], size=(64, 64))
        case "other size":
            given = image_file(tmp_path, "i", content, size=(32, 32))
        case "other type":
            given = image_file(tmp_path, "i", content, size=(64, 64), kind="webp")
        case "other content":
            given = image_file(tmp_path, "i", content, size=(64, 64))
            (tmp_path / "i").write_bytes(encoded(tmp_path, "png", (64, 64), "white"))
        case _:
            given = image_file(tmp_path, "i", content, size=(20_000, 20_000))
    host, pid = hosts["anisora"], hosts["anisora"].pid
    wanted = parameters("anisora", image=given.pop("image"))
    outcome = await host.generate(request(tmp_path, wanted, **given), ignore)
    assert isinstance(outcome, Failed)
    assert outcome.code == "invalid_input"
    assert "image" in outcome.message
    assert outcome.memory.rss_bytes > 0
    assert not (tmp_path / "task.mp4").exists()
    assert host.pid == pid
    await finished(host, request(tmp_path, parameters("anisora")))
