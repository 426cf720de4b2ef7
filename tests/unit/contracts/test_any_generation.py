"""Any request against the constraints: what fits is accepted, what does not is refused with its pointers."""

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from contracts.fields import ImageField, IntegerField, NumberField, TextField, VideoGenerationConstraints
from contracts.generation.body import (
    MalformedBody,
    parse_body,
)
from contracts.generation.errors import InvalidRequest
from contracts.generation.labels import KEY_PATTERN, LABELS_MAX, VALUE_PATTERN
from contracts.generation.request import FIELDS, parameter_errors
from contracts.settings import Catalog, ModelEntry
from contracts.tasks import KEEP_MAX_S, KEEP_MIN_S, Priority
from tests.kit.requests import MODELS, PNG, PROFILES, SMALL_FRAMES, errors_of, pointers, submit
from tests.kit.samples import catalog, data_uri

# not a lone surrogate: it cannot stand in UTF-8
TEXT = st.characters(exclude_categories=["Cs"])


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


LABELS = st.dictionaries(
    st.from_regex(re.compile(KEY_PATTERN, re.ASCII), fullmatch=True),
    st.from_regex(re.compile(VALUE_PATTERN, re.ASCII), fullmatch=True),
    max_size=LABELS_MAX,
)


# Hypothesis looks into each new strategy, again and again where each example makes its own.
@cache
def valid_requests(profile: str, model: str) -> st.SearchStrategy[dict[str, Any]]:
    entry = catalog(profile).models[model]
    limits = entry.constraints
    values: dict[str, st.SearchStrategy[Any]] = {"model": st.sampled_from([entry.name, *entry.aliases])}
    for name in FIELDS[1:]:
        if name == "priority":
            values[name] = st.sampled_from([each.value for each in Priority])
            continue
        if name == "webhook":  # its address has tests of its own
            values[name] = st.just({"url": "https://receiver.example/videos"})
            continue
        if name == "labels":
            values[name] = LABELS
            continue
        if name == "keep_s":
            values[name] = st.none() | st.integers(KEEP_MIN_S, KEEP_MAX_S)
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
    if name == "labels":
        return st.sampled_from([7, "a:b", [], {"": "x"}, {"a b": "x"}, {str(n): "x" for n in range(9)}])
    if name == "keep_s":
        return st.sampled_from([True, 60.0, "60", [], {}, KEEP_MIN_S - 1, KEEP_MAX_S + 1])
    if name == "webhook":
        return st.sampled_from(["https://receiver.example/videos", 7, 1.5, True, []])
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
    body = data.draw(valid_requests(running.profile, entry.name))
    accepted = submit(body, running)
    assert accepted.model == entry.name
    for name in FIELDS[1:]:
        if name == "image":
            assert (accepted.image is None) == (accepted.image_content is None) == ("image" not in body)
        elif name == "webhook":
            assert (None if accepted.webhook is None else accepted.webhook.url) == body.get("webhook", {}).get("url")
        elif name in body:
            assert getattr(accepted, name) == body[name]
        elif name in ("priority", "keep_s"):
            assert getattr(accepted, name) is None
        elif name == "labels":
            assert accepted.labels == {}
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
    body = data.draw(valid_requests(running.profile, entry.name))
    name = data.draw(st.sampled_from(FIELDS[1:]))
    body[name] = data.draw(wrong_value(name, entry.constraints))
    assert pointers(errors_of(body, running)) == [f"/{name}"]


@given(st.data())
def test_all_wrong_fields_are_listed_at_once_in_a_fixed_order(data: st.DataObject) -> None:
    running, entry = data.draw(models())
    body = data.draw(valid_requests(running.profile, entry.name))
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


# Fingerprints


@given(st.data())
def test_equal_requests_have_equal_fingerprints_and_different_ones_do_not(data: st.DataObject) -> None:
    running, entry = data.draw(models())
    body = data.draw(valid_requests(running.profile, entry.name))
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


# Enforcement `report` (docs/operate/rollback.md)


@given(st.data())
def test_report_drops_the_errors_of_fixed_values_and_nothing_else(data: st.DataObject) -> None:
    running, entry = data.draw(models())
    reporting = catalog(running.profile, enforcement="report")
    body = data.draw(valid_requests(running.profile, entry.name))
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
