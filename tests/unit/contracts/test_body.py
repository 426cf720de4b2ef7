"""Bodies that are not a request at all (400), and how much of a body is not its image."""

import codecs
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.fields import TextField
from contracts.generation.body import (
    BESIDE_IMAGE_BYTES,
    NESTING_MAX,
    MalformedBody,
    beside_image_bytes,
    beside_image_max_bytes,
    parse_body,
)
from contracts.generation.request import validate
from tests.kit.samples import catalog

SECRET = "zebra7319"
TEXT = st.characters(exclude_categories=["Cs"])  # not a lone surrogate: UTF-8 cannot hold it


# Bodies that are no request at all: 400


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"{'model': 'anisora'}", id="single-quotes"),
        pytest.param(b'{"model": "anisora",}', id="trailing-comma"),
        pytest.param(b'{"model": "anisora"} {}', id="two-values"),
        pytest.param(b"[]", id="array"),
        pytest.param(b'"anisora"', id="text"),
        pytest.param(b"null", id="null"),
        pytest.param(b"7", id="number"),
        pytest.param('{"model": "anisora"}'.encode("utf-16"), id="utf-16"),
        pytest.param(b'{"prompt": "\xff"}', id="bad-utf-8"),
        pytest.param(b'{"prompt": "\xed\xa0\x80"}', id="surrogate-in-utf-8"),
        pytest.param(b'{"prompt": "\\ud800"}', id="lone-high-surrogate"),
        pytest.param(b'{"prompt": "\\udc00 a"}', id="lone-low-surrogate"),
        pytest.param(b'{"\\ud800": 1}', id="lone-surrogate-in-a-key"),
        pytest.param(b'{"a": ["\\ud800"]}', id="lone-surrogate-deeper"),
        pytest.param(b'{"prompt": "a\nb"}', id="raw-control-character"),
        pytest.param(b'{"cfg": NaN}', id="nan"),
        pytest.param(b'{"cfg": Infinity}', id="infinity"),
        pytest.param(b'{"cfg": -Infinity}', id="minus-infinity"),
        pytest.param(b'{"seed": ' + b"9" * 5000 + b"}", id="5000-digits"),
        pytest.param(b'{"seed": 1, "seed": 1}', id="duplicate-key"),
        pytest.param(b'{"seed": 1, "\\u0073eed": 2}', id="duplicate-key-escaped"),
        pytest.param(b'{"a": {"b": 1, "b": 2}}', id="duplicate-key-deeper"),
        pytest.param(b'{"a":' + b"[" * NESTING_MAX + b"]" * NESTING_MAX + b"}", id="nested-too-deeply"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="nested-100000-deep"),
    ],
)
def test_malformed_bodies(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        parse_body(body)


def test_nesting_up_to_the_limit_is_a_wrong_field_and_not_a_malformed_body() -> None:
    deepest = b'{"a":' + b"[" * (NESTING_MAX - 1) + b"]" * (NESTING_MAX - 1) + b"}"
    assert list(parse_body(deepest)) == ["a"]


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert parse_body(b'{"prompt": "\\ud83e\\udd8a"}') == {"prompt": "\U0001f98a"}


def test_the_message_about_a_malformed_body_repeats_nothing_of_it() -> None:
    with pytest.raises(MalformedBody) as refusal:
        parse_body(f'{{"prompt": "{SECRET}'.encode())
    assert SECRET not in str(refusal.value)


# What of a body is not its image


@pytest.mark.parametrize(
    ("body", "left_out"),
    [
        (b'{"prompt": "a fox"}', 0),
        (b'{"image": "AAAA"}', 4),
        (b'{"prompt": "a fox", "image"\n:\t"AAAA", "seed": 1}', 4),
        (b'{"prompt": "\\"image\\": \\"AAAA\\""}', 0),  # quoted in a text: no image
        (b'{"a": [{"image": "AAAA"}], "image": "AAAAAAAA"}', 4),  # of two images, the first is left out
        (b'{"image": "AAAA', 4),  # not JSON; its parser stops there too
        (b'{"image": [1, 1, 1, 1]}', 0),
        (b'{"image": "AA\\"AA"}', 3),  # an escaped quote ends it: no data URI has one
        (b"", 0),
    ],
)
def test_the_bytes_beside_the_image_are_counted(body: bytes, left_out: int) -> None:
    assert beside_image_bytes(body) == len(body) - left_out


@given(st.text(TEXT), st.text("ABCabc+/=,:;", max_size=99), st.booleans())
def test_an_image_is_never_counted_however_it_is_written(prompt: str, image: str, ascii_only: bool) -> None:
    written = json.dumps({"prompt": prompt, "image": image, "seed": 1}, ensure_ascii=ascii_only).encode()
    without = json.dumps({"prompt": prompt, "image": "", "seed": 1}, ensure_ascii=ascii_only).encode()
    assert beside_image_bytes(written) == len(without)


def test_the_longest_texts_that_the_settings_allow_fit() -> None:
    running = catalog()
    assert beside_image_max_bytes(running) == BESIDE_IMAGE_BYTES
    longer = msgspec.structs.replace(running.models["phr00t"].constraints, prompt=TextField(1, 100_000))
    entry = msgspec.structs.replace(running.models["phr00t"], constraints=longer)
    running = msgspec.structs.replace(running, models={"phr00t": entry})
    body = {name: getattr(longer, name).value_when_absent for name in ("width", "height", "num_frames", "fps")}
    texts = {"prompt": "\U0001f98a" * 100_000, "negative_prompt": "\U0001f98a" * 2_000}
    written = json.dumps(body | texts | {"model": "phr00t"}).encode()
    assert beside_image_bytes(written) <= beside_image_max_bytes(running)
    assert validate(parse_body(written), running).prompt == texts["prompt"]


def test_a_byte_order_mark_is_ignored() -> None:
    body = json.dumps({"model": "phr00t", "prompt": "a fox"}).encode()
    assert parse_body(codecs.BOM_UTF8 + body) == parse_body(body)
    with pytest.raises(MalformedBody):
        parse_body(2 * codecs.BOM_UTF8 + body)
