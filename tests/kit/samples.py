"""Small real things for the unit tests: catalogs and images. Records are in `tests.kit.records`."""

import base64
import io
import struct
from functools import cache
from typing import Any

from msgspec.structs import replace
from PIL import Image

from contracts.fields import Enforcement
from contracts.images import PNG_MAGIC
from contracts.settings import Catalog, load_settings


@cache
def catalog(profile: str = "tiny", *, enforcement: Enforcement = "reject") -> Catalog:
    running = load_settings().catalog(profile)
    models = {name: replace(entry, enforcement=enforcement) for name, entry in running.models.items()}
    return replace(running, models=models)


def picture(kind: str, size: tuple[int, int] = (33, 21), *, mode: str = "RGB", **options: Any) -> bytes:
    content = io.BytesIO()
    image = Image.new(mode, size)
    # not one flat colour, so that every encoder has something to write
    image.putpixel((0, 0), (255,) * len(image.getbands()))
    image.save(content, kind, **options)
    return content.getvalue()


def png_of(width: int, height: int) -> bytes:
    """As much of a PNG as the gateway looks at: a header, and where its data would be."""
    header = struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 2, 0, 0, 0) + b"\0" * 4
    return PNG_MAGIC + header + b"\0\0\0\0IDAT"


def damaged(content: bytes) -> bytes:
    """The PNG *content* with noise for its picture; nothing is missing, so only a decoder notices."""
    begins = content.index(b"IDAT") + 4
    length: int = struct.unpack_from(">I", content, begins - 8)[0]
    return content[:begins] + b"\xff" * length + content[begins + length :]


def data_uri(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
