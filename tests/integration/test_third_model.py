"""A third model is an entry in a settings file: no line of code knows it. This one takes text or an image."""

import asyncio
import base64
import io
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from contracts.settings import load_settings
from ops.machine.processes import warmlane_command
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.kit.behind import js_of
from tests.kit.gateway import GatewayProcess, System
from tests.kit.support import KEEP_S, clean_environment, eventually, settings_file, shared_forks

pytestmark = pytest.mark.usefixtures("forks")

MODEL = "lantern"


def with_a_third_model(folder: Path) -> Path:
    """The packaged settings and one more model: phr00t under another name, of the class of its MEGA builds, with limits
    of its own."""
    path = settings_file(folder)
    settings: dict[str, Any] = json.loads(path.read_text())
    entry = json.loads(json.dumps(settings["models"]["phr00t"]))
    entry |= {"title": "Lantern", "aliases": ["lantern-1"], "lanes": 1}
    entry["generation"]["steps"] = {"fixed": 3}
    tiny = entry["profiles"]["tiny"]
    tiny["checkpoint"] |= {"folder": "tiny-lantern", "pipeline": "WanVACEPipeline"}
    tiny["image"] = {
        "presence": "optional",
        "max_bytes": 1_000_000,
        "max_pixels": 1_000_000,
        "media_types": ["image/png"],
    }
    settings["models"][MODEL] = entry
    path.write_text(json.dumps(settings))
    return path


def image(*, seed: int) -> str:
    """A data URI of noise. To the tiny VAE, which normalises a frame, all plain colours are the same."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def start_lane(gateway: GatewayProcess, settings: Path) -> subprocess.Popen[bytes]:
    """`warmlane lane` of the third model."""
    shared = ["--nats-url", gateway.nats.address, "--data-dir", str(gateway.data_dir), "--settings", str(settings)]
    with (gateway.folder / "lane.log").open("ab") as log:
        command = warmlane_command("lane", "--model", MODEL, *shared)
        return subprocess.Popen(command, stdout=log, stderr=log, env=clean_environment() | shared_forks())


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    """A gateway of three models, and one real lane, which is the third model's."""
    path = with_a_third_model(tmp_path)
    gateway = GatewayProcess(tmp_path)
    gateway.nats.start()
    link = await NatsLink.connect(gateway.nats.url, name="test")
    await provision(link, wanted(load_settings(path).catalog("tiny"), keep_s=KEEP_S))
    await asyncio.to_thread(gateway.start, "--settings", str(path), "--keep", f"{KEEP_S:g}s")
    lane = start_lane(gateway, path)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
        yield System(gateway, link, http)
    lane.terminate()
    assert await asyncio.to_thread(lane.wait, 60) == 0, (tmp_path / "lane.log").read_text()
    await link.close()
    gateway.stop()
    gateway.nats.stop()


async def test_a_third_model_has_its_stream_its_lane_and_its_limits(system: System) -> None:
    http = system.http

    # where the model's requests go before its lane is warm, and what operators see of the model
    model = (await http.get("/admin/lanes")).json()["models"][-1]
    assert (model["model"], model["wanted"]) == (MODEL, 1)
    queues = [queue["stream"] for queue in (await http.get("/admin/queue")).json()["queues"]]
    assert queues == ["LANE_ANISORA", "LANE_PHR00T", "LANE_LANTERN", "DEGRADED"]
    assert (await js_of(system.link).stream_info("LANE_LANTERN")).config.subjects == ["lane.lantern.*"]
    assert (await http.get("/admin/lanes/lantern-1/mode")).json()["mode"] == "auto"

    # its limits: the settings and the API's description show them, and the gateway applies them
    shown = {each["name"]: each for each in (await http.get("/settings")).json()["models"]}
    assert shown[MODEL]["constraints"]["steps"]["fixed"] == 3
    assert shown[MODEL]["modes"] == ["text-to-video", "image-to-video"]
    document = (await http.get("/openapi.json")).json()
    content = document["components"]["requestBodies"]["GenerationRequest"]["content"]["application/json"]
    described = {schema["properties"]["model"]["enum"][0]: schema for schema in content["schema"]["oneOf"]}
    assert described[MODEL]["properties"]["steps"]["const"] == 3
    assert MODEL in content["examples"]
    refused = await http.post("/generate", json={"model": MODEL, "prompt": "x", "steps": 4, "image": "x"})
    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/image", "/steps"]

    async def warm() -> bool:
        return bool((await http.get("/readyz")).json()["models"][MODEL]["warm"])

    await eventually(warm, within_s=90)
    fields = {"width": 32, "height": 32, "num_frames": 5}
    body = {"model": "lantern-1", "prompt": "a lantern", "seed": 1, **fields}
    videos = []
    for more in ({}, {"image": image(seed=1)}, {"image": image(seed=2)}):
        response = await http.post("/generate", json=body | more)
        assert response.status_code == 202, response.text
        task = response.json()
        assert (task["model"], task["route"], task["parameters"]["steps"]) == (MODEL, "lane", 3)

        async def ended(url: str = f"/tasks/{task['id']}?wait=30") -> dict[str, Any] | None:
            now: dict[str, Any] = (await http.get(url)).json()
            return now if now["status"] in ("done", "failed") else None

        done = await eventually(ended, within_s=60)
        assert done is not None
        assert done["status"] == "done", done["error"]
        file = system.gateway.folder / "lantern.mp4"
        file.write_bytes((await http.get(f"/tasks/{task['id']}/video")).content)
        with av.open(str(file)) as video:
            assert sum(1 for _ in video.decode(video=0)) == 5
        videos.append(done["video"]["sha256"])
    assert len(set(videos)) == 3
    assert (await http.get(f"/admin/tasks/{task['id']}/explain")).json()["agrees"] is True
