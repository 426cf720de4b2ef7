import hashlib
import json
import math
from typing import Any

import msgspec
import pytest

from contracts.fields import IntegerField, NumberField
from contracts.generation.body import (
    parse_body,
)
from contracts.generation.errors import UNKNOWN_FIELDS_MAX, InvalidRequest
from contracts.generation.request import FIELDS, parameter_errors, validate
from contracts.geometry import most_frames
from tests.kit.requests import MODELS, PNG, PROFILES, errors_of, pointers, submit
from tests.kit.samples import catalog, data_uri, picture, png_of

# The bad inputs of the specification, one by one


def least(chosen: str = "anisora", /, **fields: Any) -> dict[str, Any]:
    return {"model": chosen, "prompt": "a fox", **fields}


@pytest.mark.parametrize(("model", "fixed"), [("anisora", 8), ("phr00t", 4)])
@pytest.mark.parametrize(
    ("steps", "code", "got"),
    [
        pytest.param("7", "fixed_value", 7, id="7"),
        pytest.param("8.0", "wrong_type", 8.0, id="8.0"),
        pytest.param("4.0", "wrong_type", 4.0, id="4.0"),
        pytest.param('"8"', "wrong_type", "8", id="text"),
        pytest.param("true", "wrong_type", True, id="true"),
        pytest.param("null", "wrong_type", None, id="null"),
        pytest.param("1e999", "wrong_type", "number too large", id="1e999"),
        pytest.param("-8", "fixed_value", -8, id="negative"),
        pytest.param("8" * 400, "fixed_value", "integer of more than 63 bits", id="400-digits"),
    ],
)
def test_steps_are_fixed(model: str, fixed: int, steps: str, code: str, got: Any) -> None:
    """FR-004, FR-005, SC-002."""
    body = parse_body(f'{{"model": "{model}", "prompt": "a fox", "steps": {steps}}}'.encode())
    with pytest.raises(InvalidRequest) as refusal:
        validate(body, catalog())
    [error] = refusal.value.errors
    assert (error.pointer, error.code, error.expected) == ("/steps", code, fixed)
    assert error.got == got
    assert type(error.got) is type(got)
    assert ("got" in json.loads(msgspec.json.encode(error))) is True


@pytest.mark.parametrize("cfg", [1, 1.0])
def test_phr00t_takes_cfg_1_in_every_spelling(cfg: float) -> None:
    assert submit(least("phr00t", cfg=cfg)).fingerprint == submit(least("phr00t")).fingerprint


@pytest.mark.parametrize("cfg", [1.1, 0, 2, -1.0, 1.0000001])
def test_phr00t_refuses_any_other_cfg(cfg: float) -> None:
    """FR-006."""
    [error] = errors_of(least("phr00t", cfg=cfg))
    assert (error.pointer, error.code, error.expected, error.got) == ("/cfg", "fixed_value", 1.0, cfg)


@pytest.mark.parametrize("model", MODELS)
def test_a_bare_request_takes_the_fixed_and_default_values(model: str) -> None:
    accepted = submit({"model": model, "prompt": "a fox"})
    limits = catalog().models[model].constraints
    assert (accepted.steps, accepted.cfg, accepted.seed) == (limits.steps.fixed, 1.0, None)
    assert accepted.width == limits.width.default
    assert accepted.parameters(seed=11).seed == 11
    assert submit({"model": model, "prompt": "a fox", "seed": 5}).parameters(seed=11).seed == 5


def test_a_guided_request_without_a_negative_prompt_gets_its_models() -> None:
    """No other request gets it; and for an Idempotency-Key, the two ways to say the same are one request."""
    default = catalog("production").models["anisora"].constraints.negative_prompt.guided_default
    # the text of Wan's authors, at the commit that ADR 0028 names
    sha256 = hashlib.sha256(default.encode()).hexdigest()
    assert sha256 == "ce96e0324e4b54ce4b6e867f669ca520952e1a34cc116543516b1897f0d3c47e"
    absent = submit(least(cfg=1.5))
    assert absent.parameters(seed=1).negative_prompt == default
    assert absent.fingerprint == submit(least(cfg=1.5, negative_prompt=default)).fingerprint
    assert submit(least(cfg=1.5, negative_prompt="")).negative_prompt == ""
    assert submit(least(cfg=1.5, negative_prompt="blurry")).negative_prompt == "blurry"
    assert submit(least()).negative_prompt == submit(least("phr00t")).negative_prompt == ""
    reported = msgspec.structs.replace(catalog().models["anisora"], enforcement="report")
    fixed = msgspec.structs.replace(reported.constraints, cfg=NumberField(fixed=1.0))
    running = msgspec.structs.replace(
        catalog(), models={"anisora": msgspec.structs.replace(reported, constraints=fixed)}
    )
    assert submit(least(cfg=3), running).negative_prompt == ""  # 3 was replaced by 1


@pytest.mark.parametrize("alias", ["phr00t-aio", "rapid-aio"])
def test_an_alias_is_resolved_before_any_other_check(alias: str) -> None:
    assert submit(least(alias)).model == "phr00t"
    assert errors_of(least(alias, steps=8)) == errors_of(least("phr00t", steps=8))


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("prompt", "", "length"),
        ("prompt", " \t\n", "length"),
        ("prompt", "x" * 100_000, "length"),
        ("negative_prompt", "x" * 2001, "length"),
        ("width", 100, "not_a_multiple"),
        ("width", 16, "out_of_range"),
        ("height", 272, "out_of_range"),
        ("num_frames", 16, "not_a_multiple"),
        ("num_frames", 1, "out_of_range"),
        ("num_frames", 85, "out_of_range"),
        ("fps", 0, "out_of_range"),
        ("seed", -1, "out_of_range"),
        ("seed", 2**32, "out_of_range"),
        ("seed", 2**63, "out_of_range"),
        ("seed", 1.0, "wrong_type"),
        ("cfg", 0.9, "out_of_range"),
        ("cfg", 6.1, "out_of_range"),
        ("cfg", 10**400, "out_of_range"),
    ],
)
def test_limits(field: str, value: Any, code: str) -> None:
    [error] = errors_of(least(**{field: value}))
    assert (error.pointer, error.code) == (f"/{field}", code)


# The size as a whole


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("model", MODELS)
def test_each_side_within_its_limit_can_be_too_large_together(profile: str, model: str) -> None:
    running = catalog(profile)
    limits = running.models[model].constraints
    sides = {name: getattr(limits, name).maximum for name in ("width", "height", "num_frames")}
    image = {"image": PNG} if limits.image.presence == "required" else {}
    [error] = errors_of(least(model, **sides, **image), running)
    assert (error.pointer, error.code) == ("/num_frames", "too_large")
    assert (error.expected, error.got) == ({"maximum": limits.max_volume}, math.prod(sides.values()))
    area = sides["width"] * sides["height"]
    fewer = most_frames(limits, area=area)
    assert fewer is not None
    frame = f"{sides['width']} x {sides['height']}"
    assert error.message == (
        f"width x height x num_frames: expected at most {limits.max_volume}, got {frame} x {sides['num_frames']} = "
        f"{error.got}; send at most {fewer} frames of {frame}, or a smaller width or height"
    )
    assert submit(least(model, **sides | {"num_frames": fewer}, **image), running).num_frames == fewer  # as it says


def test_an_absent_side_counts_with_its_default() -> None:
    production = catalog("production")
    [error] = errors_of(least("phr00t", width=1280, height=736), production)
    assert (error.code, error.got) == ("too_large", 1280 * 736 * 81)


def test_a_wrong_side_is_reported_alone_and_a_wrong_volume_in_its_place() -> None:
    large = {"width": 256, "height": 256, "num_frames": 81}
    assert [error.code for error in errors_of(least(**large | {"width": 257}))] == ["out_of_range"]
    errors = errors_of(least(**large, fps=0, negative_prompt=7, zoom=1))
    assert pointers(errors) == ["/negative_prompt", "/num_frames", "/fps", "/zoom"]


def test_where_no_frames_fit_only_smaller_sides_are_advised() -> None:
    running = catalog()
    entry = running.models["phr00t"]
    tight = msgspec.structs.replace(entry.constraints, max_volume=96 * 64 * 17)
    running = msgspec.structs.replace(running, models={"phr00t": msgspec.structs.replace(entry, constraints=tight)})
    [error] = errors_of(least("phr00t", width=256, height=256), running)
    assert error.message.endswith("; send a smaller width or height")


def test_a_fixed_side_counts_where_it_is_put_in_the_place_of_another() -> None:
    running = catalog(enforcement="report")
    entry = running.models["phr00t"]
    fixed = msgspec.structs.replace(entry.constraints, num_frames=IntegerField(fixed=81))
    running = msgspec.structs.replace(running, models={"phr00t": msgspec.structs.replace(entry, constraints=fixed)})
    [error] = errors_of(least("phr00t", width=256, height=256, num_frames=5), running)
    assert (error.code, error.got) == ("too_large", 256 * 256 * 81)
    assert submit(least("phr00t", num_frames=5), running).num_frames == 81


def test_missing_fields_come_without_got() -> None:
    answer = json.loads(msgspec.json.encode(errors_of({})))
    assert [(error["pointer"], error["code"]) for error in answer] == [("/model", "missing"), ("/prompt", "missing")]
    assert all("got" not in error for error in answer)


@pytest.mark.parametrize(("model", "code"), [("sora", "unknown_model"), ("", "unknown_model"), (7, "wrong_type")])
def test_an_unknown_model_is_reported_with_the_known_names(model: Any, code: str) -> None:
    error, *others = errors_of({"model": model, "steps": "8", "stesp": 8, "width": 100})
    assert (error.pointer, error.code) == ("/model", code)
    assert code == "wrong_type" or error.expected == ["anisora", "phr00t"]
    assert pointers(others) == ["/prompt", "/steps", "/stesp"]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("num_inference_steps", "steps"),
        ("guidance_scale", "cfg"),
        ("Prompt", "prompt"),
        ("step", "steps"),
        ("heigth", "height"),
        ("num_frame", "num_frames"),
    ],
)
def test_an_unknown_field_comes_with_a_suggestion(name: str, suggestion: str) -> None:
    [error] = errors_of(least(**{name: 8}))
    assert (error.pointer, error.code, error.expected) == (f"/{name}", "unknown_field", suggestion)
    assert f"did you mean '{suggestion}'?" in error.message


def test_an_unknown_field_without_a_near_match_comes_with_the_known_names() -> None:
    [error] = errors_of(least(**{"~q/": 8}))
    assert (error.pointer, error.expected) == ("/~0q~1", list(FIELDS))


def test_a_flood_of_unknown_fields_is_counted_and_not_listed() -> None:
    errors = errors_of(least(**{f"k{number:05}": 1 for number in range(10_000)}))
    assert pointers(errors) == [*(f"/k{number:05}" for number in range(UNKNOWN_FIELDS_MAX)), ""]
    assert errors[-1].message.startswith(f"{10_000 - UNKNOWN_FIELDS_MAX} more")


def test_a_long_field_name_is_not_repeated() -> None:
    [error] = errors_of(least(**{"steps" * 100_000: 1}))
    assert len(msgspec.json.encode(error)) < 500


# Images


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        pytest.param("fox.png", "not a data URI", id="no-uri"),
        pytest.param(data_uri(b"GIF89a" + b"\0" * 30), "judging by its first bytes", id="wrong-magic"),
        pytest.param(data_uri(picture("JPEG")), "declared as image/png", id="declared-otherwise"),
        pytest.param(data_uri(png_of(4097, 4096)), "more than 16777216 pixels", id="header-over-the-limit"),
        pytest.param(data_uri(png_of(2**31 - 1, 2**31 - 1)), "pixels", id="header-far-over-the-limit"),
        pytest.param(data_uri(b"\0" * 8388609), "more than 8388608 bytes", id="too-many-bytes"),
        pytest.param(data_uri(picture("PNG")) + "!", "base64", id="broken-base64"),
    ],
)
def test_refused_images(image: str, reason: str) -> None:
    [error] = errors_of(least(image=image))
    assert (error.pointer, error.code) == ("/image", "bad_image")
    assert reason in error.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_accepted_image_travels_by_reference(kind: str) -> None:
    content = picture(kind, (33, 21))
    accepted = submit(least(image=data_uri(content, f"image/{kind.lower()}")))
    assert accepted.image is not None
    assert (accepted.image.width, accepted.image.height, accepted.image.bytes) == (33, 21, len(content))
    assert accepted.image_content == content


def test_exactly_the_limit_of_pixels_is_accepted() -> None:
    assert submit(least(image=data_uri(png_of(4096, 4096)))).image is not None


def test_image_required_and_unsupported() -> None:
    production = catalog("production")
    assert [error.code for error in errors_of(least("anisora"), production)] == ["image_required"]
    assert submit(least("anisora", image=PNG), production).image is not None
    assert [error.code for error in errors_of(least("phr00t", image=PNG), production)] == ["image_unsupported"]


def test_another_image_is_another_request() -> None:
    other = data_uri(picture("PNG", (34, 21)))
    assert submit(least(image=PNG)).fingerprint != submit(least(image=other)).fingerprint


@pytest.mark.parametrize(
    ("model", "sent", "replaced"),
    [
        ("anisora", {"steps": 20}, [("steps", 8, 20)]),
        ("anisora", {"steps": -8, "cfg": 2.5}, [("steps", 8, -8)]),  # cfg is free here
        ("phr00t", {"steps": 8}, [("steps", 4, 8)]),
        ("phr00t", {"cfg": 7, "steps": 0}, [("steps", 4, 0), ("cfg", 1.0, 7)]),
        ("phr00t", {"cfg": 1, "steps": 4}, []),
        ("phr00t", {"steps": 10**400}, [("steps", 4, "integer of more than 63 bits")]),
        ("phr00t", {"cfg": math.inf}, [("cfg", 1.0, "number too large")]),  # 1e999
    ],
)
def test_what_report_replaces(model: str, sent: dict[str, Any], replaced: list[tuple[str, float, Any]]) -> None:
    """FR-004..006 hold for what runs."""
    accepted = submit(least(model, **sent), catalog(enforcement="report"))
    assert [(each.field, each.used, each.got) for each in accepted.replaced] == replaced
    assert accepted.steps == {"anisora": 8, "phr00t": 4}[model]
    assert model == "anisora" or accepted.cfg == 1.0


@pytest.mark.parametrize("steps", ["8", 8.0, True, None, [8], {}])
def test_report_accepts_no_value_of_another_type(steps: Any) -> None:
    [error] = errors_of(least(steps=steps), catalog(enforcement="report"))
    assert (error.pointer, error.code) == ("/steps", "wrong_type")


def test_each_model_has_a_switch_of_its_own() -> None:
    mixed = catalog()
    entry = msgspec.structs.replace(mixed.models["anisora"], enforcement="report")
    mixed = msgspec.structs.replace(mixed, models={**mixed.models, "anisora": entry})
    assert submit(least("index-anisora", steps=20), mixed).steps == 8
    assert [error.code for error in errors_of(least("phr00t", steps=20), mixed)] == ["fixed_value"]


def test_a_worker_refuses_a_wrong_fixed_value_whatever_the_enforcement() -> None:
    reporting = catalog(enforcement="report")
    parameters = msgspec.structs.replace(submit(least()).parameters(seed=1), steps=20)
    assert [error.code for error in parameter_errors(parameters, reporting.models["anisora"])] == ["fixed_value"]


def test_bodies_that_ask_for_different_values_have_different_fingerprints() -> None:
    """An Idempotency-Key never leads to a task whose warnings do not match this request."""
    reporting = catalog(enforcement="report")
    values = [1.0, 2, 3, 2.5, -2, 2**63, 10**300, 10**300 + 1, math.inf]
    prints = [submit(least("phr00t", cfg=value), reporting).fingerprint for value in values]
    assert len(set(prints)) == len(values)
    assert prints[0] == submit(least("phr00t")).fingerprint
    assert submit(least("phr00t", cfg=2.0), reporting).fingerprint == prints[1]
    assert submit(least("phr00t", steps=2), reporting).fingerprint not in prints
