"""Images that lie or that are made to hurt: what the gateway sees without decoding, and what the child decodes.

Both are given the same bytes. Whatever an image is, the one answer of the child is an RGB picture of the size that the
task asks for, or `BadInput`; and it is decoded within bounds of memory that its header set.
"""

import base64
import hashlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from PIL import Image

from contracts.generation.errors import InvalidRequest
from contracts.generation.request import validate
from contracts.tasks import ImageReference
from lane_worker.pipelines.inputs import MAX_PIXELS, BadInput, read_image
from tests.kit.hostile_images import (
    BIG,
    NO_TIFF,
    SIZE,
    animated,
    bad_rational,
    chunk,
    deep_grey,
    in_jpeg,
    in_png,
    in_webp,
    junk_before_the_frame,
    photo,
    png,
    text_bomb,
    transparent_palette,
    turned,
    webp_in_canvas,
    with_size,
)
from tests.kit.samples import catalog, data_uri, picture

BOMB_BYTES: Final = 150_000_000


def accepted(content: bytes, declared: str) -> ImageReference | None:
    """What the gateway keeps of an image that it accepts."""
    try:
        image = validate({"model": "anisora", "prompt": "x", "image": data_uri(content, declared)}, catalog()).image
    except InvalidRequest as refusal:
        return None if [error.code for error in refusal.errors] == ["bad_image"] else pytest.fail(str(refusal))
    assert image is not None
    return image


def decoded(content: bytes, reference: ImageReference, folder: Path) -> Image.Image | None:
    """What the child makes of it; None for BadInput."""
    path = folder / "image"
    path.write_bytes(content)
    try:
        image = read_image(path, reference, width=64, height=32)
    except BadInput as refusal:
        return None if len(str(refusal)) < 200 else pytest.fail("it repeats too much")
    assert (image.size, image.mode) == ((64, 32), "RGB")
    return image


PNG, JPEG, WEBP = picture("PNG", SIZE), picture("JPEG", SIZE), picture("WEBP", SIZE)
REFUSED = {
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1/'/></svg>", "image/svg+xml"),
    "svg-as-png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png"),
    "gif": (picture("GIF", SIZE), "image/gif"),
    "gif-as-png": (picture("GIF", SIZE), "image/png"),
    "tiff": (picture("TIFF", SIZE), "image/tiff"),
    "bmp-as-jpeg": (picture("BMP", SIZE), "image/jpeg"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/png"),
    "jpeg-as-png": (JPEG, "image/png"),
    "png-as-webp": (PNG, "image/webp"),
    "png-of-a-billion-pixels": (with_size(PNG, 16, ">II", 40_000, 40_000), "image/png"),
    "jpeg-of-a-billion-pixels": (with_size(JPEG, JPEG.index(b"\xff\xc0") + 5, ">HH", 65_500, 65_500), "image/jpeg"),
    "webp-canvas-of-a-billion-pixels": (webp_in_canvas(WEBP, 1 << 15, 1 << 15), "image/webp"),
    "header-only": (PNG[:20], "image/png"),
    "png-cut": (PNG[:-30], "image/png"),
    "webp-cut": (WEBP[:-10], "image/webp"),
    "png-of-a-colour-type-that-nobody-knows": (PNG[:25] + b"\5" + PNG[26:], "image/png"),
    "jpeg-of-12-bits": (JPEG.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), "image/jpeg"),
    "png-of-a-million-chunks": (PNG[:33] + chunk(b"IDAT", b"") * 700_000, "image/png"),
    "jpeg-of-a-million-segments": (JPEG[:2] + b"\xff\xe0\0\2" * 1_000_000 + JPEG[2:], "image/jpeg"),
    "jpeg-of-fill-bytes": (JPEG[:2] + b"\xff" * 4_000_000 + b"\0", "image/jpeg"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_gateway(name: str) -> None:
    assert accepted(*REFUSED[name]) is None


UNDECODABLE = {
    "jpeg-cut": (JPEG[: len(JPEG) // 2], "image/jpeg"),
    "png-wider-than-its-data": (with_size(PNG, 16, ">II", 66, 42), "image/png"),
    "png-of-noise": (png(8, 8, b"")[:-20] + b"noise" * 9, "image/png"),
    "png-of-no-rows": (png(8, 8, b""), "image/png"),
    "webp-canvas-smaller-than-its-frame": (webp_in_canvas(WEBP, 8, 8), "image/webp"),
    "webp-canvas-larger-than-its-frame": (webp_in_canvas(WEBP, 300, 300), "image/webp"),
}


@pytest.mark.parametrize("name", UNDECODABLE)
def test_accepted_by_its_header_and_refused_by_the_child(name: str, tmp_path: Path) -> None:
    content, declared = UNDECODABLE[name]
    reference = accepted(content, declared)
    assert reference is not None
    assert decoded(content, reference, tmp_path) is None


DECODABLE = {
    "animated-png": (animated("PNG"), "image/png"),
    "animated-webp": (animated("WEBP"), "image/webp"),
    "16-bit": (deep_grey(), "image/png"),
    "palette-with-transparency": (transparent_palette(), "image/png"),
    "grey-with-alpha": (picture("PNG", SIZE, mode="LA"), "image/png"),
    "one-bit": (picture("PNG", SIZE, mode="1"), "image/png"),
    "cmyk": (picture("JPEG", SIZE, mode="CMYK"), "image/jpeg"),
    "turned-by-exif": (turned(), "image/jpeg"),
    "one-row": (png(4_096, 1, b"\0" + b"\7" * 3 * 4_096), "image/png"),
    "more-behind-the-end": (PNG + b"<?php" * 999, "image/png"),
    "profile": (picture("PNG", SIZE, icc_profile=b"x" * 9_999), "image/png"),
}


@pytest.mark.parametrize("name", DECODABLE)
def test_unusual_but_fine(name: str, tmp_path: Path) -> None:
    content, declared = DECODABLE[name]
    reference = accepted(content, declared)
    assert reference is not None
    image = decoded(content, reference, tmp_path)
    assert image is not None
    left, right = (image.getpixel((x, 16)) for x in (4, 59))
    if name == "16-bit":
        assert left == (0, 0, 0)
        assert all(abs(band - 128) <= 2 for band in right)  # type: ignore[union-attr]  # of an RGB image
    if name == "palette-with-transparency":
        assert left == right == (200, 30, 30)
    if name.startswith("animated"):
        assert all(band < 10 for band in left)  # type: ignore[union-attr]  # the first frame
    if name == "turned-by-exif":
        top, bottom = (image.getpixel((32, y)) for y in (2, 29))
        assert top[2] > 200  # type: ignore[index]
        assert bottom[0] > 200  # type: ignore[index]


BROKEN_BESIDE: dict[str, tuple[bytes | Callable[[], bytes], str, int]] = {
    "jpeg-exif-rational": (in_jpeg(bad_rational(6)), "JPEG", 6),
    "png-exif-rational": (in_png(b"eXIf", bad_rational(8)), "PNG", 8),
    "webp-exif-rational": (in_webp(b"EXIF", bad_rational(3), flag=8), "WEBP", 3),
    "jpeg-exif-no-tiff": (in_jpeg(NO_TIFF), "JPEG", 1),
    "png-exif-no-tiff": (in_png(b"eXIf", NO_TIFF), "PNG", 1),
    "webp-exif-no-tiff": (in_webp(b"EXIF", NO_TIFF, flag=8), "WEBP", 1),
    "png-large-profile": (in_png(b"iCCP", BIG), "PNG", 1),
    "png-large-text": (in_png(b"zTXt", BIG), "PNG", 1),
    "png-text-bomb": (text_bomb, "PNG", 1),
    "png-profile-of-noise": (in_png(b"iCCP", b"noise" * 9), "PNG", 1),
    "png-animation-of-noise": (in_png(b"acTL", b"noise"), "PNG", 1),
    "png-without-end": (photo("PNG")[:-12], "PNG", 1),
    "png-checksum-of-a-text": (in_png(b"tEXt", b"k\0text").replace(b"k\0text", b"k\0TEXT"), "PNG", 1),
    "webp-cut-behind-the-picture": (in_webp(b"XMP ", b"x" * 999, flag=4)[:-500], "WEBP", 1),
    "webp-of-a-wrong-length": (b"RIFF\xff\xff\xff\x7f" + photo("WEBP", lossless=True)[8:], "WEBP", 1),
    "jpeg-without-end": (photo("JPEG")[:-2], "JPEG", 1),
    "jpeg-with-half-an-end": (photo("JPEG")[:-1], "JPEG", 1),
    "jpeg-progressive-without-end": (photo("JPEG", progressive=True)[:-2], "JPEG", 1),
    "jpeg-stray-bytes": (junk_before_the_frame(photo("JPEG")), "JPEG", 1),
}


@pytest.mark.parametrize("name", BROKEN_BESIDE)
def test_damage_outside_the_picture_is_ignored(name: str, tmp_path: Path) -> None:
    made, kind, orientation = BROKEN_BESIDE[name]
    content = made() if callable(made) else made
    declared = f"image/{kind.lower()}"
    reference = accepted(content, declared)
    assert reference is not None
    shown = decoded(content, reference, tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    good = photo(kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    if "progressive" in name:
        good = photo(kind, progressive=True)
    good_reference = accepted(good, declared)
    assert good_reference is not None
    expected = decoded(good, good_reference, tmp_path)
    assert shown is not None
    assert expected is not None
    assert shown.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("progressive", [False, True])
def test_an_incomplete_jpeg_is_refused(kept: float, progressive: bool, tmp_path: Path) -> None:
    good = photo("JPEG", progressive=progressive, quality=95)
    begins = good.index(b"\xff\xda")
    content = good[: begins + int((len(good) - begins) * kept)]
    reference = accepted(content, "image/jpeg")
    assert reference is None or decoded(content, reference, tmp_path) is None


@pytest.mark.parametrize(
    "head", ["image/jpg;base64", "image/jpeg;BASE64", "IMAGE/JPEG;base64", "image/jpeg; base64", "image/pjpeg;base64"]
)
@pytest.mark.parametrize("form", ["whole", "wrapped", "unpadded"])
def test_other_spellings_of_a_data_uri(head: str, form: str) -> None:
    body = base64.b64encode(JPEG + b"\0").decode()
    body = {"whole": body, "wrapped": "\r\n".join(textwrap.wrap(body, 76)), "unpadded": body.rstrip("=")}[form]
    found = validate({"model": "anisora", "prompt": "x", "image": f"data:{head},{body}"}, catalog())
    assert found.image_content == JPEG + b"\0"


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "0" * 64},
        {"width": 34},
        {"media_type": "image/jpeg"},
        {"media_type": "image/svg+xml"},
        {"media_type": "application/postscript"},
        {"width": 1 << 20, "height": 1 << 20},
        {"width": -33, "height": -21},
    ],
)
def test_a_forged_reference(changes: dict[str, Any], tmp_path: Path) -> None:
    fields: dict[str, Any] = {"media_type": "image/png", "bytes": len(PNG), "width": SIZE[0], "height": SIZE[1]}
    reference = ImageReference(**({"sha256": hashlib.sha256(PNG).hexdigest()} | fields | changes))
    assert decoded(PNG, reference, tmp_path) is None


URIS = {
    "http": "http://127.0.0.1:9/x.png",
    "https": "https://127.0.0.1/x.png",
    "file": "file:///etc/passwd",
    "ftp": "ftp://127.0.0.1/x.png",
    "path": "/etc/passwd",
    "no-scheme": "//127.0.0.1/x.png",
    "data-in-name-only": "data://127.0.0.1/x.png;base64,AAAA",
    "url-inside": "data:image/png;base64,http://127.0.0.1/x.png",
    "not-base64": "data:image/png,abc",
    "url-safe-base64": "data:image/png;base64,_-__",
    "blank-before": " data:image/png;base64,AAAA",
    "nothing": "data:image/png;base64,",
    "twice": "data:image/png;base64,AAAA,data:image/png;base64,AAAA",
    "nul": "data:image/png\0;base64,AAAA",
}


@pytest.mark.parametrize("name", URIS)
def test_only_data_uris(name: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        validate({"model": "anisora", "prompt": "x", "image": URIS[name]}, catalog())
    assert [(error.pointer, error.code) for error in refusal.value.errors] == [("/image", "bad_image")]


_DECODE: Final = """
import json, sys
from pathlib import Path
from contracts.tasks import ImageReference
from lane_worker.pipelines.inputs import BadInput, read_image
import PIL.PngImagePlugin, PIL.WebPImagePlugin, PIL.JpegImagePlugin

def peak_bytes():  # of this process alone: `ru_maxrss` begins at what its parent had
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before_bytes = peak_bytes()
try:
    read_image(Path(sys.argv[1]), ImageReference(**json.loads(sys.argv[2])), width=64, height=64)
    said = "fine"
except BadInput as error:
    said = "bad input"
print(said, peak_bytes() - before_bytes)
"""


@pytest.mark.parametrize(
    ("size", "expected", "max_bytes"),
    [
        pytest.param((8, 8), "fine", 40_000_000, id="more-data-than-its-size"),
        # 8000 x 8000 pixels of 4 bytes, which MAX_PIXELS allows; the file ends far before them
        pytest.param((8_000, 8_000), "bad input", 4 * MAX_PIXELS + 60_000_000, id="large-and-short"),
        pytest.param((60_000, 60_000), "bad input", 40_000_000, id="too-large"),
    ],
)
def test_what_a_bomb_costs(size: tuple[int, int], expected: str, max_bytes: int, tmp_path: Path) -> None:
    rows = b"\0" * (BOMB_BYTES if size == (8, 8) else 1_000_000)
    content = png(*size, rows)
    path = tmp_path / "bomb"
    path.write_bytes(content)
    reference = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "media_type": "image/png",
        "bytes": len(content),
        "width": size[0],
        "height": size[1],
    }
    command = [sys.executable, "-c", _DECODE, str(path), json.dumps(reference)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert " ".join(printed[:-1]) == expected
    print(f"{size}: {len(content)} bytes of file, {printed[-1]} bytes of memory")
    assert int(printed[-1]) < max_bytes


def test_base64_costs_no_more_than_it_holds() -> None:
    """Refused by its length, before anything of it is decoded."""
    field = catalog().models["anisora"].constraints.image
    body = base64.b64encode(b"x" * (field.max_bytes + 1)).decode()
    with pytest.raises(InvalidRequest, match=f"more than {field.max_bytes} bytes"):
        validate({"model": "anisora", "prompt": "x", "image": f"data:image/png;base64,{body}"}, catalog())


def test_more_pixels_than_the_child_decodes(tmp_path: Path) -> None:
    """Between our limit and that at which Pillow itself would stop."""
    content = png(10_000, 10_000, b"\0" * 1_000)
    (tmp_path / "image").write_bytes(content)
    reference = ImageReference(
        sha256=hashlib.sha256(content).hexdigest(),
        media_type="image/png",
        bytes=len(content),
        width=10_000,
        height=10_000,
    )
    with pytest.raises(BadInput, match=f"more than {MAX_PIXELS} pixels"):
        read_image(tmp_path / "image", reference, width=64, height=32)
