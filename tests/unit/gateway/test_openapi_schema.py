"""The schema of a request against what the gateway accepts."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openapi_schema_validator import OAS31Validator

from contracts.fields import IntegerField, NumberField, TextField
from contracts.generation.errors import InvalidRequest
from contracts.generation.request import FIELDS, validate
from gateway.http.openapi.request import full_request, least_request, request_body
from gateway.http.openapi.request import request_schema as request_schema_of
from gateway.videos.fields import accepted
from tests.kit.openapi import DOCUMENTS, PROFILES, REPORTING, checker, request_schema
from tests.kit.samples import catalog, data_uri, picture

CATALOGS = {profile: catalog(profile) for profile in PROFILES} | {"reporting": catalog(enforcement="report")}
CHECKERS = {
    name: checker(request_schema(document), document)
    for name, document in (DOCUMENTS | {"reporting": REPORTING}).items()
}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_limit_of_the_size_as_a_whole_is_described(profile: str) -> None:
    for entry, schema in zip(
        catalog(profile).models.values(), request_schema(DOCUMENTS[profile])["oneOf"], strict=True
    ):
        limit = f"width x height x num_frames is at most {entry.constraints.max_volume}; "
        assert f"{limit}more is refused as `too_large`." in schema["description"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("model", ["anisora", "phr00t"])
def test_the_examples_are_accepted(profile: str, model: str) -> None:
    running = catalog(profile)
    for example in (least_request(running.models[model]), full_request(running.models[model])):
        assert validate(example, running).model == model


def near(field: Any) -> st.SearchStrategy[Any]:
    """Values in, at and around the limits of *field*."""
    if isinstance(field, TextField):
        longest = "x" * field.max_chars
        return st.sampled_from(["", " ", "\x1c", "\x85", "a", " a\n", longest, longest + "x"])
    if isinstance(field, IntegerField | NumberField):
        edges = [edge for edge in (field.fixed, field.default, field.minimum, field.maximum) if edge is not None]
        step = field.step or 1
        around = [edge + more for edge in edges for more in (-step, -1, -0.5, 0, 0.5, 1, step)]
        return st.sampled_from(around).map(lambda value: int(value) if isinstance(field, IntegerField) else value)
    return st.nothing()


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    profile = draw(st.sampled_from(sorted(CATALOGS)))
    entry = draw(st.sampled_from(list(CATALOGS[profile].models.values())))
    body = full_request(entry)
    for name in draw(st.sets(st.sampled_from(FIELDS))):
        if draw(st.booleans()):
            body.pop(name, None)
        else:
            odd: st.SearchStrategy[Any] = st.sampled_from([None, True, "8", [], {}, "sora", entry.name, *entry.aliases])
            body[name] = draw(near(getattr(entry.constraints, name, None)) | odd)
    if draw(st.integers(0, 9)) == 0:
        body["num_inference_steps"] = 8
    return profile, body


@given(requests())
def test_the_schema_agrees_with_the_gateway(drawn: tuple[str, dict[str, Any]]) -> None:
    """A request that fits the schema is accepted, and one that does not is refused. A schema knows no products."""
    profile, body = drawn
    try:
        validate(body, CATALOGS[profile])
    except InvalidRequest as refusal:
        refused_for = "; ".join(error.message for error in refusal.errors if error.code != "too_large")
    else:
        refused_for = ""
    assert CHECKERS[profile].is_valid(body) == (not refused_for), refused_for


@pytest.mark.parametrize("prompt", ["", "ab", " ab", "a b", "abc", " abc ", "abcdef", "  a  "])
def test_the_schema_agrees_with_the_gateway_about_short_texts(prompt: str) -> None:
    replace = msgspec.structs.replace
    running = catalog()
    entry = running.models["phr00t"]
    limits = replace(entry.constraints, prompt=TextField(min_chars=3, max_chars=5))
    running = replace(running, models={"phr00t": replace(entry, constraints=limits)})
    body = {"model": "phr00t", "prompt": prompt}
    try:
        validate(body, running)
    except InvalidRequest:
        accepted = False
    else:
        accepted = True
    schema = request_body(running).to_schema()["content"]["application/json"]["schema"]
    assert OAS31Validator(schema).is_valid(body) is accepted


@pytest.mark.parametrize(("minimum", "first"), [(5, 5), (6, 9), (8, 9), (9, 9)])
def test_the_values_of_4_k_plus_1_begin_within_the_limits(minimum: int, first: int) -> None:
    replace = msgspec.structs.replace
    entry = catalog().models["phr00t"]
    frames = replace(entry.constraints.num_frames, minimum=minimum)
    schema = request_schema_of(replace(entry, constraints=replace(entry.constraints, num_frames=frames)))
    assert schema.to_schema()["properties"]["num_frames"]["enum"] == list(range(first, 82, 4))


IMAGE = data_uri(picture("PNG"))
REFERENCE = f"img_{'0' * 32}"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("image", "is_taken"),
    [
        pytest.param({"image_url": IMAGE}, True, id="data-uri"),
        pytest.param({"image_url": "https://a.example/fox.png"}, True, id="address"),
        pytest.param({"file_id": REFERENCE}, True, id="upload"),
        pytest.param({"image_url": {"ref": REFERENCE}}, False, id="reference-of-generate"),
        pytest.param({"image_url": {"url": "https://a.example/fox.png"}}, False, id="address-of-generate"),
        pytest.param({"image_url": "data:image/gif;base64,AAAA"}, False, id="another-type"),
        pytest.param({"image_url": "ftp://a.example/fox.png"}, False, id="another-scheme"),
        pytest.param({"image_url": IMAGE, "file_id": REFERENCE}, False, id="both"),
        pytest.param({"file_id": 7}, False, id="number"),
        pytest.param({"ref": REFERENCE}, False, id="name-of-generate"),
        pytest.param({}, False, id="neither"),
    ],
)
def test_the_schema_agrees_with_the_gateway_about_the_image_of_a_video(
    profile: str, image: dict[str, Any], is_taken: bool
) -> None:
    document = DOCUMENTS[profile]
    content = document["components"]["requestBodies"]["VideoRequest"]["content"]["application/json"]
    body = {"model": "anisora", "prompt": "x", "input_reference": image}
    try:
        accepted(body, CATALOGS[profile])
    except InvalidRequest as refusal:
        refused_for = "; ".join(error.message for error in refusal.errors)
    else:
        refused_for = ""
    assert (not refused_for) == is_taken, refused_for
    assert checker(content["schema"], document).is_valid(body) == is_taken
