"""The forms in which a request may send its image: each is judged alike, and a request says which one it used."""

from typing import Any

import pytest

from contracts.generation.body import MalformedBody
from contracts.generation.errors import InvalidRequest
from contracts.generation.form import TEXT_FIELDS, FormFields
from contracts.generation.images import ImageByAddress, ImageByReference, ImageFile, widest_limits
from contracts.generation.request import AcceptedRequest, validate, with_image
from tests.kit.samples import catalog, data_uri, picture

CATALOG = catalog()
GOOD = {"model": "anisora", "prompt": "x"}
PNG = picture("PNG")


def errors_of(image: Any, **fields: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        validate(GOOD | fields | {"image": image}, CATALOG)
    return [(error.pointer, error.code) for error in caught.value.errors]


def accepted(image: Any, **fields: Any) -> AcceptedRequest:
    return validate(GOOD | fields | {"image": image}, CATALOG)


@pytest.mark.parametrize("declared", ["", "application/octet-stream", "image/png"])
def test_a_file_is_the_same_request_as_its_data_uri(declared: str) -> None:
    assert accepted(ImageFile(PNG, declared)) == accepted(data_uri(PNG))


@pytest.mark.parametrize("declared", ["image/jpeg", "text/plain", "image/gif"])
def test_a_file_that_is_declared_as_another_is_refused(declared: str) -> None:
    assert errors_of(ImageFile(PNG, declared)) == [("/image", "bad_image")]


def test_a_file_that_is_too_large_is_refused() -> None:
    limits = CATALOG.models["anisora"].constraints.image
    assert errors_of(ImageFile(PNG + b"x" * limits.max_bytes)) == [("/image", "bad_image")]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param({}, [("/image", "one_of")], id="nothing"),
        pytest.param({"ref": "img_1", "url": "https://a.example/"}, [("/image", "one_of")], id="both"),
        pytest.param({"id": "img_1"}, [("/image", "unknown_field")], id="another"),
        pytest.param({"ref": 7}, [("/image/ref", "wrong_type")], id="a-number"),
        pytest.param({"url": None}, [("/image/url", "wrong_type")], id="null"),
        pytest.param({"url": "ftp://a.example/x.png"}, [("/image/url", "bad_url")], id="ftp"),
        pytest.param({"url": "https://user@a.example/x.png"}, [("/image/url", "bad_url")], id="user"),
        pytest.param([], [("/image", "wrong_type")], id="array"),
    ],
)
def test_what_names_no_image(image: Any, expected: list[tuple[str, str]]) -> None:
    assert errors_of(image) == expected


def test_a_model_that_takes_no_image_refuses_every_form() -> None:
    for image in (data_uri(PNG), ImageFile(PNG), {"ref": "img_1"}, {"url": "https://a.example/x.png"}):
        assert errors_of(image, model="phr00t") == [("/image", "image_unsupported")]


def test_an_image_that_is_only_named_is_completed_later() -> None:
    by_ref, by_url = accepted({"ref": "img_1"}), accepted({"url": "https://a.example/x.png"})
    assert by_ref.image_source == ImageByReference("img_1")
    assert by_url.image_source == ImageByAddress("https://a.example/x.png")
    for request in (by_ref, by_url):
        with pytest.raises(ValueError, match="lacks its image"):  # the gateway can make no task of it
            request.parameters(1)
        complete = with_image(request, ImageFile(PNG), CATALOG)
        assert (complete.image, complete.image_content) == (accepted(data_uri(PNG)).image, PNG)
        assert complete.parameters(1).image == complete.image
        # the request is the same, whatever happened to its image
        assert complete.fingerprint == request.fingerprint
    assert len({by_ref.fingerprint, by_url.fingerprint, accepted(data_uri(PNG)).fingerprint}) == 3


@pytest.mark.parametrize(
    ("image", "pointer"), [({"ref": "img_1"}, "/image/ref"), ({"url": "https://a.example/x.png"}, "/image/url")]
)
def test_what_was_named_and_is_no_image_is_refused_where_it_was_named(image: dict[str, str], pointer: str) -> None:
    """The result is the same as for an image that is given up while it is fetched, however much came at once."""
    with pytest.raises(InvalidRequest) as caught:
        with_image(accepted(image), ImageFile(b"GIF89a"), CATALOG)
    [error] = caught.value.errors
    assert (error.pointer, error.code) == (pointer, "bad_image")
    assert error.message.startswith(f"{pointer[1:]}: ")


def test_the_widest_limits_are_those_of_models_that_take_images() -> None:
    widest = widest_limits(CATALOG)
    assert widest is not None
    assert widest.max_bytes == CATALOG.models["anisora"].constraints.image.max_bytes


# Forms


def form(**fields: bytes) -> dict[str, Any]:
    found = FormFields()
    for name, content in fields.items():
        found.add_text(name, content)
    return found.values


def test_a_form_holds_what_a_json_body_would() -> None:
    assert form(
        model=b"anisora", prompt=b"8", steps=b"8", cfg=b"1.5", seed=b"7", webhook=b'{"url": "https://a.example/"}'
    ) == {
        "model": "anisora",
        "prompt": "8",
        "steps": 8,
        "cfg": 1.5,
        "seed": 7,
        "webhook": {"url": "https://a.example/"},
    }
    assert {"model", "prompt", "negative_prompt", "priority"} <= TEXT_FIELDS


@pytest.mark.parametrize("text", ["eight", "", "8, 9", '8, "x": 1', "8}", "[" * 100, "NaN", "{'a': 1}"])
def test_what_is_no_json_is_refused_by_its_type(text: str) -> None:
    values = form(model=b"anisora", prompt=b"x", steps=text.encode())
    assert values["steps"] == text
    with pytest.raises(InvalidRequest) as caught:
        validate(values, CATALOG)
    assert [(error.pointer, error.code) for error in caught.value.errors] == [("/steps", "wrong_type")]


def test_an_image_in_a_form_may_be_named_or_be_text_too() -> None:
    assert form(image=b'{"ref": "img_1"}') == {"image": {"ref": "img_1"}}
    assert form(image=data_uri(PNG).encode()) == {"image": data_uri(PNG)}


def test_a_field_that_stands_twice_is_refused() -> None:
    fields = FormFields()
    fields.add_image("image", PNG, "image/png")
    with pytest.raises(MalformedBody, match="appears twice"):
        fields.add_text("image", b"x")


def test_text_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(MalformedBody, match="not valid UTF-8 at byte 1"):
        form(prompt=b"a\xff")


def test_a_file_of_another_name_is_told_the_name_of_the_image() -> None:
    with pytest.raises(MalformedBody, match=r"the field 'file' .*; a file is sent in the field 'image'"):
        form(file=PNG)


def test_a_form_in_which_no_file_was_chosen_has_no_image() -> None:
    fields = FormFields()
    fields.add_image("image", b"", "application/octet-stream")
    assert fields.values == {}
