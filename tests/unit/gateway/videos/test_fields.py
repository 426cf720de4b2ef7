"""What a request to `/v1/videos` becomes, and why it is refused, in a table."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec import Struct

from contracts.generation.body import MalformedBody
from contracts.generation.errors import FieldError, InvalidRequest
from contracts.generation.images import ImageByAddress, ImageByReference, ImageFile
from contracts.generation.request import FIELDS as GENERATION_FIELDS
from contracts.settings import Catalog
from gateway.videos.fields import FIELDS, UnknownModel, accepted, as_named, frames_of
from gateway.videos.forms import VideoFormFields
from tests.kit.samples import catalog, data_uri, picture

TINY = catalog()
PRODUCTION = catalog("production")
PNG = picture("PNG")
ANISORA = {"model": "anisora", "prompt": "x"}
PHR00T = {"model": "phr00t", "prompt": "x"}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(PHR00T, {"width": 96, "height": 64, "num_frames": 17, "fps": 16, "steps": 4}, id="defaults"),
        pytest.param(PHR00T | {"size": "128x96"}, {"width": 128, "height": 96}, id="size"),
        pytest.param(PHR00T | {"size": "128X96", "width": 128}, {"width": 128, "height": 96}, id="both-say-the-same"),
        pytest.param(PHR00T | {"seconds": "4"}, {"num_frames": 65}, id="4-seconds"),
        pytest.param(PHR00T | {"seconds": 4}, {"num_frames": 65}, id="a-number-of-seconds"),
        pytest.param(PHR00T | {"seconds": "4", "fps": 8}, {"num_frames": 33, "fps": 8}, id="at-8-a-second"),
        pytest.param(PHR00T | {"seconds": "0.3"}, {"num_frames": 5}, id="part-of-a-second"),
        pytest.param(ANISORA | {"seconds": "1.2"}, {"num_frames": 17}, id="the-nearest-of-8-k-plus-1"),
        pytest.param(PHR00T | {"seconds": "4", "num_frames": 9}, {"num_frames": 9}, id="frames-go-before-seconds"),
        pytest.param(PHR00T | {"num_inference_steps": 4, "guidance_scale": 1}, {"steps": 4, "cfg": 1.0}, id="omni"),
        pytest.param(ANISORA | {"guidance_scale": 2.5, "negative_prompt": "text"}, {"cfg": 2.5}, id="guidance"),
        pytest.param(PHR00T | {"seconds": "12", "fps": 4}, {"num_frames": 49}, id="longer-at-4-a-second"),
        pytest.param(PHR00T | {"seed": 7, "user": "alice"}, {"seed": 7}, id="user-means-nothing"),
        pytest.param({"model": "INDEX-anisora", "prompt": "x"}, {"model": "anisora"}, id="alias"),
        pytest.param({**PHR00T, "labels": {"project": "spring"}}, {"labels": {"project": "spring"}}, id="labels"),
        pytest.param(PHR00T | {"keep_s": 90}, {"keep_s": 90}, id="keep"),
        pytest.param(PHR00T | {"priority": "background"}, {"priority": "background"}, id="priority"),
    ],
)
def test_what_a_request_comes_to(sent: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    request = accepted(sent, TINY)
    assert {name: getattr(request, name) for name in expected} == expected


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param({"input_reference": ImageFile(PNG)}, id="file"),
        pytest.param({"input_reference": data_uri(PNG)}, id="data-uri"),
        pytest.param({"input_reference": {"image_url": data_uri(PNG)}}, id="object"),
        pytest.param({"image_reference": json.dumps({"image_url": data_uri(PNG)})}, id="as-json-in-a-form"),
    ],
)
def test_the_image_in_every_form(sent: Mapping[str, Any]) -> None:
    request = accepted({**ANISORA, **sent}, TINY)
    assert request.image_content == PNG
    assert request.image is not None
    assert request.image.media_type == "image/png"


@pytest.mark.parametrize(
    ("sent", "running", "model"),
    [
        pytest.param({}, PRODUCTION, "phr00t", id="text"),
        pytest.param({"input_reference": ImageFile(PNG)}, PRODUCTION, "anisora", id="image"),
        pytest.param({"input_reference": ImageFile(PNG)}, TINY, "anisora", id="one-takes-images"),
        pytest.param({}, TINY, None, id="two-take-text"),
    ],
)
def test_without_a_model_the_only_one_that_can_do_it(
    sent: Mapping[str, Any], running: Catalog, model: str | None
) -> None:
    body = {"prompt": "x", **sent}
    if model is None:
        with pytest.raises(InvalidRequest) as refusal:
            accepted(body, running)
        assert [error.message for error in refusal.value.errors] == ['model: missing; expected ["anisora", "phr00t"]']
    else:
        assert accepted(body, running).model == model


REFUSED = [
    pytest.param(
        PHR00T | {"size": "1280x720"},
        ["size: width: expected 32 to 256, got 1280", "size: height: expected 32 to 256, got 720"],
        id="size-out-of-range",
    ),
    pytest.param(PHR00T | {"size": "97x64"}, ["size: width: expected a multiple of 16, got 97"], id="off-the-grid"),
    pytest.param(PHR00T | {"size": "720p"}, ['size: expected WIDTHxHEIGHT, as in 832x480, got "720p"'], id="no-size"),
    pytest.param(
        PHR00T | {"size": "96x64", "width": 128},
        ["width: size gives another value; send only one of them"],
        id="size-and-width",
    ),
    pytest.param(
        ANISORA | {"input_reference": ImageFile(PNG), "image_reference": {"image_url": data_uri(PNG)}},
        ["image_reference: input_reference gives an image already; send only one of them"],
        id="two-images",
    ),
    pytest.param(
        PHR00T | {"seconds": "12"},
        ["seconds: expected 0.25 to 5 (5 to 81 frames at 16 a second), got 12"],
        id="too-long",
    ),
    pytest.param(
        PHR00T | {"seconds": "long"}, ['seconds: expected a number of seconds, as in 4, got "long"'], id="word"
    ),
    pytest.param(PHR00T | {"seconds": True}, ["seconds: expected a number of seconds, as in 4, got true"], id="bool"),
    pytest.param(
        PHR00T | {"size": "256x256", "seconds": "5"},
        [
            "seconds: width x height x num_frames: expected at most 5046272, got 256 x 256 x 81 = 5308416; send at "
            "most 77 frames of 256 x 256, or a smaller width or height"
        ],
        id="too-large-as-a-whole",
    ),
    pytest.param(PHR00T | {"num_frames": 6}, ["num_frames: expected 4 k + 1, got 6"], id="frames-off-the-grid"),
    pytest.param(
        PHR00T | {"num_inference_steps": 30, "guidance_scale": 7.5},
        ["num_inference_steps: expected 4, got 30", "guidance_scale: expected 1.0, got 7.5"],
        id="fixed",
    ),
    pytest.param(
        PHR00T | {"input_reference": ImageFile(PNG)},
        ["input_reference: this model takes text only; leave the field out"],
        id="no-image-here",
    ),
    pytest.param(
        ANISORA | {"input_reference": ImageFile(b"GIF89a")},
        ["input_reference: neither PNG, JPEG nor WebP, judging by its first bytes"],
        id="no-picture",
    ),
    pytest.param(
        ANISORA | {"input_reference": {"file_id": 1}},
        ['input_reference: expected a file, {"image_url": \u2026} or {"file_id": \u2026}, got "object"'],
        id="file-id",
    ),
    pytest.param(
        PHR00T | {"seed": "7", "flow_shift": 3, "lora": {}},
        [
            'seed: expected integer, got "7"',
            *(f"{name}: no such field; the fields are {', '.join(FIELDS)}" for name in ("flow_shift", "lora")),
        ],
        id="unknown",
    ),
    pytest.param(PHR00T | {"user": 7}, ["user: expected string, got 7"], id="user"),
    pytest.param(
        {"model": "phr00t", "seconds": "x"},
        [
            "prompt: missing; expected string of 1 to 2000 characters",
            'seconds: expected a number of seconds, as in 4, got "x"',
        ],
        id="no-prompt",
    ),
    pytest.param({"model": 7}, ["model: expected string, got 7", "prompt: missing; expected string"], id="no-name"),
]


@pytest.mark.parametrize(("sent", "messages"), REFUSED)
def test_every_refusal_names_the_field_that_was_sent(sent: Mapping[str, Any], messages: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        accepted(sent, TINY)
    assert [error.message for error in refusal.value.errors] == messages
    for error, message in zip(refusal.value.errors, messages, strict=True):
        assert message.startswith(error.pointer.removeprefix("/"))


def test_every_field_of_a_generation_can_be_said() -> None:
    named_otherwise = {"steps": "num_inference_steps", "cfg": "guidance_scale", "image": "input_reference"}
    assert {named_otherwise.get(name, name) for name in GENERATION_FIELDS} <= set(FIELDS)


def test_a_model_that_needs_an_image_says_so_by_the_clients_name() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        accepted(ANISORA, PRODUCTION)
    [error] = refusal.value.errors
    assert (error.pointer, error.code) == ("/input_reference", "image_required")


def test_an_image_that_is_somewhere_else() -> None:
    """An address to be fetched, or the reference of an upload; what is wrong with it is said by the client's name."""
    by_address = accepted(ANISORA | {"input_reference": {"image_url": "https://a.example/fox.png"}}, TINY)
    assert by_address.image_source == ImageByAddress("https://a.example/fox.png")
    uploaded = accepted(ANISORA | {"input_reference": {"file_id": "img_1"}}, TINY)
    assert uploaded.image_source == ImageByReference("img_1")
    gone = as_named(FieldError(pointer="/image/ref", code="image_not_found", message="image/ref: gone"))
    assert (gone.pointer, gone.message) == ("/input_reference/file_id", "input_reference/file_id: gone")


def test_an_unknown_model_is_told_apart() -> None:
    with pytest.raises(UnknownModel, match=r'no model has the name "sora-2"; the models are anisora, phr00t'):
        accepted({"model": "sora-2", "prompt": "x", "size": "?"}, TINY)


@pytest.mark.parametrize(
    ("seconds", "fps", "step", "offset", "frames"),
    [
        (4, 16, 4, 1, 65),
        (5, 16, 4, 1, 81),
        (4, 24, 4, 1, 97),
        (4, 16, 8, 1, 65),
        (3.75, 16, 8, 1, 65),  # 60 frames behind the first: as near to 57 as to 65
        (3.7, 16, 8, 1, 57),
        (4, 16, 4, 0, 64),
        (0, 16, 4, 1, 1),
    ],
)
def test_frames_of(seconds: float, fps: int, step: int, offset: int, frames: int) -> None:
    assert frames_of(seconds, fps=fps, step=step, offset=offset) == frames


class FormPart(Struct, frozen=True):
    name: str
    content: bytes
    is_file: bool = False


def part(name: str, value: str) -> FormPart:
    return FormPart(name, value.encode())


def fields_of(parts: list[FormPart]) -> dict[str, Any]:
    form = VideoFormFields()
    for each in parts:
        if each.is_file:
            form.add_image(each.name, each.content, "application/octet-stream")
        else:
            form.add_text(each.name, each.content)
    return form.values


@pytest.mark.parametrize(
    ("parts", "fields"),
    [
        pytest.param([part("prompt", "8"), part("seed", "7")], {"prompt": "8", "seed": 7}, id="text-and-integer"),
        pytest.param([part("keep_s", "90")], {"keep_s": 90}, id="keep"),
        pytest.param([part("guidance_scale", "2.5")], {"guidance_scale": 2.5}, id="number"),
        pytest.param([part("seed", "7.5"), part("fps", "")], {"seed": "7.5"}, id="no-integer-and-nothing"),
        pytest.param([part("seconds", "4"), part("size", "96x64")], {"seconds": "4", "size": "96x64"}, id="texts"),
        pytest.param(
            [part("webhook[url]", "https://a.example"), part("webhook[events][]", "task.done")],
            {"webhook": {"url": "https://a.example", "events": ["task.done"]}},
            id="nested",
        ),
        pytest.param(
            [part("labels[project]", "spring"), part("labels[a.b]", "1")],
            {"labels": {"project": "spring", "a.b": "1"}},
            id="labels",
        ),
        pytest.param(
            [part("input_reference[image_url]", "data:")], {"input_reference": {"image_url": "data:"}}, id="url"
        ),
        pytest.param([FormPart("input_reference", PNG, True)], {"input_reference": ImageFile(PNG)}, id="file"),
        pytest.param([FormPart("input_reference", b"", True)], {}, id="no-file-chosen"),
    ],
)
def test_a_form_as_fields(parts: list[FormPart], fields: Mapping[str, Any]) -> None:
    assert fields_of(parts) == fields


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([part("prompt", "a"), part("prompt", "b")], "appears twice"),
        ([FormPart("prompt", b"\xff")], "not valid UTF-8 at byte 0"),
        ([FormPart("image", PNG)], "; a file is sent in the field 'input_reference'"),
        ([part("a[b][c]", "x")], "none of a field"),
        ([part("webhook", "x"), part("webhook[url]", "x")], "appears twice"),
    ],
)
def test_a_form_that_cannot_be_read(parts: list[FormPart], words: str) -> None:
    with pytest.raises(MalformedBody, match=words):
        fields_of(parts)


def test_an_image_in_a_form_is_the_image_of_the_request() -> None:
    fields = fields_of([part("model", "anisora"), part("prompt", "x"), FormPart("input_reference", PNG, True)])
    assert accepted(fields, TINY).image_content == PNG
