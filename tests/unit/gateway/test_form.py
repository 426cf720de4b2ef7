"""Forms as they stream: the same whatever the pieces, and no more of one in memory than a request may hold."""

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.generation.images import ImageFile
from gateway.http.form import FormReader
from gateway.http.problems import ProblemError
from tests.kit.samples import picture

PNG = picture("PNG")
TYPE = "multipart/form-data; boundary=b"
FILE = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n'
TEXT = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n--b is no end\r\n'
WHOLE = TEXT + FILE + PNG + b"\r\n--b--\r\n"
IMAGE_MAX = 1_000_000
PIECE = 64 * 1024


def reader(content_type: str = TYPE, *, text_max: int = 1_000) -> FormReader:
    return FormReader(content_type, image_max_bytes=IMAGE_MAX, text_max_bytes=text_max)


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_pieces_make_no_difference(cuts: list[int]) -> None:
    form = reader()
    places = [0, *sorted(cuts), len(WHOLE)]
    for first, last in pairwise(places):
        form.feed(WHOLE[first:last])
    assert form.fields() == {"prompt": "--b is no end", "image": ImageFile(PNG, "image/png")}


@pytest.mark.parametrize("head", [FILE, TEXT], ids=["file", "text"])
def test_what_is_too_large_is_not_kept(head: bytes) -> None:
    form = reader()
    tracemalloc.start()
    form.feed(head)
    piece = b"x" * PIECE
    for _ in range(400):  # 26 MB
        form.feed(piece)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    form.feed(b"\r\n--b--\r\n")
    assert most < IMAGE_MAX * 2.5 + 8 * PIECE  # a buffer that grows is copied
    if head is TEXT:
        with pytest.raises(ProblemError, match="body_too_large"):
            form.fields()
    else:
        image = form.fields()["image"]
        assert len(image.content) == IMAGE_MAX + 1  # by which it is known to be too large


def test_headers_without_end_are_refused_and_not_kept() -> None:
    form = reader()
    form.feed(b"--b\r\nX-Filler: ")
    for _ in range(100):
        form.feed(b"x" * PIECE)
    with pytest.raises(ProblemError, match="header length exceeded"):
        form.fields()


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=", "multipart/form-data; boundary=\u20ac"])
def test_a_boundary_that_is_none(content_type: str) -> None:
    form = reader(content_type)
    form.feed(WHOLE)
    with pytest.raises(ProblemError, match="malformed_body"):
        form.fields()
