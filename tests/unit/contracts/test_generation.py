import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.fields import ImageField, IntegerField, NumberField, TextField, VideoGenerationConstraints
from contracts.generation.body import (
    MalformedBody,
    parse_body,
)
from contracts.generation.errors import FieldError, InvalidRequest
from contracts.generation.request import FIELDS, UNKNOWN_FIELDS_MAX, AcceptedRequest, parameter_errors, validate
from contracts.geometry import most_frames
from contracts.settings import Catalog, ModelEntry
from contracts.tasks import Priority
from tests.kit.samples import catalog, data_uri, picture, png_of

PROFILES = ("tiny", "production")
MODELS = ("anisora", "phr00t")
PNG = data_uri(picture("PNG"))
# of which any width and height are allowed
SMALL_FRAMES = 17
# not a lone surrogate: it cannot stand in UTF-8
TEXT = st.characters(exclude_categories=["Cs"])


def submit(body: Any, running: Catalog | None = None) -> AcceptedRequest:
    """Parses a request from bytes, as the gateway does."""
    return validate(parse_body("".join(json_text(body)).encode()), running or catalog())


def json_text(body: Any) -> Iterator[str]:
    """JSON for *value*. Python writes an infinity in a form that no parser reads; in JSON 1e999 is one."""
    for piece in json.JSONEncoder().iterencode(body):
        # a piece that is a text ends with its quote
        yield piece.replace("Infinity", "1e999") if piece.endswith("Infinity") else piece


def errors_of(body: Any, running: Catalog | None = None) -> list[FieldError]:
    with pytest.raises(InvalidRequest) as refusal:
        submit(body, running)
    return refusal.value.errors


def pointers(errors: list[FieldError]) -> list[str]:
    return [error.pointer for error in errors]


# Valid and wrong values of each field, drawn from its limits


def valid_number(field: IntegerField | NumberField) -> st.SearchStrategy[Any]:
    if field.fixed is not None:
        # to a number field 1 and 1.0 are the same
        return st.sampled_from([field.fixed, int(field.fixed)])
    low, high = field.minimum, field.maximum
    assert low is not None
    assert high is not None
    if isinstance(field, NumberField):
        return st.floats(low, high) | st.integers(math.ceil(low), math.floor(high))
    step = field.step or 1
    first = low + (field.offset - low) % step
    return st.integers(0, (int(high) - int(first)) // step).map(lambda k: first + k * step)


def valid_text(field: TextField) -> st.SearchStrategy[str]:
    short = st.text(TEXT, min_size=field.min_chars, max_size=min(field.max_chars, 40))
    return (short | st.just("x" * field.max_chars)).filter(lambda text: len(text.strip()) >= field.min_chars)


def valid_requests(entry: ModelEntry) -> st.SearchStrategy[dict[str, Any]]:
    limits = entry.constraints
    values: dict[str, st.SearchStrategy[Any]] = {"model": st.sampled_from([entry.name, *entry.aliases])}
    for name in FIELDS[1:]:
        if name == "priority":
            values[name] = st.sampled_from([each.value for each in Priority])
            continue
        field = getattr(limits, name)
        if isinstance(field, ImageField):
            if field.presence != "unsupported":
                values[name] = st.just(PNG)
        else:
            values[name] = valid_text(field) if isinstance(field, TextField) else valid_number(field)
    required = {"model", "prompt"} | ({"image"} if limits.image.presence == "required" else set())
    optional = {name: strategy for name, strategy in values.items() if name not in required}
    drawn = st.fixed_dictionaries({name: values[name] for name in required}, optional=optional)
    return drawn.map(lambda body: body if within(body, limits) else body | {"num_frames": SMALL_FRAMES})


def within(body: Mapping[str, Any], limits: VideoGenerationConstraints) -> bool:
    """Whether the volume is within its limit, which has tests of its own."""
    sides = ("width", "height", "num_frames")
    volume = math.prod(int(body.get(name, getattr(limits, name).default)) for name in sides)
    return volume <= limits.max_volume


NO_NUMBER: st.SearchStrategy[Any] = st.sampled_from([None, True, False, "8", "", [], [8], {}, {"value": 8}])
NO_TEXT: st.SearchStrategy[Any] = st.sampled_from([None, True, 7, 1.5, [], ["text"], {}])


def wrong_number(field: IntegerField | NumberField) -> st.SearchStrategy[Any]:
    if field.fixed is not None:
        others = st.integers() | st.floats(allow_nan=False)
        outside = others.filter(lambda value: value != field.fixed)
        wrong_type = st.just(float(field.fixed)) if isinstance(field, IntegerField) else st.nothing()
        return outside | NO_NUMBER | wrong_type
    low, high = field.minimum, field.maximum
    assert low is not None
    assert high is not None
    outside = st.integers(max_value=math.ceil(low) - 1) | st.integers(min_value=math.floor(high) + 1)
    if isinstance(field, NumberField):
        return outside | st.sampled_from([math.inf, -math.inf]) | NO_NUMBER
    off_step = st.integers(int(low), int(high)).filter(lambda value: (value - field.offset) % (field.step or 1) != 0)
    return outside | NO_NUMBER | st.just(float(low)) | (off_step if field.step else st.nothing())


def wrong_value(name: str, limits: Any) -> st.SearchStrategy[Any]:
    if name == "priority":
        return NO_TEXT | st.sampled_from(["", "urgent", "Standard", " background"])
    field = getattr(limits, name)
    if isinstance(field, TextField):
        wrong = [NO_TEXT, st.integers(1, 100_000).map(lambda more: "x" * (field.max_chars + more))]
        if field.min_chars:
            wrong.append(st.sampled_from(["", " ", "\n\t ", "\u2003"]))
        return st.one_of(wrong)
    if isinstance(field, ImageField):
        if field.presence == "unsupported":
            return NO_TEXT | st.just(PNG)
        return NO_TEXT | st.sampled_from(["", "http://example.org/a.png", data_uri(b"GIF89a"), data_uri(b"")])
    return wrong_number(field)


@st.composite
def models(draw: st.DrawFn) -> tuple[Catalog, ModelEntry]:
    running = catalog(draw(st.sampled_from(PROFILES)))
    return running, running.models[draw(st.sampled_from(MODELS))]


# Properties


@given(st.data())
def test_every_request_within_the_constraints_is_accepted(data: st.DataObject) -> None:
    running, entry = data.draw(models())
    body = data.draw(valid_requests(entry))
    accepted = submit(body, running)
    assert accepted.model == entry.name
    for name in FIELDS[1:]:
        if name == "image":
            assert (accepted.image is None) == (accepted.image_content is None) == ("image" not in body)
        elif name in body:
            assert getattr(accepted, name) == body[name]
        elif name == "priority":
            assert accepted.priority is None
        elif name == "negative_prompt":
            assert accepted.negative_prompt == (
                entry.constraints.negative_prompt.guided_default if accepted.cfg > 1 else ""
            )
        else:
            assert getattr(accepted, name) == getattr(entry.constraints, name).value_when_absent
    assert type(accepted.cfg) is float


@given(st.data())
def test_one_wrong_field_is_refused_with_its_pointer_alone(data: st.DataObject) -> None:
    running, entry = data.draw(models())
    body = data.draw(valid_requests(entry))
    name = data.draw(st.sampled_from(FIELDS[1:]))
    body[name] = data.draw(wrong_value(name, entry.constraints))
    assert pointers(errors_of(body, running)) == [f"/{name}"]


@given(st.data())
def test_all_wrong_fields_are_listed_at_once_in_a_fixed_order(data: st.DataObject) -> None:
    running, entry = data.draw(models())
    body = data.draw(valid_requests(entry))
    wrong = data.draw(st.sets(st.sampled_from(FIELDS[1:]), min_size=1))
    unknown = data.draw(st.sets(st.text(TEXT, max_size=9).filter(lambda name: name not in FIELDS), max_size=5))
    for name in wrong:
        body[name] = data.draw(wrong_value(name, entry.constraints))
    for name in unknown:
        body[name] = data.draw(st.integers())
    errors = errors_of(body, running)
    escaped = ["/" + name.replace("~", "~0").replace("/", "~1") for name in sorted(unknown)]
    assert pointers(errors) == [f"/{name}" for name in FIELDS if name in wrong] + escaped

    shuffled = dict(data.draw(st.permutations(list(body.items()))))
    assert errors_of(shuffled, running) == errors


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(TEXT, max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(TEXT, max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(TEXT, max_size=12), JSON_VALUES))
def test_any_object_is_accepted_or_refused_in_valid_json(body: dict[str, Any]) -> None:
    try:
        submit(body)
    except InvalidRequest as refusal:
        errors = refusal.errors
    else:
        return
    assert errors
    for error in errors:
        answer = json.loads(msgspec.json.encode(error))
        assert answer["message"]
        if error.got is not msgspec.UNSET and error.got is not None:
            assert answer["got"] is not None  # msgspec writes an infinity as null


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_an_object_or_malformed(body: bytes) -> None:
    try:
        parsed = parse_body(body)
    except MalformedBody:
        return
    assert isinstance(parsed, dict)


SECRET = "zebra7319"


@given(st.data())
def test_no_error_repeats_a_prompt_or_an_image(data: st.DataObject) -> None:
    body: dict[str, Any] = {
        "model": data.draw(st.sampled_from([*MODELS, "none", None])),
        "prompt": data.draw(st.sampled_from([SECRET * 12_000, [SECRET], {SECRET: 1}, None, ""])),
        "negative_prompt": data.draw(st.sampled_from([SECRET * 12_000, [SECRET], 7])),
        "image": data.draw(st.sampled_from([SECRET, f"data:image/png;base64,{SECRET}", [SECRET]])),
    }
    errors = errors_of(body, catalog(data.draw(st.sampled_from(PROFILES))))
    assert SECRET.encode() not in msgspec.json.encode(errors)


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


# Fingerprints


@given(st.data())
def test_equal_requests_have_equal_fingerprints_and_different_ones_do_not(data: st.DataObject) -> None:
    running, entry = data.draw(models())
    body = data.draw(valid_requests(entry))
    accepted = submit(body, running)
    spelled_out = {
        **body,
        "model": entry.name,
        **{name: getattr(accepted, name) for name in ("steps", "cfg", "width", "negative_prompt")},
    }
    assert submit(spelled_out, running).fingerprint == accepted.fingerprint
    assert submit({**body, "priority": "background"}, running).fingerprint == accepted.fingerprint
    other = {**body, "prompt": ("y" if body["prompt"][:1] != "y" else "z") + body["prompt"][1:]}
    assert submit(other, running).fingerprint != accepted.fingerprint


def test_another_image_is_another_request() -> None:
    other = data_uri(picture("PNG", (34, 21)))
    assert submit(least(image=PNG)).fingerprint != submit(least(image=other)).fingerprint


# Enforcement `report` (docs/operate/rollback.md)


@given(st.data())
def test_report_drops_the_errors_of_fixed_values_and_nothing_else(data: st.DataObject) -> None:
    running, entry = data.draw(models())
    reporting = catalog(running.profile, enforcement="report")
    body = data.draw(valid_requests(entry))
    for name in data.draw(st.sets(st.sampled_from([*FIELDS[1:], "steps", "cfg"]))):
        body[name] = data.draw(wrong_value(name, entry.constraints))
    if data.draw(st.booleans()):
        body["stesp"] = 8
    try:
        strict = submit(body, running)
    except InvalidRequest as refusal:
        fixed = [error for error in refusal.errors if error.code == "fixed_value"]
        others = [error for error in refusal.errors if error.code != "fixed_value"]
    else:
        assert submit(body, reporting) == strict  # the fingerprint too, and nothing was replaced
        return
    if others:
        assert errors_of(body, reporting) == others
        return
    accepted = submit(body, reporting)
    assert [(each.field, each.used, each.got) for each in accepted.replaced] == [
        (error.pointer[1:], error.expected, error.got) for error in fixed
    ]
    as_it_runs = {name: value for name, value in body.items() if f"/{name}" not in pointers(fixed)}
    assert accepted.parameters(seed=1) == submit(as_it_runs, running).parameters(seed=1)
    assert parameter_errors(accepted.parameters(seed=1), reporting.models[entry.name]) == []


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
