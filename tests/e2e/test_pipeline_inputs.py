"""What a pipeline gets of an image and of a text, in this process."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from contracts.checkpoints import Checkpoint, RandomWeights
from contracts.settings import Catalog
from contracts.tasks import ImageReference
from lane_worker.pipelines.inputs import BadInput, fitted, read_image
from lane_worker.pipelines.load import load_pipeline, run_pipeline
from tests.kit.records import small_parameters

# What a pipeline gets for an image


def vace(catalog: Catalog, *, experts: Any = 1) -> Checkpoint:
    """A tiny pipeline of the class of Phr00t's MEGA builds."""
    tiny = catalog.models["phr00t"].checkpoint
    return msgspec.structs.replace(
        tiny, pipeline="WanVACEPipeline", folder="tiny-mega", random_weights=RandomWeights(seed=411, experts=experts)
    )


def pixels(width: int = 32, height: int = 32, *, seed: int = 5) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_wan_sees(image: Image.Image) -> torch.Tensor:
    """*image* with values from -1 to 1, as the authors convert it."""
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1) / 255 * 2 - 1


def calls_of(pipeline: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of every call of *method*, from now on."""
    calls: list[tuple[Any, ...]] = []
    original = getattr(pipeline, method)

    def noted(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        return original(*arguments, **more)

    monkeypatch.setattr(pipeline, method, noted)
    return calls


def test_an_image_reaches_the_vae_as_it_is(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of the frame's size: diffusers does not scale it again, and does not misread its range."""
    pipeline = load_pipeline(catalog.models["anisora"].checkpoint, tmp_path, device="cpu")
    prepared = calls_of(pipeline, "prepare_latents", monkeypatch)
    bright = Image.new("RGB", (48, 32), (255, 250, 200))  # no value is below the middle
    for image in (pixels(48, 32), bright):
        run_pipeline(pipeline, msgspec.structs.replace(small_parameters(steps=1), width=48), image, lambda _: None)
        assert torch.allclose(prepared.pop()[0][0], as_wan_sees(image), atol=1e-6)


def test_vace_is_given_a_first_frame_and_grey_behind_it(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its authors' annotator `firstframe` does: VACE keeps what is black in the mask, and makes what is white."""
    pipeline = load_pipeline(vace(catalog), tmp_path, device="cpu")
    prepared = calls_of(pipeline, "prepare_video_latents", monkeypatch)
    bright = Image.new("RGB", (48, 32), (255, 250, 200))
    for image in (pixels(48, 32), bright):
        run_pipeline(pipeline, msgspec.structs.replace(small_parameters(steps=1), width=48), image, lambda _: None)
        video, mask, references, *_ = prepared.pop()
        assert video.shape == (1, 3, 5, 32, 48)
        assert torch.allclose(video[0, :, 0], as_wan_sees(image), atol=1e-6)
        assert video[0, :, 1:].abs().max() == 0  # 127.5 of 255, not 128
        assert (mask[0, :, 0].max(), mask[0, :, 1:].min()) == (0, 1)
        assert references == [[]]


def test_vace_without_an_image_is_a_pipeline_of_text(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its VACE blocks have no effect: a transformer without them makes the same video from the same prompt and seed."""
    pipeline = load_pipeline(vace(catalog), tmp_path, device="cpu")
    plain = load_pipeline(catalog.models["phr00t"].checkpoint, tmp_path, device="cpu")
    shared = {name: value for name, value in pipeline.transformer.state_dict().items() if not name.startswith("vace_")}
    plain.transformer.load_state_dict(shared)
    plain.text_encoder, plain.vae = pipeline.text_encoder, pipeline.vae
    decoded = calls_of(pipeline.vae, "decode", monkeypatch)
    for each in (pipeline, plain):
        run_pipeline(each, small_parameters(steps=4), None, lambda _: None)
    run_pipeline(pipeline, small_parameters(steps=4), pixels(), lambda _: None)
    without, of_text, with_image = (latents for latents, *_ in decoded)
    assert torch.equal(without, of_text)
    assert not torch.allclose(with_image, of_text)


@pytest.mark.parametrize("experts", [1, 2])
def test_vace_makes_videos_of_text_and_of_images(
    catalog: Catalog, experts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test compares the decoded latents, because the tiny VAE makes nearly the same frames from any latents."""
    checkpoint = msgspec.structs.replace(vace(catalog, experts=experts), boundary_ratio=0.9 if experts == 2 else None)
    pipeline = load_pipeline(checkpoint, tmp_path, device="cpu")
    decoded = calls_of(pipeline.vae, "decode", monkeypatch)

    def made(image: Image.Image | None, *, seed: int = 1, count: int = 5) -> tuple[bytes, bytes]:
        wanted = msgspec.structs.replace(small_parameters(steps=2), seed=seed, num_frames=count)
        frames = run_pipeline(pipeline, wanted, image, lambda _: None)
        assert frames.shape == (count, 32, 32, 3)
        return decoded.pop()[0].numpy().tobytes(), frames.tobytes()

    one, other = pixels(seed=1), pixels(seed=2)
    first = [made(None), made(one), made(other), made(None, seed=2), made(one, seed=2)]
    assert len({latents for latents, _ in first}) == 5
    made(one, count=1)
    # and loaded again, from the files on disk
    pipeline = load_pipeline(checkpoint, tmp_path, device="cpu")
    decoded = calls_of(pipeline.vae, "decode", monkeypatch)
    assert [made(None), made(one)] == first[:2]


@pytest.mark.parametrize("pipeline_class", ["WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline"])
def test_a_negative_prompt_is_read_above_cfg_1_only(
    catalog: Catalog, pipeline_class: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the API's description says: at 1 there is one pass a step, and only the prompt is encoded."""
    checkpoint = msgspec.structs.replace(vace(catalog), pipeline=pipeline_class, folder=pipeline_class)
    pipeline = load_pipeline(checkpoint, tmp_path, device="cpu")
    passes = calls_of(pipeline.transformer, "forward", monkeypatch)
    encoded = calls_of(pipeline.text_encoder, "forward", monkeypatch)
    # the tiny VAE makes the same frames from nearly the same latents
    decoded = calls_of(pipeline.vae, "decode", monkeypatch)

    def latents(cfg: float, negative_prompt: str) -> tuple[bytes, int, int]:
        passes.clear()
        encoded.clear()
        wanted = msgspec.structs.replace(small_parameters(steps=4), cfg=cfg, negative_prompt=negative_prompt)
        run_pipeline(pipeline, wanted, None, lambda _: None)
        return decoded.pop()[0].numpy().tobytes(), len(passes), len(encoded)

    plain = latents(1.0, "")
    assert plain[1:] == (4, 1)
    assert latents(1.0, "blurry, text") == plain
    guided = [latents(3.0, "blurry, text"), latents(3.0, "")]
    assert [each[1:] for each in guided] == [(8, 2)] * 2
    assert len({plain[0], guided[0][0], guided[1][0]}) == 3


def test_an_image_is_never_silently_left_out(catalog: Catalog, tmp_path: Path) -> None:
    pipeline = load_pipeline(catalog.models["phr00t"].checkpoint, tmp_path, device="cpu")
    with pytest.raises(BadInput, match="takes text only"):
        run_pipeline(pipeline, small_parameters(steps=4), pixels(), lambda _: None)


def test_the_frame_is_close_to_what_the_authors_resize() -> None:
    """The authors' bicubic filter has other weights and does not average, which shows in fine parts and in images that
    shrink much (ADR 0022)."""
    x, y = np.meshgrid(np.linspace(0, 6, 200), np.linspace(0, 4, 150))
    drawn = np.stack([np.sin(x) * np.cos(y), np.cos(x + y), np.sin(x * y / 4)], axis=-1)
    image = Image.fromarray(((drawn + 1) * 127.5).astype(np.uint8))
    for size in ((256, 192), (192, 144), (128, 96)):
        theirs = torch.nn.functional.interpolate(as_wan_sees(image)[None], size=size[::-1], mode="bicubic")[0]
        assert (as_wan_sees(fitted(image, *size)) - theirs).abs().max() < 0.04  # of 2


# Images


def stored(path: Path, image: Image.Image) -> ImageReference:
    image.save(path, format="PNG")
    content = path.read_bytes()
    return ImageReference(
        sha256=hashlib.sha256(content).hexdigest(),
        media_type="image/png",
        bytes=len(content),
        width=image.width,
        height=image.height,
    )


def test_an_image_covers_the_frame_and_keeps_its_centre(tmp_path: Path) -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))  # the middle third, as large as the frame's shape
    read = read_image(tmp_path / "i", stored(tmp_path / "i", wide), width=64, height=64)
    assert (read.mode, read.size) == ("RGB", (64, 64))
    assert read.getpixel((32, 32)) == (0, 0, 255)
    assert read.getpixel((4, 60)) == (0, 0, 255)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16"])
def test_every_kind_of_png_becomes_rgb(tmp_path: Path, mode: str) -> None:
    reference = stored(tmp_path / "i", Image.new(mode, (20, 20)))
    assert read_image(tmp_path / "i", reference, width=32, height=32).mode == "RGB"


def test_no_more_is_decoded_than_the_reference_allows(tmp_path: Path) -> None:
    larger = stored(tmp_path / "i", Image.new("1", (5_000, 5_000)))
    claimed = msgspec.structs.replace(larger, width=64, height=64)
    with pytest.raises(BadInput, match="5000 x 5000, not 64 x 64"):
        read_image(tmp_path / "i", claimed, width=64, height=64)
    claimed = msgspec.structs.replace(larger, width=50_000, height=50_000)
    with pytest.raises(BadInput, match="more than 67108864 pixels"):
        read_image(tmp_path / "i", claimed, width=64, height=64)
