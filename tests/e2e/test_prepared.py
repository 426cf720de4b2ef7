"""The main job on folders as production has them: published files, `warmlane models prepare`, and the production
profile's own settings. No recipe makes random weights here, and an image is required where production requires it.

Only the sizes of the videos and the slots are those of a CPU; the name of the profile decides the slots.
"""

import contextlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from msgspec import json as msgjson

from contracts.settings import load_settings
from contracts.tasks import GenerationParameters
from lane_worker.checkpoints.command import command as models_command
from ops.commands.submit import command as submit
from tests.e2e.test_main_job import frames_of, image_uri, png
from tests.kit.published import PHR00T, phr00t_in_bf16, publish_anisora
from tests.kit.small_checkpoints import SMALL_LAYOUTS, as_phr00t_publishes, tokenizer, write_all_in_one
from tests.kit.support import settings_file, shared_forks
from tests.kit.system import UpProcess

PAGE = Path(__file__).parents[2] / "docs" / "operate" / "production.md"
MODELS = ("anisora", "phr00t")
FIRST_FRAME = {"image": image_uri(png())}
# Sizes that a CPU makes in a second. The lanes warm up with the largest.
GEOMETRY = {
    "width": {"default": 48, "minimum": 32, "maximum": 64, "step": 16},
    "height": {"default": 32, "minimum": 32, "maximum": 64, "step": 16},
    "num_frames": {"default": 5, "minimum": 5, "maximum": 9, "step": 4, "offset": 1},
    "fps": {"default": 8, "minimum": 1, "maximum": 60},
}


def publish(folder: Path) -> None:
    """What docs/operate/production.md has downloaded: AniSora's experts, the base with the rest, Phr00t's one file."""
    tokens, base = tokenizer(folder / "tiny"), folder / "Wan2.2-I2V-A14B"
    publish_anisora(folder / "anisora", tokens).rename(base)
    experts = folder / "Index-anisora" / "V3.2"
    experts.mkdir(parents=True)
    for name in ("high_noise_model", "low_noise_model"):
        (base / name).rename(experts / name)
    (folder / "v10").mkdir()
    one_file = folder / "v10" / "wan2.2-t2v-rapid-aio-v10.safetensors"
    write_all_in_one(PHR00T, as_phr00t_publishes(phr00t_in_bf16(folder, tokens)), one_file)


def type_in(begin: str, folder: Path, data_dir: Path, group: click.Command, **options: Any) -> None:
    """Runs every command of docs/operate/production.md that *begin* matches, with another data folder. *group* is what
    its first two words call."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    typed = [shlex.split(line) for line in lines if re.match(begin, line.strip())]
    assert typed
    with contextlib.chdir(folder):
        for line in typed:
            arguments = [word.replace("/srv/warmlane", str(data_dir)) for word in line[2:]]
            result = CliRunner().invoke(group, arguments, **options)
            assert result.exit_code == 0, result.output


def production_on_a_cpu(folder: Path) -> Path:
    """The packaged settings with the production profile as `tiny`, except for the sizes of videos."""
    path = settings_file(folder)
    settings = json.loads(path.read_text())
    for model in settings["models"].values():
        production = model["profiles"]["production"]
        assert "random_weights" not in production["checkpoint"]
        assert production["warm_up"] == "largest"
        production["checkpoint"] |= {"activation_bytes": 0}  # the packaged figure is for larger sizes
        model["profiles"]["tiny"] = production | {"geometry": GEOMETRY}
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """`warmlane up` on the two folders. It is ready only when both lanes are warm."""
    folder = tmp_path_factory.mktemp("prepared")
    up = UpProcess(folder, "--settings", str(production_on_a_cpu(folder)), **shared_forks())
    publish(folder)
    type_in("warmlane models (prepare|verify)", folder, up.data_dir, models_command, obj=SMALL_LAYOUTS)
    up.start()
    yield up
    up.stop()


def fields_of(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": "a red fox"} | (FIRST_FRAME if model == "anisora" else {})


def test_the_main_job_on_prepared_folders(served: UpProcess, tmp_path: Path) -> None:
    """SC-001: in turns on two warm lanes, then on one slot with a proven release before each load.

    AniSora's lane is warm because it warms up with a picture: its pipeline makes nothing without one.
    """
    for model in MODELS:
        (warm,) = [line for line in served.log_lines(f"{model}-0") if line["event"] == "warm"]
        assert warm["warmed_up_with"] == "64 x 64 x 9"
        assert [line for line in served.log_lines(f"{model}-0") if line["event"] == "not_rehearsed"] == []
    refused = served.http.post("/generate", json={"model": "anisora", "prompt": "a red fox"})
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "image_required")
    on_lanes = [served.ended(served.submit(**fields_of(MODELS[number % 2]), seed=number)["id"]) for number in range(4)]
    for model in MODELS:
        assert served.http.put(f"/admin/lanes/{model}/mode", json={"mode": "degraded"}).status_code == 200
    swapped = [served.ended(served.submit(**fields_of(MODELS[number % 2]), seed=number)["id"]) for number in range(4)]
    assert [task["status"] for task in (*on_lanes, *swapped)] == ["done"] * 8, (on_lanes, swapped)
    assert [task["worker"] for task in on_lanes] == ["anisora-0", "phr00t-0"] * 2
    assert {task["worker"] for task in swapped} == {"degraded-0"}
    receipts = [task["swap"] for task in swapped]
    assert [receipt["how"] for receipt in receipts] == ["nothing_resident", *["unloaded"] * 3]
    # neither the worker nor the model that ran before changes the video
    assert [task["video"]["sha256"] for task in swapped] == [task["video"]["sha256"] for task in on_lanes]
    assert len(frames_of(served.video(on_lanes[0]["id"]))) == 5
    assert on_lanes[0]["video"]["sha256"] == _directly(served, on_lanes[0], tmp_path)
    (tmp_path / "fox.png").write_bytes(png())
    type_in("warmlane submit", tmp_path, served.data_dir, submit, env={"WARMLANE_URL": served.url})
    (printed,) = [line for line in served.output.read_text().splitlines() if "submit anisora" in line]
    for name, file in (("PICTURE.png", "fox.png"), ("anisora.mp4", "as-printed.mp4")):
        printed = printed.replace(name, str(tmp_path / file))
    subprocess.run(["bash", "-c", printed], check=True, capture_output=True, timeout=120)
    for name in ("fox", "lantern", "as-printed"):
        assert len(frames_of((tmp_path / f"{name}.mp4").read_bytes())) == 5


def _directly(served: UpProcess, done: dict[str, Any], folder: Path) -> str:
    """The video of AniSora's pipeline called here, with the prompt's suffix and the client's image."""
    from lane_worker.pipelines.inputs import read_image
    from lane_worker.pipelines.load import load_pipeline, run_pipeline, with_suffix
    from lane_worker.pipelines.video import write_video

    made = load_settings().catalog("production").models["anisora"].checkpoint
    parameters = msgjson.decode(json.dumps(done["parameters"]), type=GenerationParameters)
    (folder / "image").write_bytes(png())
    assert parameters.image is not None
    image = read_image(folder / "image", parameters.image, width=parameters.width, height=parameters.height)
    pipeline = load_pipeline(made, served.data_dir / "models", device="cpu")
    frames = run_pipeline(pipeline, with_suffix(parameters, made.prompt_suffix), image, lambda _: None)
    return write_video(frames, folder / "direct.mp4", fps=parameters.fps).sha256
