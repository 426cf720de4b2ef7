import base64
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.images import PNG_MAGIC, BadImage, ImageHeader, parse_data_uri, read_header
from tests.kit.samples import data_uri, picture, png_of

SIZE = (33, 21)
FILES = [
    pytest.param("PNG", "image/png", {}, id="png"),
    pytest.param("PNG", "image/png", {"mode": "RGBA"}, id="png-alpha"),
    pytest.param("PNG", "image/png", {"mode": "L"}, id="png-grey"),
    pytest.param("JPEG", "image/jpeg", {}, id="jpeg"),
    pytest.param("JPEG", "image/jpeg", {"progressive": True}, id="jpeg-progressive"),
    pytest.param("JPEG", "image/jpeg", {"exif": b"Exif\0\0" + b"\0" * 3000}, id="jpeg-exif"),
    pytest.param("WEBP", "image/webp", {}, id="webp-lossy"),
    pytest.param("WEBP", "image/webp", {"lossless": True}, id="webp-lossless"),
    pytest.param("WEBP", "image/webp", {"mode": "RGBA"}, id="webp-alpha"),
    pytest.param("WEBP", "image/webp", {"exif": b"Exif\0\0" + b"\0" * 30}, id="webp-extended"),
]


@pytest.mark.parametrize(("kind", "media_type", "options"), FILES)
@pytest.mark.parametrize("size", [SIZE, (1, 1), (1, 300), (640, 2)])
def test_real_files(kind: str, media_type: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    assert read_header(picture(kind, size, **options)) == ImageHeader(media_type, *size)


@pytest.mark.parametrize(("kind", "media_type", "options"), FILES)
def test_a_truncated_file_is_refused_or_read_right(kind: str, media_type: str, options: dict[str, Any]) -> None:
    content = picture(kind, SIZE, **options)
    refused = 0
    for length in range(len(content)):
        try:
            assert read_header(content[:length]) == ImageHeader(media_type, *SIZE)
        except BadImage:
            refused += 1
    assert refused >= 12


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"GIF89a" + b"\0" * 40, id="gif"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="svg"),
        pytest.param(PNG_MAGIC, id="png-magic-only"),
        pytest.param(PNG_MAGIC + struct.pack(">I4sII", 13, b"IDAT", 8, 8), id="png-without-header"),
        pytest.param(png_of(0, 8), id="png-no-width"),
        pytest.param(png_of(8, 0), id="png-no-height"),
        pytest.param(b"\xff\xd8\xff", id="jpeg-magic-only"),
        pytest.param(b"\xff\xd8\xff\xc0\x00\x03\x08\x00\x08", id="jpeg-short-frame"),
        pytest.param(b"\xff\xd8\xff\xe0\x00\x00" + b"\0" * 9, id="jpeg-segment-of-length-0"),
        pytest.param(b"\xff\xd8\xff\xe0\xff\xff" + b"\0" * 9, id="jpeg-segment-beyond-the-end"),
        pytest.param(b"\xff\xd8\xff\xc4\x00\x08\x08\x00\x08\x00\x08\x00\xff\xd9", id="jpeg-huffman-table-is-no-frame"),
        pytest.param(b"\xff\xd8\xff\xc0\x00\x08\x08\x00\x00\x00\x08\x00", id="jpeg-no-height"),
        pytest.param(b"\xff\xd8" + b"\xff" * 500, id="jpeg-fill-bytes-only"),
        pytest.param(b"RIFF\0\0\0\0WEBP", id="webp-magic-only"),
        pytest.param(b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0" + b"\0" * 10, id="webp-without-start-code"),
        pytest.param(b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0" + b"\0" * 10, id="webp-lossless-without-signature"),
        pytest.param(b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0" + b"\0" * 9, id="webp-extended-cut"),
        pytest.param(b"RIFF\0\0\0\0WEBPALPH\0\0\0\0" + b"\0" * 10, id="webp-of-another-kind"),
        pytest.param(b"RIFF\0\0\0\0AVI " + b"\0" * 30, id="riff-but-no-webp"),
    ],
)
def test_refused_files(content: bytes) -> None:
    with pytest.raises(BadImage):
        read_header(content)


def test_a_lossless_webp_needs_no_more_than_its_5_bytes() -> None:
    bits = (33 - 1) | (21 - 1) << 14
    content = b"RIFF\0\0\0\0WEBPVP8L\x05\0\0\0\x2f" + struct.pack("<I", bits)
    assert read_header(content) == ImageHeader("image/webp", 33, 21)


def test_fill_bytes_before_a_jpeg_marker_are_skipped() -> None:
    content = picture("JPEG", SIZE)
    assert read_header(content[:2] + b"\xff" * 7 + content[2:]) == ImageHeader("image/jpeg", *SIZE)


def test_the_header_says_what_it_says_however_large() -> None:
    assert read_header(png_of(2**31 - 1, 2**31 - 1)).width == 2**31 - 1


MAGICS = [PNG_MAGIC, PNG_MAGIC + b"\0\0\0\x0dIHDR", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8 ", b"RIFF\0\0\0\0WEBPVP8L"]


@given(st.builds(lambda magic, rest: magic + rest, st.sampled_from([b"", *MAGICS]), st.binary(max_size=200)))
def test_any_bytes_give_a_header_or_bad_image(content: bytes) -> None:
    try:
        header = read_header(content)
    except BadImage:
        return
    assert header.width >= 1
    assert header.height >= 1


@given(st.text(max_size=100) | st.from_regex(r"data:.{0,20};base64,.{0,50}", fullmatch=True))
def test_any_text_gives_a_content_or_bad_image(text: str) -> None:
    try:
        _, content = parse_data_uri(text, max_bytes=30)
    except BadImage:
        return
    assert len(content) <= 30


@given(st.binary(min_size=1, max_size=100))
def test_a_data_uri_gives_its_content_back(content: bytes) -> None:
    assert parse_data_uri(data_uri(content, "image/webp"), max_bytes=100) == ("image/webp", content)


def test_media_type_and_scheme_ignore_case_and_other_options_are_allowed() -> None:
    assert parse_data_uri("DATA:Image/PNG;name=a.png;base64,AAAA", max_bytes=3) == ("image/png", b"\0\0\0")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AAAA",
        "data:image/png,AAAA",
        "data:image/png;base64",
        "http://example.org/a.png;base64,AAAA",
        "data:image/png;base64,AAAAA",
        "data:image/png;base64,AA!A",
        "data:image/png;base64,ÄÄÄÄ",
    ],
)
def test_refused_data_uris(text: str) -> None:
    with pytest.raises(BadImage):
        parse_data_uri(text, max_bytes=100)


@pytest.mark.parametrize("max_bytes", range(1, 10))
def test_the_limit_is_exact(max_bytes: int) -> None:
    assert parse_data_uri(data_uri(b"x" * max_bytes), max_bytes=max_bytes)[1] == b"x" * max_bytes
    with pytest.raises(BadImage, match=f"more than {max_bytes} bytes"):
        parse_data_uri(data_uri(b"x" * (max_bytes + 1)), max_bytes=max_bytes)


def test_the_refusal_repeats_nothing_of_the_image() -> None:
    secret = base64.b64encode(b"a face").decode()
    with pytest.raises(BadImage) as refusal:
        parse_data_uri(f"data:image/png;base64,{secret}!", max_bytes=1000)
    assert secret not in str(refusal.value)
